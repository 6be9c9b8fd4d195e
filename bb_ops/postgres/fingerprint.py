"""Counts and digests of every table, bound to one exact position in the write-ahead log, or to a dump's snapshot.

The anchor is exact when nothing was written while the snapshots were taken: the insert position did not move, no
other session was inside a transaction that could be committing, and no prepared transaction existed. A commit whose
record is already written but whose session has not finished looks uncommitted to a snapshot, therefore sessions that
hold a transaction id are asked about and not only the snapshot (procarray.c, GetSnapshotData). Only digests leave the
database.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

import psycopg
from psycopg import sql

from bb_ops.clock import Stopwatch, sleep
from bb_ops.dsn import Dsn
from bb_ops.errors import BackupFailed
from bb_ops.findings import Value
from bb_ops.postgres.connection import connect, redact
from bb_ops.postgres.lsn import Lsn

_ATTEMPTS = 200
_PAUSE_S = 0.02
_MOST_DATABASES = 16
_PINNED = (
    "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC'; SET extra_float_digits = 3; "
    "SET bytea_output = 'hex'; SET xmlbinary = 'base64'; SET search_path = pg_catalog; SET row_security = off; "
    "SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = 0; SET default_transaction_isolation = "
    "'repeatable read'; SET default_transaction_read_only = on; SET client_encoding = 'UTF8'"
)
_DATABASES = """
SELECT datname FROM pg_database
WHERE datallowconn AND datname <> 'template0' AND has_database_privilege(oid, 'CONNECT')
ORDER BY pg_database_size(oid) DESC, datname
"""
_UNREACHABLE_DATABASES = """
SELECT datname FROM pg_database
WHERE datname <> 'template0' AND datallowconn AND NOT has_database_privilege(oid, 'CONNECT') ORDER BY datname
"""
_BUSY = """
SELECT count(*) FILTER (WHERE backend_xid IS NOT NULL AND state IS DISTINCT FROM 'idle in transaction')
       + (SELECT count(*) FROM pg_prepared_xacts),
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
FROM pg_stat_activity WHERE pid <> pg_backend_pid()
"""
_TABLES = """
SELECT n.nspname, c.relname, c.relpersistence, c.relkind, pg_relation_size(c.oid),
       c.oid, pg_relation_filepath(c.oid), pg_relation_filepath(nullif(c.reltoastrelid, 0))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
ORDER BY 5, 1, 2
"""
_POSITION = """
SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text
"""
_LARGE_OBJECTS = """
SELECT count(*), coalesce(sum(hashtextextended(loid::text || ':' || pageno::text || ':' || md5(data), 0)), 0)
FROM pg_largeobject
"""
# By content, which needs no superuser and does not depend on which pages of a large object were ever written.
_LARGE_OBJECTS_BY_CONTENT = """
SELECT count(*), coalesce(sum(hashtextextended(oid::text || ':' || md5(lo_get(oid)), 0)), 0)
FROM pg_largeobject_metadata
"""
_LEFT_OUT_OF_PAGES = "unlogged table {}: its rows are not part of a physical backup"
_LEFT_OUT_OF_DUMPS = "materialized view {}: a dump holds its query; its rows are made anew by the restore"


class Contents(Enum):
    """What a backup holds, and so what can be compared."""

    PAGES = "pages"
    """Everything but the rows of unlogged tables."""
    DUMP = "dump"
    """Everything but the rows of materialized views."""


class TableFingerprint(Value):
    """One table's rows at the anchor.

    Attributes:
        rows: Number of rows; None where it was not measured.
        digest: Sum of the 64-bit hashes of all rows as text, independent of their order; None likewise.
        reason: Why it was not measured.
        oid: The table's; None where it was not recorded.
        file: Where it was below the data directory (``pg_relation_filepath``): WAL names no tables.
        toast_file: Likewise of its TOAST table.
    """

    database: str
    table: str
    rows: int | None
    digest: str | None
    reason: str | None = None
    oid: int | None = None
    file: str | None = None
    toast_file: str | None = None


class Fingerprints(Value):
    """Every table of a cluster.

    Attributes:
        anchor_lsn: The position the rows belong to.
        exact: Whether equality at the anchor is provable; else other writes overlapped the snapshots.
        skipped: What is not part of such a backup by nature.
        unseen: Databases that were not looked at, each with the reason.
    """

    schema_id: str = "bb-ops/fingerprints/1"
    anchor_lsn: Lsn
    exact: bool
    tables: tuple[TableFingerprint, ...]
    skipped: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    duration_s: float


@dataclass(frozen=True)
class _Database:
    name: str
    connection: psycopg.Connection[tuple[object, ...]]


def pin_settings(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Make rows read the same on every server; transactions of this connection are read-only snapshots from now on."""
    connection.execute(_PINNED)


