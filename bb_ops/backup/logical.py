"""Take a logical backup of a server's databases, or of their definitions alone, and commit it to a repository."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.engines.logical import LogicalEngine
from bb_ops.engines.parts import PartWriter
from bb_ops.errors import BbOpsError, ServerUnusable, UsageError
from bb_ops.findings import Value
from bb_ops.postgres.databases import TEMPLATE, Database, Obstacles, ServerContents, find_obstacles, read_contents
from bb_ops.postgres.dump import Client, client
from bb_ops.postgres.programs import Programs, find_clients
from bb_ops.progress import Progress
from bb_ops.repository import layout
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey, daily_slot, new_backup_id, weekly_slot
from bb_ops.repository.manifest import LocaleFacts, LogicalCommit, NamedTablespace, StoredDatabase
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
_MOST_NAMED = 5
_PART_SIZE_BYTES = 1 << 30
DumpKind = Literal[BackupKind.LOGICAL, BackupKind.SCHEMA]
Dump = Callable[[LogicalEngine, PartWriter, tuple[Database, ...]], tuple[StoredDatabase, ...]]


@dataclass(frozen=True)
class DumpOptions:
    """How to take a logical or schema backup.

    Attributes:
        databases: Which ones; empty takes every one that accepts connections.
        pg_bindirs: Where PostgreSQL's programs are looked for first.
        compression_level: zstd level.
        compression_threads: zstd worker threads.
        fingerprint_budget_s: Seconds that counting and hashing rows may take; 0 takes no fingerprints.
        new_lineage: Accept a system that differs from the one already in the repository.
        slot: Refuse unless this slot is open; None takes the open one.
    """

    databases: tuple[str, ...]
    pg_bindirs: tuple[Path, ...]
    compression_level: int
    compression_threads: int
    fingerprint_budget_s: float
    new_lineage: bool = False
    slot: SlotKey | None = None


class DumpPlan(Value):
    """What a logical or schema backup would do, decided before anything is written.

    Attributes:
        client_major: Of the programs that would be used.
        client_directory: Where they are.
        databases: What would be dumped.
        left_out: What the server has and the backup would not have, each with its reason.
        refusals: Why it can not be taken; empty where it can.
    """

    schema_id: str = "bb-ops/dump-plan/1"
    kind: BackupKind
    engine: str = LogicalEngine.name
    slot: SlotKey
    server: str
    server_version: str
    client_major: int
    client_directory: str
    system_id: str
    databases: tuple[str, ...]
    left_out: tuple[str, ...]
    repository: str
    encryption: str
    recipients: int
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class _Facts:
    server: ServerContents
    programs: Programs
    obstacles: dict[str, Obstacles]
    known_systems: tuple[str, ...]
    now: datetime


def plan_logical_backup(dsn: Dsn, repository: Repository, options: DumpOptions, clock: Clock) -> DumpPlan:
    """Look at the server and the repository, and decide; writes nothing but the repository's marker.

    Raises:
        ServerUnusable: the server cannot be reached, or the programs are older than it.
        RepositoryMissing, SettingsError: a fact could not be read.
    """
    return plan_dump(BackupKind.LOGICAL, dsn, repository, options, clock)


def take_logical_backup(
    dsn: Dsn, repository: Repository, options: DumpOptions, clock: Clock, progress: Progress
) -> LogicalCommit:
    """Dump databases with their rows. The backup exists once this returns; a crash leaves only uncommitted objects.

    Raises:
        ServerUnusable: our role may not read everything, or the programs are older than the server.
        Locked: another logical backup of this cluster runs.
        BackupFailed, ProgramFailed: the dump broke off or would be smaller than the database; nothing was committed.
    """
    budget_s = options.fingerprint_budget_s
    return take_dump(
        BackupKind.LOGICAL,
        lambda engine, parts, databases: engine.full(parts, databases, budget_s),
        dsn,
        repository,
        options,
        clock,
        progress,
    )


def plan_dump(kind: DumpKind, dsn: Dsn, repository: Repository, options: DumpOptions, clock: Clock) -> DumpPlan:
    """Look and decide; see ``plan_logical_backup``."""
    return _decide(kind, _read(dsn, repository, options, clock), dsn, repository, options)


def take_dump(  # noqa: PLR0913 - one fact each
    kind: DumpKind,
    dump: Dump,
    dsn: Dsn,
    repository: Repository,
    options: DumpOptions,
    clock: Clock,
    progress: Progress,
) -> LogicalCommit:
    """Take a backup of a kind; see ``take_logical_backup``."""
    watch = Stopwatch()
    facts = _read(dsn, repository, options, clock)
    plan = _decide(kind, facts, dsn, repository, options)
    if plan.refusals:
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(plan.refusals)}")
    wanted = tuple(entry for entry in facts.server.databases if entry.name in plan.databases)
    programs = client(facts.programs, dsn)
    backup_id = new_backup_id(kind, facts.now)
    _LOGGER.info("dump starts", extra={"backup_id": backup_id, "slot": plan.slot, "server": str(dsn)})
    with repository.lock(str(kind), f"backup {kind} {backup_id}") as held:
        seal = repository.seal(options.compression_level, options.compression_threads)
        prefix = layout.backup_prefix(repository.cluster, plan.system_id, backup_id)
        parts = PartWriter(repository.store, prefix, seal, _PART_SIZE_BYTES)
        try:
            stored = dump(LogicalEngine(dsn, programs, seal.suffix, progress), parts, wanted)
            parts.close()
            held.check()
            commit = _commit(backup_id, plan, facts, programs, stored, parts, repository, clock, watch)
        except BaseException:
            _discard(parts, backup_id)
            raise
        repository.commit(commit)  # from here on nothing is removed: after a failure it may exist nevertheless
    _LOGGER.info(
        "dump ends",
        extra={
            "backup_id": backup_id,
            "duration_s": commit.duration_s,
            "size_bytes": commit.size_bytes,
            "stored_bytes": commit.stored_bytes,
        },
    )
    return commit


def _decide(kind: DumpKind, facts: _Facts, dsn: Dsn, repository: Repository, options: DumpOptions) -> DumpPlan:
    """Say what would be dumped and what stands against it. Pure but for the repository's names."""
    server = facts.server
    databases, left_out, refusals = _choose(server, options.databases)
    for name, obstacles in facts.obstacles.items():
        refusals += _refusals(kind, server.role, name, obstacles)
    if facts.known_systems and server.system_id not in facts.known_systems and not options.new_lineage:
        refusals.append(
            f"its system identifier is {server.system_id}, and cluster {repository.cluster} in the repository belongs "
            f"to {', '.join(facts.known_systems)}: set another BB_OPS_CLUSTER, or say --new-lineage after an upgrade"
        )
    slot = weekly_slot(facts.now) if kind == BackupKind.SCHEMA else daily_slot(facts.now)
    if options.slot not in {None, slot}:
        raise UsageError(
            f"slot {options.slot} is not open (open is {slot}): a backup of now is never labelled with another slot"
        )
    return DumpPlan(
        kind=kind,
        slot=slot,
        server=str(dsn),
        server_version=server.version,
        client_major=facts.programs.major,
        client_directory=str(facts.programs.directory),
        system_id=server.system_id,
        databases=tuple(databases),
        left_out=tuple(left_out),
        repository=repository.store.url,
        encryption=repository.encryption,
        recipients=len(repository.recipients),
        refusals=tuple(refusals),
    )


