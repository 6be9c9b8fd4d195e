"""Where an increment cannot be taken a full is, loudly; where a chain is broken it is named, never half restored."""

import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, backups_of, bb_ops, objects_below
from bb_ops_tests.support.postgres import (
    Build,
    Cluster,
    available,
    running_cluster,
    wait_until,
)

INTEGRITY = 5
ROWS = 20_000


@dataclass(frozen=True)
class Chain:
    """A full and two increments in two regions. Tests damage their objects and put them right again."""

    command: BbOps
    room: Path
    ids: tuple[str, str, str]

    @property
    def repository(self) -> Path:
        """The first region."""
        return self.room / "repository"

    def object(self, number: int, name: str) -> Path:
        """Return the object of one backup whose name begins with ``name``."""
        found = [path for path in objects_below(self.repository) if path.parent.name == self.ids[number]]
        return next(path for path in found if path.name.startswith(name))


@pytest.fixture(scope="module")
def source(wheel_18: Build, module_room: Path) -> Iterator[Cluster]:
    """A server that summarizes its WAL."""
    with running_cluster(wheel_18, module_room / "cluster", settings={"summarize_wal": "on"}) as cluster:
        cluster.execute(f"CREATE TABLE t AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, {ROWS}) g")
        yield cluster


@pytest.fixture
def command(source: Cluster, room: Path) -> BbOps:
    """``bb-ops`` with keys and repositories of its own."""
    return bb_ops(room, source.build, source.url)


@pytest.fixture(scope="module")
def chain(source: Cluster, module_room: Path) -> Chain:
    """Take it once."""
    command = bb_ops(module_room, source.build, source.url)
    ids = []
    for words in (("full",), ("incremental", "--blocks-only"), ("incremental", "--blocks-only")):
        source.execute("UPDATE t SET m = md5(m) WHERE id % 40 = 0")
        ids.append(command.ok("backup", *words, "--json").document["id"])
    command.ok("sync", "incremental")
    return Chain(command, module_room, (ids[0], ids[1], ids[2]))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["base.0000", "backup_manifest"])
def test_a_missing_object_of_a_parent_is_named(chain: Chain, room: Path, number: int, name: str) -> None:
    path = chain.object(number, name)
    with _replaced(path, None):
        for words in (
            ("validate", "latest"),
            ("validate", "latest", "--integrity-only"),
            ("recover", "full", "latest", "--into", room / "back"),
        ):
            complaint = chain.command.run(*words).expect(INTEGRITY).complaint
            assert chain.ids[number] in complaint
            assert path.name in complaint
        assert chain.ids[2] in chain.command.run("backup", "list").expect(INTEGRITY).stdout
        assert f"needs {chain.ids[1]}" in chain.command.run("backup", "status").expect(4).stdout
    assert not (room / "back").exists()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("damage", ["removed", "flipped"])