def count_in_snapshot(
    connection: psycopg.Connection[tuple[object, ...]], dbname: str, contents: Contents, budget_s: float
) -> tuple[list[TableFingerprint], list[str]]:
    """Count and hash every table of a database in the snapshot that ``connection`` holds open, after ``pin_settings``.

    Returns:
        The tables, and what is left out by nature.

    Raises:
        psycopg.Error: the connection broke off.
    """
    return _fingerprint_database(_Database(dbname, connection), contents, Stopwatch(), budget_s)


def rows_and_digest(table: sql.Identifier) -> sql.Composed:
    """Return the query that counts and hashes one table's own rows, for a connection after ``pin_settings``."""
    return sql.SQL(
        "SELECT count(*), coalesce(sum(hashtextextended((r.*)::text COLLATE {collation}, 0)), 0) FROM ONLY {table} AS r"
    ).format(collation=sql.Identifier("C"), table=table)


def take_fingerprints(
    dsn: Dsn, *, budget_s: float, anchored: bool = True, contents: Contents = Contents.PAGES
) -> Fingerprints:
    """Count and hash every table of every database in snapshots of one moment.

    Args:
        dsn: The server; its role needs SELECT on the tables, and pg_read_all_stats for an exact anchor.
        budget_s: Seconds after which tables that are still waiting are left out, and said to be.
        anchored: False for a server that nobody else uses: its present state needs no search for a quiet moment.
        contents: What the backup that is compared with holds.

    Raises:
        ServerUnusable: the server cannot be reached.
        BackupFailed: a connection broke off.
    """
    try:
        return _take(dsn, budget_s, contents, anchored=anchored)
    except psycopg.Error as error:
        raise BackupFailed(f"PostgreSQL at {dsn}: counting rows broke off: {redact(dsn, str(error))}") from None


def _take(dsn: Dsn, budget_s: float, contents: Contents, *, anchored: bool) -> Fingerprints:
    watch = Stopwatch()
    with ExitStack() as stack:
        control = stack.enter_context(connect(dsn))
        names = [str(row[0]) for row in control.execute(_DATABASES)]
        unseen = [f"database {row[0]}: no CONNECT privilege" for row in control.execute(_UNREACHABLE_DATABASES)]
        unseen += [f"database {name}: more than {_MOST_DATABASES} databases" for name in names[_MOST_DATABASES:]]
        skipped: list[str] = []
        databases = [_open(stack, dsn, name) for name in names[:_MOST_DATABASES]]
        anchor, exact = _anchor(control, databases) if anchored else (_insert_position(control), True)
        tables: list[TableFingerprint] = []
        for database in databases:
            if not anchored:
                _snapshot(database)
            found, left_out = _fingerprint_database(database, contents, watch, budget_s)
            tables += found
            skipped += left_out
    return Fingerprints(
        anchor_lsn=anchor,
        exact=exact,
        tables=tuple(tables),
        skipped=tuple(skipped),
        unseen=tuple(unseen),
        duration_s=watch.elapsed_s,
    )


