"""Test backups and record what was measured."""

from dataclasses import replace

from bb_ops.clock import Clock
from bb_ops.progress import Progress
from bb_ops.repository.catalog import CatalogEntry, read_catalog
from bb_ops.repository.ids import SlotKey
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.reports import Proof
from bb_ops.repository.repository import Repository
from bb_ops.validation.load_test import run_load_test
from bb_ops.validation.restore_test import RestoreTestOptions, RestoreTestResult, run_restore_test


def prove(
    repository: Repository, entry: CatalogEntry, options: RestoreTestOptions, clock: Clock, progress: Progress
) -> RestoreTestResult:
    """Climb the ladder with one backup and store the signed proof beside it.

    Raises:
        SettingsError: no signing key is set, found before the work begins.
        TargetRefused: there is no room for the throw-away copy.
    """
    key = repository.signing_key
    del key
    result = climb(repository, entry, options, clock, progress)
    return replace(result, proof=repository.record_proof(entry.commit, result.proof))


def climb(
    repository: Repository, entry: CatalogEntry, options: RestoreTestOptions, clock: Clock, progress: Progress
) -> RestoreTestResult:
    """Climb the ladder with one backup and record nothing.

    Raises:
        TargetRefused: there is no room for the throw-away copy.
    """
    if isinstance(entry.commit, LogicalCommit):
        return run_load_test(repository, entry, entry.commit, options, clock, progress)
    return run_restore_test(repository, entry, options, clock, progress)


def prove_slot(
    repositories: list[Repository], slot: SlotKey, options: RestoreTestOptions, clock: Clock, progress: Progress
) -> list[Proof]:
    """Test the newest backup of a daily slot from the bytes of every region, and store each proof beside it.

    Raises:
        RepositoryMissing: a region does not hold the backup.
    """
    backup_id = read_catalog(repositories[0]).find_slot(slot).commit.id
    entries = [(repository, read_catalog(repository).find(backup_id)) for repository in repositories]
    return [prove(repository, entry, options, clock, progress).proof for repository, entry in entries]
