"""What a drill does inside a process to which one region and the offline key are all that is left.

RPO here is the instant of the declaration less the instant up to which the surviving archive surely has every commit
(``at`` of its newest position or receipt, or the backup's instant where no WAL follows). RTO is the time from the
declaration until a server with everything answers. Both are defined in ``DrillReport``, and both are wall-clock times.
"""

import secrets
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.errors import BbOpsError, FindingsPresent, IntegrityError, KeyRejected, NotMeasured
from bb_ops.findings import Outcome, worst
from bb_ops.invariants import INVARIANTS_DEADLINE_S
from bb_ops.postgres.fingerprint import take_fingerprints
from bb_ops.postgres.invariants import check_invariants
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.scratch import RunningServer
from bb_ops.progress import Progress
from bb_ops.recovery.checks import add_page_checksums, check_structure
from bb_ops.recovery.full import RecoverOptions
from bb_ops.recovery.moment.choice import said
from bb_ops.recovery.moment.planning import plan_recovery, require_job
from bb_ops.recovery.moment.point_in_time import Copy, Job, check_job, recovered_copy
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.recovery.moment.replay import Replayed, paused_at_anchor
from bb_ops.recovery.restore import Restored
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.target import Target, server_account
from bb_ops.repository.catalog import Catalog, read_catalog
from bb_ops.repository.drills import DrillReport, DrillStep
from bb_ops.repository.ids import monthly_slot
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Receipt
from bb_ops.repository.wal_reader import ReceiptReader
from bb_ops.validation.course import Course, TimedClimb
from bb_ops.validation.denial import Declaration, trespassers
from bb_ops.validation.fingerprints import Comparison, compare_fingerprints, judge_data
from bb_ops.validation.promises import examine_archive
from bb_ops.validation.restore_test import RestoreTestOptions
from bb_ops.validation.stock_tools import open_with_stock_tools

_NO_BUDGET_S = 24 * 3600.0
_NO_PORT = 0
_CUT_BYTES = 16 << 20
_LADDER = (Level.L0, Level.L1, Level.L2, Level.L3, Level.L4, Level.L5, Level.L6)


@dataclass(frozen=True)
class Surroundings:
    """What the process has.

    Attributes:
        names: Of everything in its environment.
        identity: The file of the offline key.
    """

    names: frozenset[str]
    identity: Path


def run_exercise(  # noqa: PLR0913 - one fact each
    repository: Repository,
    declaration: Declaration,
    around: Surroundings,
    options: RestoreTestOptions,
    clock: Clock,
    progress: Progress,
) -> tuple[DrillReport, BbOpsError | None]:
    """Recover everything that the surviving region can give, into a throw-away directory, and prove it. Writes nothing.

    Every step is taken that still can be, also after one failed: a disaster does not stop there either. Killed, it
    leaves a throw-away directory, which the next test removes.

    Args:
        repository: The surviving region's.
        declaration: What is dead, since when.
        around: What this process was given.
        options: Where the copy goes; its level says nothing here.
        clock: For instants.
        progress: Told about raw bytes.

    Returns:
        What was seen, and the error of the first step that failed, for the exit code.
    """
    drill = _Drill(repository, declaration, around, options, clock, progress)
    drill.run()
    return drill.report(), drill.error


