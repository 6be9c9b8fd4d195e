"""Which way WAL leads from a backup: leg after leg, each on one timeline, up to where it has a hole or ends."""

from collections.abc import Iterator
from dataclasses import dataclass

from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.repository import windows
from bb_ops.repository.windows import Point, Restorable, WalFacts


class Leg(Value):
    """A stretch of replay on one timeline."""

    timeline: int
    from_lsn: Lsn
    to_lsn: Lsn


@dataclass(frozen=True)
class Branch:
    """A way from a backup to a timeline.

    Attributes:
        timeline: The one that it leads to.
        legs: Up to where WAL is archived without a hole; the last is on ``timeline`` where ``whole``.
        whole: Whether it gets to ``timeline`` at all.
    """

    timeline: int
    legs: tuple[Leg, ...]
    whole: bool

    @property
    def end(self) -> Point:
        """Up to where replay gets."""
        return Point(self.legs[-1].timeline, self.legs[-1].to_lsn)

    def holds(self, lsn: Lsn, timeline: int | None = None) -> bool:
        """Say whether a position lies on it, on a certain timeline where that is given."""
        return any(leg.from_lsn <= lsn <= leg.to_lsn and timeline in {None, leg.timeline} for leg in self.legs)

    def until(self, lsn: Lsn) -> tuple[Leg, ...]:
        """Return the legs up to a position."""
        found = [
            leg.model_copy(update={"to_lsn": min(leg.to_lsn, lsn)})
            for leg in self.legs
            if leg.from_lsn < lsn or leg is self.legs[0]
        ]
        return tuple(found)


def branches(facts: WalFacts, backup: Restorable) -> list[Branch]:
    """Return every way from a backup, to its own timeline and to each descendant, the newest timeline first. Pure."""
    names = sorted({backup.timeline, *facts.histories}, reverse=True)
    return [branch for name in names if (branch := branch_to(facts, backup, name)) is not None]


def branch_to(facts: WalFacts, backup: Restorable, timeline: int) -> Branch | None:
    """Return the way from a backup to a timeline; None where that does not descend from the backup. Pure."""
    at = windows.start_of(backup)
    legs: list[Leg] = []
    history = facts.histories.get(timeline)
    while at.timeline != timeline:
        until = history.until(at.timeline) if history is not None else None
        if history is None or until is None or until < at.lsn:
            return None
        end = windows.end_on(facts, at)
        size = facts.segment_bytes
        if end is None or size is None or end < until.segment_start(size):
            legs.append(Leg(timeline=at.timeline, from_lsn=at.lsn, to_lsn=max(end or at.lsn, at.lsn)))
            return Branch(timeline, tuple(legs), whole=False)
        legs.append(Leg(timeline=at.timeline, from_lsn=at.lsn, to_lsn=until))
        at = Point(history.after(at.timeline), until)
    end = windows.end_on(facts, at)
    legs.append(Leg(timeline=timeline, from_lsn=at.lsn, to_lsn=max(end or at.lsn, at.lsn)))
    return Branch(timeline, tuple(legs), whole=True)


def segments_of(legs: tuple[Leg, ...], segment_bytes: int) -> Iterator[tuple[int, str]]:
    """Yield timeline and name of the segments that replay asks for, in order; the last may be unfinished.

    In the segment in which a timeline left its parent, PostgreSQL asks for the descendant's copy first.
    """
    for number, leg in enumerate(legs):
        at = leg.from_lsn.segment_start(segment_bytes)
        following = legs[number + 1] if number + 1 < len(legs) else None
        if following is None and leg.from_lsn == leg.to_lsn:
            return  # nothing lies behind: what the backup itself holds of the segment is all there is
        stop = following.from_lsn.segment_start(segment_bytes) if following is not None else leg.to_lsn
        while at < stop:
            yield leg.timeline, segment_name(leg.timeline, at, segment_bytes)
            at = Lsn(at + segment_bytes)
