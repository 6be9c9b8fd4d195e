"""Bring a logical backup back as a new cluster in an empty directory, on request with a server running on it."""

from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError, IntegrityError, NotMeasured, UsageError
from bb_ops.findings import Outcome
from bb_ops.postgres.programs import find_programs
from bb_ops.postgres.scratch import port_is_free, start_server
from bb_ops.progress import Progress
from bb_ops.recovery.full import RecoverOptions, RecoverPlan, Recovery
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.load import Dump, make_durable, needed_bytes, not_continuous, publish
from bb_ops.recovery.target import Target, check_target, finish_target, prepare_target, server_account
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import Repository

_START_TIMEOUT_S = 600.0


def plan_logical(
    repository: Repository, entry: CatalogEntry, commit: LogicalCommit, options: RecoverOptions
) -> RecoverPlan:
    """Decide whether and what to load; changes nothing.

    Raises:
        IntegrityError: the listing shows the backup to be damaged.
        TargetRefused: the directory is not empty, in use, unreachable or too small.
        UsageError: the port is in use.
    """
    if entry.problems:
        raise IntegrityError(
            f"{commit.id} is damaged in {repository.region}: {entry.problems[0]}: try another --region"
        )
    if options.start and not port_is_free(options.port):
        raise UsageError(f"port {options.port} is in use: choose another one with --port")
    target = _target(commit, options)
    return RecoverPlan(
        backup_id=commit.id,
        chain=(commit.id,),
        region=repository.region,
        into=target.directory,
        restore_bytes=needed_bytes(commit),
        recovered_to_at=commit.as_of,
        recovered_to_lsn=str(commit.position),
    )


def recover_logical(
    repository: Repository, entry: CatalogEntry, commit: LogicalCommit, options: RecoverOptions, progress: Progress
) -> tuple[Recovery, BbOpsError | None]:
    """Load a dump into a new cluster beside everything that exists. Safe to kill: the same call then begins anew.

    Returns:
        What was done, and the error of the first check that failed, for the exit code.

    Raises:
        TargetRefused: the directory is not empty, in use, unreachable or too small; nothing was changed.
        IntegrityError, KeyRejected: the backup is damaged or does not open; nothing was loaded.
        NotMeasured: PostgreSQL's programs, an extension or a locale are missing here.
        ProgramFailed: something could not be loaded; the directory cannot be started.
    """
    watch = Stopwatch()
    plan_logical(repository, entry, commit, options)
    target = _target(commit, options)
    programs = find_programs(commit.client_major, options.pg_bindirs)
    dump, climb = Dump(repository, commit, programs), Climb(Level.L4)
    listed: dict[str, bytes] = {}
    addresses: list[str] = []
    restored: list[int] = []

    def whole() -> tuple[Outcome, str]:
        found, size_bytes = dump.read_everything()
        listed.update(found)
        return Outcome.PASS, f"{len(commit.objects)} objects hashed, decrypted and decompressed: {size_bytes} bytes"

    def load() -> tuple[Outcome, str]:
        prepare_target(target, commit.id)
        with dump.loaded(target, progress) as loaded:
            restored.append(loaded.restored_bytes)
        publish(target)
        make_durable(programs, target)
        finish_target(target)
        said = f"{len(commit.databases)} databases loaded without an error in {loaded.duration_s} s"
        if options.start:
            server = start_server(
                programs, target.directory, commit.superuser, target.owner, options.port, _START_TIMEOUT_S
            )
            addresses.append(server.url)
            said += "; the server answers"
        return Outcome.PASS, said

    climb.measure(Level.L0, lambda: (Outcome.PASS, f"{len(commit.objects)} objects are there with their sizes"))
    good = climb.measure(Level.L1, whole) and climb.measure(Level.L2, lambda: dump.contents(listed))
    climb.step_over(Level.L3, not_continuous(commit))
    if not good:
        raise climb.error or IntegrityError(f"{commit.id} is not whole")
    if not climb.measure(Level.L4, load):
        raise climb.error or NotMeasured(climb.steps[Level.L4].evidence)
    return Recovery(
        backup_id=commit.id,
        region=repository.region,
        data_directory=target.directory,
        tablespaces={space.oid: target.tablespaces / str(space.oid) for space in commit.tablespaces},
        port=options.port if addresses else None,
        connection_string=addresses[0] if addresses else None,
        recovered_to_at=commit.as_of,
        recovered_to_lsn=str(commit.position),
        restored_bytes=restored[0],
        duration_s=watch.elapsed_s,
        proof=climb.reached.name if climb.reached is not None else None,
        outcome=climb.outcome,
        steps=climb.close(),
    ), climb.error


def _target(commit: LogicalCommit, options: RecoverOptions) -> Target:
    oids = tuple(space.oid for space in commit.tablespaces)
    return check_target(options.into, server_account(options.server_user), needed_bytes(commit), oids)
