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


def test_segments_that_wait_are_handed_over_ahead_of_their_call(room: Path, spool: Path) -> None:
    names = [f"0000000100000000000000{number:02X}" for number in (0xFD, 0xFE, 0xFF)]
    first = _waiting(room, *names)
    _waiting(room, "000000010000000000000009")
    (room / "pg_wal/archive_status/0000000100000000000000FF.ready").unlink()
    assert _run(room / "bb-ops-wal-push", str(spool), str(first), first.name, timeout_s=1) == 1
    assert sorted(path.name for path in (spool / "push").iterdir()) == names[:2]


@pytest.mark.parametrize(("newer_by_ns", "code"), [(0, 0), (1, 1), (-1, 1)])
def test_only_an_answer_about_this_very_state_of_a_file_is_believed(
    room: Path, spool: Path, newer_by_ns: int, code: int
) -> None:
    path = _waiting(room, "000000010000000000000009")
    changed_ns = path.stat().st_mtime_ns + newer_by_ns
    (spool / "done" / path.name).touch()
    os.utime(spool / "done" / path.name, ns=(changed_ns, changed_ns))
    assert _run(room / "bb-ops-wal-push", str(spool), str(path), path.name, timeout_s=1) == code
    assert (spool / "push" / path.name).exists() == bool(code)


def test_killed_service_of_the_spool_has_acknowledged_only_what_is_recorded(
    server: Cluster, room: Path, spool: Path
) -> None:
    command = bb_ops(room, server.build, server.url)
    for _ in range(12):
        server.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 500000));;SELECT pg_switch_wal()")
    status = server.data / "pg_wal/archive_status"
    with command.start("wal", "serve", spool) as running:
        wait_until(lambda: len(list(status.glob("*.done"))) > 3, "nothing was archived")
        os.kill(running.pid, signal.SIGKILL)
        acknowledged = {path.stem for path in status.glob("*.done")}
    stored = [path.name for path in (room / "repository").rglob("*") if path.is_file()]
    for name in acknowledged:
        assert any(found.startswith(f"{name}.zst") for found in stored)
        assert f"{name}.json" in stored
    with serving(command, spool):
        wait_until(lambda: not list(status.glob("*.ready")), "the rest was not archived")


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


def _waiting(room: Path, *names: str) -> Path:
    """Make files that look as if a server waited for their archiving; return the first."""
    (room / "pg_wal/archive_status").mkdir(parents=True, exist_ok=True)
    for name in names:
        (room / "pg_wal" / name).write_bytes(b"x")
        (room / "pg_wal/archive_status" / f"{name}.ready").touch()
    return room / "pg_wal" / names[0]


def _fetch(room: Path, spool: Path, name: str) -> int:
    return _run(room / "bb-ops-wal-fetch", str(spool), name, str(room / "got"))


def _run(program: Path, *arguments: str, timeout_s: int = 20) -> int:
    environment = {"PATH": "/usr/bin:/bin", "BB_OPS_WAL_TIMEOUT_S": str(timeout_s)}
    return subprocess.run([program, *arguments], check=False, env=environment, timeout=60).returncode
