"""Test backups and record what was measured."""

from bb_ops.clock import Clock
from bb_ops.recovery.restore import Progress
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.repository import Repository
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
    result = run_restore_test(repository, entry, options, clock, progress)
    repository.record_proof(entry.commit, result.proof)
    return result
