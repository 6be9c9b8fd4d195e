"""Bring one table, or rows of it, back as of a moment: through a throw-away copy, beside what lives, and compared.

The live table is only read. Nothing remains of the copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from pydantic import AwareDatetime

from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import IntegrityError, NotMeasured, ProgramFailed, UsageError
from bb_ops.findings import Outcome, Value, worst
from bb_ops.postgres import dump
from bb_ops.postgres.connection import connect, without_values
from bb_ops.postgres.databases import NO_TIMEOUTS
from bb_ops.postgres.dump import Client
from bb_ops.postgres.fingerprint import pin_settings
from bb_ops.postgres.programs import find_clients
from bb_ops.postgres.scratch import RunningServer
from bb_ops.postgres.table import (
    Connection,
    Relation,
    TableName,
    columns,
    foreign_types,
    members,
    missing_types,
    relations,
)
from bb_ops.progress import Progress
from bb_ops.recovery.full import RecoverOptions
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.moment.point_in_time import Copy, Job, check_job, recovered_copy, shown_at
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.table.choice import choose_table, require_members
from bb_ops.recovery.table.diff import Recovered, TableDiff, diff_table
from bb_ops.recovery.table.dump import check_file, dump_table
from bb_ops.recovery.table.load import Source, load_table, measure
from bb_ops.recovery.table.rows import keep_only
from bb_ops.recovery.table.side import check_schema, make_movable
from bb_ops.recovery.target import server_account
from bb_ops.repository.ids import BackupId
from bb_ops.repository.reports import Level, Step

_DATABASE = "SELECT pg_encoding_to_char(encoding), datallowconn FROM pg_database WHERE datname = %s"
_MOST_TYPES = 5


@dataclass(frozen=True)
class TableOptions:
    """What is brought back, and where to; one of ``dump`` and ``schema`` is given.

    Attributes:
        name: The table, as it was typed.
        database: The database, in the copy and on the live server.
        live: The live server; needed for ``schema`` and ``diff``.
        where: An SQL expression that selects rows; None takes all.
        dump: A file to be made.
        schema: A schema of the live server.
        diff: Compare with the live table.
        pg_bindirs: Where PostgreSQL's programs are looked for first.
        server_user: The account that runs the copy when we are root; None chooses one.
        scratch_directory: Where the copy goes; the system's temporary directory when None.
    """

    name: TableName
    database: str
    live: Dsn | None
    where: str | None
    dump: Path | None
    schema: str | None
    diff: bool
    pg_bindirs: tuple[Path, ...]
    server_user: str | None
    scratch_directory: Path | None


class TableRecovery(Value):
    """What a table recovery did.

    Attributes:
        recovered_to_at: The instant whose state the table shows.
        table: Its qualified name, as SQL has it.
        tables: How many tables hold its rows: partitions, and children by inheritance.
        rows: How many were brought back; the same number and digest were measured after loading.
        into_schema: Where it stands now on the live server; None for a dump.
        dump: The file; None for a schema.
        dump_bytes: Its size.
        left_out: What the table had and has not in the side schema.
        needs: Types that a dump needs and does not hold.
        diff: Against the live table; None where none was wanted.
        outcome: The worst of the copy's proof and of the diff: ``not_measured`` where there could be none.
        proof: The highest proof level that the copy showed.
    """

    schema_id: str = "bb-ops/table-recovery/1"
    backup_id: BackupId
    region: str
    target: str
    recovered_to_at: AwareDatetime
    database: str
    table: str
    tables: int
    where: str | None
    rows: int
    digest: str
    into_schema: str | None
    dump: Path | None
    dump_bytes: int | None
    left_out: tuple[str, ...]
    needs: tuple[str, ...]
    diff: TableDiff | None
    outcome: Outcome
    proof: str | None
    steps: tuple[Step, ...]
    duration_s: float


def check_options(options: TableOptions) -> None:
    """Refuse, before anything is done, what could not be done at the end.

    Raises:
        UsageError: the file exists, or the schema holds such a table or may not be used.
        ServerUnusable: the live server cannot be reached.
    """
    if (options.dump is None) == (options.schema is None):
        raise UsageError("give one of --dump and --into-schema")
    if options.dump is not None:
        check_file(options.dump)
    if options.live is None and (options.schema is not None or options.diff):
        raise UsageError("DATABASE_URL is not set: it names the live server (a dump with --no-diff needs none)")
    if options.schema is not None and options.live is not None:
        with connect(options.live, dbname=options.database) as live:
            check_schema(live, options.schema, [options.name.table])


def recover_table(job: Job, options: TableOptions, progress: Progress) -> TableRecovery:
    """Bring a table back. Safe to kill: nothing is kept by halves, and the next run removes the copy.

    Args:
        job: From where, to when.
        options: What and where to.
        progress: Told about bytes.

    Returns:
        What was done; a diff that could not be measured is in it.

    Raises:
        UsageError: the table was not there, or cannot be brought back; nothing was changed.
        IntegrityError: the backup or its WAL is damaged, or what was loaded differs from the copy; nothing was kept.
        NotMeasured: programs are missing.
    """
    watch = Stopwatch()
    check_options(options)
    owner = server_account(options.server_user)
    with scratch_directory(options.scratch_directory, owner) as scratch:
        place = RecoverOptions(
            scratch / "data", start=False, port=0, pg_bindirs=options.pg_bindirs, server_user=options.server_user
        )
        target, programs = check_job(job, place)
        climb = Climb(Level.L4)
        with recovered_copy(job, target, programs, climb, progress, durable=False) as copy:
            work = _bring(job, options, _require_server(copy, climb), progress)
        return TableRecovery(
            backup_id=job.best.commit.id,
            region=job.repository.region,
            target=str(job.target),
            recovered_to_at=shown_at(job, copy.replayed),
            database=options.database,
            table=str(work.table),
            tables=len(work.measured),
            where=options.where,
            rows=sum(rows for rows, _ in work.measured.values()),
            digest=str(sum(int(digest) for _, digest in work.measured.values())),
            into_schema=options.schema,
            dump=options.dump.absolute() if options.dump is not None else None,
            dump_bytes=work.dump_bytes,
            left_out=work.left_out,
            needs=work.types if options.dump is not None else (),
            diff=work.diff,
            outcome=worst([climb.outcome, *([work.diff.outcome] if work.diff is not None else [])]),
            proof=climb.reached.name if climb.reached is not None else None,
            steps=climb.close(),
            duration_s=watch.elapsed_s,
        )


@dataclass(frozen=True)
class _Work:
    """What became of one table."""

    table: Relation
    types: tuple[str, ...]
    measured: dict[int, tuple[int, str]]
    dump_bytes: int | None
    left_out: tuple[str, ...]
    diff: TableDiff | None


def _require_server(copy: Copy, climb: Climb) -> RunningServer:
    if copy.replayed is not None:
        return copy.replayed.server
    if climb.error is not None:
        raise climb.error
    raise NotMeasured(next(step.evidence for step in climb.close() if step.outcome != Outcome.PASS))


def _bring(job: Job, options: TableOptions, server: RunningServer, progress: Progress) -> _Work:
    _check_database(options, server, str(job.target))
    with connect(server.dsn, dbname=options.database) as copy:
        try:
            pin_settings(copy)
            copy.execute("SET default_transaction_read_only = off; SET session_replication_role = replica")
            copy.execute(NO_TIMEOUTS)
            client = dump.client(find_clients(job.best.commit.server_major, options.pg_bindirs), server.dsn)
            return _move(copy, client, options, str(job.target), progress)
        except psycopg.errors.DataCorrupted as error:
            raise IntegrityError(f"the table is damaged in the copy: {error.diag.message_primary}") from None
        except psycopg.Error as error:
            raise ProgramFailed(f"the copy's server did not do its part: {without_values(error)}") from None


def _move(copy: Connection, client: Client, options: TableOptions, moment: str, progress: Progress) -> _Work:
    table = choose_table(options.name, relations(copy), moment)
    parts = members(copy, table.oid)
    require_members(parts)
    types = foreign_types(copy, parts)
    _check_live(options, copy, parts, types)
    progress("rows", 0, None)
    if options.where is not None:
        keep_only(copy, parts, options.where)
    then, measured = columns(copy, table.oid), measure(copy, [part for part in parts if part.holds_rows])
    dump_bytes, left_out, current = None, tuple[str, ...](), table
    if options.dump is not None:
        rows = sum(count for count, _ in measured.values())
        dump_bytes = dump_table(client, options.database, parts, rows, options.dump, progress)
    elif options.schema is not None and options.live is not None:
        movable = make_movable(copy, parts, options.schema)
        source = Source(copy, client, options.database, movable, measured)
        load_table(source, options.live, options.database, options.schema, progress)
        left_out, current = movable.left_out, movable.members[0]
    diff = None
    if options.diff and table.schema == options.schema:
        diff = TableDiff(outcome=Outcome.NOT_APPLICABLE, reason=f"{table} was gone, and the recovered one is there now")
    elif options.diff and options.live is not None:
        progress("diff", 0, None)
        diff = diff_table(
            Recovered(copy, table, current.identifier, then, options.where), options.live, options.database
        )
    return _Work(table, types, measured, dump_bytes, left_out, diff)


def _check_database(options: TableOptions, server: RunningServer, moment: str) -> None:
    with connect(server.dsn) as copy:
        row = copy.execute(_DATABASE, (options.database,)).fetchone()
        names = ", ".join(
            str(one[0]) for one in copy.execute("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")
        )
    if row is None or not row[1]:
        raise UsageError(
            f"at {moment} there was no database {options.database} (there were {names}): name one with --database"
        )


def _check_live(options: TableOptions, copy: Connection, parts: Sequence[Relation], types: Sequence[str]) -> None:
    """Refuse what the live database could not take, before rows are moved."""
    if options.live is None or options.schema is None:
        return
    with connect(options.live, dbname=options.database) as live:
        pin_settings(live)
        check_schema(live, options.schema, [part.name for part in parts])
        lacking = missing_types(live, types)
        if lacking:
            named = ", ".join(lacking[:_MOST_TYPES])
            raise UsageError(
                f"the live database has no type {named}, which {parts[0]} had: make it there first (CREATE TYPE or "
                "CREATE EXTENSION), or take a dump with --dump"
            )
        encodings = {copy.info.parameter_status("server_encoding"), live.info.parameter_status("server_encoding")}
        if len(encodings) > 1:
            raise UsageError(f"database {options.database} has another encoding than it had: take a dump with --dump")
