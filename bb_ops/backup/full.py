"""Take a full physical backup of a server and commit it to a repository."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.engines.native import NAME, NativeBackup, NativeEngine
from bb_ops.engines.parts import PartWriter
from bb_ops.errors import BbOpsError, ServerUnusable, UsageError
from bb_ops.findings import Value
from bb_ops.postgres.cluster import ServerFacts, read_facts, refusals
from bb_ops.postgres.replication import SystemIdentity
from bb_ops.progress import Progress
from bb_ops.repository import layout
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey, daily_slot, new_backup_id
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
LOCK_NAME = "full"


@dataclass(frozen=True)
class FullBackupOptions:
    """How to take a full backup.

    Attributes:
        compression_level: zstd level.
        compression_threads: zstd worker threads.
        part_size_bytes: Archives are cut at the first member boundary after this many raw bytes.
        fingerprint_budget_s: Seconds that counting and hashing rows may take; 0 takes no fingerprints.
        new_lineage: Accept a system that differs from the one already in the repository, as after pg_upgrade.
        slot: Refuse unless this slot is open; None takes the open one.
    """

    compression_level: int
    compression_threads: int
    part_size_bytes: int
    fingerprint_budget_s: float
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


@dataclass(frozen=True)
class _Facts:
    server: ServerFacts
    identity: SystemIdentity
    known_systems: tuple[str, ...]
    now: datetime


def plan_full_backup(dsn: Dsn, repository: Repository, options: FullBackupOptions, clock: Clock) -> FullBackupPlan:
    """Look at the server and the repository, and decide; writes nothing but the repository's marker.

    Raises:
        ServerUnusable, RepositoryMissing, SettingsError: a fact could not be read.
    """
    return _decide(_read(dsn, repository, clock), dsn, repository, options)


def take_full_backup(
    dsn: Dsn, repository: Repository, options: FullBackupOptions, clock: Clock, progress: Progress
) -> PhysicalCommit:
    """Take a full backup. It exists once this returns; a crash before leaves only uncommitted objects.

    Raises:
        ServerUnusable: the server can not be backed up like this.
        Locked: another full backup of this cluster runs.
        BackupFailed: the server broke off; what was written has been removed.
        IntegrityError: the server found damaged pages; nothing was committed.
    """
    watch = Stopwatch()
    facts = _read(dsn, repository, clock)
    plan = _decide(facts, dsn, repository, options)
    if plan.refusals:
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(plan.refusals)}")
    backup_id = new_backup_id(BackupKind.FULL, facts.now)
    _LOGGER.info("full backup starts", extra={"backup_id": backup_id, "slot": plan.slot, "server": str(dsn)})
    with repository.lock(LOCK_NAME, f"backup full {backup_id}") as held:
        seal = repository.seal(options.compression_level, options.compression_threads)
        prefix = layout.backup_prefix(repository.cluster, plan.system_id, backup_id)
        parts = PartWriter(repository.store, prefix, seal, options.part_size_bytes)
        engine = NativeEngine(dsn, facts.server, clock)
        try:
            taken = engine.full(parts, seal.suffix, f"bb_ops {backup_id}", options.fingerprint_budget_s, progress)
            parts.close()
            held.check()
            commit = _commit(backup_id, plan, facts, taken, parts, repository, clock, watch)
        except BaseException:
            _discard(parts, backup_id)
            raise
        repository.commit(commit)  # from here on nothing is removed: after a failure it may exist nevertheless
    _LOGGER.info(
        "full backup ends",
        extra={
            "backup_id": backup_id,
            "duration_s": commit.duration_s,
            "size_bytes": commit.size_bytes,
            "stored_bytes": commit.stored_bytes,
        },
    )
    return commit


def _read(dsn: Dsn, repository: Repository, clock: Clock) -> _Facts:
    recipients, key = repository.recipients, repository.signing_key  # unusable keys are found before any work
    del recipients, key
    server = read_facts(dsn)
    if refusals(server):
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(refusals(server))}")
    identity = NativeEngine(dsn, server, clock).identify()
    repository.initialise()
    return _Facts(server, identity, tuple(repository.system_ids()), clock.now())


def _decide(facts: _Facts, dsn: Dsn, repository: Repository, options: FullBackupOptions) -> FullBackupPlan:
    found = list(refusals(facts.server))
    if facts.known_systems and facts.identity.system_id not in facts.known_systems and not options.new_lineage:
        found.append(
            f"its system identifier is {facts.identity.system_id}, and cluster {repository.cluster} in the repository "
            f"belongs to {', '.join(facts.known_systems)}: set another BB_OPS_CLUSTER, or say --new-lineage after "
            "a major upgrade"
        )
    slot = daily_slot(facts.now)
    if options.slot not in {None, slot}:
        raise UsageError(
            f"slot {options.slot} is not open (open is {slot}): a backup of now is never labelled with another slot"
        )
    return FullBackupPlan(
        slot=slot,
        server=str(dsn),
        server_version=facts.server.version,
        system_id=facts.identity.system_id,
        repository=repository.store.url,
        encryption=repository.encryption,
        recipients=len(repository.recipients),
        refusals=tuple(found),
    )


def _commit(  # noqa: PLR0913 - one fact each
    backup_id: BackupId,
    plan: FullBackupPlan,
    facts: _Facts,
    taken: NativeBackup,
    parts: PartWriter,
    repository: Repository,
    clock: Clock,
    watch: Stopwatch,
) -> PhysicalCommit:
    stopped_at = clock.now()
    fingerprints_s = taken.fingerprints.duration_s if taken.fingerprints else 0.0
    return PhysicalCommit(
        id=backup_id,
        kind=BackupKind.FULL,
        engine=NAME,
        cluster=repository.cluster,
        system_id=taken.identity.system_id,
        server_version=facts.server.version,
        server_major=facts.server.major,
        superuser=facts.server.superuser,
        timeline=taken.result.end_timeline,
        start_lsn=taken.result.start_lsn,
        end_lsn=taken.result.end_lsn,
        wal_end_lsn=taken.wal_end_lsn,
        wal_segment_bytes=facts.server.wal_segment_bytes,
        slot=plan.slot,
        started_at=facts.now,
        stopped_at=stopped_at,
        as_of=stopped_at - timedelta(seconds=fingerprints_s),
        duration_s=watch.elapsed_s,
        encryption=repository.encryption,
        recipients=tuple(str(key) for key in repository.recipients),
        compression="zstd",
        data_checksums=facts.server.data_checksums,
        tablespaces=taken.tablespaces,
        objects=tuple(parts.objects),
        bb_ops_version=__version__,
    )


def _discard(parts: PartWriter, backup_id: BackupId) -> None:
    try:
        parts.discard()
    except BbOpsError as error:
        _LOGGER.warning("uncommitted objects remain", extra={"backup_id": backup_id, "reason": str(error)})
