"""Which instants can be restored to: backups, moved on by the WAL that joins them without a hole.

The facts are read first (what a listing shows, and a few signed records), then all is decided without reading anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from pydantic import AwareDatetime

from bb_ops.errors import BbOpsError, IntegrityError, KeyRejected
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.timelines import History
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.index import Index
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Position, Receipt
from bb_ops.repository.wal_listing import Stretch, TimelineWal, join

_LOOK_BACK = 4
"""How many segments before an end are asked for an instant, where the last ones have none."""


class Restorable(Protocol):
    """What is asked of a backup here: where and when it ends."""

    @property
    def system_id(self) -> str: ...  # noqa: D102
    @property
    def timeline(self) -> int: ...  # noqa: D102
    @property
    def wal_end_lsn(self) -> Lsn: ...  # noqa: D102
    @property
    def as_of(self) -> datetime: ...  # noqa: D102


class Window(Value):
    """A stretch of time that can be restored to; without archived WAL it is one instant."""

    from_at: AwareDatetime
    to_at: AwareDatetime


class Point(NamedTuple):
    """A place in the WAL."""

    timeline: int
    lsn: Lsn


@dataclass(frozen=True)
class Hole:
    """WAL that no restore passes, because it is not there."""

    timeline: int
    stretch: Stretch

    def __str__(self) -> str:
        """Say it in one line."""
        return f"WAL from {self.stretch.start} to {self.stretch.end} on timeline {self.timeline} is missing"


@dataclass
class WalFacts:
    """What is archived of one system's WAL in one repository.

    Attributes:
        positions: How far each timeline is durable, by the streamer's word; absent in copies.
        histories: Where timelines left their parents.
        segment_bytes: None where nothing is archived.
        damaged: Records that are damaged or forged.
        reached: What ``reach`` has answered already.
    """

    system_id: str
    timelines: dict[int, TimelineWal] = field(default_factory=dict)
    positions: dict[int, Position] = field(default_factory=dict)
    histories: dict[int, History] = field(default_factory=dict)
    segment_bytes: int | None = None
    damaged: list[BbOpsError] = field(default_factory=list)
    reached: dict[Point, Point | None] = field(default_factory=dict)
    _stretches: dict[int, list[Stretch]] = field(default_factory=dict)

    def stretches(self, timeline: int) -> list[Stretch]:
        """Return the whole stretches of a timeline."""
        if timeline not in self._stretches:
            listing, size = self.timelines.get(timeline), self.segment_bytes
            self._stretches[timeline] = listing.stretches(size) if listing is not None and size is not None else []
        return self._stretches[timeline]

    def durable(self, timeline: int) -> Lsn:
        """Return up to where a timeline must be whole: behind it, segments may still be on their way."""
        listing = self.timelines.get(timeline)
        ends = [entry.end for entry in listing.spans] if listing is not None else []
        if timeline in self.positions:
            ends.append(self.positions[timeline].lsn)
        else:
            ends += [entry.end for entry in self.stretches(timeline)[-1:]]
        return max(ends, default=Lsn(0))


@dataclass(frozen=True)
class Windows:
    """What one region's backups and WAL can restore.

    Attributes:
        windows: In order, joined where they touch.
        gaps: Every hole behind the oldest backup.
        open_gaps: Those that need a new full backup: behind the newest backup, where until then nothing later can be
            restored, or found missing and recorded nowhere. A full backup records what it leaves behind.
    """

    windows: tuple[Window, ...] = ()
    gaps: tuple[str, ...] = ()
    open_gaps: tuple[str, ...] = ()


def read_facts(repository: Repository, system_id: str, index: Index | None = None) -> WalFacts:
    """Read what is archived of a system's WAL. Positions come first: what lies before them is in the later listing."""
    facts = WalFacts(system_id)
    for timeline in wal_reader.timelines(repository, system_id):
        try:
            position = wal_reader.timeline_position(repository, system_id, timeline)
        except (IntegrityError, KeyRejected) as error:
            facts.damaged.append(error)
            continue
        if position is not None:
            facts.positions[timeline] = position
    facts.timelines = wal_reader.read_timelines(repository, system_id, index)
    for timeline, listing in facts.timelines.items():
        try:
            if listing.history:
                key = wal.receipt_key(repository.cluster, system_id, timeline, f"{timeline:08X}.history")
                receipt = wal.read_record(repository, key, Receipt)
                if receipt is not None and receipt.ancestors:
                    facts.histories[timeline] = History(timeline, receipt.ancestors)
            if facts.segment_bytes is None:
                facts.segment_bytes = wal_reader.segment_size(repository, system_id, listing)
        except (IntegrityError, KeyRejected) as error:
            facts.damaged.append(error)
    return facts


