"""Tests a backup by restoring it beside, in a throw-away server without network. The source is never touched."""

import io
import logging
import secrets
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, IntegrityError
from bb_ops.findings import Outcome
from bb_ops.invariants import INVARIANTS_DEADLINE_S, Invariant, InvariantResults
from bb_ops.postgres.fingerprint import take_fingerprints
from bb_ops.postgres.invariants import check_invariants
from bb_ops.postgres.programs import Programs, find_programs
from bb_ops.postgres.scratch import RunningServer, throw_away_server
from bb_ops.process import Account
from bb_ops.progress import Progress
from bb_ops.recovery.chain import restore_backup
from bb_ops.recovery.checks import add_page_checksums, check_contents, check_structure, check_wal, reached_position
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.restore import Restored, needed_bytes, relocate_tablespaces
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.target import Target, check_target, finish_target, server_account
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.reports import Level, Proof
from bb_ops.repository.repository import Repository
from bb_ops.validation.fingerprints import Comparison, compare_fingerprints, judge_data

_LOGGER = logging.getLogger(__name__)
_START_TIMEOUT_S = 3600.0
_NO_BUDGET_S = 24 * 3600.0


@dataclass(frozen=True)
class RestoreTestOptions:
    """How a restore test is done.

    Attributes:
        level: The highest level to climb to.
        pg_bindirs: Where PostgreSQL's programs are looked for first.
        server_user: The account that runs the server when we are root; None chooses one.
        scratch_directory: Where the throw-away copy goes; the system's temporary directory when None.
        invariants: What must be true of the application's data, for L6.
    """

    level: Level
    pg_bindirs: tuple[Path, ...]
    server_user: str | None
    scratch_directory: Path | None
    invariants: tuple[Invariant, ...] = ()


@dataclass
class RestoreTestResult:
    """What a test showed: the proof, and the error that ended the climb, for the exit code."""

    proof: Proof
    error: BbOpsError | None


def run_restore_test(
    repository: Repository, entry: CatalogEntry, options: RestoreTestOptions, clock: Clock, progress: Progress
) -> RestoreTestResult:
    """Climb the ladder with one backup. Nothing remains of the copy; the proof is not yet recorded.

    Raises:
        TargetRefused: there is no room for the copy.
        UsageError: the account to run servers does not exist.
    """
    started_at, watch = clock.now(), Stopwatch()
    commit = entry.physical
    _LOGGER.info("restore test starts", extra={"backup_id": commit.id, "region": repository.region})
    climb = Climb(options.level)
    test = _RestoreTest(repository, entry, options, climb, progress)
    if climb.measure(Level.L0, lambda: present(entry)):
        if options.level <= Level.L1:
            climb.measure(Level.L1, test.read_everything)
        else:
            test.run()
    steps = climb.close()
    comparison = test.comparison
    proof = Proof(
        id=f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
        backup_id=commit.id,
        region=repository.region,
        level=climb.reached.name if climb.reached is not None else None,
        outcome=climb.outcome,
        steps=steps,
        started_at=started_at,
        duration_s=watch.elapsed_s,
        restore_s=test.restore_s,
        restored_bytes=test.restored_bytes,
        tables_compared=comparison.tables if comparison else 0,
        rows_compared=comparison.rows if comparison else 0,
        anchor_lsn=str(commit.wal_end_lsn) if comparison else None,
        host=socket.gethostname(),
        bb_ops_version=__version__,
        invariants=test.invariants.results,
    )
    _LOGGER.info(
        "restore test ends",
        extra={
            "backup_id": commit.id,
            "proof_level": proof.level,
            "outcome": proof.outcome,
            "duration_s": proof.duration_s,
        },
    )
    return RestoreTestResult(proof, climb.error)


