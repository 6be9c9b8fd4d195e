"""One table as of a moment: beside the live one or as a dump, equal, compared; or refused before anything is done."""

import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bb_ops_tests.support.commands import Answer, BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.wal import wait_until_archived

pytestmark = pytest.mark.timeout(240)
WEIRD = '"Shop ""9"" x"."Weird ""name"" x"'
CLERK = "clerk"
BEFORE = """
CREATE TYPE mood AS ENUM ('glad', 'sad');;
CREATE TYPE gone AS ENUM ('x');;
CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';;
CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'fired'; END$$;;
CREATE TABLE customers (id int PRIMARY KEY);;
INSERT INTO customers SELECT generate_series(1, 5);;
CREATE TABLE orders (
    id serial PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    customer int REFERENCES customers,
    price numeric(40, 20) CHECK (price > 0) DEFAULT 1,
    feeling mood DEFAULT 'glad' NOT NULL,
    doubled int GENERATED ALWAYS AS (customer * 2) STORED,
    tags text[], raw bytea, long text, dropped int, "Mixed Case" timestamptz DEFAULT '2026-01-01 00:00+00'
);;
ALTER TABLE orders DROP COLUMN dropped;;
ALTER TABLE orders ALTER COLUMN long SET STORAGE EXTERNAL;;
CREATE INDEX orders_partial ON orders (lower(long)) WHERE customer > 1;;
COMMENT ON TABLE orders IS 'what was ordered';;
COMMENT ON COLUMN orders.tags IS 'what is said of it';;
INSERT INTO orders (customer, price, feeling, tags, raw, long)
    SELECT 1 + g % 5, g * 12345678901234567.89012345, CASE g % 2 WHEN 0 THEN 'sad'::mood ELSE 'glad' END,
           ARRAY['a,"b', NULL, E'\\\\'], decode(md5(g::text), 'hex'), repeat(md5(g::text), 200)
    FROM generate_series(1, 300) g;;
INSERT INTO orders (customer) VALUES (NULL);;
CREATE TRIGGER forbid BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION forbid();;
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;;
CREATE POLICY everybody ON orders USING (true);;
CREATE SCHEMA "Shop ""9"" x";;
CREATE TABLE "Shop ""9"" x"."Weird ""name"" x" ("Key ""1"" x" text, "key" int, PRIMARY KEY ("Key ""1"" x", "key"));;
INSERT INTO "Shop ""9"" x"."Weird ""name"" x" SELECT 'it''s "' || g, g FROM generate_series(1, 40) g;;
CREATE TABLE events (id int, day date, word text DEFAULT 'none', PRIMARY KEY (id, day)) PARTITION BY RANGE (day);;
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');;
CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (id);;
CREATE TABLE events_2_rest PARTITION OF events_2 DEFAULT;;
INSERT INTO events SELECT g, date '2026-01-01' + g % 59 FROM generate_series(1, 200) g;;
CREATE TABLE lines (word text, count int);;
CREATE INDEX lines_word ON lines (word);;
INSERT INTO lines SELECT 'word ' || g % 10, g % 3 FROM generate_series(1, 100) g;;
CREATE TABLE computed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (twice(id)) STORED);;
INSERT INTO computed SELECT generate_series(1, 10);;
CREATE TABLE lost (id int, kind gone);;
CREATE SCHEMA a;;
CREATE ROLE clerk LOGIN;;
GRANT CREATE ON DATABASE postgres TO clerk
"""
AFTER = """
DROP TABLE orders;;
DROP TABLE lost;;
DROP TYPE gone;;
DELETE FROM events WHERE id <= 12;;
UPDATE events SET word = 'changed' WHERE id IN (100, 101);;
INSERT INTO events SELECT g, '2026-02-02' FROM generate_series(1001, 1003) g;;
ALTER TABLE events ADD COLUMN more int;;
DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines);;
INSERT INTO lines VALUES ('new', 1), ('new', 1);;
CREATE OR REPLACE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 3';;
CREATE TABLE written (at timestamptz DEFAULT clock_timestamp())
"""
ROWS = "SELECT count(*) || ' ' || md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"


@dataclass(frozen=True)
class Story:
    """A server with tables of many kinds, a moment, and what was done to them afterwards; archived up to here.

    Attributes:
        rows: A digest of every table's rows at that moment.
    """

    command: BbOps
    server: Cluster
    at: str
    rows: dict[str, str]

    def recover(self, name: str, *options: str | Path) -> Answer:
        return self.command.run("recover", "table", name, "--at", self.at, *options, "--json")

    def scratch_copies(self) -> list[str]:
        return [path.name for path in self.command.directory.glob("bb_ops-*")]


