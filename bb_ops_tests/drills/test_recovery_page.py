"""``RECOVERY.md``, executed as it stands: a full with WAL to a moment, the copy in region B, and a dump."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from bb_ops_tests.support import foreign
from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.page import follow
from bb_ops_tests.support.postgres import (
    Cluster,
    available,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
    wait_until,
)
from bb_ops_tests.support.rooms import hand_over
from bb_ops_tests.support.wal import status, wait_until_archived

pytestmark = pytest.mark.requires("postgresql", "age", "zstd", "tar")


@dataclass(frozen=True)
class Past:
    """A server with a past in both regions: a full, a dump, and WAL in which a row comes and goes."""

    source: Cluster
    command: BbOps
    room: Path
    full: str
    logical: str
    rows: foreign.Rows
    between: datetime

    def page(self, region: str, backup: str) -> str:
        """Return the page of a backup in a region."""
        (path,) = (self.room / region).glob(f"main/*/base/{backup}/RECOVERY.md")
        return path.read_text(encoding="utf-8")

    def names(self, room: Path, key: str, port: int) -> dict[str, str | Path]:
        """Return what a page wants to be told, with a key that PostgreSQL's account can read."""
        path = room / "key"
        path.write_bytes((self.room / "keys" / key).read_bytes())
        return {"REPO": room / "copy", "KEY": path, "DIR": room / "back", "PORT": str(port)}


@pytest.fixture(scope="module")
def past(session_room: Path, module_room: Path) -> Iterator[Past]:
    build = available("packaged", session_room)
    room = module_room
    with running_cluster(build, room / "cluster") as source:
        foreign.furnish(source)
        source.execute("CREATE TABLE told (what text)")
        command = bb_ops(room, build, source.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
        logical = command.ok("backup", "logical", "--json").document["id"]
        rows = foreign.read_rows(source.connect)
        with command.start("wal", "stream"):
            wait_until(lambda: status(command)["slot_active"], "the streamer did not begin")
            full = command.ok("backup", "full", "--json").document["id"]
            source.execute("INSERT INTO told VALUES ('before')")
            time.sleep(0.05)
            between = datetime.now(UTC)
            time.sleep(0.05)
            source.execute("DELETE FROM told;;SELECT pg_switch_wal();;INSERT INTO told VALUES ('after')")
            wait_until_archived(command)
        command.ok("sync", "incremental")
        for region in ("repository", "replica"):
            hand_over(room / region)
        yield Past(source, command, room, full, logical, rows, between)


def test_a_full_is_brought_back_with_all_archived_wal(past: Past, room: Path) -> None:
    target, port = room / "back", free_port()
    page, names = past.page("repository", past.full), past.names(room, "working.agekey", port)
    try:
        answer = follow(page, room, **names, TARGET="latest")
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        assert _told(target, port) == ["after"], "the unfinished segment is joined from its pieces"
    finally:
        stop_server_in(target)
    again = follow(page, room, **names)
    assert (again.returncode != 0, again.stderr) == (True, f"{target} is not empty\n")


def test_the_copy_in_the_other_region_is_brought_back_to_a_moment_by_its_own_page(past: Past, room: Path) -> None:
    target, port = room / "back", free_port()
    page, names = past.page("replica", past.full), past.names(room, "offline.agekey", port)
    assert f"file://{past.room}/replica" in page
    assert f"{past.room}/repository" not in page
    try:
        answer = follow(page, room, **names, TARGET=f"{past.between:%Y-%m-%d %H:%M:%S.%f}+00")
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        assert _told(target, port) == ["before"]
        with connection_to(target, port, "postgres") as connection:
            assert connection.execute("SHOW archive_mode").fetchone() == ("off",)
        rows = foreign.read_rows(partial(connection_to, target, port))
        assert _without_told(rows) == _without_told(past.rows)
        assert foreign.read_large_object(partial(connection_to, target, port)) == foreign.LARGE_OBJECT
    finally:
        stop_server_in(target)


def test_a_dump_is_brought_back_into_a_new_cluster(past: Past, room: Path) -> None:
    target, port = room / "back", free_port()
    names = past.names(room, "offline.agekey", port)
    try:
        answer = follow(past.page("repository", past.logical), room, **names)
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        assert foreign.read_rows(partial(connection_to, target, port)) == past.rows
    finally:
        stop_server_in(target)


def test_a_damaged_object_ends_the_restore_before_anything_is_opened(past: Past, room: Path) -> None:
    page = past.page("repository", past.full)
    (stored,) = (past.room / "repository").glob(f"main/*/base/{past.full}")
    copy = room / "copy" / stored.relative_to(past.room / "repository")
    copy.mkdir(parents=True)
    for path in stored.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    part = copy / "base.0000.tar.zst.age"
    *begin, last = part.read_bytes()
    part.write_bytes(bytes([*begin, last ^ 1]))
    answer = follow(page, room, **past.names(room, "working.agekey", free_port()))
    assert answer.returncode != 0
    assert "base.0000.tar.zst.age: FAILED" in answer.stdout
    assert not (room / "back").exists()


def test_the_page_names_what_is_there_and_no_secret(past: Past) -> None:
    page = past.page("repository", past.full)
    recipients = (past.room / "keys" / "recipients.txt").read_text(encoding="utf-8").split()
    public = [word for word in recipients if word.startswith("age1")]
    assert all(key in page for key in public)
    assert "AGE-SECRET-KEY-1" not in page
    assert re.search(r"@[A-Z_]+@", page) is None
    findings = past.command.run("doctor", "--json").document["findings"]
    assert [one["outcome"] for one in findings if one["check_id"] == "leftovers" and "file://" in one["resource"]] == [
        "pass",
        "pass",
    ]


def _told(target: Path, port: int) -> list[str]:
    with connection_to(target, port, "postgres") as connection:
        return [str(row[0]) for row in connection.execute("SELECT what FROM told ORDER BY 1")]


def _without_told(rows: foreign.Rows) -> foreign.Rows:
    return {name: seen for name, seen in rows.items() if name[2] != "told"}
