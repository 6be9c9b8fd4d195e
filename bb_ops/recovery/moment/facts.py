"""Read what a recovery is decided from: backups, WAL and instants of every region that can be looked at."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

from bb_ops.errors import BbOpsError, NotMeasured
from bb_ops.postgres.lsn import Lsn
from bb_ops.recovery.moment.branch import branches, segments_of
from bb_ops.recovery.moment.choice import Candidate, RegionFacts
from bb_ops.recovery.moment.plan import Rates
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.repository import wal, windows
from bb_ops.repository.catalog import Catalog, CatalogEntry, read_catalog
from bb_ops.repository.recoveries import RecoveryRecord, read_recoveries
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal_reader import ReceiptReader

if TYPE_CHECKING:
    from bb_ops.recovery.events.locate import Located
    from bb_ops.repository.manifest import PhysicalCommit

_LOGGER = logging.getLogger(__name__)
_LOOK_BACK = 16
"""How many segments before one are asked for an instant, where it has none."""
_NEWEST_MEASUREMENTS = 5

Locate = Callable[[Repository, windows.WalFacts, "Sequence[PhysicalCommit]"], "Iterable[Located]"]
"""Finds the target's transaction or restore point in one region's WAL behind its oldest backup."""


@dataclass(frozen=True)
class Region:
    """A region's facts and where they come from; the repository is None where it could not be looked at."""

    facts: RegionFacts
    repository: Repository | None


def read_regions(
    repositories: Sequence[Repository], *, backup_id: str | None = None, locate: Locate | None = None
) -> list[Region]:
    """Read every region. One that cannot be looked at is told by its reason: the other may serve.

    Args:
        repositories: The preferred one first.
        backup_id: Recover the system of this backup; None means that of the newest physical backup of all regions.
        locate: For targets that must be found in the WAL.

    Raises:
        BbOpsError: no region could be looked at; the first one's error.
    """
    read: list[tuple[Repository, Catalog | BbOpsError]] = []
    for repository in repositories:
        try:
            read.append((repository, read_catalog(repository)))
        except BbOpsError as error:
            read.append((repository, error))
    errors = [found for _, found in read if isinstance(found, BbOpsError)]
    if len(errors) == len(read):
        raise errors[0]
    system_id = _system_of([found for _, found in read if isinstance(found, Catalog)], backup_id)
    return [_read_region(repository, found, system_id, locate) for repository, found in read]


def _system_of(catalogs: Sequence[Catalog], backup_id: str | None) -> str | None:
    entries = [entry for catalog in catalogs for entry in catalog.physical if backup_id in {None, entry.commit.id}]
    newest = max(entries, key=lambda entry: entry.commit.started_at, default=None)
    return newest.commit.system_id if newest is not None else None


def _read_region(
    repository: Repository, found: Catalog | BbOpsError, system_id: str | None, locate: Locate | None
) -> Region:
    if isinstance(found, BbOpsError):
        return Region(RegionFacts(repository.region, unreadable=f"it cannot be looked at: {found}"), None)
    if system_id is None:
        return Region(RegionFacts(repository.region, found.repository_id), repository)
    entries = tuple(entry for entry in found.physical if entry.commit.system_id == system_id)
    try:
        held = windows.read_facts(repository, system_id)
        ends = {branch.end for entry in entries for branch in branches(held, entry.physical)}
        times = windows.read_times(repository, held, ends)
        located, not_located = _locate(locate, repository, held, entries)
    except BbOpsError as error:
        return Region(RegionFacts(repository.region, unreadable=f"its WAL cannot be looked at: {error}"), None)
    if held.damaged and not held.timelines:
        return Region(RegionFacts(repository.region, unreadable=str(held.damaged[0])), None)
    return Region(
        RegionFacts(repository.region, found.repository_id, entries, held, times, located, not_located), repository
    )


def _locate(
    locate: Locate | None, repository: Repository, held: windows.WalFacts, entries: Sequence[CatalogEntry]
) -> "tuple[tuple[Located, ...], str | None]":
    if locate is None or not entries:
        return (), None
    try:
        return tuple(locate(repository, held, [entry.physical for entry in entries])), None
    except NotMeasured as error:
        return (), str(error)


