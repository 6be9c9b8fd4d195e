"""What one region can restore of a stretch of time, and which archived WAL holds it.

For a single hour this looks at few backups: the newest one before it, and those inside it. No other reaches further.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from pydantic import AwareDatetime

from bb_ops.errors import IntegrityError
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository import wal, windows
from bb_ops.repository.catalog import Catalog
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Receipt
from bb_ops.repository.wal_reader import ReceiptReader
from bb_ops.repository.windows import Point, WalFacts, Window

_THREADS = 8
_LOOK_BACK = 16
"""How many segments before one are asked for an instant, where it has none."""


class Coverage(Value):
    """What of the time from ``from_at`` to ``to_at`` can be restored.

    Attributes:
        begins_at: The oldest backup's instant, where it lies behind ``from_at``: before it there is nothing.
        covered: The stretches that can be restored, in order.
        missing: What cannot be, since ``begins_at``, each with its cause in one line.
    """

    from_at: AwareDatetime
    to_at: AwareDatetime
    begins_at: AwareDatetime | None
    covered: tuple[Window, ...]
    missing: tuple[str, ...]

    @property
    def covered_s(self) -> float:
        """Seconds that can be restored."""
        return sum(((window.to_at - window.from_at).total_seconds() for window in self.covered), 0.0)

    @property
    def whole(self) -> bool:
        """Whether every instant can be restored."""
        return self.begins_at is None and not self.missing


class ArchivedWal(Value):
    """The archived WAL that holds everything committed in a stretch of time; whole segments, so a little more.

    Attributes:
        from_at: Nothing committed at or behind the beginning lies before ``from_lsn``; None where not measured.
        segments: How many whole segments; the unfinished one is counted in ``to_lsn`` alone.
    """

    timeline: int
    from_lsn: Lsn
    to_lsn: Lsn
    from_at: AwareDatetime | None
    to_at: AwareDatetime | None
    segments: int
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Lineage:
    """One system's backups in one region, and its archived WAL.

    Attributes:
        backups: Physical ones whose newest test has not failed, oldest first.
    """

    system_id: str
    backups: tuple[PhysicalCommit, ...]
    facts: WalFacts

    def before(self, at: datetime) -> PhysicalCommit | None:
        """Return the newest backup that shows an instant not behind ``at``."""
        return max((one for one in self.backups if one.as_of <= at), key=lambda one: one.as_of, default=None)

    def starting_points(self, from_at: datetime, to_at: datetime) -> list[PhysicalCommit]:
        """Return the backups that a restore to some instant of a stretch of time would begin at."""
        first = self.before(from_at)
        inside = [one for one in self.backups if from_at < one.as_of <= to_at]
        return ([] if first is None else [first]) + sorted(inside, key=lambda one: one.as_of)


def read_lineage(repository: Repository, catalog: Catalog) -> Lineage | None:
    """Read the archived WAL of the newest backup's system; None where there is no backup.

    Raises:
        IntegrityError, KeyRejected: a record is damaged or forged.
    """
    if not catalog.physical:
        return None
    system_id = catalog.physical[-1].commit.system_id
    facts = windows.read_facts(repository, system_id)
    if facts.damaged:
        raise facts.damaged[0]
    entries = (entry for entry in catalog.physical if not entry.failed and entry.commit.system_id == system_id)
    return Lineage(system_id, tuple(entry.physical for entry in entries), facts)


def read_coverage(repository: Repository, lineage: Lineage, from_at: datetime, to_at: datetime) -> Coverage:
    """Read at which instants the WAL of a stretch of time ends, and decide."""
    chosen = lineage.starting_points(from_at, to_at)
    ends = {end for one in chosen if (end := windows.reach(lineage.facts, windows.start_of(one))) is not None}
    return coverage(lineage, from_at, to_at, windows.read_times(repository, lineage.facts, ends))


def coverage(lineage: Lineage, from_at: datetime, to_at: datetime, times: Mapping[Point, datetime]) -> Coverage:
    """Decide what of a stretch of time can be restored. Pure.

    Args:
        lineage: Backups and WAL.
        from_at: Its beginning.
        to_at: Its end.
        times: At which instants WAL ends, where measured.
    """
    found: list[Window] = []
    causes: dict[datetime, str] = {}
    for commit in lineage.starting_points(from_at, to_at):
        end = windows.reach(lineage.facts, windows.start_of(commit))
        until = max(commit.as_of, times.get(end, commit.as_of) if end is not None else commit.as_of)
        found.append(Window(from_at=commit.as_of, to_at=until))
        causes[until] = _cause(lineage.facts, commit, end, until)
    covered, missing, at = [], [], from_at
    begins_at = min((one.as_of for one in lineage.backups), default=None)
    at = max(at, begins_at) if begins_at is not None else at
    for window in windows.union((one.from_at, one.to_at) for one in found):
        first, last = max(window.from_at, from_at), min(window.to_at, to_at)
        if first > at:
            missing.append(_missing(at, first, causes))
        if last > first:
            covered.append(Window(from_at=first, to_at=last))
        at = max(at, last)
    if at < to_at:
        missing.append(_missing(at, to_at, causes))
    return Coverage(
        from_at=from_at,
        to_at=to_at,
        begins_at=begins_at if begins_at is not None and begins_at > from_at else None,
        covered=tuple(covered),
        missing=tuple(missing),
    )


def locate(repository: Repository, lineage: Lineage, from_at: datetime, to_at: datetime) -> ArchivedWal | None:
    """Find the archived segments of a stretch of time and look at each; None where none is recorded.

    Raises:
        IntegrityError: one is gone or has another size; the message names it.
        KeyRejected: a record is forged.
    """
    size = lineage.facts.segment_bytes
    if size is None:
        return None
    readers = {
        timeline: ReceiptReader(repository, listing, lineage.system_id, size)
        for timeline, listing in lineage.facts.timelines.items()
    }
    names = [
        (timeline, name)
        for timeline in sorted(readers)
        for stretch in lineage.facts.stretches(timeline)
        for name in wal.segments_of(timeline, stretch.start, stretch.end, size)
    ]
    if not names:
        return None

    def ends_at(index: int) -> datetime:
        """Return when a segment ended, by the nearest one before it that knows; ancient where none does."""
        for timeline, name in reversed(names[max(0, index - _LOOK_BACK) : index + 1]):
            receipt = readers[timeline].receipt(name)
            if receipt is not None and receipt.at is not None:
                return receipt.at
        return datetime.min.replace(tzinfo=from_at.tzinfo)

    places = range(len(names))  # their instants ascend, so a few of them are read
    first = max(0, bisect_right(places, from_at, key=ends_at) - 1)
    last = bisect_left(places, to_at, key=ends_at)
    receipts = [found for timeline, name in names[first : last + 1] if (found := readers[timeline].receipt(name))]
    if not receipts:
        return None
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="look") as pool:
        list(pool.map(lambda receipt: _look_at(repository, receipt), receipts))
    begin, end = receipts[0], receipts[-1]
    to_lsn = Lsn(wal.segment_position(end.name, size) + size)
    position = lineage.facts.positions.get(end.timeline)
    if last >= len(names) and position is not None:
        to_lsn = max(to_lsn, position.lsn)
    return ArchivedWal(
        timeline=end.timeline,
        from_lsn=wal.segment_position(begin.name, size),
        to_lsn=to_lsn,
        from_at=begin.at,
        to_at=end.at if last < len(names) or position is None else position.at,
        segments=len(receipts),
        size_bytes=len(receipts) * size,
        stored_bytes=sum(receipt.size_bytes for receipt in receipts),
    )


def _look_at(repository: Repository, receipt: Receipt) -> None:
    info = repository.store.stat(receipt.expected.key)
    if info is None or info.size_bytes != receipt.size_bytes:
        found = "is gone" if info is None else f"has {info.size_bytes} bytes instead of {receipt.size_bytes}"
        raise IntegrityError(f"{repository.store.url}/{receipt.expected.key} {found}")


def _cause(facts: WalFacts, commit: PhysicalCommit, end: Point | None, until: datetime) -> str:
    """Say why what begins at a backup reaches no further."""
    start = windows.start_of(commit)
    at = end if end is not None else start
    for hole in windows.holes(facts, [start]):
        if hole.timeline == at.timeline and hole.stretch.end > at.lsn:
            return str(hole)
    return f"WAL is archived up to {at.lsn} on timeline {at.timeline} only, which is {until:%Y-%m-%d %H:%M:%S} UTC"


def _missing(from_at: datetime, to_at: datetime, causes: Mapping[datetime, str]) -> str:
    """Say what cannot be restored, and why: by what ended last before it."""
    ended = max((until for until in causes if until <= from_at), default=None)
    why = causes[ended] if ended is not None else "no backup and no WAL reach back to there"
    return f"nothing from {from_at:%Y-%m-%d %H:%M:%S} to {to_at:%Y-%m-%d %H:%M:%S} UTC can be restored: {why}"
