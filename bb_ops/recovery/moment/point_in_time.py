"""Bring a cluster back as it was at a moment: restore, check, replay to there, prove; beside everything that exists."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.errors import BbOpsError, IntegrityError, UsageError
from bb_ops.findings import Outcome, worst
from bb_ops.invariants import INVARIANTS_DEADLINE_S, InvariantResults
from bb_ops.postgres.data_directory import port_of
from bb_ops.postgres.invariants import check_invariants
from bb_ops.postgres.programs import Programs, find_programs
from bb_ops.postgres.scratch import forget_configuration, port_is_free, start_server
from bb_ops.progress import Progress
from bb_ops.recovery.chain import require_programs, restore_backup
from bb_ops.recovery.checks import add_page_checksums, check_contents, check_structure_of_kept, check_wal
from bb_ops.recovery.full import RecoverOptions, Recovery
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.moment.choice import Candidate
from bb_ops.recovery.moment.plan import RecoveryPlan
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.recovery.moment.replay import Replay, Replayed, forget_replay, replayed
from bb_ops.recovery.restore import Restored, keep_from_archiving, make_durable, needed_bytes, relocate_tablespaces
from bb_ops.recovery.switch.journal import Proven, forget_proven, read_proven, remember_proven
from bb_ops.recovery.target import (
    Target,
    begin_anew_next_time,
    check_target,
    end_unfinished,
    finish_target,
    is_restored,
    mark_restored,
    server_account,
)
from bb_ops.repository.recoveries import RecoveryRecord, record_recovery
from bb_ops.repository.reports import Level, Step
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
_START_TIMEOUT_S = 3600.0
_MOST_EXTRA_BYTES = 2 << 30
"""Room for WAL beside the data: what is fetched ahead, and what the server keeps (max_wal_size)."""


@dataclass(frozen=True)
class Job:
    """What is to be brought back.

    Attributes:
        repository: The region that the plan chose.
        best: The backup and the way.
        plan: The decision.
        target: The moment.
    """

    repository: Repository
    best: Candidate
    plan: RecoveryPlan
    target: RecoveryTarget

    @property
    def replay(self) -> Replay:
        """The part that PostgreSQL does."""
        return Replay(self.repository, self.best, self.plan.legs, self.target)

    @property
    def needed_bytes(self) -> int:
        """Room that the copy takes while it is made."""
        return needed_bytes(self.best.entry.chain) + min(self.plan.wal_bytes, _MOST_EXTRA_BYTES)


@dataclass
class Copy:
    """A copy that is being made.

    Attributes:
        restored: The data directory; None until it is complete.
        replayed: The server in it that reached the target; None until then, and where it did not.
    """

    restored: Restored | None = None
    replayed: Replayed | None = None


def check_job(job: Job, options: RecoverOptions) -> tuple[Target, Programs]:
    """Prove, before anything is written, that the job can be done here.

    Raises:
        TargetRefused: the directory is not empty, in use, unreachable or too small.
        NotMeasured: PostgreSQL's programs are missing; without them no WAL can be replayed.
        UsageError: the port is in use.
    """
    commit = job.best.commit
    programs = find_programs(commit.server_major, options.pg_bindirs)
    require_programs(job.best.entry.chain, lambda: programs)
    if options.start and not port_is_free(options.port):
        raise UsageError(f"port {options.port} is in use: choose another one with --port")
    oids = tuple(space.oid for space in commit.tablespaces)
    return check_target(options.into, server_account(options.server_user), job.needed_bytes, oids), programs


@contextmanager
def recovered_copy(  # noqa: PLR0913 - one fact each
    job: Job,
    target: Target,
    programs: Programs,
    climb: Climb,
    progress: Progress,
    *,
    durable: bool,
    before_replay: Callable[[Restored], bool] | None = None,
) -> Iterator[Copy]:
    """Restore, check (L0 to L3), and replay to the moment (L4); the server runs for the block, without network.

    ``before_replay`` is given the restored directory, to look at it before it moves on; False ends the recovery there.

    Whatever fails is an answer of the climb; the copy is then as far as it got. Killed and called again with the same
    plan, it goes on where it was.
    """
    copy = Copy()
    _restore(job, target, programs, climb, progress, copy, durable=durable)
    if copy.restored is None or (before_replay is not None and not before_replay(copy.restored)):
        yield copy
        return
    with ExitStack() as stack:

        def replay() -> tuple[Outcome, str]:
            copy.replayed = stack.enter_context(replayed(job.replay, target, programs, progress))
            return Outcome.PASS, copy.replayed.evidence

        climb.measure(Level.L4, replay)
        yield copy


def _restore(  # noqa: PLR0913 - one fact each
    job: Job, target: Target, programs: Programs, climb: Climb, progress: Progress, copy: Copy, *, durable: bool
) -> None:
    chain, commit = job.best.entry.chain, job.best.commit
    done: list[Restored] = []
    objects = sum(len(one.objects) for one in chain)
    climb.measure(Level.L0, lambda: (Outcome.PASS, f"{objects} objects are there with their sizes"))
    if is_restored(target, commit.id, job.plan.plan_hash):
        for level in (Level.L1, Level.L2, Level.L3):
            climb.measure(level, lambda: (Outcome.PASS, "shown before this recovery was interrupted"))
        copy.restored = Restored(target, 0, None, 0.0, tuple(one.id for one in chain))
        return

    def bring() -> tuple[Outcome, str]:
        plan = job.plan.plan_hash
        done.append(
            restore_backup(job.repository, chain, target, lambda: programs, progress, durable=durable, plan=plan)
        )
        found = (
            f", {done[0].found_bytes} raw bytes of them by a run that was interrupted" if done[0].found_bytes else ""
        )
        return Outcome.PASS, f"{objects} objects hashed, decrypted and decompressed in {done[0].duration_s} s{found}"

    def wal() -> tuple[Outcome, str]:
        outcome, evidence = check_wal(programs, target.directory, commit, target.owner)
        way = ", then ".join(f"timeline {leg.timeline} to {leg.to_lsn}" for leg in job.plan.legs)
        return outcome, f"{evidence}; the archive has no hole from there on {way}" if way else evidence

    if (
        climb.measure(Level.L1, bring)
        and climb.measure(Level.L2, lambda: check_contents(programs, target.directory, target.owner, done[0].chain))
        and climb.measure(Level.L3, wal)
    ):
        begin_anew_next_time(target)  # what is changed now no longer is what the manifest says
        relocate_tablespaces(done[0], commit)
        mark_restored(target)
        copy.restored = done[0]
    elif done and isinstance(climb.error, IntegrityError):
        begin_anew_next_time(target)


def recover_point(
    job: Job, options: RecoverOptions, level: Level, clock: Clock, progress: Progress
) -> tuple[Recovery, BbOpsError | None]:
    """Bring the cluster back into an empty directory as it was at the target. Safe to kill: the same call goes on.

    The copy is a cluster of its own, on a new timeline; archiving is off, and nothing listens unless ``start`` is set.

    Args:
        job: What, from where, to when.
        options: Where it goes.
        level: How high it is proven: L4 that it reached the target, L5 that its structure is sound.
        clock: For the record.
        progress: Told about raw bytes.

    Returns:
        What was done, and the error of the first check that failed, for the exit code.

    Raises:
        TargetRefused, UsageError, NotMeasured: it cannot be done here; nothing was changed.
    """
    started_at, watch = clock.now(), Stopwatch()
    commit = job.best.commit
    end_unfinished(options.into, commit.server_major, options.pg_bindirs)
    before = _made_before(job, options, level, watch)
    if before is not None:
        return before, None
    target, programs = check_job(job, options)
    forget_proven(target.directory)
    climb = Climb(level)
    invariants = InvariantResults()
    with recovered_copy(job, target, programs, climb, progress, durable=True) as copy:
        running = copy.replayed
        if running is not None and level >= Level.L5:
            progress("structure", 0, None)
            climb.measure(Level.L5, lambda: check_structure_of_kept(programs, running.server.dsn, target.owner))
        if running is not None and options.invariants:
            progress("invariants", 0, None)
            invariants = check_invariants(running.server.dsn, options.invariants, INVARIANTS_DEADLINE_S)
    name = f"{started_at:%Y%m%dT%H%M%S%fZ}"
    address = _finish(job, options, target, programs, climb, copy, name, invariants.outcome)
    replayed_ = copy.replayed
    recovery = Recovery(
        backup_id=commit.id,
        region=job.repository.region,
        data_directory=target.directory,
        tablespaces={space.oid: target.tablespaces / str(space.oid) for space in commit.tablespaces},
        port=options.port if address else None,
        connection_string=address,
        recovered_to_at=shown_at(job, replayed_),
        recovered_to_lsn=str(replayed_.ended_at_lsn if replayed_ else commit.wal_end_lsn),
        restored_bytes=copy.restored.restored_bytes if copy.restored else 0,
        found_bytes=copy.restored.found_bytes if copy.restored else 0,
        duration_s=watch.elapsed_s,
        proof=climb.reached.name if climb.reached is not None else None,
        outcome=worst((climb.outcome, invariants.outcome)),
        invariants=invariants.results,
        steps=climb.close(),
        target=str(job.target),
        plan_hash=job.plan.plan_hash,
        timeline=replayed_.timeline if replayed_ else None,
        last_transaction_at=replayed_.last_transaction_at if replayed_ else None,
        replayed_bytes=replayed_.wal_bytes if replayed_ else None,
        replay_s=replayed_.replay_s if replayed_ else None,
    )
    if copy.restored is not None and replayed_ is not None:
        _remember(job, _record(job, recovery, copy.restored, started_at))
    return recovery, climb.error


def _finish(  # noqa: PLR0913 - one fact each
    job: Job,
    options: RecoverOptions,
    target: Target,
    programs: Programs,
    climb: Climb,
    copy: Copy,
    name: str,
    invariants: Outcome,
) -> str | None:
    """Hand a copy that reached its target over to its user, and start a server on it where that is wished.

    What was proven of it is kept beside it, last of all: a switch relies on that.
    """
    if copy.restored is None or copy.replayed is None:
        return None
    if Level.L5 in climb.steps and climb.steps[Level.L5].outcome == Outcome.PASS:
        said = climb.steps.pop(Level.L5)
        answer = (Outcome.PASS, said.evidence)
        climb.measure(Level.L5, lambda: add_page_checksums(answer, programs, target.directory, target.owner))
    forget_configuration(target.directory)
    keep_from_archiving(copy.restored)
    make_durable(target)
    address = _start(job, options, target, programs) if options.start else None
    if worst((climb.outcome, invariants)) == Outcome.PASS and climb.reached is not None:
        remember_proven(target.directory, _proven(job, copy.replayed, climb.reached, target, name))
    finish_target(target)
    forget_replay(target.directory)
    return address


def _start(job: Job, options: RecoverOptions, target: Target, programs: Programs) -> str:
    superuser = job.best.commit.superuser
    server = start_server(programs, target.directory, superuser, target.owner, options.port, _START_TIMEOUT_S)
    return server.url


def _made_before(job: Job, options: RecoverOptions, level: Level, watch: Stopwatch) -> Recovery | None:
    """Return what the same plan has made there already, with a server where one is wished; None where it has not.

    The latest moment is another one each time.
    """
    directory, commit = options.into.absolute(), job.best.commit
    proven = read_proven(directory) if job.target.kind != TargetKind.LATEST else None
    if proven is None or proven.plan_hash != job.plan.plan_hash or Level[proven.level] < level:
        return None
    owner = server_account(options.server_user)
    target = Target(directory, directory.with_name(directory.name + ".tablespaces"), owner)
    port, address = port_of(directory), None
    if options.start and port is None:
        address = _start(job, options, target, find_programs(commit.server_major, options.pg_bindirs))
        port = options.port
    said = f"shown when the same plan made this copy, {proven.id}"
    steps = [one for one in Level if one <= Level[proven.level]]
    return Recovery(
        backup_id=proven.backup_id,
        region=proven.region,
        data_directory=directory,
        tablespaces={space.oid: target.tablespaces / str(space.oid) for space in commit.tablespaces},
        port=port,
        connection_string=address,
        recovered_to_at=proven.recovered_to_at,
        recovered_to_lsn=proven.recovered_to_lsn,
        restored_bytes=0,
        duration_s=watch.elapsed_s,
        proof=proven.level,
        outcome=Outcome.PASS,
        steps=tuple(Step(level=one.name, outcome=Outcome.PASS, evidence=said, duration_s=0.0) for one in steps),
        target=proven.target,
        plan_hash=proven.plan_hash,
        timeline=proven.timeline,
    )


def _proven(job: Job, done: Replayed, reached: Level, target: Target, name: str) -> Proven:
    return Proven(
        id=name,
        plan_hash=job.plan.plan_hash,
        cluster=job.repository.cluster,
        backup_id=job.best.commit.id,
        region=job.repository.region,
        target=str(job.target),
        level=reached.name,
        system_id=job.best.commit.system_id,
        timeline=done.timeline,
        recovered_to_at=shown_at(job, done),
        recovered_to_lsn=str(done.ended_at_lsn),
        inode=target.directory.stat().st_ino,
    )


def shown_at(job: Job, done: Replayed | None) -> datetime:
    """Return the instant whose state the copy shows."""
    if job.target.kind == TargetKind.TIME:
        return job.target.at
    last = done.last_transaction_at if done is not None else None
    known = [at for at in (last, job.plan.recovered_to_at) if at is not None]
    return (
        max(known, default=job.best.commit.as_of)
        if job.target.kind == TargetKind.LATEST
        else (known[0] if known else job.best.commit.as_of)
    )


def _remember(job: Job, record: RecoveryRecord) -> None:
    """Store what was measured; where that cannot be, the recovery is done all the same."""
    try:
        if not record_recovery(job.repository, job.best.commit.system_id, record):
            _LOGGER.info("no signing key is here: what this recovery measured is not kept")
    except BbOpsError as error:
        _LOGGER.warning("what this recovery measured cannot be kept", extra={"reason": str(error)})


def _record(job: Job, done: Recovery, restored: Restored, started_at: datetime) -> RecoveryRecord:
    return RecoveryRecord(
        id=f"{started_at:%Y%m%dT%H%M%S%fZ}-{job.plan.plan_hash}",
        backup_id=done.backup_id,
        region=done.region,
        target=str(job.target),
        restored_bytes=restored.restored_bytes,
        restore_s=restored.duration_s or None,
        replayed_bytes=done.replayed_bytes or 0,
        replay_s=done.replay_s,
        duration_s=done.duration_s,
        proof=done.proof,
        started_at=started_at,
        host=socket.gethostname(),
        bb_ops_version=__version__,
    )
