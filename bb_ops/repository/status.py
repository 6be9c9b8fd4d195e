"""What one region can promise at an instant. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field

from bb_ops.findings import Value
from bb_ops.repository.catalog import Catalog
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey, daily_slot, slot_window
from bb_ops.repository.overview import BackupFacts, Overview
from bb_ops.repository.reports import Level
from bb_ops.repository.windows import Window

PROVEN = Level.L5
"""From here on a backup counts as proven: it was restored, and its structure is sound."""
ON_TIME_S = 3600.0
"""A backup that began later than this after its slot opened is late."""
SLOTS_WATCHED = 14
"""How far back missed slots are reported."""


class ChainStatus(Value):
    """A full and the increments on it.

    Attributes:
        newest_at: The instant that its newest increment shows.
    """

    full_id: BackupId
    increments: int
    newest_id: BackupId
    newest_at: AwareDatetime


class RegionStatus(Value):
    """One region's promise.

    Attributes:
        kinds: How many backups of each kind there are.
        chains: Fulls with increments on them, oldest first; what is broken in one is among the problems.
        windows: Instants that a restore can reach.
        gaps: Where the archived write-ahead log has holes.
        open_gaps: Those that need a new full backup; see ``Windows``.
        lag_s: Seconds since the newest instant that can be restored to; None where there is none.
        last_proven_at: When a backup last reached proof level L5; None where none ever did.
        missing_slots: Daily slots since the first backup that no full backup represents.
        problems: Damage, failed proofs, leftovers.
    """

    name: str
    backups: int = 0
    kinds: dict[str, int] = Field(default_factory=dict)
    chains: tuple[ChainStatus, ...] = ()
    windows: tuple[Window, ...] = ()
    gaps: tuple[str, ...] = ()
    open_gaps: tuple[str, ...] = ()
    lag_s: float | None = None
    last_proven_at: AwareDatetime | None = None
    last_proven_level: str | None = None
    missing_slots: tuple[SlotKey, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether a proven backup exists and nothing is missing or damaged."""
        return self.last_proven_at is not None and not (self.open_gaps or self.missing_slots or self.problems)


def region_status(overview: Overview, now: datetime) -> RegionStatus:
    """Say what a region can promise.

    Dumps count for nothing but their own damage: no window, no lag and no slot is theirs.
    """
    sound = [one for one in overview.backups if one.is_physical and not one.failed]
    proven = [
        (one.proven_at, one.proven_level)
        for one in sound
        if one.proven_at is not None and one.proven_level is not None and Level[one.proven_level] >= PROVEN
    ]
    last_at, last_level = max(proven, default=(None, None))
    windows = overview.archived.windows or tuple(Window(from_at=one.as_of, to_at=one.as_of) for one in sound)
    problems = [str(error) for error in overview.damaged]
    for one in overview.backups:
        problems += one.problems
        if one.failed and not one.problems:
            problems.append(f"{one.id}: its newest test failed, see `bb-ops backup show {one.id}`")
        if one.encryption == "none":
            problems.append(f"{one.id} is not encrypted")
    return RegionStatus(
        name=overview.region,
        backups=len(overview.backups),
        kinds=dict(sorted(Counter(one.kind for one in overview.backups).items())),
        chains=_chains(overview),
        windows=windows,
        gaps=overview.archived.gaps,
        open_gaps=overview.archived.open_gaps,
        lag_s=(now - max(window.to_at for window in windows)).total_seconds() if windows else None,
        last_proven_at=last_at,
        last_proven_level=last_level,
        missing_slots=missing_slots(overview.backups, now),
        problems=tuple(problems),
    )


def _chains(overview: Overview) -> tuple[ChainStatus, ...]:
    members: dict[str, list[BackupFacts]] = defaultdict(list)
    for one in overview.backups:
        if one.id in overview.roots:
            members[overview.roots[one.id]].append(one)
    return tuple(
        ChainStatus(full_id=root, increments=len(chain) - 1, newest_id=chain[-1].id, newest_at=chain[-1].as_of)
        for root, chain in members.items()
        if len(chain) > 1
    )


def missing_slots(backups: Iterable[BackupFacts], now: datetime) -> tuple[SlotKey, ...]:
    """Return the daily slots, up to the open one, that no full backup represents, since the first backup; newest 14."""
    present = {one.slot for one in backups if one.kind == BackupKind.FULL}
    if not present:
        return (daily_slot(now),)
    watched = (daily_slot(now - timedelta(days=days)) for days in range(SLOTS_WATCHED))
    first = min(present)
    return tuple(sorted(slot for slot in watched if slot >= first and slot not in present))


@dataclass(frozen=True)
class Punctuality:
    """Whether a slot's backup began in time."""

    on_time: bool
    description: str


def slot_punctuality(catalog: Catalog, slot: SlotKey, kind: BackupKind = BackupKind.FULL) -> Punctuality:
    """Judge a slot by its earliest backup of a kind; the first one of a system cannot be late."""
    of_kind = catalog.of_kind(kind)
    entries = [entry for entry in of_kind if entry.commit.slot == slot]
    if not entries:
        return Punctuality(on_time=False, description="no backup represents this slot")
    late_s = entries[0].commit.late_s(slot_window(slot)[0])
    said = f"began {late_s:.0f} s after its slot opened"
    if entries[0] is of_kind[0]:
        return Punctuality(on_time=True, description=f"the first backup of this system; it {said}")
    return Punctuality(on_time=late_s <= ON_TIME_S, description=said)
