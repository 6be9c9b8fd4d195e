"""Records holes in the archived WAL that a new backup has left behind: from then on they are history, not an alarm."""

import logging

from bb_ops.clock import Clock
from bb_ops.errors import BbOpsError
from bb_ops.repository import wal, windows
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Gap

_LOGGER = logging.getLogger(__name__)


def record_gaps(repository: Repository, newest: PhysicalCommit, clock: Clock) -> tuple[Gap, ...]:
    """Record every hole before a new backup that no record names yet. Safe to repeat; the backup exists in any case."""
    try:
        facts = windows.read_facts(repository, newest.system_id)
        catalog = read_catalog(repository, newest.system_id)
        starts = [windows.start_of(entry.physical) for entry in catalog.physical if not entry.failed]
        open_ = set(windows.holes(facts, [windows.start_of(newest)]))
        found = [hole for hole in windows.holes(facts, starts) if hole not in open_]
        return tuple(
            wal.write_or_read(repository, _gap(repository, newest, hole, clock))
            for hole in found
            if not windows.is_recorded(facts, hole)
        )
    except BbOpsError as error:
        _LOGGER.warning("holes in the archived WAL were not looked for", extra={"reason": str(error)})
        return ()


def _gap(repository: Repository, newest: PhysicalCommit, hole: windows.Hole, clock: Clock) -> Gap:
    return Gap(
        cluster=repository.cluster,
        system_id=newest.system_id,
        timeline=hole.timeline,
        from_lsn=hole.stretch.start,
        to_lsn=hole.stretch.end,
        reason=f"it is not in the archive; {newest.id} lies behind it",
        found_at=clock.now(),
    )
