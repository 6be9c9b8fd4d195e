"""Reports of disaster-recovery drills: immutable signed objects in the region that was recovered from."""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from bb_ops.errors import AlreadyExists, IntegrityError
from bb_ops.findings import Outcome, Value
from bb_ops.repository import layout
from bb_ops.repository.ids import SlotKey
from bb_ops.repository.reports import Step
from bb_ops.repository.repository import Repository
from bb_ops.repository.signing import open_document, sign_document

_TREND_OF = 6
"""How many earlier drills the newest one is compared with."""


class DrillStep(Value):
    """One step of a drill, in the order in which they were taken.

    Attributes:
        name: A level of the ladder, or one of ``declared``, ``catalog``, ``archive``, ``plan``, ``key``, ``end`` and
            ``stock_tools``.
        evidence: What was seen, in a few words with figures.
    """

    name: str
    outcome: Outcome
    evidence: str
    started_at: AwareDatetime
    duration_s: float


class DrillReport(Value):
    """What a drill showed: a region was declared dead, and the cluster was brought back from the other one alone.

    Attributes:
        region: The region that was recovered from, and whose repository holds the report.
        dead: The region that was declared dead.
        slot: The month that it counts for, named after its first day.
        declared_at: When the region was declared dead; all of ``rto_s``, ``proven_s`` and ``rpo_s`` begin or end there.
        given: Names of everything in the environment of the process that recovered; never a value.
        identities: The age public keys of the secret keys that it had.
        rpo_s: Seconds of commits that are lost: ``declared_at`` less ``recovered_until_at``.
        recovered_until_at: Everything committed before this instant is in the copy, by the signed records of the WAL,
            or by the backup where no WAL follows it.
        last_transaction_at: When the last transaction that was replayed committed; None where none was replayed. The
            source may have been idle since.
        rto_s: Seconds from ``declared_at`` to a server with everything that answers, less ``compared_s``.
        proven_s: Seconds from ``declared_at`` until the last level up to L6 was answered; None where one did not pass.
        compared_s: How long the copy stood still to be compared with its source, which a recovery need not do.
        ladder: The levels of the proof ladder.
        level: The highest one reached.
        restore_s, replay_s: How long these two parts took by themselves.
        recorded: Whether it is stored beside the backups; elsewhere it is only printed.
    """

    schema_id: Literal["bb-ops/drill/1"] = "bb-ops/drill/1"
    id: str
    region: str
    repository_id: str
    cluster: str
    system_id: str
    dead: str
    slot: SlotKey
    declared_at: AwareDatetime
    ended_at: AwareDatetime
    outcome: Outcome
    steps: tuple[DrillStep, ...]
    given: tuple[str, ...]
    identities: tuple[str, ...]
    backup_id: str | None
    rpo_s: float | None
    recovered_until_at: AwareDatetime | None
    last_transaction_at: AwareDatetime | None
    rto_s: float | None
    proven_s: float | None
    compared_s: float
    ladder: tuple[Step, ...]
    level: str | None
    restore_s: float | None
    restored_bytes: int | None
    replay_s: float | None
    replayed_bytes: int | None
    tables_compared: int
    rows_compared: int
    anchor_lsn: str | None
    host: str
    bb_ops_version: str
    recorded: bool = False

    def outcome_of(self, name: str) -> Outcome:
        """Return a step's outcome; what was never reached is not measured."""
        return next((step.outcome for step in self.steps if step.name == name), Outcome.NOT_MEASURED)

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line; empty where it did."""
        wrong = [step for step in self.steps if step.outcome == Outcome.FAIL]
        wrong += [step for step in self.steps if step.outcome == Outcome.NOT_MEASURED]
        return f"{wrong[0].name} {wrong[0].outcome}: {wrong[0].evidence}" if wrong else ""


class DrillTrend(Value):
    """The newest passed drill beside the median of those before it.

    Attributes:
        drills: How many earlier ones.
        rto_change_s: Positive where recovery has become slower; None where there is nothing to compare.
        rpo_change_s: Positive where more would be lost.
    """

    drills: int
    rto_change_s: float | None
    rpo_change_s: float | None


class DrillHistory(Value):
    """Every drill that was recorded in a region, oldest first."""

    schema_id: Literal["bb-ops/drill-history/1"] = "bb-ops/drill-history/1"
    region: str
    drills: tuple[DrillReport, ...]
    trend: DrillTrend


def record_drill(repository: Repository, report: DrillReport) -> None:
    """Store a report, once. Safe to repeat.

    Raises:
        SettingsError: no signing key is set.
        StoreFailed: the store refuses.
    """
    document = sign_document(report.model_dump(mode="json"), repository.signing_key)
    try:
        repository.store.create(layout.drill_key(repository.cluster, report.id), document)
    except AlreadyExists:
        return


def read_drills(repository: Repository) -> list[DrillReport]:
    """Return all reports of a repository, oldest first; those that were carried here from another one are left out.

    Raises:
        IntegrityError, KeyRejected: one is damaged or forged.
    """
    repository_id = repository.open().repository_id
    prefix = layout.drill_prefix(repository.cluster)
    found = []
    for info in repository.store.objects(prefix):
        data = repository.store.read(info.key)
        if data is None:
            continue
        where = f"{repository.store.url}/{info.key}"
        try:
            report = DrillReport.model_validate(open_document(data, where, repository.public_key))
        except ValidationError as error:
            raise IntegrityError(f"{where} is signed but not a drill's report of a format that we know") from error
        if (info.key, report.repository_id) == (layout.drill_key(repository.cluster, report.id), repository_id):
            found.append(report)
    return sorted(found, key=lambda report: report.declared_at)


def drill_trend(drills: Sequence[DrillReport]) -> DrillTrend:
    """Compare the newest passed drill with those before it. Pure."""
    passed = [one for one in drills if one.outcome == Outcome.PASS]
    before = passed[-_TREND_OF - 1 : -1]

    def change(values: Sequence[float | None]) -> float | None:
        *earlier, newest = values
        known = [value for value in earlier if value is not None]
        return round(newest - median(known), 3) if known and newest is not None else None

    return DrillTrend(
        drills=len(before),
        rto_change_s=change([one.rto_s for one in (*before, *passed[-1:])]) if before else None,
        rpo_change_s=change([one.rpo_s for one in (*before, *passed[-1:])]) if before else None,
    )
