"""Dumps of a cluster full of what real ones hold, brought back and compared with SQL and programs of our own."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bb_ops_tests.support import foreign
from bb_ops_tests.support.commands import Answer, BbOps, bb_ops
from bb_ops_tests.support.postgres import (
    SUPERUSER,
    Build,
    Cluster,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
)
from bb_ops_tests.support.programs import system_program

EMPTY = "nothing in it"
_ROLES = """
SELECT m.rolname, g.rolname, a.admin_option FROM pg_auth_members a
JOIN pg_roles m ON m.oid = a.member JOIN pg_roles g ON g.oid = a.roleid WHERE g.rolname !~ '^pg_' ORDER BY 1, 2
"""
_SETTINGS = """
SELECT d.datname, r.rolname, s.setconfig FROM pg_db_role_setting s
LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole ORDER BY 1, 2
"""
_DATABASES = """
SELECT datname, datistemplate, datconnlimit, pg_get_userbyid(datdba), datcollate,
       ARRAY(SELECT a::text FROM unnest(datacl) a ORDER BY 1) FROM pg_database
WHERE datname <> 'template0' ORDER BY 1
"""
_EXTENSIONS = "SELECT extname, extversion FROM pg_extension ORDER BY 1"
_NOISE = re.compile(r"(?m)^(\\(un)?restrict .*|-- Dumped .*)$")


@dataclass(frozen=True)
class Held:
    """A source, its backups, and what it held."""

    source: Cluster
    command: BbOps
    logical: dict[str, Any]
    schema: dict[str, Any]
    rows: foreign.Rows
    facts: dict[str, object]


@pytest.fixture(scope="module")
def held(build: Build, module_room: Path) -> Iterator[Held]:
    """Take both kinds of dumps of a furnished cluster."""
    room = module_room / build.name
    room.mkdir()
    with running_cluster(build, room / "cluster") as source:
        foreign.furnish(source)
        _furnish_more(source)
        command = bb_ops(room, build, source.url)
        logical = command.ok("backup", "logical", "--json").document
        schema = command.ok("backup", "schema", "--json").document
        yield Held(
            source, command, logical, schema, foreign.read_rows(source.connect), _facts(source.directory, source.port)
        )


def test_a_dump_climbs_to_equal_rows_and_its_missing_level_is_said(held: Held) -> None:
    proof = held.command.ok("validate", held.logical["id"], "--json").document
    assert (proof["level"], proof["outcome"]) == ("L6", "pass")
    steps = {step["level"]: step["outcome"] for step in proof["steps"]}
    assert steps == {**dict.fromkeys(("L0", "L1", "L2", "L4", "L5", "L6"), "pass"), "L3": "not_applicable"}
    # Without the parent of partitions and the materialized view, with the unlogged table and the large objects.
    expected = [name for name in held.rows if name[2] not in {"orders", "revenue"}]
    assert proof["tables_compared"] == len(expected) + 2


def test_a_dump_comes_back_whole_in_a_new_cluster(held: Held, room: Path) -> None:
    target, port = room / "back", free_port()
    answer = held.command.ok(
        *("recover", "full", held.logical["id"], "--into", target, "--start", "--port", str(port), "--json")
    )
    try:
        assert (answer.document["proof"], answer.document["outcome"]) == ("L4", "pass")
        assert foreign.read_rows(lambda dbname: connection_to(target, port, dbname)) == held.rows
        assert _facts(target, port) == held.facts
        assert foreign.read_large_object(lambda dbname: connection_to(target, port, dbname)) == foreign.LARGE_OBJECT
        with connection_to(target, port, foreign.ODD_DATABASE) as connection:
            unlogged = connection.execute("SELECT count(*) FROM volatile").fetchone()
            connection.execute("INSERT INTO sales.customers (first, last) VALUES ('new', 'one')")
        assert unlogged == (foreign.UNLOGGED_ROWS,)
    finally:
        stop_server_in(target)


def test_a_cluster_that_was_loaded_is_an_ordinary_one(held: Held, room: Path) -> None:
    target = room / "back"
    held.command.ok("recover", "full", held.logical["id"], "--into", target)
    assert not list(target.glob("*bb_ops*"))
    source = held.source
    source.run("pg_checksums", "--check", "-D", str(target))
    options = f"-c listen_addresses= -c port={free_port()} -c unix_socket_directories={target}"
    source.run("pg_ctl", "-D", str(target), "-w", "-l", str(target / "log"), "-o", options, "start")
    source.run("pg_ctl", "-D", str(target), "-w", "-m", "fast", "stop")


def test_a_schema_comes_back_identical(held: Held, room: Path) -> None:
    proof = held.command.ok("validate", held.schema["id"], "--json").document
    assert (proof["level"], proof["outcome"]) == ("L5", "pass")
    assert {step["level"] for step in proof["steps"] if step["outcome"] == "not_applicable"} == {"L3", "L6"}
    target, port = room / "back", free_port()
    held.command.ok("recover", "full", held.schema["id"], "--into", target, "--start", "--port", str(port))
    try:
        names = [str(row[0]) for row in held.facts["databases"]]  # type: ignore[attr-defined]
        assert foreign.ODD_DATABASE in names
        for name in names:
            assert _schema(held.source, target, port, name) == _schema(
                held.source, held.source.directory, held.source.port, name
            )
        with connection_to(target, port, foreign.ODD_DATABASE) as connection:
            assert connection.execute("SELECT count(*) FROM sales.orders").fetchone() == (0,)
    finally:
        stop_server_in(target)


def test_a_dump_is_copied_and_proven_in_the_other_region(held: Held) -> None:
    held.command.ok("sync", "incremental")
    proof = held.command.ok("validate", held.logical["id"], "--region", "replica", "--json").document
    assert (proof["level"], proof["region"]) == ("L6", "replica")


def test_counts_and_dump_belong_together_while_rows_change(held: Held) -> None:
    source, stop = held.source, threading.Event()
    source.execute("CREATE TABLE busy (id serial PRIMARY KEY, who int, v int)")

    def write(who: int) -> None:
        """Change rows of our own, so that the writers never wait for one another."""
        with source.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO busy (who, v) SELECT %s, g FROM generate_series(1, 50) g", (who,))
                connection.execute("UPDATE busy SET v = v + 1 WHERE who = %s AND id %% 7 = 0", (who,))
                connection.execute("DELETE FROM busy WHERE who = %s AND id %% 11 = 0", (who,))

    writers = [threading.Thread(target=write, args=(who,)) for who in range(2)]
    for writer in writers:
        writer.start()
    try:
        taken = held.command.ok("backup", "logical", "--database", "postgres", "--json").document
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    try:
        assert taken["size_bytes"] > 0
        proof = held.command.ok("validate", taken["id"], "--json").document
        assert proof["level"] == "L6"
        assert proof["rows_compared"] > 0
    finally:
        source.execute("DROP TABLE busy")


@pytest.mark.requires("age", "zstd")
@pytest.mark.parametrize("key", ["working.agekey", "offline.agekey"])
def test_stock_tools_open_a_dump(held: Held, key: str, room: Path) -> None:
    repository = Path(held.command.environment["BB_OPS_REPOSITORY"].removeprefix("file://"))
    (commit,) = repository.glob(f"main/*/base/{held.logical['id']}/COMMIT.json")
    body = json.loads(commit.read_bytes())["body"]
    (database,) = [entry for entry in body["databases"] if entry["name"] == foreign.ODD_DATABASE]
    identity = room / "key"
    identity.write_bytes((repository.parent / "keys" / key).read_bytes())
    with held.source.connect() as connection:
        connection.execute("CREATE DATABASE stock TEMPLATE template0")
    try:
        address = f"host={held.source.directory} port={held.source.port} user={SUPERUSER} dbname=stock"
        script = 'set -euo pipefail; age -d -i "$1" "$2" | zstd -q -d | "$3" --exit-on-error -d "$4"'
        answer = subprocess.run(
            ["/bin/bash", "-c", script, "bash"]
            + [str(word) for word in (identity, commit.parent / database["dump"])]
            + [held.source.build.program("pg_restore"), address],
            capture_output=True,
            check=False,
            env={"PATH": f"{system_program('age').parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            timeout=120,
        )
        assert (answer.returncode, answer.stderr) == (0, b"")
        assert held.source.value("SELECT count(*) FROM sales.customers", "stock") == 3000
    finally:
        held.source.execute("DROP DATABASE stock")


def test_one_database_alone_says_what_it_left_out(held: Held) -> None:
    taken = held.command.ok("backup", "logical", "--database", EMPTY, "--json").document
    shown = held.command.ok("backup", "show", taken["id"], "--json").document["commit"]
    assert [entry["name"] for entry in shown["databases"]] == [EMPTY]
    assert len(shown["left_out"]) == 3
    proof = held.command.run("validate", taken["id"], "--json").expect(13).document
    assert proof["level"] == "L5", "no table was there to compare, and that is not called equal"


def test_the_dry_run_shows_the_decision_and_writes_nothing(held: Held) -> None:
    before = held.command.ok("backup", "list", "--json").document
    plan = held.command.ok("backup", "logical", "--dry-run", "--json").document
    assert plan["databases"] == sorted(["postgres", "template1", EMPTY, foreign.ODD_DATABASE])
    assert (plan["client_major"], plan["refusals"]) == (held.source.build.major, [])
    assert held.command.ok("backup", "list", "--json").document == before
    refused: Answer = held.command.run("backup", "schema", "--database", "absent", "--dry-run", "--json")
    assert refused.expect(2).document["refusals"] == ["it has no database 'absent'"]


def _furnish_more(source: Cluster) -> None:
    with source.connect() as connection:
        connection.execute(f'CREATE DATABASE "{EMPTY}" CONNECTION LIMIT 5')
        connection.execute("CREATE ROLE staff NOLOGIN")
        connection.execute("CREATE ROLE boss LOGIN CREATEDB IN ROLE staff")
        connection.execute("""GRANT staff TO "rôle 'x'" WITH ADMIN OPTION""")
        connection.execute("ALTER ROLE boss SET work_mem = '8MB'")
        connection.execute(f'ALTER DATABASE "{EMPTY}" SET default_transaction_read_only = on')
        connection.execute(f'ALTER DATABASE "{EMPTY}" OWNER TO boss')
        connection.execute("ALTER DATABASE postgres SET statement_timeout = '90s'")
        connection.execute("CREATE TABLE here (id int GENERATED BY DEFAULT AS IDENTITY, v text)")
        connection.execute("INSERT INTO here (v) VALUES ('a'), (NULL), (E'tab\\tand\\nline')")
    with source.connect("template1") as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    with source.connect(foreign.ODD_DATABASE) as connection:
        for statement in (
            "CREATE EXTENSION btree_gist",
            "CREATE TABLE sales.rooms (room int, during tstzrange, EXCLUDE USING gist (room WITH =, during WITH &&))",
            """INSERT INTO sales.rooms
               SELECT g % 9, tstzrange(now() + g * interval '1 h', now() + (g + 1) * interval '1 h')
               FROM generate_series(1, 400) g""",
            """CREATE FUNCTION sales.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
