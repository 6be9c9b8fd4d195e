"""One command for an hour: a span on every server, an increment where the server can; each stands without the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bb_ops_tests.support.commands import BbOps, backups_of, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, available, running_cluster, wait_until
from bb_ops_tests.support.wal import wait_until_archived

FIELDS = {"id", "kind", "engine", "slot", "size_bytes", "stored_bytes", "duration_s", "peak_memory_bytes"}


def hour(command: BbOps, *words: str, exit_code: int = 0) -> tuple[dict[str, Any], str]:
    """Run the command; return its document, which has the promised fields, and its standard error."""
    answer = command.run("backup", "incremental", *words, "--json").expect(exit_code)
    assert FIELDS | {"span", "backup"} <= set(answer.document)
    return answer.document, answer.stderr


def change(server: Cluster) -> None:
    server.execute("UPDATE t SET m = md5(m) WHERE id % 7 = 0")


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    """A server that summarizes its WAL, in small segments."""
    cluster = Cluster(wheel_18, room / "cluster", settings={"summarize_wal": "on"}).create("--wal-segsize=1").start()
    cluster.execute("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, 9000) g")
    yield cluster
    cluster.stop()


@pytest.fixture
def command(server: Cluster, room: Path) -> BbOps:
    """``bb-ops`` with keys and repositories of its own."""
    return bb_ops(room, server.build, server.url)


def region(command: BbOps) -> dict[str, Any]:
    found: dict[str, Any] = command.run("backup", "status", "--json").document["regions"][0]
    return found


def test_an_hour_is_a_span_and_an_increment(server: Cluster, command: BbOps) -> None:
    plan = command.ok("backup", "incremental", "--dry-run", "--json").document
    assert (plan["kind"], plan["span"]["kind"], plan["backup"]["parent_id"]) == ("full", "wal", None)
    assert backups_of(command) == []
    first, said = hour(command)
    assert "a FULL backup was taken" in said
    assert first["kind"] == first["backup"]["kind"] == "full"
    change(server)
    second, said = hour(command)
    assert (second["kind"], second["parent_id"], said) == ("incremental", first["id"], "")
    assert second["span"]["from_lsn"] == first["span"]["to_lsn"]
    change(server)
    taken, _ = hour(command, "--blocks-only")
    assert (taken["kind"], taken["span"], taken["parent_id"]) == ("incremental", None, second["id"])
    change(server)
    sealed, _ = hour(command, "--wal-only")
    assert (sealed["kind"], sealed["backup"], sealed["id"]) == ("wal", None, sealed["span"]["id"])
    command.run("backup", "incremental", "--wal-only", "--blocks-only").expect(2)

    status = region(command)
    assert [(one["full_id"], one["increments"]) for one in status["chains"]] == [(first["id"], 2)]
    assert [window["to_at"] for window in status["windows"]] == [sealed["span"]["spans"][-1]["to_at"]]
    assert status["gaps"] == []
    assert command.ok("validate", "latest", "--json").document["level"] == "L6"


def test_where_wal_is_missing_it_is_said_and_the_increment_closes_the_gap(
    server: Cluster, command: BbOps, room: Path
) -> None:
    first, _ = hour(command)
    with command.start("wal", "stream") as running:
        change(server)
        server.execute("SELECT pg_switch_wal()")
        wait_until_archived(command)
        max(path for path in (room / "repository").rglob("wal/*/*/*.zst.age") if ".partial." not in path.name).unlink()
        done, said = hour(command, exit_code=4)
        assert running.kill()
    assert "is missing" in said
    assert len(done["span"]["gaps"]) == 1
    assert (done["kind"], done["parent_id"]) == ("incremental", first["id"])
    status = region(command)
    assert (len(status["gaps"]), status["open_gaps"]) == (1, [])


def test_without_an_increment_the_span_stays(server: Cluster, command: BbOps, room: Path) -> None:
    hour(command)
    server.execute("CREATE TABLE big AS SELECT g, md5(g::text) AS m FROM generate_series(1, 400000) g")
    slow = command.having(BB_OPS_COMPRESSION_LEVEL="19", BB_OPS_COMPRESSION_THREADS="1")
    locks = room / "repository" / "main" / "locks" / "full"
    held = len(list(locks.iterdir()))
    with slow.start("backup", "full") as running:
        wait_until(lambda: len(list(locks.iterdir())) > held, "no full began")
        beside, said = hour(command, exit_code=3)
        assert running.kill()
    assert (beside["kind"], beside["backup"]) == ("wal", None)
    assert beside["span"]["spans"]
    assert "the WAL is sealed, but no backup was taken" in said

    server.execute("ALTER SYSTEM SET summarize_wal = off;;SELECT pg_reload_conf()")
    wait_until(lambda: server.value("SHOW summarize_wal") == "off", "the setting was not taken")
    alone, said = hour(command)
    assert (alone["kind"], alone["skipped_reason"], said) == ("wal", "summarize_wal is off", "")
    assert command.ok("backup", "incremental").stdout.count("no block increment, only the log") == 1


@pytest.mark.requires("postgresql")
def test_an_old_server_gets_a_first_full_and_then_spans(session_room: Path, room: Path) -> None:
    build = available("packaged", session_room)
    with running_cluster(build, room / "cluster") as server:
        server.execute("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, 5000) g")
        command = bb_ops(room, build, server.url)
        first, said = hour(command)
        assert first["kind"] == "full"
        assert "no whole backup" in said
        change(server)
        second, said = hour(command)
        assert (second["kind"], second["backup"], said) == ("wal", None, "")
        assert second["span"]["from_lsn"] == first["span"]["to_lsn"]
        assert "has no block increments" in str(second["skipped_reason"])
        assert len(backups_of(command)) == 1