class _Drill:
    def __init__(  # noqa: PLR0913 - as above
        self,
        repository: Repository,
        declaration: Declaration,
        around: Surroundings,
        options: RestoreTestOptions,
        clock: Clock,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._declaration = declaration
        self._around = around
        self._options = options
        self._clock = clock
        self._progress = progress
        self._course = Course(clock)
        self._climb = TimedClimb(Level.L7, clock=clock)
        self._catalog: Catalog | None = None
        self._job: Job | None = None
        self._copy = Copy()
        self._comparison: Comparison | None = None
        self._compared_s = 0.0
        self._equal_at_end = False
        self._answers_at: datetime | None = None
        self._proven_at: datetime | None = None

    @property
    def error(self) -> BbOpsError | None:
        """The first one, in the order of the steps."""
        return self._course.error or self._climb.error

    def run(self) -> None:
        """Take every step."""
        course = self._course
        course.measure("declared", self._declared)
        if not course.measure("catalog", self._read_catalog) and self._catalog is None:
            return
        system_id = self._catalog.physical[-1].commit.system_id if self._catalog and self._catalog.physical else ""
        if self._catalog is not None and system_id:
            held = self._catalog
            course.measure("archive", lambda: examine_archive(self._repository, held, system_id))
        course.measure("plan", self._plan)
        if self._job is None:
            return
        job = self._job
        course.measure("key", lambda: self._key(job))
        with scratch_directory(self._options.scratch_directory, server_account(self._options.server_user)) as scratch:
            self._recover(job, scratch)
            course.measure("stock_tools", lambda: self._stock_tools(job, scratch))

    def _declared(self) -> tuple[Outcome, str]:
        known = trespassers(self._around.names)
        if known:
            raise FindingsPresent(f"what is dead is known here: {', '.join(known)}")
        shared = f"; {', '.join(self._declaration.shared)} would open both regions" if self._declaration.shared else ""
        return Outcome.PASS, (
            f"{self._declaration.dead} is dead: of its store, its server and the working key nothing was given to this "
            f"process, which knows {len(self._around.names)} settings{shared}"
        )

    def _read_catalog(self) -> tuple[Outcome, str]:
        catalog = read_catalog(self._repository)
        self._catalog = catalog
        wrong = [str(error) for error in catalog.damaged]
        wrong += [problem for entry in catalog.physical for problem in entry.problems]
        if wrong:
            raise IntegrityError("; ".join(wrong[:3]))
        return Outcome.PASS, f"{len(catalog.entries)} backups in {self._repository.store.url}, read without an index"

    def _plan(self) -> tuple[Outcome, str]:
        target = RecoveryTarget(kind=TargetKind.LATEST)
        plan, job = plan_recovery([self._repository], target, self._clock)
        self._job = require_job(plan, job)
        chain = f"{plan.backup_id} and {len(plan.chain) - 1} below it" if len(plan.chain) > 1 else plan.backup_id
        until = said(self._job.best.until_at)
        return Outcome.PASS, f"{chain}, then {plan.wal_bytes} bytes of WAL, to {until}; nothing after that is there"

    def _key(self, job: Job) -> tuple[Outcome, str]:
        """Prove that what is at hand is the offline key, and no other."""
        ours, commit = set(self._recipients()), job.best.commit
        if commit.encryption == "none":
            raise NotMeasured(f"{commit.id} is not encrypted, so no key was tried")
        if self._declaration.working_recipient in ours:
            raise KeyRejected("the working key is at hand, which died with its region: give the offline key alone")
        opening = ours & set(commit.recipients)
        if not opening:
            raise KeyRejected(f"the key at hand, {', '.join(sorted(ours))}, is no recipient of {commit.id}")
        if len(opening) == len(commit.recipients):
            raise KeyRejected(f"every key of {commit.id} is at hand, so nothing was denied: give the offline key alone")
        working = self._declaration.working_recipient
        other = f"; the working one, {working}, is not" if working else "; no working key could be read anywhere"
        return Outcome.PASS, f"{', '.join(sorted(opening))} of {len(commit.recipients)} recipients is at hand{other}"

    def _recipients(self) -> list[str]:
        try:
            return [str(identity.to_public()) for identity in self._repository.identities]
        except BbOpsError:
            return []

    def _recover(self, job: Job, scratch: Path) -> None:
        """Bring everything back and climb to L6; the same copy is compared where its source was counted."""
        bindirs, user = self._options.pg_bindirs, self._options.server_user
        options = RecoverOptions(
            into=scratch / "data", start=False, port=_NO_PORT, pg_bindirs=bindirs, server_user=user
        )
        found: list[tuple[Target, Programs]] = []

        def room() -> tuple[Outcome, str]:
            found.append(check_job(job, options))
            return Outcome.PASS, f"{job.needed_bytes} bytes needed, and free in {scratch.parent}"

        if not self._course.measure("room", room):
            return
        target, programs = found[0]

        def compare(restored: Restored) -> bool:
            return self._compare_at_anchor(job, target, programs, restored)

        with recovered_copy(
            job, target, programs, self._climb, self._progress, durable=False, before_replay=compare
        ) as copy:
            self._copy = copy
            self._prove(job, programs, target, copy)
        if self._passed(Level.L5):
            self._add_pages(programs, target)
        if all(self._passed(level) for level in _LADDER):
            self._proven_at = self._clock.now()

    def _compare_at_anchor(self, job: Job, target: Target, programs: Programs, restored: Restored) -> bool:
        """L6, on the copy that will go on; return whether it can."""
        spoiled = False

        def compare() -> tuple[Outcome, str]:
            nonlocal spoiled
            try:
                with paused_at_anchor(job.replay, target, programs, self._progress) as server:
                    if server is None:
                        self._equal_at_end = True
                        return Outcome.NOT_MEASURED, "the replay's end is the place to compare, and was not reached"
                    watch = Stopwatch()
                    answer = self._rows_equal(server, restored)
                    self._compared_s = watch.elapsed_s
                    return answer
            except NotMeasured:
                spoiled = True
                raise

        self._climb.measure(Level.L6, compare)
        return not spoiled

    def _rows_equal(self, server: RunningServer, restored: Restored) -> tuple[Outcome, str]:
        """Compare with the source, and evaluate what the application declares of its data."""
        self._progress("rows", 0, None)
        ours = take_fingerprints(server.dsn, budget_s=_NO_BUDGET_S, anchored=False)
        self._comparison = compare_fingerprints(restored.fingerprints, ours)
        results = check_invariants(server.dsn, self._options.invariants, INVARIANTS_DEADLINE_S)
        return judge_data(self._comparison, results)

    def _prove(self, job: Job, programs: Programs, target: Target, copy: Copy) -> None:
        """Look at the server that has everything."""
        running, restored = copy.replayed, copy.restored
        if running is None or restored is None:
            return
        self._answers_at = self._clock.now()
        self._course.measure("end", lambda: _reached_end(job, running))
        if self._equal_at_end:
            self._climb.measure(Level.L6, lambda: self._rows_equal(running.server, restored))
        self._progress("structure", 0, None)
        self._climb.measure(Level.L5, lambda: check_structure(programs, running.server.dsn, target.owner))

    def _add_pages(self, programs: Programs, target: Target) -> None:
        """Add the page checksums, which need a stopped server, to L5's answer."""
        before = self._climb.steps.pop(Level.L5)
        answer = (Outcome.PASS, before.evidence)
        self._climb.measure(Level.L5, lambda: add_page_checksums(answer, programs, target.directory, target.owner))
        after = self._climb.steps[Level.L5]
        self._climb.steps[Level.L5] = after.model_copy(update={"duration_s": before.duration_s + after.duration_s})

    def _passed(self, level: Level) -> bool:
        return level in self._climb.steps and self._climb.steps[level].outcome == Outcome.PASS

    def _stock_tools(self, job: Job, scratch: Path) -> tuple[Outcome, str]:
        newest = _newest_segment(self._repository, job)
        return open_with_stock_tools(self._repository, job.best.commit, newest, self._around.identity, scratch)

    def _verdict(self, outcomes: list[Outcome], rto_s: float | None, rpo_s: float | None) -> tuple[Outcome, str]:
        if worst(outcomes) != Outcome.PASS:
            return Outcome.NOT_MEASURED, "another step of the drill did not pass"
        return Outcome.PASS, (
            f"restored from {self._repository.region} alone with the offline key; a server answered {rto_s} s after "
            f"{self._declaration.dead} was declared dead, and lacks the last {rpo_s} s"
        )

    def report(self) -> DrillReport:
        """Put the report together."""
        declared_at = self._declaration.declared_at
        job, copy, comparison = self._job, self._copy, self._comparison
        until = job.best.until_at if job is not None and copy.replayed is not None else None
        rpo_s = _seconds(until, declared_at, 0.0) if until is not None else None
        rto_s = _seconds(declared_at, self._answers_at, self._compared_s)
        outcomes = [step.outcome for step in self._course.steps]
        outcomes += [self._climb.steps[level].outcome for level in _LADDER if level in self._climb.steps]
        outcomes += [Outcome.NOT_MEASURED] if self._proven_at is None else []
        self._climb.measure(Level.L7, lambda: self._verdict(outcomes, rto_s, rpo_s))
        ladder, ended_at = self._climb.close(), self._clock.now()
        rungs = [
            DrillStep(**step.model_dump(exclude={"level"}), name=step.level, started_at=began)
            for step in ladder
            for began in [self._climb.began.get(Level[step.level], ended_at)]
        ]
        running, restored = copy.replayed, copy.restored
        return DrillReport(
            id=f"{declared_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
            region=self._repository.region,
            repository_id=self._catalog.repository_id if self._catalog is not None else "",
            cluster=self._repository.cluster,
            system_id=job.best.commit.system_id if job is not None else "",
            dead=self._declaration.dead,
            slot=monthly_slot(declared_at),
            declared_at=declared_at,
            ended_at=ended_at,
            outcome=worst([*outcomes, self._climb.outcome]),
            steps=tuple(sorted([*self._course.steps, *rungs], key=lambda step: step.started_at)),
            given=tuple(sorted(self._around.names)),
            identities=tuple(self._recipients()),
            backup_id=job.best.commit.id if job is not None else None,
            rpo_s=rpo_s,
            recovered_until_at=until,
            last_transaction_at=running.last_transaction_at if running is not None else None,
            rto_s=rto_s,
            proven_s=_seconds(declared_at, self._proven_at, 0.0),
            compared_s=self._compared_s,
            ladder=ladder,
            level=self._climb.reached.name if self._climb.reached is not None else None,
            restore_s=restored.duration_s if restored is not None else None,
            restored_bytes=restored.restored_bytes if restored is not None else None,
            replay_s=running.replay_s if running is not None else None,
            replayed_bytes=running.wal_bytes if running is not None else None,
            tables_compared=comparison.tables if comparison is not None else 0,
            rows_compared=comparison.rows if comparison is not None else 0,
            anchor_lsn=str(job.best.commit.wal_end_lsn) if job is not None and comparison is not None else None,
            host=socket.gethostname(),
            bb_ops_version=__version__,
        )


def _seconds(from_at: datetime, to_at: datetime | None, less_s: float) -> float | None:
    """Return the seconds between two instants; None where one was not measured."""
    return round((to_at - from_at).total_seconds() - less_s, 3) if to_at is not None else None


def _reached_end(job: Job, running: Replayed) -> tuple[Outcome, str]:
    """Compare where recovery ended with where the archive ends; its last record may be cut there."""
    end = job.best.branch.end.lsn
    if running.ended_at_lsn + max(job.best.commit.wal_segment_bytes, _CUT_BYTES) < end:
        raise IntegrityError(f"recovery ended at {running.ended_at_lsn}, and the archive leads to {end}")
    return Outcome.PASS, f"recovery ended at {running.ended_at_lsn}; the archive leads to {end}"


def _newest_segment(repository: Repository, job: Job) -> Receipt | None:
    """Return the record of the newest whole segment that is archived; None where there is none."""
    facts = job.best.facts.wal
    size = facts.segment_bytes
    if size is None:
        return None
    for timeline in sorted(facts.timelines, reverse=True):
        for stretch in facts.stretches(timeline)[-1:]:
            reader = ReceiptReader(repository, facts.timelines[timeline], facts.system_id, size)
            return reader.receipt(segment_name(timeline, Lsn(stretch.end - size), size))
    return None
