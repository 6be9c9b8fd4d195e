"""Compares the rows of a restored copy with what was recorded at the source. Pure."""

from dataclasses import dataclass

from bb_ops.errors import IntegrityError
from bb_ops.findings import Outcome, worst
from bb_ops.invariants import InvariantResults
from bb_ops.postgres.fingerprint import Fingerprints, TableFingerprint

_MOST_NAMED = 5


@dataclass(frozen=True)
class Comparison:
    """What a comparison of two sets of fingerprints says."""

    outcome: Outcome
    evidence: str
    tables: int
    rows: int


def compare_fingerprints(source: Fingerprints | None, restored: Fingerprints) -> Comparison:
    """Compare table by table: equal, different, missing, or not measured on either side.

    A difference fails only where the source's anchor is exact; otherwise writes of the same moment explain it.
    """
    if source is None:
        return Comparison(Outcome.NOT_MEASURED, "no fingerprints were taken at the source", 0, 0)
    ours = {(entry.database, entry.table): entry for entry in restored.tables}
    theirs = {(entry.database, entry.table): entry for entry in source.tables}
    unmeasured = [entry for entry in source.tables if entry.digest is None]
    unmeasured += [entry for key, entry in ours.items() if entry.digest is None and key in theirs]
    different = [entry for entry in source.tables if entry.digest is not None and _differs(entry, ours)]
    seen = {entry.database for entry in (source if source.unseen else restored).tables}
    extra = [entry for key, entry in ours.items() if key not in theirs and entry.database in seen]
    compared = [entry for entry in source.tables if entry.digest is not None]
    rows = sum(entry.rows or 0 for entry in compared)
    counted = f"{len(compared)} tables and {rows} rows compared at {source.anchor_lsn}"
    if (different or extra) and source.exact:
        return Comparison(Outcome.FAIL, f"{counted}; different: {_names([*different, *extra])}", len(compared), rows)
    doubts = []
    if not source.exact:
        doubts.append(f"the source was never quiet, so its snapshot is not exact; {len(different)} tables differ")
    if source.unseen:
        doubts.append(f"not looked at: {'; '.join(source.unseen[:_MOST_NAMED])}")
    if unmeasured:
        doubts.append(f"not measured: {_names(unmeasured)} ({unmeasured[0].reason})")
    if not compared:
        doubts.append("the source has no table to compare")
    if doubts:
        return Comparison(Outcome.NOT_MEASURED, f"{counted}; {'; '.join(doubts)}", len(compared), rows)
    return Comparison(Outcome.PASS, f"{counted}, all equal", len(compared), rows)


def judge_data(comparison: Comparison, invariants: InvariantResults) -> tuple[Outcome, str]:
    """L6: the rows are equal, and every declared invariant holds; the worse of the two answers counts.

    Raises:
        IntegrityError: the rows differ. A violated invariant does not raise: equal rows show it at the source as well.
    """
    said = f"{comparison.evidence}; {invariants.evidence}"
    if comparison.outcome == Outcome.FAIL:
        raise IntegrityError(f"the rows differ from the source's: {said}")
    return worst((comparison.outcome, invariants.outcome)), said


def _differs(entry: TableFingerprint, ours: dict[tuple[str, str], TableFingerprint]) -> bool:
    other = ours.get((entry.database, entry.table))
    return other is None or (other.digest is not None and (other.rows, other.digest) != (entry.rows, entry.digest))


def _names(entries: list[TableFingerprint]) -> str:
    shown = ", ".join(f"{entry.database}/{entry.table}" for entry in entries[:_MOST_NAMED])
    return shown + (f" and {len(entries) - _MOST_NAMED} more" if len(entries) > _MOST_NAMED else "")