def _read(dsn: Dsn, repository: Repository, options: DumpOptions, clock: Clock) -> _Facts:
    recipients, key = repository.recipients, repository.signing_key  # unusable keys are found before any work
    del recipients, key
    server = read_contents(dsn)
    programs = find_clients(server.major, options.pg_bindirs)
    names, _, _ = _choose(server, options.databases)
    obstacles = {name: find_obstacles(dsn, name) for name in names}
    repository.initialise()
    return _Facts(server, programs, obstacles, tuple(repository.system_ids()), clock.now())


def _choose(server: ServerContents, wanted: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """Return which databases to dump, what is left out and why, and what stands against it."""
    known = {entry.name: entry for entry in server.databases}
    refusals = [f"it has no database {name!r}" for name in wanted if name not in known]
    left_out = []
    chosen = []
    for name, database in known.items():
        if name == TEMPLATE:
            continue
        if wanted and name not in wanted:
            left_out.append(f"database {name}: not asked for")
        elif not database.accepts_connections:
            left_out.append(f"database {name}: accepts no connections (datallowconn is off)")
        elif not database.may_connect:
            refusals.append(f"role {server.role} may not connect to database {name}: grant CONNECT, or use --database")
        else:
            chosen.append(name)
    if not chosen and not refusals:
        refusals.append("no database of it can be dumped")
    return chosen, left_out, refusals


def _refusals(kind: DumpKind, role: str, database: str, obstacles: Obstacles) -> list[str]:
    found = []
    if obstacles.forbidden:
        found.append(
            f"role {role} may not read {_names(obstacles.forbidden)} in database {database}: run GRANT "
            f"pg_read_all_data TO {role}"
        )
    if obstacles.filtered and kind == BackupKind.LOGICAL:
        found.append(
            f"row security would hide rows of {_names(obstacles.filtered)} in database {database} from role {role}: "
            f"run ALTER ROLE {role} BYPASSRLS"
        )
    return found


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def _commit(  # noqa: PLR0913 - one fact each
    backup_id: BackupId,
    plan: DumpPlan,
    facts: _Facts,
    programs: Client,
    stored: tuple[StoredDatabase, ...],
    parts: PartWriter,
    repository: Repository,
    clock: Clock,
    watch: Stopwatch,
) -> LogicalCommit:
    server = facts.server
    template = next((entry for entry in server.databases if entry.name == TEMPLATE), server.databases[0])
    return LogicalCommit(
        id=backup_id,
        kind=plan.kind,
        cluster=repository.cluster,
        system_id=server.system_id,
        server_version=server.version,
        server_major=server.major,
        superuser=server.superuser,
        slot=plan.slot,
        started_at=facts.now,
        stopped_at=clock.now(),
        as_of=min(entry.as_of for entry in stored),
        duration_s=watch.elapsed_s,
        encryption=repository.encryption,
        recipients=tuple(str(key) for key in repository.recipients),
        compression="zstd",
        client_version=programs.version(),
        client_major=facts.programs.major,
        locale=LocaleFacts(
            encoding=template.encoding,
            collate=template.collate,
            ctype=template.ctype,
            provider=template.provider,
            locale=template.locale,
        ),
        databases=stored,
        tablespaces=tuple(
            NamedTablespace(name=space.name, oid=space.oid, location=space.location) for space in server.tablespaces
        ),
        left_out=plan.left_out,
        objects=tuple(parts.objects),
        bb_ops_version=__version__,
    )


def _discard(parts: PartWriter, backup_id: BackupId) -> None:
    try:
        parts.discard()
    except BbOpsError as error:
        _LOGGER.warning("uncommitted objects remain", extra={"backup_id": backup_id, "reason": str(error)})
