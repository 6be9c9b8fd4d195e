"""Take a backup of a server's definitions: every database's schema as a script, and what belongs to no database."""

from bb_ops.backup.logical import DumpOptions, DumpPlan, plan_dump, take_dump
from bb_ops.clock import Clock
from bb_ops.dsn import Dsn
from bb_ops.progress import Progress
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.repository import Repository


def plan_schema_backup(dsn: Dsn, repository: Repository, options: DumpOptions, clock: Clock) -> DumpPlan:
    """Look at the server and the repository, and decide; writes nothing but the repository's marker.

    Raises:
        ServerUnusable: the server cannot be reached, or the programs are older than it.
        RepositoryMissing, SettingsError: a fact could not be read.
    """
    return plan_dump(BackupKind.SCHEMA, dsn, repository, options, clock)


def take_schema_backup(
    dsn: Dsn, repository: Repository, options: DumpOptions, clock: Clock, progress: Progress
) -> LogicalCommit:
    """Dump definitions without rows. The backup exists once this returns; a crash leaves only uncommitted objects.

    Raises:
        ServerUnusable: our role may not read everything, or the programs are older than the server.
        Locked: another schema backup of this cluster runs.
        BackupFailed, ProgramFailed: the dump broke off; nothing was committed.
    """
    return take_dump(
        BackupKind.SCHEMA,
        lambda engine, parts, databases: engine.schema(parts, databases),
        dsn,
        repository,
        options,
        clock,
        progress,
    )
