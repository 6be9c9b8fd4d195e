"""Load a recovered table into a side schema of the live server: one transaction, proven before it commits.

Killed at any point, the server rolls it back. Rows go from server to server as text, piece by piece: it means the same
for every version and type, where the binary form is a type's own affair.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, IntegrityError, ProgramFailed, UsageError
from bb_ops.postgres import dump
from bb_ops.postgres.connection import connect, without_values
from bb_ops.postgres.databases import NO_TIMEOUTS
from bb_ops.postgres.dump import Client
from bb_ops.postgres.fingerprint import pin_settings, rows_and_digest
from bb_ops.postgres.table import Connection, Relation, columns
from bb_ops.progress import Progress
from bb_ops.recovery.table.side import Movable, check_schema

_LOGGER = logging.getLogger(__name__)
_SIZE = "SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint FROM unnest(%s::oid[]) AS t (oid)"

Measured = Mapping[int, tuple[int, str]]
"""Number of rows and digest, by the table's oid in the copy, which it keeps wherever it is moved."""


@dataclass(frozen=True)
class Source:
    """A table in a copy, ready to be moved.

    Attributes:
        connection: To the copy, after ``pin_settings``.
        client: pg_dump for it.
        dbname: Its database.
        measured: What its tables hold.
    """

    connection: Connection
    client: Client
    dbname: str
    movable: Movable
    measured: Measured

    @property
    def holders(self) -> list[Relation]:
        """The tables that rows are stored in."""
        return [one for one in self.movable.members if one.holds_rows]


def measure(connection: Connection, tables: Sequence[Relation]) -> dict[int, tuple[int, str]]:
    """Count and hash what each table holds itself, after ``pin_settings``."""
    found = {}
    for table in tables:
        rows, digest = connection.execute(rows_and_digest(table.identifier)).fetchone() or (0, "")
        found[table.oid] = int(str(rows)), str(digest)
    return found


def load_table(source: Source, live: Dsn, dbname: str, schema: str, progress: Progress) -> None:
    """Make the table in the live server's side schema, rows and all, or leave nothing of it.

    Args:
        source: The table in the copy.
        live: The live server; its role needs CREATE on the database, or on a schema that exists.
        dbname: The database there.
        schema: Is made where it does not exist; must hold no table of these names.
        progress: Told about bytes.

    Raises:
        UsageError: the schema has such a table, or the server lacks what the table needs.
        IntegrityError: what was loaded differs from the copy.
        ProgramFailed: the connection broke off.
    """
    names = [str(one) for one in source.movable.members]
    scripts = [dump.table_script(source.client, source.dbname, names, section) for section in ("pre-data", "post-data")]
    watch = Stopwatch()
    _LOGGER.info("table load starts", extra={"tables": len(names)})
    with connect(live, dbname=dbname) as connection:
        try:
            pin_settings(connection)
            connection.execute(NO_TIMEOUTS)
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            if not check_schema(connection, schema, [one.name for one in source.movable.members]):
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            connection.execute(scripts[0])
            size_bytes = _copy_rows(source, connection, progress)
            progress("indexes", 0, None)
            connection.execute(scripts[1])
            _prove(source, connection)
            connection.execute("COMMIT")
        except psycopg.Error as error:
            raise _refused(error) from None
    _LOGGER.info("table load ends", extra={"duration_s": watch.elapsed_s, "size_bytes": size_bytes})


def _copy_rows(source: Source, live: Connection, progress: Progress) -> int:
    oids = [one.oid for one in source.holders]
    row = source.connection.execute(_SIZE, (oids,)).fetchone()
    total, done = int(str(row[0])) if row else None, 0
    for table in source.holders:
        names = [
            sql.Identifier(column.name) for column in columns(source.connection, table.oid) if not column.generated
        ]
        listed = sql.SQL(" ({})").format(sql.SQL(", ").join(names)) if names else sql.SQL("")
        place = sql.Composed([table.identifier, listed])
        with (
            source.connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(place)) as rows,
            live.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(place)) as sink,
        ):
            for piece in rows:
                sink.write(piece)
                done += len(piece)
                progress("load", done, total)
    return done


def _prove(source: Source, live: Connection) -> None:
    pin_settings(live)  # the scripts have their own
    loaded = measure(live, source.holders)
    for table in source.holders:
        (rows, digest), (wanted, wanted_digest) = loaded[table.oid], source.measured[table.oid]
        if (rows, digest) != (wanted, wanted_digest):
            raise IntegrityError(
                f"{table} as loaded has {rows} rows with digest {digest}, in the copy {wanted} with {wanted_digest}: "
                "nothing was kept; does a function that it uses do something else now?"
            )


def _refused(error: psycopg.Error) -> BbOpsError:
    said = without_values(error)
    message = f"the table was not brought back, and nothing of it remains on the live server: {said}"
    if isinstance(error, psycopg.OperationalError):
        return ProgramFailed(message)
    return UsageError(f"{message}: make what is missing first, or take a dump with --dump")
