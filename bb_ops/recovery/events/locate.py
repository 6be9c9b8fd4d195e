"""Where in the archived WAL a transaction ended, and where restore points are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bb_ops.errors import NotMeasured
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import Programs, find_programs
from bb_ops.postgres.wal_dump import Record, TransactionEnd, end_of, parse_end, precedes
from bb_ops.progress import Progress
from bb_ops.recovery.events.records import restore_point, running
from bb_ops.recovery.events.wal_path import BATCH_BYTES, Batch, WalPath, batches, wal_path
from bb_ops.recovery.events.wal_scan import ENDS, Scanner, SegmentReader
from bb_ops.recovery.moment.facts import Locate
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository
from bb_ops.repository.windows import WalFacts

_STAGE = "search"
_XID_MASK = 0xFFFF_FFFF


@dataclass(frozen=True)
class Located:
    """One record that a recovery can stop at.

    Attributes:
        lsn: Where the record begins.
        end_lsn: Where it ends.
        at: When the transaction ended; of a restore point, when the last transaction before it did, None where none was
            seen.
        xid: The top-level transaction; None for a restore point.
        name: The restore point's; None for a transaction.
        committed: False where the transaction was aborted: PostgreSQL stops there too.
    """

    timeline: int
    lsn: Lsn
    end_lsn: Lsn
    at: datetime | None
    xid: int | None = None
    name: str | None = None
    committed: bool = True


@dataclass(frozen=True)
class Search:
    """Where to look.

    Attributes:
        facts: What is archived there (``windows.read_facts``).
        programs: Of the major version that wrote the WAL.
        scratch: Where the throw-away directory is made; the temporary directory where it is None.
        timeline: The one whose path is searched; the newest where it is None.
        start: WAL before it does not matter.
        batch_bytes: How much WAL is read before the next decision where to look.
    """

    repository: Repository
    facts: WalFacts
    programs: Programs
    scratch: Path | None
    progress: Progress
    timeline: int | None = None
    start: Lsn | None = None
    batch_bytes: int = BATCH_BYTES

    @property
    def path(self) -> WalPath | None:
        """The segments to search."""
        return wal_path(self.facts, self.timeline, self.start)

    def scanner(self, path: WalPath) -> Scanner:
        """Return what reads them."""
        total = len(path.segments) * path.segment_bytes
        reader = SegmentReader(self.repository, path)
        return Scanner(reader, self.programs, self.scratch, lambda done: self.progress(_STAGE, done, total))


def locate_transaction(search: Search, xid: int) -> Located | None:
    """Find where a transaction ended; None where it did not in the whole archived path.

    Commits are not in the order of their numbers, but the records of running transactions are: one that is not begun
    yet ended later, one that is older than the oldest running ended before. So few batches are read; all, from the
    newest on, where such records are missing.

    Args:
        search: Where to look.
        xid: As ``pg_current_xact_id`` says it, with or without its epoch; a subtransaction's leads to its top level.

    Raises:
        NotMeasured: it was not found, and some WAL could not be looked at; or pg_waldump is missing.
    """
    path, xid = search.path, xid & _XID_MASK
    if path is None:
        return None
    scanner, wanted = search.scanner(path), batches(path, search.batch_bytes)
    low, high = 0, len(wanted)
    undecided: list[Batch] = []
    while low < high:
        middle = (low + high) // 2
        found, later = _look(path, _records(scanner, wanted[middle]), xid)
        if found is not None:
            return found
        if later is None:
            undecided = [*reversed(wanted[middle + 1 : high]), *reversed(wanted[low:middle])]
            break
        if later:
            low = middle + 1
        else:
            high = middle
    for records in scanner.read(undecided, ENDS):
        found, _ = _look(path, records, xid)
        if found is not None:
            return found
    _say_what_is_missing(scanner, f"transaction {xid}")
    return None


def locate_restore_point(search: Search, name: str) -> list[Located]:
    """Find every restore point of a name, in order; a recovery stops at the first behind its backup.

    Raises:
        NotMeasured: none was found, and some WAL could not be looked at; or pg_waldump is missing.
    """
    path = search.path
    if path is None:
        return []
    scanner, last_at = search.scanner(path), None
    found: list[Located] = []
    for records in scanner.read(batches(path, search.batch_bytes), {**ENDS, "XLOG": ("RESTORE_POINT",)}):
        for record in records:
            ended = parse_end(record)
            if ended is not None:
                last_at = ended.at
            elif restore_point(record) == name:
                lsn, end = record.lsn, end_of(record, path.segment_bytes)
                found.append(Located(path.timeline_at(lsn), lsn, end, last_at, name=name))
    if not found:
        _say_what_is_missing(scanner, f"restore point {name!r}")
    return found


def _records(scanner: Scanner, batch: Batch) -> Iterable[Record]:
    for records in scanner.read([batch], {**ENDS, "Standby": ("RUNNING_XACTS",)}):
        yield from records


def _look(path: WalPath, records: Iterable[Record], xid: int) -> tuple[Located | None, bool | None]:
    """Look for a transaction's end in one batch; else say whether it must be later, or earlier; None where unknown."""
    later: bool | None = None
    for record in records:
        ended = parse_end(record)
        if ended is not None and (ended.xid == xid or xid in ended.subtransactions):
            return _located(path, record, ended), None
        now = running(record)
        if now is not None and not precedes(xid, now.following):
            later = True
        elif now is not None and precedes(xid, now.oldest):
            return None, False
    return None, later


def _located(path: WalPath, record: Record, ended: TransactionEnd) -> Located:
    end = end_of(record, path.segment_bytes)
    return Located(path.timeline_at(record.lsn), record.lsn, end, ended.at, xid=ended.xid, committed=ended.committed)


def _say_what_is_missing(scanner: Scanner, what: str) -> None:
    path = scanner.reader.path
    missing = [f"WAL from {hole.start} to {hole.end} is not archived" for hole in path.holes]
    missing += scanner.reader.lost.values()
    if missing:
        raise NotMeasured(f"{what} was not found, and not all WAL could be looked at: {'; '.join(missing)}")


def locator(
    target: RecoveryTarget, directories: Sequence[Path], scratch: Path | None, progress: Progress
) -> Locate | None:
    """Return what finds a target's transaction or restore point in a region's WAL; None for targets that need none."""
    if target.kind not in {TargetKind.XID, TargetKind.NAME}:
        return None

    def find(repository: Repository, facts: WalFacts, backups: Sequence[PhysicalCommit]) -> list[Located]:
        start = min(commit.end_lsn for commit in backups)
        programs = find_programs(backups[-1].server_major, directories)
        search = Search(repository, facts, programs, scratch, progress, target.timeline, start)
        if target.kind == TargetKind.NAME:
            return locate_restore_point(search, target.value)
        found = locate_transaction(search, target.xid)
        return [found] if found is not None else []

    return find