class _RestoreTest:
    """One climb from L1 upwards."""

    def __init__(
        self,
        repository: Repository,
        entry: CatalogEntry,
        options: RestoreTestOptions,
        climb: Climb,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._commit = entry.physical
        self._chain = entry.chain
        self._options = options
        self._climb = climb
        self._progress = progress
        self.restore_s: float | None = None
        self.restored_bytes: int | None = None
        self.comparison: Comparison | None = None
        self.invariants = InvariantResults()

    def read_everything(self) -> tuple[Outcome, str]:
        """L1 without a copy on disk: hash, decrypt and decompress every object."""
        objects = [(commit, entry) for commit in self._chain for entry in commit.objects]
        total = sum(self._repository.open_object(commit, entry, Nowhere()) for commit, entry in objects)
        return Outcome.PASS, f"{len(objects)} objects hashed, decrypted and decompressed: {total} bytes"

    def run(self) -> None:
        """Restore into a throw-away directory and climb as high as asked."""
        owner = server_account(self._options.server_user)
        with scratch_directory(self._options.scratch_directory, owner) as scratch:
            oids = tuple(space.oid for space in self._commit.tablespaces)
            target = check_target(scratch / "data", owner, needed_bytes(self._chain), oids)
            restored: list[Restored] = []
            if not self._climb.measure(Level.L1, lambda: self._restore(target, restored)):
                return
            self._check_copy(restored[0], owner)

    def _restore(self, target: Target, result: list[Restored]) -> tuple[Outcome, str]:
        restored = restore_backup(
            self._repository, self._chain, target, self._find_programs, self._progress, durable=False
        )
        result.append(restored)
        self.restored_bytes = restored.restored_bytes
        count = sum(len(commit.objects) for commit in self._chain)
        return Outcome.PASS, f"{count} objects hashed, decrypted, decompressed and extracted in {restored.duration_s} s"

    def _find_programs(self) -> Programs:
        return find_programs(self._commit.server_major, self._options.pg_bindirs)

    def _check_copy(self, restored: Restored, owner: Account | None) -> None:
        commit, directory, climb = self._commit, restored.target.directory, self._climb
        programs: list[Programs] = []

        def manifest() -> tuple[Outcome, str]:
            programs.append(self._find_programs())
            return check_contents(programs[0], directory, owner, restored.chain)

        if not climb.measure(Level.L2, manifest):
            return
        if not climb.measure(Level.L3, lambda: check_wal(programs[0], directory, commit, owner)):
            return
        relocate_tablespaces(restored, commit)
        finish_target(restored.target)
        if climb.wanted >= Level.L4:
            self._start(programs[0], restored, owner)

    def _start(self, programs: Programs, restored: Restored, owner: Account | None) -> None:
        climb, commit, directory = self._climb, self._commit, restored.target.directory
        servers: list[RunningServer] = []
        with ExitStack() as stack:

            def boot() -> tuple[Outcome, str]:
                self._progress("start", 0, None)
                server = throw_away_server(programs, directory, commit.superuser, owner, _START_TIMEOUT_S)
                servers.append(stack.enter_context(server))
                self.restore_s = round(restored.duration_s + servers[0].start_s, 3)
                outcome, evidence = reached_position(servers[0].dsn, commit)
                return outcome, f"{evidence}; ready {self.restore_s} s after the first byte was read"

            if climb.measure(Level.L4, boot):
                self._inspect(programs, servers[0].dsn, restored, owner)
        if Level.L5 in climb.steps and climb.steps[Level.L5].outcome == Outcome.PASS:
            self._check_pages(programs, directory, owner)

    def _inspect(self, programs: Programs, dsn: Dsn, restored: Restored, owner: Account | None) -> None:
        self._progress("structure", 0, None)
        sound = self._climb.measure(Level.L5, lambda: check_structure(programs, dsn, owner))
        if sound and self._climb.wanted >= Level.L6:
            self._progress("rows", 0, None)
            self._climb.measure(Level.L6, lambda: self._compare(dsn, restored))

    def _compare(self, dsn: Dsn, restored: Restored) -> tuple[Outcome, str]:
        fingerprints = take_fingerprints(dsn, budget_s=_NO_BUDGET_S, anchored=False)
        self.comparison = compare_fingerprints(restored.fingerprints, fingerprints)
        self.invariants = check_invariants(dsn, self._options.invariants, INVARIANTS_DEADLINE_S)
        return judge_data(self.comparison, self.invariants)

    def _check_pages(self, programs: Programs, directory: Path, owner: Account | None) -> None:
        """Add the page checksums, which need a stopped server, to L5's answer."""
        before = self._climb.steps.pop(Level.L5)

        def check() -> tuple[Outcome, str]:
            return add_page_checksums((Outcome.PASS, before.evidence), programs, directory, owner)

        self._climb.measure(Level.L5, check)
        after = self._climb.steps[Level.L5]
        self._climb.steps[Level.L5] = after.model_copy(update={"duration_s": before.duration_s + after.duration_s})


def present(entry: CatalogEntry) -> tuple[Outcome, str]:
    """L0: the listing shows every object with its size."""
    if entry.problems:
        raise IntegrityError("; ".join(entry.problems))
    objects = sum(len(commit.objects) for commit in entry.commits)
    count = len(entry.commits)
    signed = "the commit's signature is" if count == 1 else f"the signatures of {count} commits are"
    return Outcome.PASS, f"{objects} objects are there with their sizes; {signed} right"


class Nowhere(io.RawIOBase):
    """A sink that keeps nothing."""

    def write(self, data: object, /) -> int:
        """Count the bytes."""
        return len(data)  # type: ignore[arg-type]
