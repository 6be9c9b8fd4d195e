"""Tests a logical or schema backup by loading it beside, in a throw-away server without network."""

import secrets
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.errors import IntegrityError, NotMeasured
from bb_ops.findings import Outcome
from bb_ops.invariants import INVARIANTS_DEADLINE_S, InvariantResults
from bb_ops.postgres import dump
from bb_ops.postgres.fingerprint import Contents, take_fingerprints
from bb_ops.postgres.invariants import check_invariants
from bb_ops.postgres.programs import find_programs
from bb_ops.process import Account
from bb_ops.progress import Progress
from bb_ops.recovery.checks import check_structure
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.load import Dump, Loaded, comparable_globals, needed_bytes, not_continuous
from bb_ops.recovery.restore import read_fingerprints
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.target import check_target, prepare_target, server_account
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import LogicalCommit, StoredDatabase
from bb_ops.repository.reports import Level, Proof
from bb_ops.repository.repository import Repository
from bb_ops.validation.fingerprints import Comparison, compare_fingerprints, judge_data
from bb_ops.validation.restore_test import (
    Nowhere,
    RestoreTestOptions,
    RestoreTestResult,
    present,
)

_NO_BUDGET_S = 24 * 3600.0
_MOST_NAMED = 5


def run_load_test(  # noqa: PLR0913 - one fact each
    repository: Repository,
    entry: CatalogEntry,
    commit: LogicalCommit,
    options: RestoreTestOptions,
    clock: Clock,
    progress: Progress,
) -> RestoreTestResult:
    """Climb the ladder with one dump. Nothing remains of the copy; the proof is not yet recorded.

    Raises:
        TargetRefused: there is no room for the copy.
        UsageError: the account to run servers does not exist.
    """
    started_at, watch = clock.now(), Stopwatch()
    test = _LoadTest(repository, commit, options, Climb(options.level), progress)
    if test.climb.measure(Level.L0, lambda: present(entry)):
        if options.level <= Level.L1:
            test.climb.measure(Level.L1, test.read_everything)
        else:
            test.run()
    steps = test.climb.close()
    compared = test.comparison
    proof = Proof(
        id=f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
        backup_id=commit.id,
        region=repository.region,
        level=test.climb.reached.name if test.climb.reached is not None else None,
        outcome=test.climb.outcome,
        steps=steps,
        started_at=started_at,
        duration_s=watch.elapsed_s,
        restore_s=test.restore_s,
        restored_bytes=test.restored_bytes,
        tables_compared=compared.tables if compared else 0,
        rows_compared=compared.rows if compared else 0,
        anchor_lsn=str(commit.position) if compared else None,
        host=socket.gethostname(),
        bb_ops_version=__version__,
        invariants=test.invariants.results,
    )
    return RestoreTestResult(proof, test.climb.error)