def read_windows(
    repository: Repository, backups: Iterable[Restorable], index: Index | None = None
) -> tuple[Windows, list[BbOpsError]]:
    """Read and decide what sound physical backups (oldest first) and WAL can restore; also what records are damaged.

    A system without a sound backup has no window, but its damaged records are told.
    """
    ours: dict[str, list[Restorable]] = {system: [] for system in repository.system_ids()}
    for backup in backups:
        ours[backup.system_id].append(backup)
    damaged: list[BbOpsError] = []
    parts: list[Windows] = []
    for system, held in sorted(ours.items()):
        facts = read_facts(repository, system, index)
        ends = {end for backup in held if (end := reach(facts, start_of(backup))) is not None}
        parts.append(recovery_windows(held, facts, read_times(repository, facts, ends)))
        damaged += facts.damaged
    return (
        Windows(
            windows=tuple(union((window.from_at, window.to_at) for part in parts for window in part.windows)),
            gaps=tuple(gap for part in parts for gap in part.gaps),
            open_gaps=tuple(gap for part in parts for gap in part.open_gaps),
        ),
        damaged,
    )


def read_times(repository: Repository, facts: WalFacts, ends: Iterable[Point]) -> dict[Point, datetime]:
    """Read at which instants the WAL ends; absent where that was not measured, or its record is damaged."""
    found: dict[Point, datetime] = {}
    for end in ends:
        position = facts.positions.get(end.timeline)
        at = position.at if position is not None and position.lsn == end.lsn else None
        timeline, size = end.timeline, facts.segment_bytes
        # A segment's receipt speaks of its end: where only its beginning is there, the one before it counts.
        whole = end.lsn.segment_start(size) if size is not None else end.lsn
        border = Lsn(whole - 1) if whole else whole
        for _ in range(_LOOK_BACK):
            history = facts.histories.get(timeline)
            if history is not None and size is not None and border < history.begins.segment_start(size):
                timeline = history.ancestors[-1].timeline
            listing = facts.timelines.get(timeline)
            if at is not None or listing is None or size is None or border < size:
                break
            name = segment_name(timeline, border, size)
            try:
                receipt = wal_reader.read_receipt(repository, listing, facts.system_id, name, size)
            except (IntegrityError, KeyRejected) as error:
                facts.damaged.append(error)
            else:
                at = receipt.at if receipt is not None else None
            border = Lsn(border - size)
        if at is not None:
            found[end] = at
    return found


def start_of(backup: Restorable) -> Point:
    """Return where a backup needs archived WAL from: what lies before is in the backup itself."""
    return Point(backup.timeline, backup.wal_end_lsn)


def reach(facts: WalFacts, start: Point) -> Point | None:
    """Return up to where WAL joins ``start`` without a hole, on its timeline or a descendant; None where none does.

    Where several timelines descend, the newest counts, as in PostgreSQL (recovery_target_timeline = latest).
    """
    if start not in facts.reached:
        facts.reached[start] = _reach(facts, start)
    return facts.reached[start]


def _reach(facts: WalFacts, start: Point) -> Point | None:
    size = facts.segment_bytes
    if size is None:
        return None
    end = end_on(facts, start)
    if end is None:
        return None
    for timeline in sorted(facts.histories, reverse=True):
        history = facts.histories[timeline]
        until = history.until(start.timeline)
        if until is None or until < start.lsn or end < until.segment_start(size):
            continue
        further = reach(facts, Point(history.after(start.timeline), until))
        if further is not None:
            return further
    return Point(start.timeline, max(end, start.lsn))


