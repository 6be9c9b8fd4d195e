"""What a server holds, database by database, and what of it our role may not read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from bb_ops.dsn import Dsn
from bb_ops.errors import ServerUnusable
from bb_ops.postgres.connection import connect, unusable
from bb_ops.postgres.fingerprint import pin_settings
from bb_ops.postgres.lsn import Lsn

_SERVER = """
SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_user::text,
       (SELECT rolname FROM pg_roles WHERE oid = 10), (SELECT system_identifier::text FROM pg_control_system())
"""
# Columns that some versions lack are read from the row as JSON.
_DATABASES = """
SELECT d.datname, d.oid::bigint::int8, d.datallowconn, has_database_privilege(d.oid, 'CONNECT'),
       CASE WHEN has_database_privilege(d.oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')
            THEN pg_database_size(d.oid) ELSE 0 END,
       pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
       coalesce(to_jsonb(d)->>'datlocprovider', 'c'), coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale')
FROM pg_database d ORDER BY d.datname COLLATE "C"
"""
_TABLESPACES = """
SELECT spcname, oid::bigint, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY oid
"""
_OF_USERS = """
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND c.relpersistence <> 't'
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.deptype = 'e'
                  AND ((d.classid, d.objid) IN (('pg_class'::regclass, c.oid), ('pg_namespace'::regclass, n.oid))))
"""
_OBSTACLES = f"""
SELECT format('%I.%I', n.nspname, c.relname),
       NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')),
       c.relkind IN ('r', 'p') AND row_security_active(c.oid)
{_OF_USERS} AND c.relkind IN ('r', 'p', 'S') ORDER BY 1
"""
_TABLES = f"SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname) {_OF_USERS} AND c.relkind = 'r'"
# The instant is that of the statement before: what committed until then is in the snapshot.
_SNAPSHOT = """
SELECT pg_export_snapshot(), now(),
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END)::text
"""
NO_TIMEOUTS = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('transaction_timeout', 'statement_timeout')"
)
TEMPLATE = "template0"
"""Never changed, never connected to: tells how initdb made the cluster."""


@dataclass(frozen=True)
class Database:
    """One database, as ``pg_database`` has it."""

    name: str
    oid: int
    accepts_connections: bool
    may_connect: bool
    size_bytes: int
    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str | None


@dataclass(frozen=True)
class Tablespace:
    """A tablespace outside the data directory."""

    name: str
    oid: int
    location: str


@dataclass(frozen=True)
class ServerContents:
    """What a server is and holds."""

    databases: tuple[Database, ...]
    tablespaces: tuple[Tablespace, ...]
    version_num: int
    version: str
    role: str
    superuser: str
    system_id: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return self.version_num // 10000


@dataclass(frozen=True)
class Obstacles:
    """What of one database our role may not read, or would read only in part."""

    forbidden: tuple[str, ...]
    filtered: tuple[str, ...]


@dataclass(frozen=True)
class Snapshot:
    """A state of one database that stays visible while it is held, also to other sessions that name it."""

    connection: psycopg.Connection[tuple[object, ...]]
    name: str
    anchor_lsn: Lsn
    taken_at: datetime

    def tables(self) -> dict[int, str]:
        """Return the tables whose rows a dump must hold, by oid; those of extensions are the extensions' affair."""
        return {int(str(oid)): str(name) for oid, name in self.connection.execute(_TABLES)}


def read_contents(dsn: Dsn) -> ServerContents:
    """Ask a server what it holds.

    Raises:
        ServerUnusable: it cannot be reached or refuses us.
    """
    with connect(dsn) as connection:
        try:
            server = connection.execute(_SERVER).fetchone()
            databases = connection.execute(_DATABASES).fetchall()
            tablespaces = connection.execute(_TABLESPACES).fetchall()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    return ServerContents(
        tuple(Database(*row) for row in databases),  # type: ignore[arg-type]  # the columns of _DATABASES, in order
        tuple(Tablespace(*row) for row in tablespaces),  # type: ignore[arg-type]  # likewise
        *(server or ()),  # type: ignore[arg-type]  # likewise
    )


def find_obstacles(dsn: Dsn, dbname: str) -> Obstacles:
    """Ask which tables and sequences of a database our role may not read, and which row security would filter.

    Raises:
        ServerUnusable: the database cannot be reached.
    """
    with connect(dsn, dbname=dbname) as connection:
        try:
            rows = connection.execute(_OBSTACLES).fetchall()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    return Obstacles(
        tuple(str(name) for name, forbidden, _ in rows if forbidden),
        tuple(str(name) for name, forbidden, filtered in rows if filtered and not forbidden),
    )


@contextmanager
def held_snapshot(dsn: Dsn, dbname: str) -> Iterator[Snapshot]:
    """Hold one state of a database during a block (PostgreSQL manual, 9.28.5).

    Raises:
        ServerUnusable: the database cannot be reached, or no snapshot can be exported.
    """
    with connect(dsn, dbname=dbname) as connection:
        try:
            pin_settings(connection)
            connection.execute(NO_TIMEOUTS)
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            row = connection.execute(_SNAPSHOT).fetchone()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
        name, began_at, lsn = row or (None, None, None)
        if not isinstance(began_at, datetime):
            raise ServerUnusable(f"PostgreSQL at {dsn}: no snapshot of database {dbname} can be exported")
        yield Snapshot(connection, str(name), Lsn.parse(str(lsn)), began_at.astimezone(UTC))
