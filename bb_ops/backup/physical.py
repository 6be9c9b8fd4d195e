"""What taking a full backup and taking an increment share: facts, refusals, and the way from first byte to commit."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from bb_ops import __version__
from bb_ops.backup.gaps import record_gaps
from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.engines.native import NAME, NativeBackup, NativeEngine, cluster_bytes
from bb_ops.engines.parts import PartWriter
from bb_ops.errors import BbOpsError, ServerUnusable
from bb_ops.postgres import cluster
from bb_ops.postgres.cluster import ServerFacts
from bb_ops.postgres.replication import SystemIdentity
from bb_ops.progress import Progress
from bb_ops.repository import layout
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey, daily_slot, new_backup_id
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
LOCK_NAME = "full"
"""One lock for both kinds: an increment and a full of one server never run at the same time."""


@dataclass(frozen=True)
class PhysicalBackupOptions:
    """How to take a physical backup.

    Attributes:
        compression_level: zstd level.
        compression_threads: zstd worker threads.
        part_size_bytes: Archives are cut at the first member boundary after this many raw bytes.
        fingerprint_budget_s: Seconds that counting and hashing rows may take; 0 takes no fingerprints.
        max_rate_mib: MiB of the database that the server sends each second at most; None does not hold it back.
    """

    compression_level: int
    compression_threads: int
    part_size_bytes: int
    fingerprint_budget_s: float
    max_rate_mib: int | None


@dataclass(frozen=True)
class SourceFacts:
    """What the server and the repository are, before any work begins."""

    server: ServerFacts
    identity: SystemIdentity
    known_systems: tuple[str, ...]
    now: datetime

    @property
    def slot(self) -> SlotKey:
        """The daily slot that is open."""
        return daily_slot(self.now)


@dataclass(frozen=True)
class Parent:
    """What an increment builds on, and the backup manifest that tells the server so."""

    commit: PhysicalCommit
    manifest: bytes


def read_source(dsn: Dsn, repository: Repository, clock: Clock) -> SourceFacts:
    """Look at the server and the repository; writes nothing but the repository's marker.

    Raises:
        ServerUnusable, RepositoryMissing, SettingsError: a fact could not be read.
    """
    recipients, key = repository.recipients, repository.signing_key  # unusable keys are found before any work
    del recipients, key
    server = cluster.read_facts(dsn)
    if cluster.refusals(server):
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(cluster.refusals(server))}")
    identity = NativeEngine(dsn, server, clock).identify()
    repository.initialise()
    return SourceFacts(server, identity, tuple(repository.system_ids()), clock.now())


def refusals(facts: SourceFacts, cluster_name: str, *, new_lineage: bool) -> tuple[str, ...]:
    """Say why no backup of this server can be taken into this repository; empty where one can. Pure."""
    found = list(cluster.refusals(facts.server))
    if facts.known_systems and facts.identity.system_id not in facts.known_systems and not new_lineage:
        found.append(
            f"its system identifier is {facts.identity.system_id}, and cluster {cluster_name} in the repository "
            f"belongs to {', '.join(facts.known_systems)}: set another BB_OPS_CLUSTER, or say --new-lineage after "
            "a major upgrade"
        )
    return tuple(found)


def take_backup(  # noqa: PLR0913 - one fact each
    dsn: Dsn,
    repository: Repository,
    facts: SourceFacts,
    options: PhysicalBackupOptions,
    clock: Clock,
    progress: Progress,
    *,
    parent: Parent | None = None,
    fallback_reason: str | None = None,
) -> PhysicalCommit:
    """Take a backup, an increment where a parent is given. It exists once this returns.

    Raises:
        Locked: another backup of this cluster runs.
        IncrementRefused: the server takes no increment on this parent; nothing was written.
        BackupFailed: the server broke off; what was written has been removed.
        IntegrityError: the server found damaged pages; nothing was committed.
    """
    watch = Stopwatch()
    kind = BackupKind.FULL if parent is None else BackupKind.INCREMENTAL
    backup_id = new_backup_id(kind, facts.now)
    extra = {"backup_id": backup_id, "slot": facts.slot, "server": str(dsn)}
    _LOGGER.info("backup starts", extra={**extra, "parent_id": parent.commit.id if parent else None})
    with repository.lock(LOCK_NAME, f"backup {kind} {backup_id}") as held:
        seal = repository.seal(options.compression_level, options.compression_threads)
        prefix = layout.backup_prefix(repository.cluster, facts.identity.system_id, backup_id)
        parts = PartWriter(repository.store, prefix, seal, options.part_size_bytes)
        try:
            taken = NativeEngine(dsn, facts.server, clock, options.max_rate_mib).take(
                parts,
                seal.suffix,
                f"bb_ops {backup_id}",
                options.fingerprint_budget_s,
                progress,
                parent.manifest if parent else None,
            )
            parts.close()
            held.check()
            commit = _commit(backup_id, facts, taken, parts, repository, parent, fallback_reason, clock, watch)
        except BaseException:
            _discard(parts, backup_id)
            raise
        repository.commit(commit)  # from here on nothing is removed: after a failure it may exist nevertheless
    sizes = {"size_bytes": commit.size_bytes, "stored_bytes": commit.stored_bytes}
    _LOGGER.info("backup ends", extra={"backup_id": backup_id, "duration_s": commit.duration_s, **sizes})
    for gap in record_gaps(repository, commit, clock) if parent is None else ():
        _LOGGER.warning("%s", gap)
    return commit


def _commit(  # noqa: PLR0913 - one fact each
    backup_id: BackupId,
    facts: SourceFacts,
    taken: NativeBackup,
    parts: PartWriter,
    repository: Repository,
    parent: Parent | None,
    fallback_reason: str | None,
    clock: Clock,
    watch: Stopwatch,
) -> PhysicalCommit:
    stopped_at = clock.now()
    fingerprints_s = taken.fingerprints.duration_s if taken.fingerprints else 0.0
    return PhysicalCommit(
        id=backup_id,
        kind=BackupKind.FULL if parent is None else BackupKind.INCREMENTAL,
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
        slot=facts.slot,
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
        parent_id=parent.commit.id if parent else None,
        depth=parent.commit.depth + 1 if parent else 0,
        cluster_bytes=cluster_bytes(taken.result.tablespaces),
        fallback_reason=fallback_reason,
    )


def _discard(parts: PartWriter, backup_id: BackupId) -> None:
    try:
        parts.discard()
    except BbOpsError as error:
        _LOGGER.warning("uncommitted objects remain", extra={"backup_id": backup_id, "reason": str(error)})
