"""WAL that must not enter an archive is refused at its first byte, in one line, on both ways in; nothing is written.

Another system, another major version, another segment size, a timeline without its history, other content under the
same name.
"""

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, Running, bb_ops
from bb_ops_tests.support.control_file import adopt_system_id, crc32c
from bb_ops_tests.support.postgres import Build, Cluster, available, running_cluster, wait_until
from bb_ops_tests.support.rooms import hand_over
from bb_ops_tests.support.wal import standby_of

PUSH = Path(__file__).parents[2] / "deploy" / "wal" / "bb-ops-wal-push"
SMALL_SEGMENTS = "--wal-segsize=1"


@dataclass(frozen=True)
class Answer:
    """What the archive_command said."""

    code: int
    stderr: str


@dataclass(frozen=True)
class Archive:
    """An archive that has WAL of a server of PostgreSQL 18, in segments of 1 MiB."""

    server: Cluster
    command: BbOps
    room: Path

    @property
    def system_id(self) -> str:
        return str(self.server.value("SELECT system_identifier FROM pg_control_system()"))

    def files(self) -> dict[Path, bytes]:
        """Return what is stored, without locks."""
        found = (path for path in (self.room / "repository").rglob("*") if path.is_file() and "lock" not in str(path))
        return {path: path.read_bytes() for path in found}

    def push(self, path: Path, name: str) -> Answer:
        """Do what a server's archive_command does."""
        done = subprocess.run(
            [PUSH, self.room / "spool", path, name],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "BB_OPS_WAL_TIMEOUT_S": "20"},
            timeout=60,
        )
        return Answer(done.returncode, done.stderr)


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    cluster = Cluster(wheel_18, room / "cluster", settings={"wal_keep_size": "64MB"}).create(SMALL_SEGMENTS).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def archive(server: Cluster, room: Path) -> Archive:
    command = bb_ops(room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
    command.ok("backup", "full")
    server.execute("CREATE TABLE a AS SELECT g, repeat('a', 900) FROM generate_series(1, 3000) g")
    command.ok("backup", "incremental", "--wal-only")
    return Archive(server, command, room)


@contextmanager
def serving(archive: Archive) -> Iterator[Running]:
    """Run what takes files from archive_command."""
    with archive.command.start("wal", "serve", archive.room / "spool") as running:
        wait_until((archive.room / "spool" / "push").exists, "the spool was not made")
        yield running
        assert running.alive
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)


def segments(cluster: Cluster, timeline: int = 1) -> list[Path]:
    """Return the WAL files that a cluster has finished or recycled, oldest first."""
    found = (cluster.data / "pg_wal").glob(f"{timeline:08X}????????????????")
    return sorted(path for path in found if len(path.name) == 24)


def prove_refused(archive: Archive, other: Cluster, words: str, *, exit_code: int = 2) -> None:
    """Prove that neither way lets a running server's WAL in: one line, nothing stored, nothing kept for us there."""
    before = archive.files()
    answer = archive.command.having(DATABASE_URL=other.url).run("wal", "stream", timeout_s=60).expect(exit_code)
    assert words in answer.complaint
    assert other.value("SELECT count(*) FROM pg_replication_slots") == 0
    assert archive.files() == before
    prove_push_refused(archive, segments(other)[0], words)


def prove_push_refused(archive: Archive, path: Path, words: str, *, name: str = "") -> None:
    before = archive.files()
    with serving(archive):
        said = archive.push(path, name or path.name)
    assert said.code == 1
    assert len(said.stderr.splitlines()) == 1, said.stderr
    assert words in said.stderr
    assert archive.files() == before


def test_a_foreign_system_is_refused(archive: Archive, wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "other") as other:
        prove_refused(archive, other, "system identifier")


@pytest.mark.parametrize("name", [pytest.param("packaged", marks=pytest.mark.requires("postgresql")), "wheel_17"])
def test_another_major_version_of_the_same_system_is_refused(
    archive: Archive, session_room: Path, room: Path, name: str
) -> None:
    build = available(name, session_room)
    with impostor(archive, build, room / "other", SMALL_SEGMENTS) as other:
        prove_refused(archive, other, f"PostgreSQL {build.major}, and")


def test_another_major_version_is_refused_where_only_a_backup_was_taken(
    server: Cluster, session_room: Path, room: Path
) -> None:
    command = bb_ops(room, server.build, server.url)
    command.ok("backup", "full")
    archive = Archive(server, command, room)
    with impostor(archive, available("wheel_17", session_room), room / "other", SMALL_SEGMENTS) as other:
        prove_refused(archive, other, "PostgreSQL 17, and")


def test_another_segment_size_of_the_same_system_is_refused(archive: Archive, wheel_18: Build, room: Path) -> None:
    with impostor(archive, wheel_18, room / "other") as other:
        prove_refused(archive, other, "segments of 16777216 bytes")