-- a comment that is part of the function
NEW.what := upper(NEW.what); RETURN NEW; END $$""",
            "CREATE TRIGGER stamp BEFORE INSERT ON sales.lines FOR EACH ROW EXECUTE FUNCTION sales.stamp()",
            "ALTER TABLE sales.lines ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY mine ON sales.lines TO staff USING (n < 3)",
            "COMMENT ON TABLE sales.lines IS E'two\\nlines'",
            "ALTER DEFAULT PRIVILEGES IN SCHEMA sales GRANT SELECT ON TABLES TO staff",
            "GRANT UPDATE (what) ON sales.lines TO boss WITH GRANT OPTION",
            "CREATE PUBLICATION all_of_it FOR TABLE sales.orders",
            "CREATE STATISTICS sales.s ON first, last FROM sales.customers",
            # With a hole in it, which a dump fills with zeros: equal in content, different in stored pages.
            "SELECT lo_put(lo_create(4712), 900000, 'end')",
            "ALTER LARGE OBJECT 4712 OWNER TO boss",
        ):
            connection.execute(statement)


def _facts(socket_directory: Path, port: int) -> dict[str, object]:
    with connection_to(socket_directory, port, "template1") as connection:
        found: dict[str, object] = {
            "roles": connection.execute(_ROLES).fetchall(),
            "settings": connection.execute(_SETTINGS).fetchall(),
            "databases": connection.execute(_DATABASES).fetchall(),
            "template extensions": connection.execute(_EXTENSIONS).fetchall(),
        }
    with connection_to(socket_directory, port, foreign.ODD_DATABASE) as connection:
        found["extensions"] = connection.execute(_EXTENSIONS).fetchall()
        found["large objects"] = connection.execute(
            "SELECT oid::int, pg_get_userbyid(lomowner), md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1"
        ).fetchall()
    found["sequences"] = foreign.read_sequences(lambda dbname: connection_to(socket_directory, port, dbname))
    return found


def _schema(source: Cluster, socket_directory: Path, port: int, dbname: str) -> str:
    text = source.run(
        "pg_dump",
        *("--schema-only", "--create", "-h", str(socket_directory), "-p", str(port), "-U", SUPERUSER),
        *("-d", f"dbname='{dbname}'"),
    )
    return _NOISE.sub("", text)
