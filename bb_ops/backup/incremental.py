"""Take a block increment: the blocks changed since a backup that is in the repository. Else a full, said loudly."""

import io
import logging
from dataclasses import dataclass

from bb_ops.backup.parent import Choice, choose_parent
from bb_ops.backup.physical import (
    Parent,
    PhysicalBackupOptions,
    SourceFacts,
    read_source,
    refusals,
    take_backup,
)
from bb_ops.clock import Clock
from bb_ops.dsn import Dsn
from bb_ops.engines.native import NAME
from bb_ops.errors import BbOpsError, IncrementRefused, IntegrityError, ServerUnusable
from bb_ops.findings import Value
from bb_ops.postgres.backup_manifest import read_backup_manifest
from bb_ops.postgres.wal_summaries import read_summaries
from bb_ops.progress import Progress
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey
from bb_ops.repository.manifest import ObjectRole, PhysicalCommit
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class IncrementalBackupOptions(PhysicalBackupOptions):
    """How to take an increment.

    Attributes:
        most_increments: How many increments a chain may have; then a full is taken.
    """

    most_increments: int = 24


class IncrementalBackupPlan(Value):
    """What would be taken, decided before anything is written.

    Attributes:
        kind: ``full`` where no increment can be taken.
        parent_id: What the increment builds on.
        depth: How many increments the chain then has.
        fallback_reason: Why a full would be taken; None for an increment.
        refusals: Why neither can be taken; empty where one can.
    """

    schema_id: str = "bb-ops/incremental-plan/1"
    kind: BackupKind
    engine: str = NAME
    slot: SlotKey
    server: str
    server_version: str
    system_id: str
    repository: str
    encryption: str
    recipients: int
    parent_id: BackupId | None
    depth: int
    fallback_reason: str | None
    refusals: tuple[str, ...]


def plan_incremental_backup(
    dsn: Dsn, repository: Repository, options: IncrementalBackupOptions, clock: Clock
) -> IncrementalBackupPlan:
    """Look at the server and the repository, and decide; writes nothing but the repository's marker.

    Raises:
        ServerUnusable, RepositoryMissing, SettingsError: a fact could not be read.
    """
    facts = read_source(dsn, repository, clock)
    parent, reason = _open_parent(repository, _choose(dsn, repository, facts, options))
    return IncrementalBackupPlan(
        kind=BackupKind.FULL if parent is None else BackupKind.INCREMENTAL,
        slot=facts.slot,
        server=str(dsn),
        server_version=facts.server.version,
        system_id=facts.identity.system_id,
        repository=repository.store.url,
        encryption=repository.encryption,
        recipients=len(repository.recipients),
        parent_id=parent.commit.id if parent else None,
        depth=parent.commit.depth + 1 if parent else 0,
        fallback_reason=reason,
        refusals=refusals(facts, repository.cluster, new_lineage=False),
    )


def take_incremental_backup(
    dsn: Dsn, repository: Repository, options: IncrementalBackupOptions, clock: Clock, progress: Progress
) -> PhysicalCommit:
    """Take an increment on the newest whole backup, or a full where that cannot be; ``fallback_reason`` then says why.

    It exists once this returns; a crash before leaves only uncommitted objects.

    Raises:
        ServerUnusable: the server can not be backed up like this.
        Locked: another backup of this cluster runs.
        BackupFailed: the server broke off; what was written has been removed.
        IntegrityError: the server found damaged pages; nothing was committed.
    """
    facts = read_source(dsn, repository, clock)
    refused = refusals(facts, repository.cluster, new_lineage=False)
    if refused:
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(refused)}")
    parent, reason = _open_parent(repository, _choose(dsn, repository, facts, options))
    if parent is not None:
        try:
            return take_backup(dsn, repository, facts, options, clock, progress, parent=parent)
        except IncrementRefused as error:
            reason = f"no increment on {parent.commit.id}: {error}"
    _LOGGER.info("a full backup is taken instead of an increment", extra={"reason": reason})
    return take_backup(dsn, repository, facts, options, clock, progress, fallback_reason=reason)


def _choose(dsn: Dsn, repository: Repository, facts: SourceFacts, options: IncrementalBackupOptions) -> Choice:
    summaries = read_summaries(dsn, facts.server.version_num)
    catalog = read_catalog(repository, facts.identity.system_id)
    return choose_parent(catalog.entries, facts, summaries, options.most_increments)


def _open_parent(repository: Repository, choice: Choice) -> tuple[Parent | None, str | None]:
    """Read the parent's manifest back; one that cannot be opened here, or is wrong, means a full."""
    commit = choice.parent
    if commit is None:
        return None, choice.reason
    try:
        return Parent(commit, _read_manifest(repository, commit)), None
    except BbOpsError as error:
        return None, f"the backup manifest of {commit.id} cannot be used: {error}"


def _read_manifest(repository: Repository, commit: PhysicalCommit) -> bytes:
    buffer = io.BytesIO()
    for entry in commit.with_role(ObjectRole.MANIFEST):
        repository.open_object(commit, entry, buffer)
    manifest = buffer.getvalue()
    facts = read_backup_manifest(manifest)
    said = (facts.system_id, facts.timeline, facts.start_lsn, facts.end_lsn)
    if said != (commit.system_id, commit.timeline, commit.start_lsn, commit.end_lsn):
        raise IntegrityError(f"it is the manifest of another backup, of system {facts.system_id} at {facts.start_lsn}")
    return manifest