def test_a_version_that_nobody_knows_is_refused(archive: Archive, room: Path) -> None:
    segment = segments(archive.server)[0]
    content = bytearray(segment.read_bytes())
    content[0:2] = struct.pack("=H", 0xD1F0)
    (room / "file").write_bytes(content)
    prove_push_refused(archive, room / "file", "do not know", name=segment.name)


def test_a_timeline_without_its_history_is_refused_until_that_is_handed_over(
    archive: Archive, server: Cluster, room: Path
) -> None:
    standby = standby_of(server, room / "standby")
    try:
        standby.execute("SELECT pg_promote();;CREATE TABLE b AS SELECT 1 AS one")
        segment = segments(standby, 2)[0]
        history = standby.data / "pg_wal" / "00000002.history"
        wait_until(history.exists, "it was not promoted")
        history.rename(room / "history")
        before = archive.files()
        answer = archive.command.having(DATABASE_URL=standby.url).run("wal", "stream", timeout_s=60).expect(2)
        assert "00000002.history" in answer.complaint
        assert archive.files() == before
        assert standby.value("SELECT count(*) FROM pg_replication_slots") == 0
        prove_push_refused(archive, segment, "00000002.history is not archived")
        with serving(archive):  # a promoted server asks for its history first, and nothing else was pushed before
            assert archive.push(room / "history", "00000002.history") == Answer(0, "")
            assert archive.push(segment, segment.name) == Answer(0, "")
        (room / "forged").write_bytes(b"1\t0/100000\tother content\n")
        prove_push_refused(archive, room / "forged", "other content", name="00000002.history")
    finally:
        standby.stop()


def test_a_clone_confirms_nothing_and_overwrites_nothing(archive: Archive, server: Cluster, room: Path) -> None:
    with cloned(server, room) as write:
        server.execute("CREATE TABLE b AS SELECT g, repeat('b', 900) FROM generate_series(1, 4000) g")
        archive.command.ok("backup", "incremental", "--wal-only")
        write("CREATE TABLE c AS SELECT g, repeat('c', 900) FROM generate_series(1, 9000) g")
    kept = server.value("SELECT restart_lsn::text FROM pg_replication_slots")
    before = archive.files()
    answer = archive.command.run("wal", "stream", timeout_s=60).expect(5)
    assert "nothing was overwritten" in answer.complaint
    assert archive.files().items() >= before.items()
    assert server.value("SELECT restart_lsn::text FROM pg_replication_slots") == kept, "something was confirmed"
    stored = (archive.room / "repository").glob("*/*/wal/*/*/*.zst.age")
    newest = max(path.name for path in stored if ".partial." not in path.name)[:24]
    path = server.data / "pg_wal" / newest
    prove_push_refused(archive, path, "other content")


def test_a_clone_that_goes_on_behind_the_archives_last_border_is_refused_too(
    archive: Archive, server: Cluster, room: Path
) -> None:
    """Nothing of what it sends next is archived; only the segment before shows that it is another history."""
    with cloned(server, room) as write:
        server.execute("CREATE TABLE b AS SELECT g, repeat('b', 900) FROM generate_series(1, 600) g")
        archive.command.ok("backup", "incremental", "--wal-only")
        border = str(server.value("SELECT pg_current_wal_insert_lsn()::text"))
        write(
            "SELECT pg_drop_replication_slot('bb_ops_main');;"
            "CREATE TABLE c AS SELECT g, repeat('c', 900) FROM generate_series(1, 500) g;;"
            "SELECT pg_switch_wal();;CREATE TABLE d AS SELECT 1 AS one;;CHECKPOINT"
        )
    assert server.value(f"SELECT redo_lsn > '{border}' FROM pg_control_checkpoint()")
    answer = archive.command.run("wal", "stream", timeout_s=60).expect(5)
    assert "nothing was overwritten" in answer.complaint


def test_the_checksum_of_control_files_is_the_known_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@contextmanager
def impostor(archive: Archive, build: Build, directory: Path, *options: str) -> Iterator[Cluster]:
    """Run another server under the archive's system identifier."""
    other = Cluster(build, directory).create(*options)
    adopt_system_id(other, archive.system_id)
    other.start()
    try:
        assert other.value("SELECT system_identifier FROM pg_control_system()") == int(archive.system_id)
        yield other
    finally:
        other.stop()


@contextmanager
def cloned(server: Cluster, room: Path) -> Iterator[Callable[[str], None]]:
    """Copy the server; when the block ends, the copy has taken its place and written what the block said."""
    server.stop()
    shutil.copytree(server.data, room / "copied")
    server.start()
    statements: list[str] = []
    yield statements.append
    server.stop()
    shutil.rmtree(server.data)
    shutil.move(room / "copied", server.data)
    hand_over(server.data)
    server.start()
    for statement in statements:
        server.execute(statement)
