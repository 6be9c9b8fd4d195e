"""Bring a whole cluster back from a backup of any kind that holds one."""

from bb_ops.errors import BbOpsError
from bb_ops.progress import Progress
from bb_ops.recovery.full import RecoverOptions, RecoverPlan, Recovery, plan_full, recover_full
from bb_ops.recovery.logical import plan_logical, recover_logical
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.repository import Repository


def plan_cluster(repository: Repository, entry: CatalogEntry, options: RecoverOptions) -> RecoverPlan:
    """Decide whether and what to restore; see ``plan_full`` and ``plan_logical``."""
    if isinstance(entry.commit, LogicalCommit):
        return plan_logical(repository, entry, entry.commit, options)
    return plan_full(repository, entry, options)


def recover_cluster(
    repository: Repository, entry: CatalogEntry, options: RecoverOptions, progress: Progress
) -> tuple[Recovery, BbOpsError | None]:
    """Restore a data directory, or load a dump into a new cluster; see ``recover_full`` and ``recover_logical``."""
    if isinstance(entry.commit, LogicalCommit):
        return recover_logical(repository, entry, entry.commit, options, progress)
    return recover_full(repository, entry, options, progress)
