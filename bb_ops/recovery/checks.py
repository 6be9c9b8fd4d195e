"""What a restored directory and a server on it must show before anybody may rely on them."""

from collections.abc import Sequence
from pathlib import Path

from bb_ops.dsn import Dsn
from bb_ops.errors import IntegrityError
from bb_ops.findings import Outcome
from bb_ops.postgres import inspect
from bb_ops.postgres.connection import connect
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import Programs
from bb_ops.process import Account
from bb_ops.recovery.target import OURS
from bb_ops.repository.ids import BackupId
from bb_ops.repository.manifest import PhysicalCommit


def check_contents(
    programs: Programs, directory: Path, owner: Account | None, chain: Sequence[BackupId] = ()
) -> tuple[Outcome, str]:
    """L2: PostgreSQL's own manifest names every file, its size and checksum.

    Of a chain, every backup was checked before it was joined; here the result is.

    Raises:
        IntegrityError: the directory differs from it.
    """
    complaints = inspect.check_manifest(programs, directory, owner, ignore=OURS)
    if complaints:
        raise IntegrityError(f"the restored files differ from backup_manifest: {'; '.join(complaints)}")
    if len(chain) > 1:
        joined = f"chain of {chain[0]} and {len(chain) - 1} increments up to {chain[-1]}"
        return Outcome.PASS, f"pg_verifybackup: every backup of the {joined} is complete, and so is what they make"
    return Outcome.PASS, "pg_verifybackup: every file of backup_manifest is there and right"


def check_wal(
    programs: Programs, directory: Path, commit: PhysicalCommit, owner: Account | None
) -> tuple[Outcome, str]:
    """L3: every WAL record from the start of replay to the recorded end can be read."""
    end = commit.wal_end_lsn if commit.wal_end_lsn % commit.wal_segment_bytes else commit.end_lsn
    complaints = inspect.check_wal(programs, directory, commit.timeline, commit.start_lsn, end, owner)
    if complaints:
        raise IntegrityError(f"the WAL from {commit.start_lsn} to {end} has a hole: {'; '.join(complaints)}")
    return Outcome.PASS, f"pg_waldump: WAL is continuous from {commit.start_lsn} to {end} on timeline {commit.timeline}"


def reached_position(dsn: Dsn, commit: PhysicalCommit) -> tuple[Outcome, str]:
    """L4: the checkpoint that ended recovery lies at or behind the position that the commit promises."""
    with connect(dsn) as connection:
        row = connection.execute(
            "SELECT checkpoint_lsn::text, pg_is_in_recovery() FROM pg_control_checkpoint()"
        ).fetchone()
    position, recovering = (Lsn.parse(str(row[0])), row[1]) if row else (Lsn(0), True)
    if recovering or position < commit.wal_end_lsn:
        return Outcome.FAIL, f"recovery ended at {position}, the commit promises {commit.wal_end_lsn}"
    return Outcome.PASS, f"the server answers; recovery replayed everything up to {commit.wal_end_lsn}"


def check_structure(programs: Programs, dsn: Dsn, owner: Account | None) -> tuple[Outcome, str]:
    """L5: heaps, indexes and constraints. Databases that lack the amcheck extension have it afterwards."""
    indexes = inspect.check_indexes(programs, dsn, owner)
    constraints = inspect.check_constraints(dsn)
    complaints = [*indexes.complaints, *constraints.complaints]
    if complaints:
        return Outcome.FAIL, "; ".join(complaints)
    return Outcome.PASS, f"amcheck: {indexes.checked} relations sound; {constraints.checked} constraints hold"


def check_structure_of_kept(programs: Programs, dsn: Dsn, owner: Account | None) -> tuple[Outcome, str]:
    """L5 of a copy that will be used: as ``check_structure``, and no extension remains that was not there before."""
    lacking = []
    for name in inspect.databases(dsn):
        with connect(dsn, dbname=name) as connection:
            if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'amcheck'").fetchone() is None:
                lacking.append(name)
    try:
        return check_structure(programs, dsn, owner)
    finally:
        for name in lacking:
            with connect(dsn, dbname=name) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute("DROP EXTENSION IF EXISTS amcheck")


def add_page_checksums(
    before: tuple[Outcome, str], programs: Programs, directory: Path, owner: Account | None
) -> tuple[Outcome, str]:
    """Add the page checksums, which need a stopped server, to an answer of L5.

    Raises:
        IntegrityError: a page differs from its checksum.
    """
    seen = inspect.check_page_checksums(programs, directory, owner)
    if seen is None:
        return before[0], f"{before[1]}; page checksums: off at the source, not measured"
    if seen.complaints:
        raise IntegrityError(f"page checksums: {'; '.join(seen.complaints)}")
    return before[0], f"{before[1]}; page checksums of {seen.checked} pages right"