@dataclass
class _LoadTest:
    """One climb from L1 upwards."""

    repository: Repository
    commit: LogicalCommit
    options: RestoreTestOptions
    climb: Climb
    progress: Progress
    restore_s: float | None = None
    restored_bytes: int | None = None
    comparison: Comparison | None = None
    invariants: InvariantResults = field(default_factory=InvariantResults)

    def read_everything(self) -> tuple[Outcome, str]:
        """L1 without any program of PostgreSQL."""
        objects = self.commit.objects
        total = sum(self.repository.open_object(self.commit, entry, Nowhere()) for entry in objects)
        return Outcome.PASS, f"{len(objects)} objects hashed, decrypted and decompressed: {total} bytes"

    def run(self) -> None:
        """Read everything, then load it into a throw-away cluster and climb as high as asked."""
        watch = Stopwatch()
        try:
            programs = find_programs(self.commit.client_major, self.options.pg_bindirs)
        except NotMeasured as error:
            missing = str(error)
            if self.climb.measure(Level.L1, self.read_everything):
                self.climb.measure(Level.L2, lambda: (Outcome.NOT_MEASURED, missing))
            return
        held = Dump(self.repository, self.commit, programs)
        listed: dict[str, bytes] = {}

        def read() -> tuple[Outcome, str]:
            found, size_bytes = held.read_everything()
            listed.update(found)
            count = len(self.commit.objects)
            return Outcome.PASS, f"{count} objects hashed, decrypted and decompressed: {size_bytes} bytes"

        if not self.climb.measure(Level.L1, read):
            return
        whole = self.climb.measure(Level.L2, lambda: held.contents(listed))
        self.climb.step_over(Level.L3, not_continuous(self.commit))
        if whole and self.climb.wanted >= Level.L4:
            self._load(held, watch)

    def _load(self, held: Dump, watch: Stopwatch) -> None:
        commit, owner = self.commit, server_account(self.options.server_user)
        running: list[Loaded] = []
        with scratch_directory(self.options.scratch_directory, owner) as scratch, ExitStack() as stack:
            oids = tuple(space.oid for space in commit.tablespaces)
            target = check_target(scratch / "data", owner, needed_bytes(commit), oids)
            prepare_target(target, commit.id)

            def load() -> tuple[Outcome, str]:
                running.append(stack.enter_context(held.loaded(target, self.progress)))
                self.restored_bytes = running[0].restored_bytes
                self.restore_s = watch.elapsed_s
                return Outcome.PASS, (
                    f"a new cluster of PostgreSQL {commit.client_major} took {len(commit.databases)} databases without "
                    f"an error; ready {self.restore_s} s after the first byte was read"
                )

            if not self.climb.measure(Level.L4, load):
                return
            self.progress("structure", 0, None)
            sound = self.climb.measure(Level.L5, lambda: self._structure(held, running[0], owner))
            if commit.kind == BackupKind.SCHEMA:
                self.climb.step_over(Level.L6, "a schema backup holds no rows")
            elif sound:
                self.progress("rows", 0, None)
                self.climb.measure(Level.L6, lambda: self._compare(running[0]))

    def _structure(self, held: Dump, loaded: Loaded, owner: Account | None) -> tuple[Outcome, str]:
        """L5: what was loaded, dumped again, is what was stored; then heaps, indexes and constraints."""
        said = []
        if self.commit.client_major == self.commit.server_major:
            said.append(_same_globals(held, loaded))
        else:
            said.append(f"globals not compared: the source is PostgreSQL {self.commit.server_major}")
        compare = _schema_difference if self.commit.kind == BackupKind.SCHEMA else _definitions_difference
        for database in self.commit.databases:
            difference = compare(held, loaded, database)
            if difference and self.commit.client_major != self.commit.server_major:
                return Outcome.NOT_MEASURED, f"another major version writes other definitions: {difference}"
            if difference:
                raise IntegrityError(
                    f"database {database.name}: the definitions differ from the source's: {difference}"
                )
        count = len(self.commit.databases)
        said.append(f"all definitions of {count} databases are there, dumped again and compared")
        outcome, evidence = check_structure(held.programs, loaded.server.dsn, owner)
        return outcome, "; ".join((*said, evidence))

    def _compare(self, loaded: Loaded) -> tuple[Outcome, str]:
        source = read_fingerprints(self.repository, self.commit)
        ours = take_fingerprints(loaded.server.dsn, budget_s=_NO_BUDGET_S, anchored=False, contents=Contents.DUMP)
        self.comparison = compare_fingerprints(source, ours)
        self.invariants = check_invariants(loaded.server.dsn, self.options.invariants, INVARIANTS_DEADLINE_S)
        return judge_data(self.comparison, self.invariants)


def _same_globals(held: Dump, loaded: Loaded) -> str:
    with dump.dump_globals(loaded.client, "template1") as pieces:
        ours = comparable_globals(b"".join(pieces))
    differing = _difference(comparable_globals(held.globals()), ours)
    if differing:
        raise IntegrityError(f"roles or tablespaces differ from the source's: {differing}")
    return "roles, memberships and tablespaces equal"


def _schema_difference(held: Dump, loaded: Loaded, database: StoredDatabase) -> str:
    with dump.dump_schema(loaded.client, database.name, None) as pieces:
        ours = dump.stable_script(b"".join(pieces))
    stored = dump.stable_script(held.read(held.commit.named(database.dump)))
    if ours == stored:
        return ""
    return _difference(stored.splitlines(), ours.splitlines()) or "another order"


def _definitions_difference(held: Dump, loaded: Loaded, database: StoredDatabase) -> str:
    with dump.listing(held.programs) as listed, dump.dump_definitions(loaded.client, database.name) as pieces:
        for piece in pieces:
            listed.write(piece)
    ours = dump.definitions(dump.entries(listed.stdout))
    stored = dump.definitions(held.read(held.commit.named(database.contents or "")).decode().splitlines())
    return _difference(stored.elements(), ours.elements())


def _difference(stored: Iterable[object], ours: Iterable[object]) -> str:
    """Name what only one side has, in a few words."""
    theirs, mine = Counter(stored), Counter(ours)
    only = [f"missing {_shown(entry)}" for entry in theirs - mine] + [f"new {_shown(entry)}" for entry in mine - theirs]
    return "; ".join(only[:_MOST_NAMED]) + (f"; and {len(only) - _MOST_NAMED} more" if len(only) > _MOST_NAMED else "")


def _shown(entry: object) -> str:
    return repr(entry.decode(errors="replace") if isinstance(entry, bytes) else entry)
