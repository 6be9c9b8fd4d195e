"""Choose the backup that a recovery begins with, and the way from there to the target; or say why there is none. Pure.

Of all backups in all regions the nearest valid one before the target is taken, and it is said why others do not serve.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.recovery.moment.branch import Branch, branches
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.repository import windows
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.windows import Point, WalFacts

if TYPE_CHECKING:
    from bb_ops.recovery.events.locate import Located

_MOST_REASONS = 12
_LATER = ", which is later"
NO_BACKUP = ("there is no physical backup", "no region holds")
"""How a refusal begins that says that there is nothing to begin with."""


@dataclass(frozen=True)
class RegionFacts:
    """What one region holds of the system to be recovered.

    Attributes:
        entries: Its physical backups, oldest first.
        times: At which instants WAL ends, where measured.
        located: Where the target's transaction or restore point is; empty for other targets.
        not_located: Why that could not be looked for everywhere; None where it was.
        unreadable: Why the region could not be looked at; None where it was.
    """

    region: str
    repository_id: str = ""
    entries: tuple[CatalogEntry, ...] = ()
    wal: WalFacts = field(default_factory=lambda: WalFacts(""))
    times: Mapping[Point, datetime] = field(default_factory=dict)
    located: "tuple[Located, ...]" = ()
    not_located: str | None = None
    unreadable: str | None = None


class Rejected(Value):
    """A backup that is not used, and why."""

    region: str
    backup_id: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A backup and a way that lead to the target."""

    facts: RegionFacts
    entry: CatalogEntry
    branch: Branch

    @property
    def commit(self) -> PhysicalCommit:
        """The backup's commit."""
        return self.entry.physical

    @property
    def until_at(self) -> datetime:
        """The last instant that it surely gets to."""
        return max(self.commit.as_of, self.facts.times.get(self.branch.end, self.commit.as_of))


@dataclass(frozen=True)
class Choice:
    """What ``choose`` decided."""

    best: Candidate | None
    others: tuple[Rejected, ...]
    refusals: tuple[str, ...]


def choose(target: RecoveryTarget, regions: Sequence[RegionFacts], now: datetime, backup_id: str | None) -> Choice:
    """Choose the backup and the way; or say why none leads to the target, and what the nearest possible ones are."""
    serving: list[Candidate] = []
    others: list[Rejected] = []
    for facts in regions:
        if facts.unreadable is not None:
            others.append(Rejected(region=facts.region, backup_id="", reason=facts.unreadable))
        for entry in reversed(facts.entries):
            if backup_id is not None and entry.commit.id != backup_id:
                continue
            found, reason = _judge(target, facts, entry)
            if found is not None:
                serving.append(found)
            else:
                others.append(Rejected(region=facts.region, backup_id=entry.commit.id, reason=reason))
    serving.sort(key=lambda one: _rank(target, one, regions), reverse=True)
    if not serving:
        return Choice(None, tuple(others[:_MOST_REASONS]), tuple(_refusals(target, regions, others, now, backup_id)))
    best = serving[0]
    farther = (
        Rejected(region=one.facts.region, backup_id=one.commit.id, reason=_farther(target, one, best))
        for one in serving[1:]
    )
    return Choice(best, (*farther, *others)[:_MOST_REASONS], ())


def _rank(target: RecoveryTarget, one: Candidate, regions: Sequence[RegionFacts]) -> tuple[int, int, int, int]:
    place = -next(number for number, facts in enumerate(regions) if facts is one.facts)
    reach = one.branch.end.lsn if target.kind == TargetKind.LATEST else 0
    if target.kind == TargetKind.IMMEDIATE:
        return 0, 0, one.commit.end_lsn, place
    return one.branch.timeline, reach, one.commit.end_lsn, place


def _farther(target: RecoveryTarget, one: Candidate, best: Candidate) -> str:
    if target.kind == TargetKind.LATEST and one.branch.end != best.branch.end:
        return f"reaches {one.branch.end.lsn} on timeline {one.branch.end.timeline} only: {_cause(one)}"
    if one.commit.id == best.commit.id:
        return "serves as well"
    return f"serves, but replays {max(0, best.commit.end_lsn - one.commit.end_lsn) >> 20} MiB more of WAL"


def _judge(target: RecoveryTarget, facts: RegionFacts, entry: CatalogEntry) -> tuple[Candidate | None, str]:
    """Say whether a backup leads to the target, by its newest way that does; or why not."""
    commit = entry.physical
    if entry.problems:
        return None, f"it is damaged: {entry.problems[0]}"
    if entry.failed:
        return None, "its newest restore test failed"
    ways = branches(facts.wal, commit)
    if target.timeline is not None:
        ways = [way for way in ways if way.timeline == target.timeline]
        if not ways:
            return (
                None,
                f"its timeline {commit.timeline} is no ancestor of timeline {target.timeline} there",
            )
    reasons: list[str] = []
    for way in ways:
        candidate = Candidate(facts, entry, way)
        reason = _why_not(target, candidate)
        if reason is None:
            return candidate, ""
        reasons.append(reason)
    return None, reasons[-1] if len(set(reasons)) == 1 or target.timeline is not None else "; ".join(
        dict.fromkeys(reasons)
    )