@pytest.fixture(scope="module")
def story(wheel_18: Build, module_room: Path) -> Iterator[Story]:
    """Tests add schemas, each its own, and change nothing else."""
    server = Cluster(wheel_18, module_room / "cluster").create("--wal-segsize=1").start()
    try:
        command = bb_ops(module_room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
        command.ok("backup", "full")
        with command.start("wal", "stream") as running:
            server.execute(BEFORE)
            rows = {name: server.value(ROWS.format(name)) for name in ("orders", WEIRD, "events", "lines")}
            at = str(server.value("SELECT clock_timestamp()"))
            server.execute(AFTER)
            wait_until_archived(command)
            running.kill()
        yield Story(command, server, at, rows)
    finally:
        server.stop()


def _definition(server: Cluster, schema: str, table: str) -> dict[str, Any]:
    """Return what a table in a schema is made of, as text."""
    oid = f"'{schema}.{table}'::regclass"
    queries = {
        "columns": "SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, "
        "attgenerated, attidentity, pg_get_expr(adbin, adrelid), attstorage), '; ' ORDER BY attnum) "
        "FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum) "
        f"WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped",
        "constraints": "SELECT string_agg(conname || ' ' || pg_get_constraintdef(oid), '; ' ORDER BY conname) "
        f"FROM pg_constraint WHERE conrelid = {oid} AND contype <> 'n'",
        "indexes": "SELECT string_agg(indexrelid::regclass::text, '; ' ORDER BY indexrelid::regclass::text) "
        f"FROM pg_index WHERE indrelid = {oid}",
        "comments": f"SELECT string_agg(description, '; ' ORDER BY objsubid) FROM pg_description WHERE objoid = {oid}",
        "triggers": f"SELECT count(*) FROM pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal",
        "sequences": f"SELECT count(*) FROM pg_depend WHERE refobjid = {oid} AND deptype IN ('a', 'i') AND classid = "
        "'pg_class'::regclass AND (SELECT relkind FROM pg_class WHERE oid = objid) = 'S'",
        "owner": f"SELECT relowner::regrole::text FROM pg_class WHERE oid = {oid}",
    }
    return {name: server.value(query) for name, query in queries.items()}


def test_a_dropped_table_is_back_in_a_side_schema_while_the_server_writes(story: Story) -> None:
    stop, written = threading.Event(), []

    def write() -> None:
        with story.server.connect() as connection:
            while not stop.is_set():
                written.append(connection.execute("INSERT INTO written DEFAULT VALUES RETURNING at").fetchone())
                stop.wait(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        clerk = story.command.having(DATABASE_URL=story.server.url_of("postgres", CLERK))
        document = clerk.ok(
            "recover", "table", "ORDERS", "--at", story.at, "--into-schema", "rescue", "--json"
        ).document
    finally:
        stop.set()
        writer.join()
    assert len(written) == story.server.value("SELECT count(*) FROM written") > 5
    assert story.server.value(ROWS.format("rescue.orders")) == story.rows["orders"]
    assert (document["rows"], document["table"], document["into_schema"]) == (301, '"public"."orders"', "rescue")
    assert (document["schema_id"], document["outcome"], document["proof"]) == ("bb-ops/table-recovery/1", "pass", "L4")
    assert document["diff"]["outcome"] == "not_applicable"
    assert "no table" in document["diff"]["reason"]
    made = _definition(story.server, "rescue", "orders")
    assert made["columns"] == (
        "id integer t   p; number bigint t   p; customer integer f   p; "
        "price numeric(40,20) f   1 m; feeling mood t   'glad'::mood p; doubled integer f s  (customer * 2) p; "
        "tags text[] f   x; raw bytea f   x; long text f   e; "
        "Mixed Case timestamp with time zone f   '2026-01-01 00:00:00+00'::timestamp with time zone p"
    )
    assert made["constraints"] == (
        "orders_number_key UNIQUE (number); orders_pkey PRIMARY KEY (id); "
        "orders_price_check CHECK ((price > (0)::numeric))"
    )
    assert made["indexes"] == "rescue.orders_number_key; rescue.orders_partial; rescue.orders_pkey"
    assert made["comments"] == "what was ordered; what is said of it"
    assert (made["triggers"], made["sequences"], made["owner"]) == (0, 0, CLERK)
    assert set(document["left_out"]) == {
        "owner and privileges",
        "foreign key",
        "trigger",
        "row security",
        "row security policy",
        "identity of number",
        "sequence default of id",
    }
    assert story.scratch_copies() == []


def test_a_partitioned_table_comes_whole_and_its_diff_names_what_changed(story: Story) -> None:
    document = story.recover("events", "--into-schema", "parts").expect(0).document
    assert story.server.value(ROWS.format("parts.events")) == story.rows["events"]
    partitions = "SELECT string_agg(relid::text, ' ' ORDER BY relid::text) FROM pg_partition_tree('parts.events')"
    assert story.server.value(partitions) == "parts.events parts.events_1 parts.events_2 parts.events_2_rest"
    diff = document["diff"]
    figures = ("rows_then", "rows_now", "only_then", "only_now", "changed")
    assert [diff[figure] for figure in figures] == [200, 191, 12, 3, 2]
    assert diff["key"] == ["id", "day"]
    assert diff["only_then_keys"][:2] == ["(1,2026-01-02)", "(2,2026-01-03)"]
    assert [len(diff[f"{side}_keys"]) for side in ("only_then", "only_now", "changed")] == [10, 3, 2]
    assert diff["columns"] == ["more: absent then, integer now"]


def test_rows_come_as_a_private_dump_that_pg_restore_reads(story: Story, room: Path) -> None:
    file = room / "weird.dump"
    document = story.recover(WEIRD, "--where", '"key" <= 10 -- these', "--dump", file).expect(0).document
    assert (document["rows"], document["diff"]["rows_now"], document["diff"]["only_then"]) == (10, 10, 0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    story.server.execute("CREATE DATABASE other")
    story.server.execute('CREATE SCHEMA "Shop ""9"" x"', "other")
    story.server.run("pg_restore", "--exit-on-error", "-d", "other", str(file))
    assert story.server.value(f"SELECT string_agg(key::text, ' ' ORDER BY key) FROM {WEIRD}", "other") == (
        "1 2 3 4 5 6 7 8 9 10"
    )
    assert "exists" in story.recover(WEIRD, "--dump", file).expect(2).complaint
    assert [path.name for path in room.iterdir()] == ["weird.dump"]


def test_a_live_table_that_cannot_be_read_is_never_green(story: Story) -> None:
    clerk = story.command.having(DATABASE_URL=story.server.url_of("postgres", CLERK))
    answer = clerk.run("recover", "table", "lines", "--at", story.at, "--into-schema", "unread", "--json").expect(3)
    assert (answer.document["outcome"], answer.document["diff"]["outcome"]) == ("not_measured", "not_measured")
    assert "permission denied" in answer.complaint
    assert story.server.value(ROWS.format("unread.lines")) == story.rows["lines"]
    closed = clerk.run("recover", "table", "lines", "--at", story.at, "--into-schema", "a").expect(2)
    assert "GRANT CREATE, USAGE ON SCHEMA" in closed.complaint


def test_what_is_loaded_otherwise_than_it_was_is_not_kept(story: Story) -> None:
    answer = story.command.run("recover", "table", "computed", "--at", story.at, "--into-schema", "wrong").expect(5)
    assert "nothing was kept" in answer.complaint
    assert story.server.value("SELECT to_regnamespace('wrong') IS NULL")


def test_a_load_killed_before_its_end_leaves_nothing_and_the_next_one_is_whole(story: Story) -> None:
    with story.server.connect() as other:
        other.execute("CREATE SCHEMA late")
        other.execute("BEGIN; CREATE TABLE late.lines_word (x int)")  # the index, made last, must wait for this name
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bb_ops' AND wait_event_type = 'Lock'"
        with story.command.start("recover", "table", "lines", "--at", story.at, "--into-schema", "late") as running:
            wait_until(lambda: story.server.value(waiting), "the load never waited")
            assert running.kill()
        other.execute("ROLLBACK")
    diff = story.recover("lines", "--into-schema", "late").expect(0).document["diff"]
    assert story.server.value(ROWS.format("late.lines")) == story.rows["lines"]
    assert (diff["key"], diff["only_then"], diff["only_now"], diff["changed"], diff["rows_now"]) == ([], 1, 2, 0, 101)
    assert story.scratch_copies() == []


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lost", ("--into-schema", "no"), "no type public.gone"),
        ("lines", ("--into-schema", "no", "--where", "true; DROP TABLE lines"), "--where"),
        ("lines", ("--into-schema", "no", "--database", "nowhere"), "nowhere"),
        ("lines", ("--into-schema", "public"), "has lines already"),
        ("lines", ("--into-schema", "pg_mine"), "PostgreSQL's own"),
        ("lines", (), "one of --dump and --into-schema"),
        ("a.b.c", ("--into-schema", "no"), "no table name"),
    ],
)
def test_what_cannot_be_brought_back_is_refused_in_one_line(
    story: Story, name: str, options: tuple[str, ...], said: str
) -> None:
    answer = story.command.run("recover", "table", name, "--at", story.at, *options).expect(2)
    assert said in answer.complaint
    assert story.server.value("SELECT to_regnamespace('no') IS NULL")
