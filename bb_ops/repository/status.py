"""What one region can promise at an instant. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import AwareDatetime

from bb_ops.findings import Value
from bb_ops.repository.catalog import Catalog
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey, daily_slot, slot_window
from bb_ops.repository.reports import Level
from bb_ops.repository.windows import Window, Windows

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
        chains: Fulls with increments on them, oldest first; what is broken in one is among the problems.
        windows: Instants that a restore can reach.
        gaps: Where the archived write-ahead log has holes.
        open_gaps: Those behind the newest backup: nothing later can be restored until the next backup.
        lag_s: Seconds since the newest instant that can be restored to; None where there is none.
        last_proven_at: When a backup last reached proof level L5; None where none ever did.
        missing_slots: Daily slots since the first backup that no full backup represents.
        problems: Damage, failed proofs, leftovers.
    """

    name: str
    backups: int = 0
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


def region_status(catalog: Catalog, now: datetime, archived: Windows | None = None) -> RegionStatus:
    """Say what a region can promise; ``archived`` is what its WAL adds.

    Dumps count for nothing but their own damage: no window, no lag and no slot is theirs.
    """
    instants = [entry.commit.as_of for entry in catalog.physical if not entry.failed]
    proven = [
        (proof.started_at + timedelta(seconds=proof.duration_s), entry.proven_level)
        for entry in catalog.physical
        for proof in entry.proofs
        if entry.proven_level is not None and entry.proven_level >= PROVEN and proof.level == entry.proven_level.name
    ]
    last = max(proven, default=None)
    windows = tuple(Window(from_at=instant, to_at=instant) for instant in instants)
    if archived is not None and archived.windows:
        windows = archived.windows
    problems = [str(error) for error in catalog.damaged]
    for entry in catalog.entries:
        problems += entry.problems
        if entry.failed and not entry.problems:
            problems.append(f"{entry.commit.id}: its newest test failed, see `bb-ops backup show {entry.commit.id}`")
        if entry.commit.encryption == "none":
            problems.append(f"{entry.commit.id} is not encrypted")
    return RegionStatus(
        name=catalog.region,
        backups=len(catalog.entries),
        chains=_chains(catalog),
        windows=windows,
        gaps=archived.gaps if archived else (),
        open_gaps=archived.open_gaps if archived else (),
        lag_s=(now - max(window.to_at for window in windows)).total_seconds() if windows else None,
        last_proven_at=last[0] if last else None,
        last_proven_level=last[1].name if last and last[1] is not None else None,
        missing_slots=missing_slots(catalog, now),
        problems=tuple(problems),
    )


def _chains(catalog: Catalog) -> tuple[ChainStatus, ...]:
    return tuple(
        ChainStatus(
            full_id=chain[0].commit.id,
            increments=len(chain) - 1,
            newest_id=chain[-1].commit.id,
            newest_at=chain[-1].commit.as_of,
        )
        for chain in catalog.chains
        if len(chain) > 1 and chain[0].commit.kind == BackupKind.FULL
    )


def missing_slots(catalog: Catalog, now: datetime) -> tuple[SlotKey, ...]:
    """Return the daily slots, up to the open one, that no full backup represents, since the first backup; newest 14."""
    present = {entry.commit.slot for entry in catalog.of_kind(BackupKind.FULL)}
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