def _open(stack: ExitStack, dsn: Dsn, name: str) -> _Database:
    connection = stack.enter_context(connect(dsn, dbname=name))
    pin_settings(connection)
    return _Database(name, connection)


def _anchor(control: psycopg.Connection[tuple[object, ...]], databases: Sequence[_Database]) -> tuple[Lsn, bool]:
    """Take all snapshots inside one quiet moment; say whether one was found."""
    for attempt in range(_ATTEMPTS):
        before = _insert_position(control)
        busy, may_see = control.execute(_BUSY).fetchone() or (1, False)
        for database in databases:
            _snapshot(database)
        after = _insert_position(control)
        if before == after and busy == 0 and may_see:
            return after, True
        if attempt < _ATTEMPTS - 1:
            for database in databases:
                database.connection.execute("ROLLBACK")
            sleep(_PAUSE_S)
    return after, False


def _snapshot(database: _Database) -> None:
    database.connection.execute("BEGIN; SELECT 1")


def _insert_position(control: psycopg.Connection[tuple[object, ...]]) -> Lsn:
    row = control.execute(_POSITION).fetchone()
    return Lsn.parse(str(row[0] if row else ""))


def _fingerprint_database(
    database: _Database, contents: Contents, watch: Stopwatch, budget_s: float
) -> tuple[list[TableFingerprint], list[str]]:
    found: list[TableFingerprint] = []
    skipped: list[str] = []
    for schema, table, persistence, kind, _, *files in database.connection.execute(_TABLES).fetchall():
        name = f"{schema}.{table}"
        if contents == Contents.PAGES and persistence == "u":
            skipped.append(_LEFT_OUT_OF_PAGES.format(f"{database.name}/{name}"))
            continue
        if contents == Contents.DUMP and kind == "m":
            skipped.append(_LEFT_OUT_OF_DUMPS.format(f"{database.name}/{name}"))
            continue
        query = rows_and_digest(sql.Identifier(str(schema), str(table)))
        measured = _measure(database, name, query, watch, budget_s)
        found.append(measured.model_copy(update=dict(zip(("oid", "file", "toast_file"), files, strict=True))))
    large_objects = database.connection.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone()
    if large_objects and large_objects[0]:  # the table itself is closed to ordinary roles, also where it is empty
        all_of_them = sql.SQL(_LARGE_OBJECTS if contents == Contents.PAGES else _LARGE_OBJECTS_BY_CONTENT)
        found.append(_measure(database, "pg_catalog.pg_largeobject", all_of_them, watch, budget_s))
    return found, skipped


def _measure(
    database: _Database, name: str, query: sql.SQL | sql.Composed, watch: Stopwatch, budget_s: float
) -> TableFingerprint:
    def unmeasured(reason: str) -> TableFingerprint:
        return TableFingerprint(database=database.name, table=name, rows=None, digest=None, reason=reason)

    left_ms = int((budget_s - watch.elapsed_s) * 1000)
    if left_ms <= 0:
        return unmeasured(f"the budget of {budget_s:g} s was used up")
    try:
        database.connection.execute("SAVEPOINT bb_ops")
        database.connection.execute(f"SET LOCAL statement_timeout = {left_ms}")
        rows, digest = database.connection.execute(query).fetchone() or (None, None)
    except psycopg.errors.QueryCanceled:
        database.connection.execute("ROLLBACK TO SAVEPOINT bb_ops")
        return unmeasured(f"the budget of {budget_s:g} s was used up")
    except psycopg.Error as error:
        if database.connection.closed:
            raise
        database.connection.execute("ROLLBACK TO SAVEPOINT bb_ops")
        return unmeasured(error.diag.message_primary or type(error).__name__)
    return TableFingerprint(database=database.name, table=name, rows=int(str(rows)), digest=str(digest))
