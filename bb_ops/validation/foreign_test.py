"""Tests what others made by restoring it beside, in a throw-away server without network. Nothing is recorded."""

import socket
from contextlib import ExitStack
from dataclasses import dataclass

from pydantic import AwareDatetime

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.errors import BbOpsError
from bb_ops.findings import Outcome, Value
from bb_ops.postgres.authid import bootstrap_superuser
from bb_ops.postgres.connection import connect
from bb_ops.postgres.scratch import RunningServer, throw_away_server
from bb_ops.progress import Progress
from bb_ops.recovery.checks import check_structure
from bb_ops.recovery.foreign.base import ForeignBase
from bb_ops.recovery.foreign.dump import SUPERUSER, ForeignDump
from bb_ops.recovery.foreign.place import Place
from bb_ops.recovery.foreign.recover import Foreign, Reading, climb_base, climb_dump, judged
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.target import Target, check_target, finish_target, prepare_target, server_account
from bb_ops.repository.reports import Level, Step
from bb_ops.validation.restore_test import RestoreTestOptions

_START_TIMEOUT_S = 3600.0
_NO_ROWS = "nothing was recorded of the source's rows"


class ForeignProof(Value):
    """What one climb of the ladder showed of what others made. It is printed and kept nowhere.

    Attributes:
        source: Where it is.
        form: What it is.
        level: The highest level whose steps, and all below that apply, passed; None where not even L0 did.
        outcome: As of a ``Proof``.
        restore_s: Seconds from the first byte written to a server that answers; None where none was started.
    """

    schema_id: str = "bb-ops/foreign-proof/1"
    source: str
    form: str
    level: str | None
    outcome: Outcome
    steps: tuple[Step, ...]
    started_at: AwareDatetime
    duration_s: float
    restore_s: float | None
    restored_bytes: int | None
    host: str
    bb_ops_version: str


@dataclass
class ForeignTestResult:
    """What a test showed, and the error that ended the climb, for the exit code."""

    proof: ForeignProof
    error: BbOpsError | None


def run_foreign_test(place: Place, options: RestoreTestOptions, clock: Clock, progress: Progress) -> ForeignTestResult:
    """Climb the ladder with what others made. Nothing remains of the copy.

    Raises:
        IntegrityError: it is damaged, cut short, or would write or run what it must not.
        UsageError: it is nothing that can be restored here.
        TargetRefused: there is no room for the copy.
    """
    started_at, watch, climb = clock.now(), Stopwatch(), Climb(options.level)
    with judged(place, Reading(options.pg_bindirs, None, options.scratch_directory, progress)) as found:
        test = _ForeignTest(found, options, climb, progress)
        test.run()
    proof = ForeignProof(
        source=found.where,
        form=found.form,
        level=climb.reached.name if climb.reached is not None else None,
        outcome=climb.outcome,
        steps=climb.close(),
        started_at=started_at,
        duration_s=watch.elapsed_s,
        restore_s=test.restore_s,
        restored_bytes=test.restored_bytes,
        host=socket.gethostname(),
        bb_ops_version=__version__,
    )
    return ForeignTestResult(proof, climb.error)


@dataclass
class _ForeignTest:
    found: Foreign
    options: RestoreTestOptions
    climb: Climb
    progress: Progress
    restore_s: float | None = None
    restored_bytes: int | None = None

    def run(self) -> None:
        owner = server_account(self.options.server_user)
        with scratch_directory(self.options.scratch_directory, owner) as scratch, ExitStack() as stack:
            target = check_target(scratch / "data", owner, self.found.needed_bytes, self.found.oids)
            if isinstance(self.found, ForeignDump):
                server = self._load(self.found, target, stack)
            else:
                server = self._extract(self.found, target, stack)
            if server is not None:
                self.progress("structure", 0, None)
                self.climb.measure(Level.L5, lambda: check_structure(self.found.programs, server.dsn, owner))
                self.climb.step_over(Level.L6, _NO_ROWS)

    def _load(self, found: ForeignDump, target: Target, stack: ExitStack) -> RunningServer | None:
        servers: list[RunningServer] = []
        climb_dump(self.climb, found)

        def load() -> tuple[Outcome, str]:
            prepare_target(target, found.where)
            watch = Stopwatch()
            loaded = stack.enter_context(found.loaded(target, self.progress))
            servers.append(loaded.server)
            self.restored_bytes, self.restore_s = loaded.restored_bytes, watch.elapsed_s
            return Outcome.PASS, found.said(loaded)

        self.climb.measure(Level.L4, load)
        return next(iter(servers), None)

    def _extract(self, found: ForeignBase, target: Target, stack: ExitStack) -> RunningServer | None:
        servers: list[RunningServer] = []
        if self.climb.wanted < Level.L2:
            self.climb.measure(Level.L0, lambda: (Outcome.PASS, f"{len(found.parts)} archives are there"))
            self.climb.step_over(Level.L1, found.unhashed())
            return None
        watch = Stopwatch()
        self.restored_bytes = found.extract(target, self.progress, durable=False).restored_bytes
        if not climb_base(self.climb, found, target):
            return None
        found.settle(target)
        finish_target(target)

        def boot() -> tuple[Outcome, str]:
            superuser = bootstrap_superuser(target.directory) or SUPERUSER
            running = throw_away_server(found.programs, target.directory, superuser, target.owner, _START_TIMEOUT_S)
            server = stack.enter_context(running)
            with connect(server.dsn) as connection:
                connection.execute("SELECT pg_is_in_recovery()")
            servers.append(server)
            self.restore_s = watch.elapsed_s
            return Outcome.PASS, f"the server answers {self.restore_s} s after the first byte was written"

        self.climb.measure(Level.L4, boot)
        return next(iter(servers), None)
