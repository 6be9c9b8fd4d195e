"""A cluster that bb_ops did not make, full of what real ones hold: odd names, tablespaces, partitions, large objects.

What a copy must show is read back with SQL and ``pg_dumpall`` of our own, nothing of bb_ops.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from bb_ops_tests.support.postgres import SUPERUSER, Cluster
from bb_ops_tests.support.rooms import hand_over

ODD_DATABASE = 'Ünï "quoted" näme'
BIG_DATABASE = "big"
LARGE_OBJECT = bytes(range(256)) * 1200
UNLOGGED_ROWS = 500
Connect = Callable[[str], AbstractContextManager[psycopg.Connection[tuple[Any, ...]]]]
Rows = dict[tuple[str, str, str], tuple[int, str]]
"""Number and digest of the rows, by (database, schema, table)."""

_ODD_OBJECTS = (
    "CREATE SCHEMA sales",
    'CREATE SCHEMA "Sch ema"',
    "CREATE EXTENSION pg_trgm",
    "CREATE DOMAIN sales.amount AS numeric(12, 2) CHECK (VALUE >= 0)",
    "CREATE TYPE sales.state AS ENUM ('open', 'paid', 'it''s void')",
    """CREATE TABLE sales.customers (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        first text NOT NULL, last text NOT NULL,
        whole text GENERATED ALWAYS AS (first || ' ' || last) STORED,
        born date, seen timestamptz, pause interval, score double precision, photo bytea, tags text[], more jsonb
    ) TABLESPACE fast""",
    """INSERT INTO sales.customers (first, last, born, seen, pause, score, photo, tags, more)
       SELECT 'Zoë ' || g, E'O''Brien\\n' || g, date '1950-01-01' + g,
              timestamptz '2026-01-01 12:00+02' + g * interval '1 s',
              g * interval '1 day 1 s', g / 3.0, decode(md5(g::text), 'hex'), ARRAY['a' || g, NULL, '"'],
              jsonb_build_object('k', g, 'ключ', NULL)
       FROM generate_series(1, 3000) g""",
    "CREATE INDEX ON sales.customers USING gin (first gin_trgm_ops) TABLESPACE fast",
    "CREATE INDEX ON sales.customers (lower(last)) WHERE score > 10",
    """CREATE TABLE sales.orders (
        id bigint NOT NULL, placed date NOT NULL, customer bigint NOT NULL REFERENCES sales.customers,
        total sales.amount NOT NULL, state sales.state NOT NULL DEFAULT 'open', PRIMARY KEY (id, placed)
    ) PARTITION BY RANGE (placed)""",
    "CREATE TABLE sales.orders_2025 PARTITION OF sales.orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
    """CREATE TABLE sales.orders_2026 PARTITION OF sales.orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
       TABLESPACE fast""",
    "CREATE TABLE sales.orders_rest PARTITION OF sales.orders DEFAULT",
    """INSERT INTO sales.orders
       SELECT g, date '2024-11-01' + (g % 900), 1 + g % 3000, g / 7.0,
              (ARRAY['open', 'paid', 'it''s void'])[1 + g % 3]::sales.state
       FROM generate_series(1, 9000) g""",
    """CREATE TABLE sales.lines (
        order_id bigint NOT NULL, placed date NOT NULL, n int NOT NULL CHECK (n > 0), what text,
        PRIMARY KEY (order_id, placed, n), FOREIGN KEY (order_id, placed) REFERENCES sales.orders ON DELETE CASCADE
    )""",
    "INSERT INTO sales.lines SELECT id, placed, 1 + id % 4, repeat('x', (id % 50)::int) FROM sales.orders",
    "CREATE MATERIALIZED VIEW sales.revenue AS SELECT placed, sum(total::numeric) AS s FROM sales.orders GROUP BY 1",
    "CREATE VIEW sales.open_orders AS SELECT * FROM sales.orders WHERE state = 'open'",
    "CREATE TABLE public.nothing ()",
    "INSERT INTO public.nothing SELECT FROM generate_series(1, 7)",
    """CREATE TABLE "Sch ema"."Tab.le ""1"" 'x'"
       ("select" int, "Spalte mit ä" text, "%s" text, "a""b" int, " " text)""",
    """INSERT INTO "Sch ema"."Tab.le ""1"" 'x'" SELECT g, 'ü' || g, '%s', g, NULL FROM generate_series(1, 200) g""",
    "CREATE TABLE public.wide (id int PRIMARY KEY, story text)",
    "ALTER TABLE public.wide ALTER story SET STORAGE EXTERNAL",
    "INSERT INTO public.wide SELECT g, repeat(md5(g::text), 3000) FROM generate_series(1, 40) g",
    "CREATE UNLOGGED TABLE public.volatile (id int PRIMARY KEY, v text) TABLESPACE fast",
    f"INSERT INTO public.volatile SELECT g, md5(g::text) FROM generate_series(1, {UNLOGGED_ROWS}) g",
    "CREATE SEQUENCE public.ticket START 41 INCREMENT 7",
    "SELECT nextval('public.ticket') FROM generate_series(1, 5)",
    "CREATE TABLE public.dropped AS SELECT 1 AS a",
    "DROP TABLE public.dropped",
    "CREATE TABLE public.altered AS SELECT g AS id, g AS gone FROM generate_series(1, 100) g",
    "ALTER TABLE public.altered DROP COLUMN gone, ADD COLUMN late int DEFAULT 5",
    "DELETE FROM public.altered WHERE id % 2 = 0",
)


def furnish(cluster: Cluster) -> int:
    """Fill a running cluster; return the oid of its tablespace."""
    location = cluster.spaces / "fast space"
    location.mkdir()
    hand_over(location)
    with cluster.connect() as connection:
        connection.execute(sql.SQL("CREATE TABLESPACE fast LOCATION {}").format(str(location)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(ODD_DATABASE)))
        connection.execute("""CREATE ROLE "rôle 'x'" LOGIN PASSWORD 'not a secret' CONNECTION LIMIT 3""")
        oid = connection.execute("SELECT oid::int FROM pg_tablespace WHERE spcname = 'fast'").fetchone()
    with cluster.connect(ODD_DATABASE) as connection:
        for statement in _ODD_OBJECTS:
            connection.execute(statement)
        connection.execute("SELECT lo_from_bytea(4711, %s)", (LARGE_OBJECT,))
        connection.execute("""GRANT SELECT ON ALL TABLES IN SCHEMA sales TO "rôle 'x'" """)
    assert oid is not None
    return int(oid[0])


def furnish_big(cluster: Cluster, size_bytes: int = 2 << 30) -> None:
    """Add a database whose one table fills more than one 1 GiB segment; its content does not compress to nothing."""
    cluster.execute(f"CREATE DATABASE {BIG_DATABASE}")
    rows = size_bytes // 1024
    cluster.execute(
        f"""CREATE TABLE heavy AS
            SELECT g AS id, (SELECT string_agg(md5((g * 31 + n)::text), '') FROM generate_series(1, 30) n) AS filler
            FROM generate_series(1, {rows}) g""",
        BIG_DATABASE,
    )
    assert cluster.value("SELECT pg_relation_size('heavy')", BIG_DATABASE) >= size_bytes * 0.95


def read_rows(connect: Connect) -> Rows:
    """Count and hash the rows of every logged table of every database, in an order of their own."""
    found: Rows = {}
    with connect("postgres") as connection:
        names = [str(row[0]) for row in connection.execute("SELECT datname FROM pg_database WHERE datallowconn")]
    for name in names:
        with connect(name) as connection:
            connection.execute("SET search_path = ''; SET timezone = 'Asia/Tokyo'")
            for schema, table in connection.execute(_TABLES).fetchall():
                query = _ROWS if name != BIG_DATABASE else _MANY_ROWS
                row = connection.execute(sql.SQL(query).format(sql.Identifier(str(schema), str(table)))).fetchone()
                assert row is not None
                found[name, str(schema), str(table)] = (int(row[0]), str(row[1]))
    return found


def read_sequences(connect: Connect) -> dict[str, tuple[int, bool]]:
    """Return the state of every sequence of the odd database."""
    with connect(ODD_DATABASE) as connection:
        names = [str(row[0]) for row in connection.execute("SELECT oid::regclass FROM pg_class WHERE relkind = 'S'")]
        found = {}
        for name in names:
            row = connection.execute(f"SELECT last_value, is_called FROM {name}").fetchone()
            assert row is not None
            found[name] = (int(row[0]), bool(row[1]))
    return found


def read_large_object(connect: Connect) -> bytes:
    """Return the large object's content."""
    with connect(ODD_DATABASE) as connection:
        row = connection.execute("SELECT lo_get(4711)").fetchone()
        assert row is not None
        return bytes(row[0])


def dump_digest(cluster: Cluster, socket_directory: Path, port: int) -> str:
    """Hash a logical dump of a whole cluster: roles, schemas, rows in their physical order, large objects.

    Left out is what must differ: the places of tablespaces, the rows of unlogged tables, a dump's own random key.
    """
    text = cluster.run(
        "pg_dumpall",
        *("-h", str(socket_directory), "-p", str(port), "-U", SUPERUSER),
        *("--no-unlogged-table-data", f"--exclude-database={BIG_DATABASE}"),
    )
    assert "lo_from_bytea" in text or "lo_create" in text, "the dump holds no large object"
    kept = re.sub(r"(?m)^(CREATE TABLESPACE .*|\\(un)?restrict .*)$", "", text)
    return hashlib.sha256(kept.encode()).hexdigest()


_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2
"""
_ROWS = """SELECT count(*), md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE "C"), '')) FROM {} AS t"""
_MANY_ROWS = "SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY id)) FROM {} AS t"
