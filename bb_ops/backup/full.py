"""Take a full physical backup of a server and commit it to a repository."""

from dataclasses import dataclass

from bb_ops.backup.physical import (
    PhysicalBackupOptions,
    SourceFacts,
    read_source,
    refusals,
    take_backup,
)
from bb_ops.clock import Clock
from bb_ops.dsn import Dsn
from bb_ops.engines.native import NAME
from bb_ops.errors import ServerUnusable, UsageError
from bb_ops.findings import Value
from bb_ops.progress import Progress
from bb_ops.repository.ids import BackupKind, SlotKey
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository


@dataclass(frozen=True)
class FullBackupOptions(PhysicalBackupOptions):
    """How to take a full backup.

    Attributes:
        new_lineage: Accept a system that differs from the one already in the repository, as after pg_upgrade.
        slot: Refuse unless this slot is open; None takes the open one.
    """

    new_lineage: bool = False
    slot: SlotKey | None = None


class FullBackupPlan(Value):
    """What a full backup would do, decided before anything is written.

    Attributes:
        refusals: Why it can not be taken; empty where it can.
    """

    schema_id: str = "bb-ops/backup-plan/1"
    kind: BackupKind = BackupKind.FULL
    engine: str = NAME
    slot: SlotKey
    server: str
    server_version: str
    system_id: str
    repository: str
    encryption: str
    recipients: int
    refusals: tuple[str, ...]


def plan_full_backup(dsn: Dsn, repository: Repository, options: FullBackupOptions, clock: Clock) -> FullBackupPlan:
    """Look at the server and the repository, and decide; writes nothing but the repository's marker.

    Raises:
        ServerUnusable, RepositoryMissing, SettingsError: a fact could not be read.
    """
    return _decide(read_source(dsn, repository, clock), dsn, repository, options)


def take_full_backup(
    dsn: Dsn, repository: Repository, options: FullBackupOptions, clock: Clock, progress: Progress
) -> PhysicalCommit:
    """Take a full backup. It exists once this returns; a crash before leaves only uncommitted objects.

    Raises:
        ServerUnusable: the server can not be backed up like this.
        Locked: another backup of this cluster runs.
        BackupFailed: the server broke off; what was written has been removed.
        IntegrityError: the server found damaged pages; nothing was committed.
    """
    facts = read_source(dsn, repository, clock)
    plan = _decide(facts, dsn, repository, options)
    if plan.refusals:
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(plan.refusals)}")
    return take_backup(dsn, repository, facts, options, clock, progress)


def _decide(facts: SourceFacts, dsn: Dsn, repository: Repository, options: FullBackupOptions) -> FullBackupPlan:
    if options.slot not in {None, facts.slot}:
        raise UsageError(
            f"slot {options.slot} is not open (open is {facts.slot}): "
            "a backup of now is never labelled with another slot"
        )
    return FullBackupPlan(
        slot=facts.slot,
        server=str(dsn),
        server_version=facts.server.version,
        system_id=facts.identity.system_id,
        repository=repository.store.url,
        encryption=repository.encryption,
        recipients=len(repository.recipients),
        refusals=refusals(facts, repository.cluster, new_lineage=options.new_lineage),
    )
