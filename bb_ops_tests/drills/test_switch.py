"""A recovery that ends in a switch: the copy takes the live cluster's place, or nothing of that is touched."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, free_port, stop_server_in, wait_until
from bb_ops_tests.support.rooms import hand_over
from bb_ops_tests.support.terminal import Terminal
from bb_ops_tests.support.wal import wait_until_archived

pytestmark = pytest.mark.timeout(240)
STEPS = (
    "begun",
    "copy stopped",
    "copy prepared",
    "live server stopped",
    "old data directory set aside",
    "copy in its place",
    "started",
)


@dataclass(frozen=True)
class World:
    """A server with a table in a tablespace that was dropped by mistake, and what was written afterwards."""

    server: Cluster
    command: BbOps
    before_drop: str

    @property
    def data(self) -> Path:
        """The live data directory."""
        return self.server.data

    def identity(self) -> tuple[Any, ...]:
        """What tells a touched database from an untouched one."""
        pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
        with self.server.connect() as connection:
            row = connection.execute(
                "SELECT d.oid, pg_relation_filenode('late'), (SELECT count(*) FROM late), pg_postmaster_start_time() "
                "FROM pg_database d WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        return (pid, self.data.stat().st_ino, *row)

    def kept(self) -> list[Path]:
        """The old data directories."""
        return [path for path in self.data.parent.glob("data.bb_ops-old-*") if path.is_dir()]


def _world(build: Build, room: Path) -> World:
    hba = ["local all all trust", "local replication all trust"]
    hba += [f"host {name} all 127.0.0.1/32 trust" for name in ("all", "replication")]
    server = Cluster(build, room / "cluster", hba=tuple(hba)).create("--wal-segsize=1").start()
    server.execute("ALTER SYSTEM SET archive_mode = 'on';;ALTER SYSTEM SET archive_command = 'true'")
    command = bb_ops(room, build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
    space = server.spaces / "fast"
    space.mkdir()
    hand_over(space)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.execute(
        "CREATE TABLE bookings TABLESPACE fast AS SELECT g AS id, repeat('b', 200) FROM generate_series(1, 500) g"
    )
    command.ok("backup", "full")
    return World(server, command, "")


def _mistake(world: World) -> World:
    """Drop the table; the moment before can be gone back to afterwards."""
    world.server.execute("INSERT INTO bookings SELECT g, 'new' FROM generate_series(501, 600) g")
    at = str(world.server.value("SELECT clock_timestamp()"))
    world.server.execute("DROP TABLE bookings;;CREATE TABLE late AS SELECT g FROM generate_series(1, 50) g")
    wait_until(lambda: _is_possible(world, at), "the moment is not archived")
    return World(world.server, world.command, at)


def _is_possible(world: World, at: str) -> bool:
    """Whether the archive leads to a moment; it knows how far it does only by what is written afterwards."""
    world.server.execute("SELECT pg_logical_emit_message(true, 'test', 'time goes on')")
    return world.command.run("recover", "plan", at).returncode == 0


@pytest.fixture(scope="module")
def world(wheel_18: Build, module_room: Path) -> Iterator[World]:
    """Replaced by no test: what is refused leaves it as it was."""
    made = _world(wheel_18, module_room)
    try:
        with made.command.start("wal", "stream") as streamer:
            yield _mistake(made)
            streamer.kill()
    finally:
        made.server.stop()


def _hash(answer: Any) -> str:  # noqa: ANN401 - one document
    return str(answer.document["plan_hash"])


def test_the_table_is_back_and_the_old_cluster_is_kept_until_released(wheel_18: Build, room: Path) -> None:
    world = _world(wheel_18, room)
    command, data = world.command, world.data
    try:
        with command.start("wal", "stream") as streamer:
            world = _mistake(world)
            recover = ("recover", "point-in-time", world.before_drop, "--replace", data)
            plan = command.ok(*recover, "--dry-run", "--json")
            assert _hash(command.ok("recover", "plan", world.before_drop, "--replace", data, "--json")) == _hash(plan)
            with command.start(*recover, "--yes", "--plan", _hash(plan)) as running:
                wait_until((data.parent / "data.bb_ops-recovered" / "base").exists, "nothing was restored")
                assert running.kill()
            done = command.ok(*recover, "--yes", "--plan", _hash(plan), "--json").document
            assert (done["data_directory"], done["proof"], done["timeline"]) == (str(data), "L5", 2)
            assert world.server.value("SELECT count(*) FROM bookings") == 600
            assert world.server.value("SELECT to_regclass('late') IS NULL")
            again = command.ok(*recover, "--yes", "--plan", _hash(plan), "--json").document
            assert again["new_backup_id"] == done["new_backup_id"]
            world.server.execute("CREATE TABLE afterwards AS SELECT 1 AS one")
            wait_until_archived(command)
            assert streamer.alive
            streamer.kill()
        newest = max(command.ok("backup", "list", "--json").document["backups"], key=lambda one: one["started_at"])
        assert newest["id"] == done["new_backup_id"]
        region = command.run("backup", "status", "--json").document["regions"][0]
        assert region["gaps"] == []
        (old,) = world.kept()
        stop_server_in(data)
        _old_still_starts(wheel_18, old)
        assert "is left in" in command.ok("recover", "release", old, "--yes").stdout
        assert not old.exists()
        assert command.ok("recover", "release", old, "--yes")
        assert (data / "PG_VERSION").exists()
        _served(world, room)
    finally:
        stop_server_in(data)
        world.server.stop()


def _served(world: World, room: Path) -> None:
    """The old primary is down: a copy becomes the new one, at another address."""
    copy, port = room / "cluster" / "served", free_port()
    world.command.ok("recover", "point-in-time", "latest", "--level", "L4", "--into", copy)
    switch = ("recover", "switch", copy, "--serve", "--port", str(port))
    plan = _hash(world.command.ok(*switch, "--dry-run", "--json"))
    try:
        done = world.command.ok(*switch, "--yes", "--plan", plan, "--json").document
        assert (done["timeline"], done["port"]) == (3, port)
        with psycopg.connect(done["connection_string"], user="postgres") as connection:
            row = connection.execute("SELECT one, current_setting('archive_mode') FROM afterwards").fetchone()
        assert row == (1, "on")
        assert done["new_backup_id"] in world.command.ok("backup", "list", "--json").stdout
    finally:
        stop_server_in(copy)


def _start_plainly(build: Build, directory: Path) -> Cluster:
    """Start a server on a directory with the configuration that initdb made."""
    cluster = Cluster(build, directory.parent)
    places = {"config_file": directory / "postgresql.conf", "listen_addresses": "", "unix_socket_directories": "."}
    options = " ".join([*(f"-c {name}={value}" for name, value in places.items()), f"-p {cluster.port}"])
    cluster.run("pg_ctl", "-D", str(directory), "-w", "-o", options, "-l", f"{directory.parent}/plain.log", "start")
    return Cluster(build, directory, port=cluster.port)


def _old_still_starts(build: Build, old: Path) -> None:
    try:
        assert _start_plainly(build, old).value("SELECT count(*) FROM late") == 50
    finally:
        stop_server_in(old)


def test_what_does_not_start_is_taken_back_and_what_is_killed_at_every_step_is_ended(
    wheel_18: Build, room: Path
) -> None:
    world = _world(wheel_18, room)
    command, data = world.command, world.data
    try:
        world.server.execute("CREATE TABLE late AS SELECT 1")
        copy = room / "cluster" / "copy"
        recover = ("recover", "point-in-time", "immediate", "--level", "L4", "--into", copy)
        switch = ("recover", "switch", copy, "--replace", data)
        command.ok(*recover)
        spoilt = copy / "pg_xact" / "0000"
        spoilt.rename(room / "0000")
        plan = _hash(command.ok(*switch, "--dry-run", "--json"))
        complaint = command.run(*switch, "--yes", "--plan", plan).expect(1).complaint
        assert f"the old cluster is back in {data} and runs" in complaint
        assert world.server.value("SELECT count(*) FROM late") == 1
        (room / "0000").rename(spoilt)
        _start_plainly(wheel_18, copy)  # somebody looks at it
        seen = []
        for step in STEPS:
            with command.start(*switch, "--yes", "--plan", plan, "--json") as running:
                while running.alive and step not in _steps(data):
                    time.sleep(0.001)
                if running.kill():
                    seen.append(step)
            if step == "live server stopped" and data.exists():  # between the two renames, for sure
                data.rename(_journal(data)["old"])
        elsewhere = command.having(DATABASE_URL=f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")
        complaint = elsewhere.run(*switch, "--yes", "--plan", plan, "--json").expect(3).complaint
        assert "there is no backup of the new timeline" in complaint
        (old,) = world.kept()
        assert "no full backup" in command.run("recover", "release", old, "--yes").expect(2).complaint
        done = command.ok(*switch, "--yes", "--plan", plan, "--json").document
        assert seen == list(STEPS)
        assert [one["step"] for one in done["steps"]] == [*STEPS, "new full backup"]
        assert world.server.value("SELECT count(*) FROM bookings") == 500
        assert not copy.exists()
    finally:
        stop_server_in(data)
        world.server.stop()


def _journal(data: Path) -> dict[str, Any]:
    (found,) = data.parent.glob("data.bb_ops-old-*.json")
    journal: dict[str, Any] = json.loads(found.read_bytes())
    return journal


def _steps(data: Path) -> list[str]:
    """What the switch under way has done; nothing while the one that was taken back is all there is."""
    journal = _journal(data)
    return [] if journal["failure"] else [one["step"] for one in journal["steps"]]


def _archive(world: World, room: Path) -> Path:
    """Copy what the repository holds, to be spoilt."""
    shutil.copytree(room.parent / world.command.environment["BB_OPS_REPOSITORY"].removeprefix("file://"), room / "bad")
    return room / "bad"


def _flip(archive: Path) -> None:
    part = max(archive.glob("*/*/base/*/*"), key=lambda path: path.stat().st_size)
    part.chmod(0o600)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def _lose_wal(archive: Path) -> None:
    segments = [path for path in archive.glob("*/*/wal/*/*/*") if path.name.endswith(".zst.age")]
    assert segments
    for path in segments:
        path.unlink()


def _refused(world: World, code: int, said: str, *arguments: str | Path, command: BbOps | None = None) -> None:
    before = world.identity()
    answer = (command or world.command).run("recover", *arguments)
    assert answer.returncode == code, answer.stderr
    assert said in answer.stderr
    assert world.identity() == before
    assert world.kept() == []


def test_a_damaged_archive_leaves_the_live_cluster_as_it_is(world: World, room: Path) -> None:
    archive = _archive(world, room)
    command = world.command.having(BB_OPS_REPOSITORY=f"file://{archive}", BB_OPS_REPLICA=None)
    recover = ("point-in-time", world.before_drop, "--replace", world.data)
    plan = _hash(command.ok("recover", *recover, "--dry-run", "--json"))
    _flip(archive)
    _refused(world, 5, "differs from the SHA-256", *recover, "--yes", "--plan", plan, command=command)
    full = ("full", "latest", "--replace", world.data, "--into", world.data.parent / "second")
    plan = _hash(command.ok("recover", *full, "--dry-run", "--json"))
    _refused(world, 5, "differs from the SHA-256", *full, "--yes", "--plan", plan, command=command)
    _lose_wal(archive)
    _refused(world, 2, "nearest possible", *recover, "--yes", "--plan", plan, command=command)


def test_without_the_plan_that_was_looked_at_nothing_is_replaced(world: World) -> None:
    recover = ("point-in-time", world.before_drop, "--replace", world.data, "--into", world.data.parent / "third")
    _refused(world, 2, "--yes needs --plan HASH", *recover, "--yes")
    _refused(world, 2, "no terminal", *recover)
    _refused(world, 2, "was confirmed", *recover, "--yes", "--plan", "0123456789abcdef")
    _refused(world, 2, "use `bb-ops recover plan TARGET`", "interactive")
    assert not (world.data.parent / "third").exists()


def test_another_system_is_not_replaced(world: World, wheel_18: Build, room: Path) -> None:
    other = Cluster(wheel_18, room / "other").create()
    files = sorted((path, path.stat().st_mtime_ns) for path in other.data.rglob("*"))
    _refused(world, 2, "is it the right directory?", "point-in-time", "latest", "--replace", other.data, "--dry-run")
    _refused(world, 2, "no PostgreSQL data directory", "full", "latest", "--replace", room, "--dry-run")
    (room / "dump.sql").write_text("SELECT 1;\n", encoding="utf-8")
    _refused(
        world, 2, "cannot replace", "full", room / "dump.sql", "--replace", world.data, "--yes", "--plan", "0" * 16
    )
    assert sorted((path, path.stat().st_mtime_ns) for path in other.data.rglob("*")) == files


def test_a_person_who_does_not_type_the_name_changes_nothing(world: World) -> None:
    before, copy = world.identity(), world.data.parent / "by hand"
    with Terminal(world.command, "recover", "interactive") as terminal:
        terminal.expect("proven never")
        terminal.expect("Region")
        terminal.type("1")
        terminal.expect("What to go back to")
        terminal.type("2")
        terminal.expect("Which")
        terminal.type(world.before_drop)
        terminal.expect("Data directory to replace")
        terminal.type(str(world.data))
        terminal.expect("Directory for the copy")
        terminal.type(str(copy))
        terminal.expect("plan     ")
        terminal.expect('Type "yes"')
        terminal.type("yes")
        terminal.expect("loses    about ")
        terminal.expect("Type the cluster's name, main")
        terminal.type("wrong")
        assert terminal.finish() == 2
    recover = ("recover", "point-in-time", world.before_drop, "--region", "primary", "--replace", world.data)
    with Terminal(world.command, *recover, "--into", copy) as terminal:
        terminal.expect("Type the cluster's name, main")
        terminal.interrupt()
        assert terminal.finish() == 130
    assert (world.identity(), world.kept()) == (before, [])
    assert (copy / "PG_VERSION").exists()


def test_a_person_chooses_by_what_was_dropped_and_may_still_leave(world: World) -> None:
    copy = world.data.parent / "never made"
    with Terminal(world.command, "recover", "interactive") as terminal:
        terminal.expect("Region")
        terminal.type("1")
        terminal.expect("What to go back to")
        terminal.type("4")
        terminal.expect("public.bookings")
        terminal.expect("Just before which")
        terminal.type("1")
        for question, answer in (("Data directory to replace", ""), ("Empty directory", str(copy)), ("Port", "0")):
            terminal.expect(question)
            terminal.type(answer)
        terminal.expect("plan     ")
        terminal.expect('Type "yes"')
        terminal.type("no")
        assert terminal.finish() == 2
    assert not copy.exists()
