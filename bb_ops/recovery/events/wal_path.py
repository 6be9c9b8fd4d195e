"""The archived segments that lead to a timeline's end, and in what pieces they are read. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.timelines import History
from bb_ops.repository.wal_listing import Stretch
from bb_ops.repository.windows import WalFacts

BATCH_BYTES = 64 << 20
"""How much WAL one run of pg_waldump reads; twice as much, and what is looked ahead, is on disk."""
_AHEAD_BYTES = 16 << 20
"""How far a record may reach behind its batch."""


class Segment(NamedTuple):
    """One archived segment; ``finished`` is False for the one that is still being written."""

    start: Lsn
    timeline: int
    finished: bool = True


@dataclass(frozen=True)
class WalPath:
    """The archived segments on the way to a timeline, in order.

    Attributes:
        history: The timeline and its ancestors.
        segments: Where timelines part, the younger one's file, which holds both.
    """

    facts: WalFacts
    history: History
    segment_bytes: int
    segments: tuple[Segment, ...]

    @property
    def holes(self) -> list[Stretch]:
        """What is missing between the first and the last segment."""
        ends = [Lsn(one.start + self.segment_bytes) for one in self.segments]
        pairs = zip(ends, self.segments[1:], strict=False)
        return [Stretch(end, following.start) for end, following in pairs if following.start != end]

    def timeline_at(self, lsn: Lsn) -> int:
        """Return on which timeline a record was written."""
        return next((entry.timeline for entry in self.history.ancestors if lsn < entry.until), self.history.timeline)

    def name(self, segment: Segment) -> str:
        """Return a segment's name in the archive."""
        return segment_name(segment.timeline, segment.start, self.segment_bytes)


def wal_path(facts: WalFacts, timeline: int | None = None, start: Lsn | None = None) -> WalPath | None:
    """Return the archived segments that lead to a timeline, the newest where none is named; None without any. Pure.

    Args:
        facts: What is archived.
        timeline: The newest one where it is None.
        start: Leave out the segments that end before it.
    """
    size, newest = facts.segment_bytes, max(facts.timelines, default=None)
    if size is None or newest is None:
        return None
    history = facts.histories.get(timeline or newest, History(timeline or newest))
    found: dict[Lsn, Segment] = {}
    for name in [*(entry.timeline for entry in history.ancestors), history.timeline]:
        begin, until = history.begin_of(name).segment_start(size), history.until(name)
        last = until.segment_start(size) if until is not None else None
        for segment in _segments(facts, name, size):
            if begin <= segment.start and (last is None or segment.start <= last):
                found[segment.start] = segment
    kept = sorted(one for at, one in found.items() if start is None or at + size > start)
    return WalPath(facts, history, size, tuple(kept)) if kept else None


def _segments(facts: WalFacts, timeline: int, size: int) -> Iterator[Segment]:
    listing, position = facts.timelines.get(timeline), facts.positions.get(timeline)
    for stretch in facts.stretches(timeline):
        yield from (Segment(Lsn(at), timeline) for at in range(stretch.start, stretch.end, size))
    whole = listing.stored if listing is not None else ()
    if position is not None and position.segment is not None and position.segment not in whole:
        # its pieces may be others by now: who fetches it asks again
        yield Segment(position.lsn.segment_start(size), timeline, finished=False)


class Batch(NamedTuple):
    """Segments that one run of pg_waldump reads, and those behind them that it may look into."""

    segments: Sequence[Segment]
    ahead: Sequence[Segment]

    @property
    def all(self) -> tuple[Segment, ...]:
        """Every segment that must be there."""
        return (*self.segments, *self.ahead)


def batches(path: WalPath, batch_bytes: int = BATCH_BYTES) -> list[Batch]:
    """Cut a path into what is read at once, in order. Pure."""
    each = max(1, batch_bytes // path.segment_bytes)
    ahead = max(1, _AHEAD_BYTES // path.segment_bytes)
    return [
        Batch(run[at : at + each], run[at + each : at + each + ahead])
        for run in runs(path.segments, path.segment_bytes)
        for at in range(0, len(run), each)
    ]


def runs(segments: Sequence[Segment], segment_bytes: int) -> list[list[Segment]]:
    """Cut segments, in order, where some are missing between them. Pure."""
    found: list[list[Segment]] = []
    for one in segments:
        if not found or found[-1][-1].start + segment_bytes != one.start:
            found.append([])
        found[-1].append(one)
    return found


def readable(batch: Batch, segment_bytes: int, lost: frozenset[Segment]) -> list[Batch]:
    """Cut a batch where segments could not be fetched; only its last part looks ahead. Pure."""
    good = runs([one for one in batch.segments if one not in lost], segment_bytes)
    found = [Batch(run, ()) for run in good]
    if found and found[-1].segments[-1] == batch.segments[-1]:
        rest = runs([one for one in batch.ahead if one not in lost], segment_bytes)
        if rest and rest[0][0].start == batch.segments[-1].start + segment_bytes:
            found[-1] = Batch(found[-1].segments, rest[0])
    return found
