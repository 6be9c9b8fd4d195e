"""Loads the booking application's demo schema and data, once.

Every step is one transaction. A comment on the database, written last, says that it is complete; a database without
it is dropped and loaded again, so a killed load leaves nothing half done behind.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from bb_ops.clock import Stopwatch, SystemClock
from bb_ops.demo import postgres
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import Size, World

SCALES: Mapping[Size, float] = {"small": 0.05, "year": 1.0, "large": 10.0}
"""Rows relative to the recommended demo year of three shops with twenty barbers."""

_HERE = Path(__file__).parent
_STEP = re.compile(r"^-- step: (\w+)$", re.MULTILINE)
_MARK = "bb_ops demo data"


def ensure_loaded(world: World, credentials: Credentials, say: Callable[[str], None]) -> Size:
    """Load the world's data unless a complete load is there, and return the size of what is there.

    Safe to repeat, and to kill at any point.
    """
    with _admin(world, credentials, "postgres") as connection:
        loaded = _loaded_size(connection)
        if loaded is not None:
            if loaded != world.size:
                say(f"the demo data are there already, of size {loaded}; another size needs a new directory")
            return loaded
        _recreate(connection)
    watch = Stopwatch()
    _fill(world, credentials, say)
    with _admin(world, credentials, postgres.DATABASE) as connection:
        connection.execute("VACUUM (ANALYZE)")
        mark = json.dumps({"what": _MARK, "size": world.size, "complete": True})
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(postgres.DATABASE), sql.Literal(mark))
        )
    say(f"loaded the demo data ({world.size}) in {watch.elapsed_s:.1f} s")
    return world.size


def steps() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the SQL of each step, in order."""
    yield "schema", (_HERE / "schema.sql").read_bytes()
    parts = _STEP.split((_HERE / "data.sql").read_text(encoding="utf-8"))
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        yield name, text.encode()
    yield "constraints", (_HERE / "constraints.sql").read_bytes()


def _fill(world: World, credentials: Credentials, say: Callable[[str], None]) -> None:
    with _admin(world, credentials, postgres.DATABASE) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
        postgres.grant_backup_functions(connection)
    with postgres.connect(world, postgres.APP, credentials.app, autocommit=True) as connection:
        instant = SystemClock().now().replace(tzinfo=None, microsecond=0).isoformat()
        connection.execute("SELECT set_config('demo.instant', %s, false)", [instant])
        connection.execute("SELECT set_config('demo.scale', %s, false)", [str(SCALES[world.size])])
        connection.execute("SET work_mem = '64MB'")
        connection.execute("SET maintenance_work_mem = '128MB'")
        for name, statements in steps():
            watch = Stopwatch()
            with connection.transaction():
                connection.execute(statements)
            say(f"demo data: {name} in {watch.elapsed_s:.1f} s")


def _loaded_size(connection: psycopg.Connection) -> Size | None:
    row = connection.execute(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [postgres.DATABASE]
    ).fetchone()
    if row is None or row[0] is None or _MARK not in row[0]:
        return None
    size: Size = json.loads(row[0])["size"]
    return size


def _recreate(connection: psycopg.Connection) -> None:
    database = sql.Identifier(postgres.DATABASE)
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
    connection.execute(
        sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 CONNECTION LIMIT 100").format(
            database, sql.Identifier(postgres.APP)
        )
    )


def _admin(world: World, credentials: Credentials, database: str) -> psycopg.Connection:
    return postgres.connect(world, postgres.ADMIN, credentials.admin, database=database, autocommit=True)