def stop_of(repository: Repository, best: Candidate, target: RecoveryTarget) -> tuple[Lsn | None, datetime | None]:
    """Return a position that surely lies behind the target, and the instant that the copy will show, where known."""
    if target.kind == TargetKind.TIME:
        return _stop_of_time(repository, best, target.at), target.at
    if target.kind == TargetKind.LSN:
        return target.lsn, _instant_near(repository, best, target.lsn)
    if target.kind == TargetKind.IMMEDIATE:
        return best.commit.end_lsn, best.commit.as_of
    if target.kind == TargetKind.LATEST:
        return None, best.until_at
    place = next(one for one in best.facts.located if best.branch.holds(one.lsn, one.timeline))
    return place.end_lsn, place.at


def measured_rates(repositories: Sequence[Repository], entries: Iterable[CatalogEntry], system_id: str) -> Rates:
    """Read how quick restores and replays were, by the newest measurements; a record that is damaged says nothing."""
    proofs = sorted((proof for entry in entries for proof in entry.proofs), key=lambda proof: proof.started_at)
    restores = [proof.restored_bytes / proof.restore_s for proof in proofs if proof.restored_bytes and proof.restore_s]
    records = [one for repository in repositories for one in _recoveries(repository, system_id)]
    records.sort(key=lambda one: one.started_at)
    restores += [one.restored_bytes / one.restore_s for one in records if one.restored_bytes and one.restore_s]
    replays = [one.replayed_bytes / one.replay_s for one in records if one.replayed_bytes and one.replay_s]
    restores, replays = restores[-_NEWEST_MEASUREMENTS:], replays[-_NEWEST_MEASUREMENTS:]
    return Rates(
        median(restores) if restores else None,
        median(replays) if replays else None,
        f"the median of {len(restores)} measured restores and {len(replays)} measured replays",
    )


def _recoveries(repository: Repository, system_id: str) -> list[RecoveryRecord]:
    try:
        return read_recoveries(repository, system_id)
    except BbOpsError as error:
        _LOGGER.warning("what former recoveries measured cannot be read", extra={"reason": str(error)})
        return []


def _stop_of_time(repository: Repository, best: Candidate, at: datetime) -> Lsn | None:
    """Return the end of the first segment on the way by which an instant is over; None where it is the very last."""
    size = best.facts.wal.segment_bytes
    if size is None:
        return None
    names = list(segments_of(best.branch.legs, size))
    ends_at = _instants(repository, best, size, names)
    index = bisect_left(range(len(names)), at, key=ends_at)
    if index >= len(names) - 1:
        return None
    return Lsn(wal.segment_position(names[index][1], size) + size)


def _instant_near(repository: Repository, best: Candidate, lsn: Lsn) -> datetime | None:
    """Return an instant that the state at a position is surely not older than."""
    size = best.facts.wal.segment_bytes
    if size is None or lsn <= best.commit.wal_end_lsn:
        return best.commit.as_of
    names = [one for one in segments_of(best.branch.until(lsn), size) if wal.segment_position(one[1], size) < lsn]
    if len(names) < 2:  # noqa: PLR2004 - within the backup's own last segment
        return best.commit.as_of
    return max(_instants(repository, best, size, names)(len(names) - 2), best.commit.as_of)


def _instants(
    repository: Repository, best: Candidate, size: int, names: Sequence[tuple[int, str]]
) -> Callable[[int], datetime]:
    readers = {
        timeline: ReceiptReader(repository, listing, best.facts.wal.system_id, size)
        for timeline, listing in best.facts.wal.timelines.items()
    }

    def ends_at(index: int) -> datetime:
        for timeline, name in reversed(names[max(0, index - _LOOK_BACK) : index + 1]):
            reader = readers.get(timeline)
            receipt = reader.receipt(name) if reader is not None else None
            if receipt is not None and receipt.at is not None:
                return receipt.at
        return best.commit.as_of

    return ends_at