def holes(facts: WalFacts, starts: Iterable[Point]) -> list[Hole]:
    """Return every hole behind the first of ``starts`` on each timeline that has any, and on their descendants."""
    size = facts.segment_bytes
    begins: dict[int, Lsn] = {}
    for start in starts:
        begins[start.timeline] = min(begins.get(start.timeline, start.lsn), start.lsn)
    for timeline, history in sorted(facts.histories.items()):
        if any(entry.timeline in begins and entry.until >= begins[entry.timeline] for entry in history.ancestors):
            begins.setdefault(timeline, history.begins)
    found: list[Hole] = []
    for timeline, begin in sorted(begins.items()) if size is not None else ():
        needed = max(facts.durable(timeline), _left_at(facts, timeline, size or 1))
        found += [Hole(timeline, entry) for entry in _holes_on(facts, timeline, begin, needed, size or 1)]
    return found


def is_recorded(facts: WalFacts, hole: Hole) -> bool:
    """Say whether gap records cover a hole."""
    listing = facts.timelines.get(hole.timeline)
    known = join(listing.gaps) if listing is not None else []
    return any(gap.start <= hole.stretch.start and hole.stretch.end <= gap.end for gap in known)


def recovery_windows(backups: Sequence[Restorable], facts: WalFacts, times: Mapping[Point, datetime]) -> Windows:
    """Decide what backups (oldest first, an increment for its whole chain) and archived WAL can restore. Pure."""
    starts = [start_of(backup) for backup in backups]
    ends = [reach(facts, start) for start in starts]
    instants = [
        (backup.as_of, max(backup.as_of, times.get(end, backup.as_of) if end is not None else backup.as_of))
        for backup, end in zip(backups, ends, strict=True)
    ]
    every = holes(facts, starts)
    behind = set(holes(facts, starts[-1:]))
    open_ = [hole for hole in every if hole in behind or not is_recorded(facts, hole)]
    return Windows(
        windows=tuple(union(instants)),
        gaps=tuple(str(hole) for hole in every),
        open_gaps=tuple(str(hole) for hole in open_),
    )


def union(stretches: Iterable[tuple[datetime, datetime]]) -> list[Window]:
    """Join stretches of time that overlap; in order."""
    found: list[tuple[datetime, datetime]] = []
    for from_at, to_at in sorted(stretches):
        if found and from_at <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], to_at))
        else:
            found.append((from_at, to_at))
    return [Window(from_at=from_at, to_at=to_at) for from_at, to_at in found]


def end_on(facts: WalFacts, start: Point) -> Lsn | None:
    """Return up to where one timeline's WAL joins ``start`` without a hole; None where none does."""
    size = facts.segment_bytes
    if size is None:
        return None
    border = start.lsn.segment_start(size)
    end: Lsn | None = None
    for stretch in facts.stretches(start.timeline):
        if stretch.start <= border < stretch.end or (stretch.end == start.lsn == border):
            end = stretch.end
    position = facts.positions.get(start.timeline)
    if position is not None and position.segment is not None and _pieces_are_there(facts, position):
        partial = position.lsn.segment_start(size)
        if partial in {border if end is None else end, end} and position.lsn > (end or border):
            end = position.lsn
    return end


def _left_at(facts: WalFacts, timeline: int, size: int) -> Lsn:
    """Return up to where archived descendants need a timeline: the segment in which they left it is among theirs."""
    descendants = (entry for name, entry in facts.histories.items() if facts.durable(name))
    ends = [until.segment_start(size) for entry in descendants if (until := entry.until(timeline)) is not None]
    return max(ends, default=Lsn(0))


def _holes_on(facts: WalFacts, timeline: int, begin: Lsn, durable: Lsn, size: int) -> list[Stretch]:
    border = begin.segment_start(size)
    position = facts.positions.get(timeline)
    whole = list(facts.stretches(timeline))
    if position is not None and position.segment is not None and _pieces_are_there(facts, position):
        whole.append(Stretch(position.lsn.segment_start(size), position.lsn))
    found, at = [], border
    for stretch in join(whole):
        if stretch.end <= at:
            continue
        if stretch.start > at and stretch.start <= durable:
            found.append(Stretch(at, stretch.start))
        at = max(at, stretch.end)
    if at < durable and begin < durable:
        found.append(Stretch(at, durable))
    return found


def _pieces_are_there(facts: WalFacts, position: Position) -> bool:
    listing = facts.timelines.get(position.timeline)
    if listing is None:
        return False
    return position.segment in listing.stored or {piece.name for piece in position.pieces} <= listing.pieces