def _why_not(target: RecoveryTarget, one: Candidate) -> str | None:
    """Say why one way of one backup does not lead to the target; None where it does."""
    if target.kind == TargetKind.IMMEDIATE:
        return None
    if target.kind == TargetKind.LATEST:
        # With a hole before the newest timeline, the end of an older one is not what was asked for.
        return None if one.branch.whole else f"{_cause(one)}, before timeline {one.branch.timeline} begins"
    if target.kind == TargetKind.TIME:
        return _why_not_time(one, target.at)
    if target.kind == TargetKind.LSN:
        return _why_not_position(one, target.lsn, None)
    reasons = [_why_not_position(one, place.lsn, place.timeline) for place in one.facts.located]
    return None if None in reasons else next(iter(reasons), "not found in the archived WAL")


def _why_not_time(one: Candidate, at: datetime) -> str | None:
    if one.commit.as_of > at:
        return f"it shows {said(one.commit.as_of)}{_LATER}"
    if one.until_at < at:
        return f"its WAL leads to {said(one.until_at)} only: {_cause(one)}"
    return None


def _why_not_position(one: Candidate, lsn: Lsn, timeline: int | None) -> str | None:
    commit, branch = one.commit, one.branch
    if commit.end_lsn > lsn:
        return f"it is consistent from {commit.end_lsn} on{_LATER}"
    if lsn > branch.end.lsn:
        return f"its WAL leads to {branch.end.lsn} on timeline {branch.end.timeline} only: {_cause(one)}"
    if not branch.holds(max(lsn, branch.legs[0].from_lsn), timeline):
        return f"timeline {timeline}, on which the target lies, is not on the way to timeline {branch.timeline}"
    return None


def _cause(one: Candidate) -> str:
    end = one.branch.end
    for hole in windows.holes(one.facts.wal, [windows.start_of(one.commit)]):
        if hole.timeline == end.timeline and hole.stretch.end > end.lsn:
            return str(hole)
    return "there the archive ends"


def _refusals(
    target: RecoveryTarget,
    regions: Sequence[RegionFacts],
    others: Sequence[Rejected],
    now: datetime,
    backup_id: str | None,
) -> Iterator[str]:
    if not any(facts.entries for facts in regions):
        yield f"{NO_BACKUP[0]} in any region that could be looked at"
        return
    if backup_id is not None and not any(one.backup_id == backup_id for one in others):
        yield f"{NO_BACKUP[1]} a physical backup {backup_id}: see `bb-ops backup list`"
        return
    nearest = nearest_targets(target, regions)
    near = f": the nearest possible are {' and '.join(nearest)}" if nearest else ""
    timelines = {name for facts in regions for name in (*facts.wal.timelines, *facts.wal.histories)}
    timelines |= {entry.physical.timeline for facts in regions for entry in facts.entries}
    if target.timeline is not None and target.timeline not in timelines:
        yield f"there is no timeline {target.timeline}, only {', '.join(map(str, sorted(timelines)))}{near}"
    elif target.kind == TargetKind.TIME and target.at > now:
        yield f"{said(target.at)} lies in the future{near}"
    elif target.kind in {TargetKind.XID, TargetKind.NAME} and not any(facts.located for facts in regions):
        doubts = "".join(f"; {facts.region}: {facts.not_located}" for facts in regions if facts.not_located)
        yield f"{target} is nowhere in the archived WAL{near}{doubts}"
    else:
        telling = next((one for one in others if not one.reason.endswith(_LATER)), others[0])
        yield f"no backup leads to {target}{near}; {telling.backup_id or telling.region}: {telling.reason}"


def nearest_targets(target: RecoveryTarget, regions: Sequence[RegionFacts]) -> list[str]:
    """Return the last possible target before the wanted one, and the first behind it, where there are any. Pure."""
    whole = [
        Candidate(facts, entry, branch)
        for facts in regions
        for entry in facts.entries
        if not entry.failed
        for branch in branches(facts.wal, entry.physical)
    ]
    if target.kind == TargetKind.LSN:
        spans = sorted((int(one.commit.end_lsn), int(one.branch.end.lsn)) for one in whole)
        wanted = int(target.lsn)
        before = max((min(end, wanted) for start, end in spans if start <= wanted), default=None)
        after = min((start for start, _ in spans if start >= wanted), default=None)
        return [f"lsn:{Lsn(lsn)}" for lsn in (before, after) if lsn is not None]
    stretches = windows.union((one.commit.as_of, one.until_at) for one in whole)
    if target.kind != TargetKind.TIME:
        return [f"any time from {said(one.from_at)} to {said(one.to_at)}" for one in stretches[-2:]]
    earlier = max((min(one.to_at, target.at) for one in stretches if one.from_at <= target.at), default=None)
    later = min((one.from_at for one in stretches if one.from_at >= target.at), default=None)
    return [said(at) for at in (earlier, later) if at is not None]


def said(at: datetime) -> str:
    """Say an instant as it can be typed."""
    return f"{at:%Y-%m-%d %H:%M:%S.%f}+00"
