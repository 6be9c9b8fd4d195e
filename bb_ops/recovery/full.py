"""Bring a whole cluster back into an empty directory, checked, and on request with a server running on it."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError, IntegrityError, UsageError
from bb_ops.findings import Outcome, Value
from bb_ops.invariants import Invariant, InvariantResult
from bb_ops.postgres.programs import Programs, find_programs
from bb_ops.postgres.scratch import port_is_free, start_server
from bb_ops.process import Account
from bb_ops.progress import Progress
from bb_ops.recovery.chain import require_programs, restore_backup
from bb_ops.recovery.checks import check_contents, check_wal, reached_position
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.restore import (
    Restored,
    keep_from_archiving,
    needed_bytes,
    relocate_tablespaces,
)
from bb_ops.recovery.target import (
    Target,
    begin_anew_next_time,
    check_target,
    end_unfinished,
    finish_target,
    mark_restored,
    server_account,
)
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.ids import BackupId
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.reports import Level, Step
from bb_ops.repository.repository import Repository

_START_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True)
class RecoverOptions:
    """Where a cluster goes.

    Attributes:
        into: An empty directory, or one that does not exist; it becomes the data directory.
        start: Leave a server running there.
        port: Its port on the loopback address.
        invariants: What must be true of the application's data in a copy of a moment.
        database: Where a foreign dump of one database goes; None where it says itself.
    """

    into: Path
    start: bool
    port: int
    pg_bindirs: tuple[Path, ...]
    server_user: str | None
    invariants: tuple[Invariant, ...] = ()
    database: str | None = None


class Recovery(Value):
    """What a recovery did.

    Attributes:
        data_directory: The restored data directory.
        tablespaces: Where each tablespace is now, by oid.
        port: The running server's; None where none was started.
        connection_string: Its address over a private socket, without secrets; None likewise.
        recovered_to_at: The instant whose state it shows.
        found_bytes: How many of the restored bytes an interrupted run had written already.
        duration_s: From the start to a checked directory, or to a server that answers.
        proof: The highest proof level that this copy showed.
        outcome: The worst answer of the levels that were tried.
        backup_id: None, like the region and where it was recovered to, for what others made and does not say it.
        source: Where that was.
        form: What it was.
        target: The moment, as it can be typed; None for a backup as it is.
        plan_hash: Of the plan that was executed; None likewise, as all that follows.
        timeline: The copy's own, new one.
        last_transaction_at: When the last replayed transaction committed.
        replayed_bytes: Of WAL behind the backup's end.
        replay_s: Seconds from the start of recovery to the first answer.
        invariants: What was declared of the application's data, and whether it holds in the copy.
    """

    schema_id: str = "bb-ops/recovery/1"
    backup_id: str | None
    region: str | None
    source: str | None = None
    form: str | None = None
    data_directory: Path
    tablespaces: dict[int, Path]
    port: int | None
    connection_string: str | None
    recovered_to_at: datetime | None
    recovered_to_lsn: str | None
    restored_bytes: int
    found_bytes: int = 0
    duration_s: float
    proof: str | None
    outcome: Outcome
    steps: tuple[Step, ...]
    target: str | None = None
    plan_hash: str | None = None
    timeline: int | None = None
    last_transaction_at: datetime | None = None
    replayed_bytes: int | None = None
    replay_s: float | None = None
    invariants: tuple[InvariantResult, ...] = ()


class RecoverPlan(Value):
    """What a recovery would do; nothing has been changed.

    Attributes:
        chain: What is restored and joined, the full first; a dump's alone.
        restore_bytes: Room that it takes.
        source: Where it is, for what others made; see ``Recovery``.
        form: What it is, likewise.
    """

    schema_id: str = "bb-ops/recovery-plan/1"
    backup_id: str | None
    chain: tuple[BackupId, ...]
    region: str | None
    source: str | None = None
    form: str | None = None
    into: Path
    restore_bytes: int
    recovered_to_at: datetime | None
    recovered_to_lsn: str | None


def plan_full(repository: Repository, entry: CatalogEntry, options: RecoverOptions) -> RecoverPlan:
    """Decide whether and what to restore; changes nothing.

    Raises:
        BbOpsError: the listing shows the backup to be damaged.
        TargetRefused: the directory is not empty, in use, unreachable or too small.
        UsageError: the port is in use, or PostgreSQL's programs to join an increment are missing.
    """
    commit = entry.physical
    _refuse_damage(repository, entry)
    if options.start and not port_is_free(options.port):
        raise UsageError(f"port {options.port} is in use: choose another one with --port")
    require_programs(entry.chain, lambda: find_programs(commit.server_major, options.pg_bindirs))
    target = _target(entry, options)
    return RecoverPlan(
        backup_id=commit.id,
        chain=tuple(one.id for one in entry.chain),
        region=repository.region,
        into=target.directory,
        restore_bytes=needed_bytes(entry.chain),
        recovered_to_at=commit.as_of,
        recovered_to_lsn=str(commit.wal_end_lsn),
    )


def recover_full(
    repository: Repository, entry: CatalogEntry, options: RecoverOptions, progress: Progress
) -> tuple[Recovery, BbOpsError | None]:
    """Restore a backup beside everything that exists. Safe to kill: the same call then goes on where it was.

    A directory in which a check found something wrong is begun anew the next time.

    Returns:
        What was done, and the error of the first check that failed, for the exit code.

    Raises:
        TargetRefused: the directory is not empty, in use, unreachable or too small; nothing was changed.
        IntegrityError: the backup is damaged; the directory cannot be started.
        KeyRejected: our identities do not open it.
    """
    watch, commit = Stopwatch(), entry.physical
    end_unfinished(options.into, commit.server_major, options.pg_bindirs)
    plan_full(repository, entry, options)
    target = _target(entry, options)
    owner = target.owner
    programs = find_programs(commit.server_major, options.pg_bindirs) if options.start else None
    oids = _oids(commit)
    restored = restore_backup(
        repository,
        entry.chain,
        target,
        lambda: find_programs(commit.server_major, options.pg_bindirs),
        progress,
        durable=True,
    )
    climb = Climb(Level.L4 if options.start else Level.L3)
    server = _check_and_start(climb, restored, entry, options, owner, programs)
    return Recovery(
        backup_id=commit.id,
        region=repository.region,
        data_directory=target.directory,
        tablespaces={oid: target.tablespaces / str(oid) for oid in oids},
        port=options.port if server else None,
        connection_string=server,
        recovered_to_at=commit.as_of,
        recovered_to_lsn=str(commit.wal_end_lsn),
        restored_bytes=restored.restored_bytes,
        found_bytes=restored.found_bytes,
        duration_s=watch.elapsed_s,
        proof=climb.reached.name if climb.reached is not None else None,
        outcome=climb.outcome,
        steps=climb.close(),
    ), climb.error


def _target(entry: CatalogEntry, options: RecoverOptions) -> Target:
    room = needed_bytes(entry.chain)
    return check_target(options.into, server_account(options.server_user), room, _oids(entry.physical))


def _oids(commit: PhysicalCommit) -> tuple[int, ...]:
    return tuple(space.oid for space in commit.tablespaces)


def _refuse_damage(repository: Repository, entry: CatalogEntry) -> None:
    if entry.problems:
        raise IntegrityError(
            f"{entry.commit.id} is damaged in {repository.region}: {entry.problems[0]}: try another --region"
        )


def _check_and_start(  # noqa: PLR0913 - one fact each
    climb: Climb,
    restored: Restored,
    entry: CatalogEntry,
    options: RecoverOptions,
    owner: Account | None,
    programs: Programs | None,
) -> str | None:
    """Climb from L0 to L3, or to L4 with a server; return the server's address."""
    directory, commit = restored.target.directory, entry.physical
    found: list[Programs] = [programs] if programs else []
    addresses: list[str] = []

    def contents() -> tuple[Outcome, str]:
        if not found:
            found.append(find_programs(commit.server_major, options.pg_bindirs))
        return check_contents(found[0], directory, owner, restored.chain)

    def boot() -> tuple[Outcome, str]:
        server = start_server(found[0], directory, commit.superuser, owner, options.port, _START_TIMEOUT_S)
        addresses.append(server.url)
        return reached_position(server.dsn, commit)

    objects = sum(len(one.objects) for one in entry.chain)
    climb.measure(Level.L0, lambda: (Outcome.PASS, f"{objects} objects are there with their sizes"))
    read = f"{objects} objects hashed, decrypted and decompressed"
    if restored.found_bytes:
        read += f", {restored.found_bytes} raw bytes of them by a run that was interrupted"
    climb.measure(Level.L1, lambda: (Outcome.PASS, read))
    whole = climb.measure(Level.L2, contents)
    whole = whole and climb.measure(Level.L3, lambda: check_wal(found[0], directory, commit, owner))
    if climb.error is None or isinstance(climb.error, IntegrityError):
        begin_anew_next_time(restored.target)  # it is wrong, or from here on no longer what the manifest says
    if climb.error is not None:
        return None
    relocate_tablespaces(restored, commit)
    keep_from_archiving(restored)
    if whole and climb.wanted >= Level.L4:
        mark_restored(restored.target)  # a run that is killed from here on may leave a server, which is ours to stop
        climb.measure(Level.L4, boot)
    finish_target(restored.target)
    return addresses[0] if addresses else None
