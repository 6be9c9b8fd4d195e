"""What spoils a dump: missing rights, row security, a dead server, a kill. One line says so, nothing is committed."""

import random
import time
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from bb_ops_tests.faults.conftest import ROWS, TABLES
from bb_ops_tests.support.commands import (
    BbOps,
    backups_of,
    bb_ops,
    command_line,
    descendants,
    objects_below,
    wait_for_work,
)
from bb_ops_tests.support.postgres import (
    Build,
    Cluster,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
    wait_until,
)

MOMENTS = 6
PASSWORD = "canary-päss w0rd/@%'"
READERS = "pg_read_all_data"


@pytest.fixture
def slow_dump(command: BbOps) -> BbOps:
    """A dump takes seconds."""
    return command.having(BB_OPS_COMPRESSION_LEVEL="19", BB_OPS_COMPRESSION_THREADS="1")


def test_a_role_that_may_not_read_a_table_gets_no_smaller_dump(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute("CREATE ROLE reader LOGIN;;CREATE TABLE seen (v int);;CREATE TABLE hidden (v int)")
        server.execute("GRANT SELECT ON seen TO reader")
        command = bb_ops(room, wheel_18, server.url_of("postgres", "reader"))
        for kind in ("logical", "schema"):
            answer = command.run("backup", kind).expect(2)
            assert "role reader may not read public.hidden in database postgres" in answer.complaint
            assert "public.seen" not in answer.complaint
        assert backups_of(command) == []
        server.execute(f"GRANT {READERS} TO reader")
        server.execute("CREATE TABLE template_table (v int)", "template1")
        taken = command.ok("backup", "logical", "--json").document
        assert command.ok("validate", taken["id"], "--json").document["level"] == "L6"


def test_a_large_object_that_may_not_be_read_ends_the_dump(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute("CREATE ROLE reader LOGIN")
        server.execute("SELECT lo_from_bytea(0, 'secret')")
        command = bb_ops(room, wheel_18, server.url_of("postgres", "reader"))
        answer = command.run("backup", "logical").expect(1)
        assert "permission denied for large object" in answer.complaint
        assert (backups_of(command), objects_below(room / "repository")) == ([], [])


def test_row_security_is_refused_and_never_obeyed(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute(f"CREATE ROLE reader LOGIN IN ROLE {READERS};;CREATE TABLE rows (v int)")
        server.execute("INSERT INTO rows VALUES (1), (2);;ALTER TABLE rows ENABLE ROW LEVEL SECURITY")
        server.execute("CREATE POLICY few ON rows TO reader USING (v = 1)")
        command = bb_ops(room, wheel_18, server.url_of("postgres", "reader"))
        answer = command.run("backup", "logical").expect(2)
        assert "row security would hide rows of public.rows in database postgres from role reader" in answer.complaint
        assert backups_of(command) == []
        command.ok("backup", "schema")
        server.execute("ALTER ROLE reader BYPASSRLS")
        taken = command.ok("backup", "logical", "--json").document
        assert command.ok("validate", taken["id"], "--json").document["rows_compared"] == 2


def test_a_database_out_of_reach_is_refused_unless_others_are_asked_for(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute(f"CREATE ROLE reader LOGIN IN ROLE {READERS};;CREATE DATABASE closed;;CREATE DATABASE off")
        server.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC;;ALTER DATABASE off ALLOW_CONNECTIONS false")
        command = bb_ops(room, wheel_18, server.url_of("postgres", "reader"))
        assert "may not connect to database closed" in command.run("backup", "logical").expect(2).complaint
        taken = command.ok("backup", "schema", "--database", "postgres", "--json").document
        shown = command.ok("backup", "show", taken["id"], "--json").document["commit"]["left_out"]
        assert shown == [f"database {name}: not asked for" for name in ("closed", "off", "template1")]
        server.execute("GRANT CONNECT ON DATABASE closed TO reader")
        taken = command.ok("backup", "schema", "--json").document
        shown = command.ok("backup", "show", taken["id"], "--json").document["commit"]["left_out"]
        assert shown == ["database off: accepts no connections (datallowconn is off)"]


def test_the_password_reaches_the_programs_and_nobody_else(wheel_18: Build, room: Path) -> None:
    rules = ("local all all trust", "host all all 127.0.0.1/32 scram-sha-256")
    with running_cluster(wheel_18, room / "cluster", hba=rules) as server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE keeper LOGIN SUPERUSER")
            connection.execute(f"ALTER ROLE keeper PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
            connection.execute("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 300000) g")
        url = f"postgresql://keeper:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
        command = bb_ops(room, wheel_18, url).having(BB_OPS_COMPRESSION_LEVEL="15", BB_OPS_COMPRESSION_THREADS="1")
        seen: dict[int, bytes] = {}
        with command.start("backup", "logical", "--json") as running:
            while running.alive:
                seen.update({pid: command_line(pid) for pid in descendants(running.pid)})
                time.sleep(0.01)
            answer = running.finish().expect(0)
        lines = b" ".join(seen.values())
        assert b"pg_dump" in lines
        assert b"keeper" in lines
        for canary in ("canary", quote("päss", safe="")):
            assert canary.encode() not in lines
            assert canary not in answer.stdout + answer.stderr
        server.execute("ALTER ROLE keeper PASSWORD 'another'")
        refused = command.run("backup", "logical").expect(2)
        assert "canary" not in refused.stderr


def test_a_dump_killed_at_any_moment_is_never_listed_and_blocks_nothing(
    source: Cluster, command: BbOps, slow_dump: BbOps, room: Path
) -> None:
    whole_s = slow_dump.ok("backup", "logical").duration_s
    assert whole_s > 0.6, "too quick to be caught at its work"
    listed, killed_at_work = 1, 0
    for moment in range(MOMENTS):
        with slow_dump.start("backup", "logical") as running:
            time.sleep(whole_s * 0.9 * (moment + random.random()) / MOMENTS)
            children = descendants(running.pid)
            was_alive = running.kill()
        now = len(backups_of(command))
        assert now in ({listed} if was_alive else {listed + 1})
        killed_at_work += was_alive
        wait_until(partial(_are_gone, children), "a dump program lives on", 20)
        wait_until(lambda: _is_idle(source), "the server still works for a dead dump", 20)
        listed = now
    assert killed_at_work >= MOMENTS - 2
    taken = command.ok("backup", "logical", "--json").document
    assert len(backups_of(command)) == listed + 1
    command.ok("sync", "incremental")
    command.ok("doctor", "--remove-leftovers")
    folders = [path for path in (room / "repository").glob("*/*/base/*") if path.is_dir()]
    assert all((path / "COMMIT.json").exists() for path in folders)
    proof = command.ok("validate", taken["id"], "--json").document
    assert proof["rows_compared"] == ROWS * TABLES


def test_leftovers_are_not_removed_under_a_running_dump(command: BbOps, slow_dump: BbOps, room: Path) -> None:
    with slow_dump.start("backup", "logical") as running:
        wait_for_work(room / "repository")
        command.run("doctor", "--remove-leftovers").expect(11)
        assert "at work" in command.run("backup", "logical").expect(11).complaint
        command.ok("backup", "schema")
        running.finish().expect(0)


def test_a_server_that_dies_during_a_dump_leaves_nothing(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute("CREATE TABLE big AS SELECT g, md5(g::text) FROM generate_series(1, 400000) g")
        command = bb_ops(room, wheel_18, server.url)
        slow = command.having(BB_OPS_COMPRESSION_LEVEL="19", BB_OPS_COMPRESSION_THREADS="1")
        with slow.start("backup", "logical", "--database", "postgres") as running:
            wait_for_work(room / "repository")
            time.sleep(0.5)
            server.kill()
            answer = running.finish().expect(1)
        assert len(answer.stderr.splitlines()) == 1
        assert (backups_of(command), objects_below(room / "repository")) == ([], [])


def test_a_damaged_dump_is_neither_proven_nor_loaded(command: BbOps, room: Path) -> None:
    taken = command.ok("backup", "logical", "--json").document
    dump = max(objects_below(room / "repository"), key=lambda path: path.stat().st_size)
    data = bytearray(dump.read_bytes())
    data[len(data) // 2] ^= 1
    dump.write_bytes(data)
    proof = command.run("validate", taken["id"], "--json").expect(5).document
    assert (proof["level"], proof["outcome"]) == ("L0", "fail")
    answer = command.run("recover", "full", taken["id"], "--into", room / "back").expect(5)
    assert dump.name in answer.complaint
    assert not (room / "back").exists()


def test_a_load_killed_at_its_work_cannot_be_started_and_can_be_repeated(
    source: Cluster, command: BbOps, room: Path
) -> None:
    taken = command.ok("backup", "logical", "--json").document
    target, port = room / "back", free_port()
    recover = ("recover", "full", taken["id"], "--into", target, "--start", "--port", str(port))
    for begun, further_s in (("bb_ops-initdb", 0.0), ("postmaster.pid", 0.0), ("postmaster.pid", 0.1)):
        with command.start(*recover) as running:
            wait_until(partial(_any, target, f"{begun}*"), "the load did not begin", 60)
            time.sleep(further_s)
            assert running.kill()
        assert not (target / "postgresql.conf").exists()
        wait_until(lambda: not (target / "postmaster.pid").exists(), "the server of a dead load lives on", 30)
    try:
        command.ok(*recover)
        with connection_to(target, port, "postgres") as connection:
            assert connection.execute("SELECT count(*) FROM t7").fetchone() == (ROWS,)
    finally:
        stop_server_in(target)
    assert source.value("SELECT count(*) FROM t7") == ROWS


def test_an_occupied_target_is_refused_untouched(command: BbOps, room: Path) -> None:
    taken = command.ok("backup", "schema", "--json").document
    (room / "full").mkdir()
    (room / "full" / "mine").write_text("kept", encoding="utf-8")
    answer = command.run("recover", "full", taken["id"], "--into", room / "full").expect(2)
    assert "is not empty" in answer.complaint
    assert (room / "full" / "mine").read_text(encoding="utf-8") == "kept"


def _any(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _is_idle(source: Cluster) -> bool:
    return not source.value(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
