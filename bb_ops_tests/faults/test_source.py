"""A server, a disk or a second run that spoils a backup: one line says so, nothing is committed, and it works again."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, backups_of, bb_ops, objects_below, wait_for_work
from bb_ops_tests.support.postgres import Build, Cluster, running_cluster, wait_until

PAGE_BYTES = 8192
FAILED, INTEGRITY, LOCKED = 1, 5, 11


def test_the_second_of_two_backups_at_once_is_refused_and_the_first_unharmed(
    command: BbOps, slow: BbOps, room: Path
) -> None:
    with slow.start("backup", "full", "--json") as first:
        wait_for_work(room / "repository")
        os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end before the others were refused
        second = command.run("backup", "full").expect(LOCKED)
        assert "at work" in second.complaint
        assert str(first.pid) in second.complaint
        command.run("doctor", "--remove-leftovers").expect(LOCKED)
        os.kill(first.pid, signal.SIGCONT)
        document = first.finish().expect(0).document
    assert [backup["id"] for backup in backups_of(command)] == [document["id"]]
    command.ok("validate", "latest", "--integrity-only")


def test_two_backups_into_different_repositories_do_not_meet(command: BbOps, slow: BbOps, room: Path) -> None:
    with slow.start("backup", "full") as first:
        wait_for_work(room / "repository")
        command.having(BB_OPS_REPOSITORY=f"file://{room}/other").ok("backup", "full")
        first.finish().expect(0)


def test_a_server_killed_during_a_backup_ends_it_in_one_line(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        command = bb_ops(room, wheel_18, server.url)
        slow = command.having(BB_OPS_PART_SIZE_MIB="1", BB_OPS_COMPRESSION_LEVEL="15", BB_OPS_COMPRESSION_THREADS="1")
        with slow.start("backup", "full") as running:
            wait_for_work(room / "repository")
            wait_until(lambda: len(objects_below(room / "repository")) > 2, "no part was finished")
            server.kill()
            answer = running.finish().expect(FAILED)
        assert "PostgreSQL" in answer.complaint
        assert answer.stdout == ""
        assert backups_of(command) == []
        assert objects_below(room / "repository") == []
        assert not list((room / "repository").rglob("*.bb_ops-partial"))
        server.start()
        command.ok("backup", "full")


def test_a_server_that_stops_in_an_orderly_way_ends_the_backup_in_one_line(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        slow = bb_ops(room, wheel_18, server.url).having(
            BB_OPS_PART_SIZE_MIB="1", BB_OPS_COMPRESSION_LEVEL="15", BB_OPS_COMPRESSION_THREADS="1"
        )
        with slow.start("backup", "full", "--json") as running:
            wait_until(lambda: len(objects_below(room / "repository")) > 2, "no part was finished")
            server.stop()
            answer = running.finish().expect(FAILED)
        assert answer.document["exit_code"] == FAILED
        assert answer.document["error"] in answer.complaint
        assert backups_of(slow) == []


def test_a_damaged_page_at_the_source_is_named_and_nothing_is_committed(build: Build, room: Path) -> None:
    with running_cluster(build, room / "cluster") as server:
        server.execute("CREATE TABLE precious AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
        file = Path(str(server.value("SELECT pg_relation_filepath('precious')")))
        server.stop()
        block = 17
        with (server.data / file).open("r+b") as handle:
            handle.seek(block * PAGE_BYTES + 5000)
            byte = handle.read(1)
            handle.seek(block * PAGE_BYTES + 5000)
            handle.write(bytes([byte[0] ^ 0x10]))
        server.start()
        command = bb_ops(room, build, server.url)
        answer = command.run("backup", "full").expect(INTEGRITY)
        assert str(file) in answer.complaint
        assert f"block {block}" in answer.complaint
        assert backups_of(command) == []
        assert objects_below(room / "repository") == []
        assert server.value("SELECT count(*) FROM pg_replication_slots") == 0
        server.execute("TRUNCATE precious")
        command.ok("backup", "full")


def test_damaged_pages_are_taken_unseen_where_the_server_has_no_checksums_and_amcheck_finds_them(
    wheel_18: Build, room: Path
) -> None:
    with running_cluster(wheel_18, room / "cluster", checksums=False) as server:
        server.execute("CREATE TABLE precious AS SELECT g AS id, md5(g::text) AS t FROM generate_series(1, 20000) g")
        server.execute("CREATE INDEX precious_id ON precious (id)")
        file = server.data / str(server.value("SELECT pg_relation_filepath('precious_id')"))
        server.stop()
        content = bytearray(file.read_bytes())
        middle = 10 * PAGE_BYTES
        content[middle + 200 : middle + PAGE_BYTES - 200] = bytes(PAGE_BYTES - 400)
        file.write_bytes(content)
        server.start()
        command = bb_ops(room, wheel_18, server.url)
        command.ok("backup", "full")
        answer = command.run("validate", "latest", "--json")
        assert answer.returncode == 4, answer.stderr
        assert (answer.document["level"], answer.document["outcome"]) == ("L4", "fail")
        assert "precious" in answer.complaint


def test_a_full_disk_at_the_repository_ends_a_backup_in_one_line_and_it_works_after_room_is_made(
    command: BbOps, room: Path
) -> None:
    with _nearly_full_repository(room, command) as (cramped, make_room):
        answer = cramped.run("backup", "full").expect(FAILED)
        assert str(room / "disk") in answer.complaint
        assert backups_of(command) == []
        assert not list((room / "disk").rglob("*.age"))
        assert not list((room / "disk").rglob("*.bb_ops-partial"))
        roomy = make_room()
        roomy.ok("backup", "full")
        roomy.ok("validate", "latest", "--integrity-only")


def test_a_full_disk_at_the_replica_ends_a_copy_and_it_goes_on_after_room_is_made(command: BbOps, room: Path) -> None:
    command.ok("backup", "full")
    elsewhere = command.having(BB_OPS_REPOSITORY=f"file://{room}/disk", BB_OPS_REPLICA=None)
    with _nearly_full_repository(room, elsewhere) as (cramped, make_room):
        answer = _as_replica(cramped, command).run("sync", "incremental").expect(FAILED)
        assert str(room / "disk") in answer.stderr
        assert not list((room / "disk").rglob("COMMIT.json"))
        _as_replica(make_room(), command).ok("sync", "incremental")


def test_a_repository_that_cannot_be_written_to_is_named(command: BbOps, room: Path) -> None:
    blocked = room / "file"
    blocked.write_text("not a directory", encoding="utf-8")
    answer = command.having(BB_OPS_REPOSITORY=f"file://{blocked}/below").run("backup", "full")
    assert answer.returncode in {FAILED, 10}
    assert str(blocked) in answer.complaint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_says_so_and_leaves_nothing(
    slow: BbOps, source: Cluster, room: Path, number: signal.Signals
) -> None:
    with slow.start("backup", "full") as running:
        wait_until(lambda: len(objects_below(room / "repository")) > 2, "no part was finished")
        os.kill(running.pid, number)
        answer = running.finish().expect(130)
    assert "interrupted" in answer.complaint
    assert objects_below(room / "repository") == []
    assert not list((room / "repository").rglob("*.bb_ops-partial"))
    assert backups_of(slow) == []
    wait_until(lambda: source.value("SELECT count(*) FROM pg_replication_slots") == 0, "a slot was left")


def _as_replica(cramped: BbOps, whole: BbOps) -> BbOps:
    """Return the command with its repository whole and its replica cramped."""
    return cramped.having(
        BB_OPS_REPOSITORY=whole.environment["BB_OPS_REPOSITORY"],
        BB_OPS_REPLICA=cramped.environment["BB_OPS_REPOSITORY"],
    )


@contextmanager
def _nearly_full_repository(room: Path, command: BbOps) -> Iterator[tuple[BbOps, Callable[[], BbOps]]]:
    """Give the command a repository ``disk`` without room, and a way to make room.

    A real small file system where we may mount one; elsewhere a limit on the size of files, which stops a write too.
    """
    disk = room / "disk"
    disk.mkdir()
    there = command.having(BB_OPS_REPOSITORY=f"file://{disk}/repository")
    if not _mounted(disk):
        limit = 1 << 20

        def set_limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        yield there.limited(set_limit), lambda: there
        return
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(62 << 20))

        def make_room() -> BbOps:
            ballast.unlink()
            return there

        yield there, make_room
    finally:
        subprocess.run(["/bin/umount", disk], check=True)


def _mounted(disk: Path) -> bool:
    if os.geteuid() != 0:
        return False
    answer = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=64m", "bb_ops-test", disk], check=False, capture_output=True
    )
    return answer.returncode == 0


def test_a_backup_that_is_held_back_takes_its_time(command: BbOps) -> None:
    taken = command.having(BB_OPS_MAX_RATE_MIB="8").ok("backup", "full", "--json").document
    sent_mib = taken["size_bytes"] / (1 << 20)
    assert sent_mib > 16, "too small to show anything"
    assert taken["duration_s"] > 0.8 * sent_mib / 8
