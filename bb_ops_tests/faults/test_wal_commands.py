"""archive_command and restore_command through the spool: acknowledged means durable, absent means absent."""

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.wal import Client, committing, missing_rows, restored

CLIENTS = Path(__file__).parents[2] / "deploy" / "wal"


@pytest.fixture
def spool(room: Path) -> Path:
    """A spool that the server's account may write to."""
    folder = room / "spool"
    for name in ("", "push", "done", "failed", "want", "ready", "absent"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    for client in ("bb-ops-wal-push", "bb-ops-wal-fetch"):
        (room / client).write_bytes((CLIENTS / client).read_bytes())
        (room / client).chmod(0o755 | stat.S_IXOTH)
    return folder


@pytest.fixture
def server(wheel_18: Build, room: Path, spool: Path) -> Iterator[Cluster]:
    """A server that archives through the spool."""
    settings = {"archive_mode": "on", "archive_command": f"{room}/bb-ops-wal-push {spool} %p %f"}
    cluster = Cluster(wheel_18, room / "cluster", settings=settings).create("--wal-segsize=1").start()
    yield cluster
    # A server that stops archives what is left, and nobody serves the spool any more: do not let it wait for that.
    cluster.execute("ALTER SYSTEM SET archive_command = 'true';;SELECT pg_reload_conf()")
    for path in (spool / "push").iterdir():
        (spool / "done" / path.name.removeprefix(".")).touch()
    cluster.stop()


@contextmanager
def serving(command: BbOps, spool: Path, *options: str) -> Iterator[None]:
    with command.start("wal", "serve", spool, *options) as running:
        yield
        assert running.alive
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)


def archived(server: Cluster) -> str:
    return str(server.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"))


def test_what_is_pushed_comes_back_through_restore_command(
    server: Cluster, wheel_18: Build, room: Path, spool: Path
) -> None:
    command = bb_ops(room, server.build, server.url)
    client = Client(server, filler=3000)
    with serving(command, spool):
        command.ok("backup", "full")
        with committing(server, client):
            wait_until(lambda: len(client.acked) > 1500, "too slow")
        last = str(server.value("SELECT pg_walfile_name(pg_switch_wal())"))
        wait_until(lambda: archived(server) >= last, "the last segment was not archived")
        assert server.value("SELECT failed_count FROM pg_stat_archiver") == 0
        shown = command.run("backup", "status", "--json").document["regions"][0]
        assert shown["gaps"] == []
        assert shown["windows"][0]["to_at"] > shown["windows"][0]["from_at"]
    with restored(command, wheel_18, room) as socket:
        assert missing_rows(client, socket) == []
    with serving(command, spool, "--fetch-only"):
        for path in (spool / "want", spool / "ready"):
            path.chmod(0o777)
        assert _fetch(room, spool, last) == 0
        assert (room / "got").stat().st_size == 1 << 20
        assert _fetch(room, spool, "0000000100000099000000AA") == 1
        assert _fetch(room, spool, "00000002.history") == 1


def test_without_a_server_of_the_spool_nothing_is_acknowledged(room: Path, spool: Path) -> None:
    (room / "file").write_bytes(b"x")
    assert _run(room / "bb-ops-wal-push", str(spool), str(room / "file"), "0" * 24, timeout_s=1) == 1
    assert _run(room / "bb-ops-wal-fetch", str(spool), "0" * 24, str(room / "got"), timeout_s=1) == 126


def test_files_that_were_renamed_or_cut_short_are_refused(server: Cluster, room: Path, spool: Path) -> None:
    command = bb_ops(room, server.build, server.url)
    with serving(command, spool):
        command.ok("backup", "full")
        wait_until(lambda: archived(server), "nothing was archived")
        mine = next(path for path in sorted((server.data / "pg_wal").iterdir()) if len(path.name) == 24)
        assert _run(room / "bb-ops-wal-push", str(spool), str(mine), "0000000100000000000000FF") == 1
        (room / "short").write_bytes(mine.read_bytes()[:5000])
        assert _run(room / "bb-ops-wal-push", str(spool), str(room / "short"), mine.name) == 1
    assert not list((room / "repository").rglob("*0000FF.*"))


def _fetch(room: Path, spool: Path, name: str) -> int:
    return _run(room / "bb-ops-wal-fetch", str(spool), name, str(room / "got"))


def _run(program: Path, *arguments: str, timeout_s: int = 20) -> int:
    environment = {"PATH": "/usr/bin:/bin", "BB_OPS_WAL_TIMEOUT_S": str(timeout_s)}
    return subprocess.run([program, *arguments], check=False, env=environment, timeout=60).returncode
