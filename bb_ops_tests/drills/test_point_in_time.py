"""Recovery to a moment: by time, position, transaction and name; on the right timeline; or refused before anything."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, connection_to, free_port, stop_server_in, wait_until
from bb_ops_tests.support.wal import wait_until_archived

ROWS = 3000
KILLS = 10
FIRST, SECOND = "primary", "replica"
if TYPE_CHECKING:
    import psycopg

pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True)
class Story:
    """A server that wrote A, noted the moment in every form, deleted A, and wrote more."""

    command: BbOps
    at: datetime
    lsn: str
    xid: int
    deleted_xid: int


@pytest.fixture(scope="module")
def story(wheel_18: Build, module_room: Path) -> Iterator[Story]:
    """Archived by a streamer; read only."""
    server = Cluster(wheel_18, module_room / "cluster").create("--wal-segsize=1").start()
    try:
        command = bb_ops(module_room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
        command.ok("backup", "full")
        with command.start("wal", "stream") as running:
            server.execute("CREATE TABLE story (word text PRIMARY KEY, filler text)")
            server.execute("INSERT INTO story SELECT 'before ' || g, repeat('x', 900) FROM generate_series(1, 3000) g")
            with server.connect() as connection:
                xid = _one(connection, "INSERT INTO story VALUES ('A') RETURNING pg_current_xact_id()::text")
                at = _one(connection, "SELECT clock_timestamp()")
                lsn = _one(connection, "SELECT pg_current_wal_insert_lsn()::text")
                connection.execute("SELECT pg_create_restore_point('after A')")
                deleted = _one(connection, "DELETE FROM story WHERE word = 'A' RETURNING pg_current_xact_id()::text")
            server.execute("INSERT INTO story SELECT 'after ' || g, repeat('x', 900) FROM generate_series(1, 3000) g")
            wait_until_archived(command)
            running.kill()
        yield Story(command, at, lsn, int(xid), int(deleted))
    finally:
        server.stop()


def _one(connection: "psycopg.Connection[Any]", query: str) -> Any:  # noqa: ANN401 - whatever the query gives
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _words(place: Path, port: int) -> set[str]:
    with connection_to(place, port, "postgres") as connection:
        return {str(row[0]) for row in connection.execute("SELECT word FROM story")}


def _recovered(story: Story, room: Path, *target: str) -> tuple[dict[str, Any], set[str]]:
    port = free_port()
    answer = story.command.ok(
        "recover", "point-in-time", *target, "--into", room / "back", "--start", "--port", str(port), "--json"
    )
    try:
        return answer.document, _words(room / "back", port)
    finally:
        stop_server_in(room / "back")


@pytest.mark.parametrize("form", ["time", "lsn", "xid", "name", "deleted, exclusive"])
def test_the_copy_has_a_and_everything_before_and_nothing_after(story: Story, room: Path, form: str) -> None:
    target = {
        "time": (str(story.at),),
        "lsn": (story.lsn,),
        "xid": (f"xid:{story.xid}",),
        "name": ("name:after A",),
        "deleted, exclusive": (f"xid:{story.deleted_xid}", "--exclusive"),
    }[form]
    document, words = _recovered(story, room, *target)
    assert words == {"A", *(f"before {number}" for number in range(1, ROWS + 1))}
    assert (document["outcome"], document["proof"]) == ("pass", "L5")


def test_the_latest_has_everything(story: Story, room: Path) -> None:
    document, words = _recovered(story, room, "latest")
    assert words == {f"{word} {number}" for word in ("before", "after") for number in range(1, ROWS + 1)}
    assert document["timeline"] == 2


def test_a_moment_that_cannot_be_reached_is_refused_with_the_nearest_ones(story: Story, room: Path) -> None:
    for target, said in (
        ("2001-01-01 00:00:00+00", "nearest possible are 20"),
        (f"{story.at + timedelta(days=9)}", "lies in the future"),
        (f"{story.at:%Y-%m-%d %H:%M:%S}", "no time zone"),
        ("FF/0", "nearest possible are lsn:"),
        ("xid:4000000000", "nowhere in the archived WAL"),
    ):
        answer = story.command.run("recover", "point-in-time", target, "--into", room / "back").expect(2)
        assert said in answer.complaint
        assert not (room / "back").exists()
    answer = story.command.run("recover", "point-in-time", story.lsn, "--timeline", "7", "--into", room / "back")
    assert "there is no timeline 7" in answer.expect(2).complaint


@pytest.fixture
def copied(story: Story, room: Path) -> BbOps:
    """The same repository, twice, to be harmed."""
    for name in ("repository", "replica"):
        shutil.copytree(_repository(story.command), room / name)
    return story.command.having(BB_OPS_REPOSITORY=f"file://{room}/repository", BB_OPS_REPLICA=f"file://{room}/replica")


def _repository(command: BbOps, setting: str = "BB_OPS_REPOSITORY") -> Path:
    return Path(command.environment[setting].removeprefix("file://"))


def _segments(repository: Path) -> list[Path]:
    """Return the stored segments behind the backup, oldest first."""
    return sorted(repository.glob("*/*/wal/*/*/*.zst.age"))


def test_what_one_region_lacks_is_taken_from_the_other(copied: BbOps, story: Story, room: Path) -> None:
    _segments(_repository(copied))[3].unlink()
    plan = copied.ok("recover", "plan", "latest", "--json").document
    assert (plan["region"], plan["refusals"]) == (SECOND, [])
    assert any("is missing" in other["reason"] for other in plan["others"])
    answer = copied.ok("recover", "point-in-time", story.lsn, "--into", room / "back", "--level", "L4", "--json")
    assert answer.document["region"] == SECOND


def test_a_hole_in_every_region_is_refused_before_anything_is_touched(copied: BbOps, story: Story, room: Path) -> None:
    for setting in ("BB_OPS_REPOSITORY", "BB_OPS_REPLICA"):
        _segments(_repository(copied, setting))[3].unlink()
    answer = copied.run("recover", "point-in-time", str(story.at), "--into", room / "back").expect(2)
    assert "is missing" in answer.complaint
    assert "nearest possible" in answer.complaint
    assert not (room / "back").exists()
    refused = copied.run("recover", "plan", str(story.at), "--json").expect(2)
    assert refused.document["refusals"]
    assert refused.document["chain"] == []


def test_damaged_wal_aborts_and_leaves_nothing_that_starts_as_if_it_were_done(
    copied: BbOps, story: Story, room: Path
) -> None:
    damaged = _segments(_repository(copied))[3]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    region = FIRST
    answer = copied.run("recover", "point-in-time", story.lsn, "--into", room / "back", "--region", region).expect(5)
    assert damaged.name in answer.stderr
    whole = ("recover", "point-in-time", story.lsn, "--into", room / "back", "--region", SECOND)
    assert copied.ok(*whole, "--level", "L4", "--json").document["proof"] == "L4"


def test_a_confirmed_plan_is_executed_and_no_other(story: Story, room: Path) -> None:
    plan = story.command.ok("recover", "plan", story.lsn, "--into", room / "back", "--json").document
    other = story.command.run(
        "recover", "point-in-time", str(story.at), "--into", room / "back", "--plan", plan["plan_hash"]
    )
    assert "the plan has changed" in other.expect(2).complaint
    assert not (room / "back").exists()
    done = story.command.ok(
        *("recover", "point-in-time", story.lsn, "--into", room / "back", "--plan", plan["plan_hash"], "--level", "L4"),
        "--json",
    ).document
    assert done["plan_hash"] == plan["plan_hash"]
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (room / "back").iterdir())
    same = ("recover", "point-in-time", story.lsn, "--into", room / "back", "--level", "L4", "--json")
    twice = story.command.ok(*same).document
    assert {twice[name] == done[name] for name in ("proof", "timeline", "recovered_to_lsn")} == {True}
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (room / "back").iterdir()) == before
    other_target = ("recover", "point-in-time", str(story.at), "--into", room / "back")
    assert "is not empty" in story.command.run(*other_target).expect(2).complaint
    again = story.command.ok("recover", "plan", story.lsn, "--into", room / "back", "--json").document
    assert again["predicted_s"] > 0, "what was just measured predicts the next one"


def test_a_recovered_server_is_recovered_once_more(story: Story, room: Path) -> None:
    """Both ways from the place where its timeline left: on, and back along the old one."""
    command, port = _own_repository(story, room), free_port()
    command.ok("recover", "point-in-time", story.lsn, "--into", room / "first", "--start", "--port", str(port))
    try:
        command = command.having(DATABASE_URL=f"postgresql://postgres@/postgres?host={room}/first&port={port}")
        with command.start("wal", "stream") as running:
            with connection_to(room / "first", port, "postgres") as connection:
                connection.execute("INSERT INTO story VALUES ('second life')")
                at = _one(connection, "SELECT clock_timestamp()")
                connection.execute("INSERT INTO story VALUES ('second life, later')")
            wait_until_archived(command)
            running.kill()
    finally:
        stop_server_in(room / "first")
    second = replace(story, command=command)
    document, words = _recovered(second, room, str(at))
    assert {"A", "second life"} <= words
    assert {"second life, later", "after 1"}.isdisjoint(words)
    assert (document["timeline"], document["outcome"]) == (3, "pass")
    shutil.rmtree(room / "back")
    document, words = _recovered(second, room, "latest", "--timeline", "1")
    assert f"after {ROWS}" in words
    assert "second life" not in words


def _own_repository(story: Story, room: Path) -> BbOps:
    shutil.copytree(_repository(story.command), room / "repository")
    return story.command.having(BB_OPS_REPOSITORY=f"file://{room}/repository", BB_OPS_REPLICA=None)


def test_killed_at_any_moment_the_same_command_goes_on_and_ends_with_the_same_rows(story: Story, room: Path) -> None:
    port = free_port()
    words = ("recover", "point-in-time", story.lsn, "--into", room / "back", "--start", "--port", str(port), "--json")
    whole_s = story.command.ok(*words[:4], room / "other", "--json").duration_s
    phases, finished, mark = set(), False, room / "back" / ".bb_ops-restore.json"
    for number in range(KILLS):
        with story.command.start(*words) as running:
            time.sleep(0.15 + (whole_s - 0.3) * (number + 0.5) / KILLS)
            if number == KILLS - 1:  # the last one in the replay, however quick everything is
                wait_until(lambda: not running.alive or _phase(mark) == "restored", "the replay did not begin")
            finished = not running.kill()
            if finished:
                break
        phases.add(_phase(mark))
    assert finished or "restored" in phases, "no kill met the replay"
    if not finished:
        story.command.ok(*words)
    try:
        assert _words(room / "back", port) == {"A", *(f"before {number}" for number in range(1, ROWS + 1))}
        assert {path.name for path in (room / "back").glob(".bb_ops*")} == set()
    finally:
        stop_server_in(room / "back")


def test_a_server_that_a_killed_run_left_is_its_own_to_stop(story: Story, room: Path) -> None:
    port, back = free_port(), room / "back"
    words = ("recover", "point-in-time", story.lsn, "--into", back, "--start", "--port", str(port), "--level", "L4")
    with story.command.start(*words) as running:
        conf = back / "bb_ops.conf"
        wait_until(lambda: conf.is_file() and f"port = '{port}'" in conf.read_text(), "the last server was not begun")
        running.kill()
    try:
        story.command.ok(*words)
        assert _words(back, port) == {"A", *(f"before {number}" for number in range(1, ROWS + 1))}
    finally:
        stop_server_in(back)


def _phase(mark: Path) -> str | None:
    """Return how far a restore is by its mark; None where there is none."""
    try:
        phase: str = json.loads(mark.read_text(encoding="utf-8"))["phase"]
    except FileNotFoundError:
        return None
    return phase
