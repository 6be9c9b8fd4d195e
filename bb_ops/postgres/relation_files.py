"""Which file is whose, by a running server: for tables that still exist."""

from typing import NamedTuple

import psycopg

from bb_ops.dsn import Dsn
from bb_ops.errors import ServerUnusable
from bb_ops.postgres.connection import connect
from bb_ops.postgres.inspect import databases

_SYSTEM = "SELECT system_identifier::text FROM pg_control_system()"
_FILES = """
SELECT n.nspname, c.relname, c.oid, pg_relation_filepath(c.oid), pg_relation_filepath(nullif(c.reltoastrelid, 0))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""


class TableFiles(NamedTuple):
    """One table, and where its rows are below the data directory."""

    database: str
    table: str
    oid: int
    file: str
    toast_file: str | None


def read_table_files(dsn: Dsn, system_id: str) -> list[TableFiles]:
    """Return every table of a server, and none where it is not the system that is asked for.

    Raises:
        ServerUnusable: it cannot be reached.
    """
    with connect(dsn) as connection:
        row = connection.execute(_SYSTEM).fetchone()
    if row is None or str(row[0]) != system_id:
        return []
    found: list[TableFiles] = []
    for name in databases(dsn):
        try:
            with connect(dsn, dbname=name) as connection:
                rows = connection.execute(_FILES).fetchall()
        except (psycopg.Error, ServerUnusable):  # dropped a moment ago, or closed to us: its names stay unknown
            continue
        for schema, table, oid, file, toast in rows:
            if file is not None:
                found.append(
                    TableFiles(name, f"{schema}.{table}", int(str(oid)), str(file), str(toast) if toast else None)
                )
    return found