def test_a_parent_without_its_commit_is_named(chain: Chain, room: Path, number: int, damage: str) -> None:
    path = chain.object(number, "COMMIT")
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content) - 1)] ^= 1
    with _replaced(path, None if damage == "removed" else bytes(content)):
        complaint = chain.command.run("recover", "full", "latest", "--into", room / "back").expect(INTEGRITY).complaint
        assert chain.ids[number] in complaint
        assert not (room / "back").exists()
        chain.command.run("validate", chain.ids[2]).expect(INTEGRITY)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_byte_anywhere_in_a_chain_is_named(chain: Chain, room: Path, number: int) -> None:
    for name in ("base.0000", "backup_manifest"):
        path = chain.object(number, name)
        content = bytearray(path.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        with _replaced(path, bytes(content)):
            for words in (
                ("validate", "latest", "--integrity-only"),
                ("validate", "latest"),
                ("recover", "full", "latest", "--into", room / "back"),
            ):
                complaint = chain.command.run(*words).expect(INTEGRITY).complaint
                assert f"{chain.ids[number]}/{path.name}" in complaint
        assert not (room / "back" / "global" / "pg_control").exists()
    chain.command.ok("recover", "full", "latest", "--into", room / "back")


def test_an_increment_is_not_copied_before_what_it_builds_on(chain: Chain, room: Path) -> None:
    elsewhere = chain.command.having(BB_OPS_REPLICA=f"file://{room}/other")
    path = chain.object(1, "base.0000")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with _replaced(path, bytes(content)):
        answer = elsewhere.run("sync", "incremental").expect(INTEGRITY)
        assert f"{chain.ids[2]}: it builds on {chain.ids[1]}" in answer.stderr
    assert [path.parent.name for path in (room / "other").rglob("COMMIT.json")] == [chain.ids[0]]
    elsewhere.ok("sync", "incremental")
    assert elsewhere.ok("validate", "latest", "--region", "replica", "--json").document["level"] == "L6"


def test_a_chain_needs_more_room_than_its_result(chain: Chain, room: Path) -> None:
    plans = [
        chain.command.ok("recover", "full", one, "--into", room / "back", "--dry-run", "--json").document
        for one in (chain.ids[0], chain.ids[2])
    ]
    assert [plan["chain"] for plan in plans] == [[chain.ids[0]], list(chain.ids)]
    assert plans[1]["restore_bytes"] > 2 * plans[0]["restore_bytes"]


def test_a_killed_increment_leaves_no_backup_and_blocks_nothing(command: BbOps, source: Cluster, room: Path) -> None:
    command.ok("backup", "full")
    source.execute("UPDATE t SET m = md5(m)")
    slow = command.having(BB_OPS_COMPRESSION_LEVEL="19", BB_OPS_COMPRESSION_THREADS="1")
    with slow.start("backup", "incremental", "--blocks-only") as running:
        wait_until(lambda: list((room / "repository").glob("*/*/base/*-incremental-*/*")), "no increment began")
        assert running.kill()
    assert len(backups_of(command)) == 1
    done = command.ok("backup", "incremental", "--blocks-only", "--json").document
    assert (done["kind"], done["depth"]) == ("incremental", 1)
    assert command.ok("validate", "latest", "--json").document["level"] == "L6"


def test_a_chain_at_its_bound_begins_anew_with_a_full(command: BbOps) -> None:
    shallow = command.having(BB_OPS_INCREMENTAL_DEPTH="2")
    kinds = []
    for _ in range(5):
        answer = shallow.ok("backup", "incremental", "--blocks-only", "--json")
        kinds.append(answer.document["kind"])
        assert ("FULL" in answer.stderr) == (answer.document["fallback_reason"] is not None)
    assert kinds == ["full", "incremental", "incremental", "full", "incremental"]


def test_without_a_parent_a_full_is_taken_and_the_dry_run_says_so(command: BbOps) -> None:
    plan = command.ok("backup", "incremental", "--blocks-only", "--dry-run", "--json").document
    assert (plan["kind"], plan["parent_id"]) == ("full", None)
    assert "no whole backup" in plan["fallback_reason"]
    assert backups_of(command) == []
    answer = command.ok("backup", "incremental", "--blocks-only", "--json")
    assert "a FULL backup was taken instead of an increment" in answer.complaint
    assert "no whole backup" in answer.document["fallback_reason"]
    plan = command.ok("backup", "incremental", "--blocks-only", "--dry-run", "--json").document
    assert (plan["kind"], plan["parent_id"], plan["depth"]) == ("incremental", answer.document["id"], 1)


def test_a_parent_that_cannot_be_opened_here_means_a_full(command: BbOps, room: Path) -> None:
    first = command.ok("backup", "full", "--json").document["id"]
    command.ok("keys", "init", room / "others")
    for identity in (None, room / "others" / "working.agekey"):
        blind = command.having(BB_OPS_AGE_IDENTITY_FILE=identity)
        reason = blind.ok("backup", "incremental", "--blocks-only", "--json").document["fallback_reason"]
        assert "BB_OPS_AGE_IDENTITY_FILE" in reason
    (path,) = (room / "repository").glob(f"*/*/base/{first}/backup_manifest*")
    assert path.exists()


def test_a_damaged_manifest_or_a_missing_part_of_the_newest_backup_means_another_parent_or_a_full(
    command: BbOps, room: Path
) -> None:
    first = command.ok("backup", "full", "--json").document["id"]
    (manifest,) = (room / "repository").glob(f"*/*/base/{first}/backup_manifest*")
    content = manifest.read_bytes()
    with _replaced(manifest, content[:-1] + bytes([content[-1] ^ 1])):
        answer = command.ok("backup", "incremental", "--blocks-only", "--json")
        assert manifest.name in answer.document["fallback_reason"]
    second = answer.document["id"]
    next(iter((room / "repository").glob(f"*/*/base/{second}/base.0000*"))).unlink()
    third = command.ok("backup", "incremental", "--blocks-only", "--json").document
    assert (third["kind"], third["parent_id"]) == ("incremental", first)


def test_a_server_without_summaries_gets_a_full(command: BbOps, source: Cluster) -> None:
    command.ok("backup", "full")
    source.execute("ALTER SYSTEM SET summarize_wal = off;;SELECT pg_reload_conf()")
    try:
        wait_until(lambda: source.value("SHOW summarize_wal") == "off", "the setting was not taken")
        answer = command.ok("backup", "incremental", "--blocks-only", "--json")
        assert "summarize_wal is off" in answer.complaint
    finally:
        source.execute("ALTER SYSTEM RESET summarize_wal;;SELECT pg_reload_conf()")


def test_summaries_that_are_gone_mean_a_full(command: BbOps, source: Cluster) -> None:
    command.ok("backup", "full")
    source.execute("UPDATE t SET m = md5(m) WHERE id % 9 = 0;;CHECKPOINT")
    latest = source.value("SELECT redo_lsn::text FROM pg_control_checkpoint()")
    wait_until(
        lambda: source.value(f"SELECT summarized_lsn >= '{latest}' FROM pg_get_wal_summarizer_state()"), "no summary"
    )
    for path in (source.data / "pg_wal" / "summaries").iterdir():
        path.unlink()
    answer = command.ok("backup", "incremental", "--blocks-only", "--json")
    assert answer.document["kind"] == "full"
    assert "summaries" in answer.complaint
    assert command.ok("backup", "incremental", "--blocks-only", "--json").document["kind"] == "incremental"


def test_a_server_that_refuses_an_increment_at_the_last_moment_gets_a_full(
    command: BbOps, source: Cluster, room: Path
) -> None:
    command.ok("backup", "full")
    source.execute("CHECKPOINT;;UPDATE t SET m = md5(m) WHERE id % 9 = 0;;CHECKPOINT;;CHECKPOINT")
    first = command.ok("backup", "incremental", "--blocks-only", "--json").document
    assert first["kind"] == "incremental"
    source.execute("UPDATE t SET m = md5(m) WHERE id % 9 = 0;;CHECKPOINT;;CHECKPOINT")
    latest = source.value("SELECT redo_lsn::text FROM pg_control_checkpoint()")
    wait_until(
        lambda: source.value(f"SELECT summarized_lsn >= '{latest}' FROM pg_get_wal_summarizer_state()"), "no summary"
    )
    for path in (source.data / "pg_wal" / "summaries").iterdir():
        path.write_bytes(b"no summary")
    answer = command.ok("backup", "incremental", "--blocks-only", "--json")
    assert answer.document["kind"] == "full"
    assert f"no increment on {first['id']}" in answer.complaint
    assert len(backups_of(command)) == 3
    assert len({path.parent for path in objects_below(room / "repository")}) == 3, "the refused increment left objects"
    for path in (source.data / "pg_wal" / "summaries").iterdir():
        path.unlink()


def test_a_role_that_may_only_replicate_can_take_increments(source: Cluster, room: Path) -> None:
    source.execute("CREATE ROLE keeper LOGIN REPLICATION")
    command = bb_ops(room, source.build, source.url_of("postgres", "keeper"))
    command.ok("backup", "full")
    assert command.ok("backup", "incremental", "--blocks-only", "--json").document["kind"] == "incremental"
    assert command.ok("validate", "latest", "--level", "L5", "--json").document["level"] == "L5"


def test_page_checksums_turned_on_or_off_mean_a_full(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster", settings={"summarize_wal": "on"}) as server:
        server.execute("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 5000) g")
        command = bb_ops(room, wheel_18, server.url)
        command.ok("backup", "full")
        server.stop()
        server.run("pg_checksums", "--disable", "-D", str(server.data))
        server.start()
        assert "page checksums were turned off" in command.ok("backup", "incremental", "--blocks-only").stderr
        assert command.ok("backup", "incremental", "--blocks-only", "--json").document["kind"] == "incremental"
        server.stop()
        server.run("pg_checksums", "--enable", "-D", str(server.data))
        server.start()
        assert "page checksums were turned on" in command.ok("backup", "incremental", "--blocks-only").stderr
        assert command.ok("validate", "latest", "--json").document["level"] == "L6"


@pytest.mark.requires("postgresql")
def test_an_old_server_gets_a_full(session_room: Path, room: Path) -> None:
    build = available("packaged", session_room)
    assert build.major < 17, "then the test needs an older server"
    with running_cluster(build, room / "cluster") as server:
        server.execute("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 5000) g")
        command = bb_ops(room, build, server.url)
        for _ in range(2):
            answer = command.ok("backup", "incremental", "--blocks-only", "--json")
            assert (answer.document["kind"], answer.document["parent_id"]) == ("full", None)
            assert re.search(r"PostgreSQL 1[56][.\d]+ .*has no block increments", answer.complaint)
        assert command.ok("validate", "latest", "--json").document["level"] == "L6"


@pytest.mark.requires("age", "zstd")
def test_stock_tools_join_a_chain(chain: Chain, room: Path, wheel_18: Build) -> None:
    for number in range(3):
        into = room / str(number)
        into.mkdir()
        for path in objects_below(chain.repository):
            if path.parent.name != chain.ids[number] or not path.name.startswith(("base.", "wal.", "backup_manifest")):
                continue
            tail = f"> {into}/backup_manifest" if path.name.startswith("backup") else f"| tar x -C {into}"
            key = chain.room / "keys" / "working.agekey"
            subprocess.run(f"age -d -i {key} {path} | zstd -dc {tail}", shell=True, check=True)
    folders = [str(room / str(number)) for number in range(3)]
    subprocess.run([wheel_18.program("pg_combinebackup"), *folders, "-o", str(room / "joined")], check=True)
    subprocess.run([wheel_18.program("pg_verifybackup"), "--no-parse-wal", str(room / "joined")], check=True)


@contextmanager
def _replaced(path: Path, content: bytes | None) -> Iterator[None]:
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(before)
