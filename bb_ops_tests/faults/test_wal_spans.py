"""Sealed spans and windows on a real server: they join, they end at a hole, they reach the other region."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.wal import Client, committing, missing_rows, restored, standby_of, wait_until_archived


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    """A server of its own with small segments."""
    cluster = Cluster(wheel_18, room / "cluster").create("--wal-segsize=1").start()
    yield cluster
    cluster.stop()


@pytest.fixture
def command(server: Cluster, room: Path) -> BbOps:
    """The command with a full backup to stand on."""
    command = bb_ops(room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
    command.ok("backup", "full")
    return command


def write_some(server: Cluster) -> None:
    server.execute(
        "CREATE TABLE IF NOT EXISTS bulk (t text);;"
        "INSERT INTO bulk SELECT repeat('x', 900) FROM generate_series(1, 4000)"
    )


def region(command: BbOps, name: str = "primary") -> dict[str, Any]:
    answer = command.run("backup", "status", "--json")
    assert answer.returncode in {0, 4}
    return next(entry for entry in answer.document["regions"] if entry["name"] == name)


def segments(repository: Path) -> list[Path]:
    return sorted(path for path in repository.rglob("wal/*/*/*.zst.age") if ".partial." not in path.name)


def test_spans_join_one_another_and_the_window_grows(server: Cluster, command: BbOps) -> None:
    found = []
    for _ in range(3):
        write_some(server)
        found.append(command.ok("backup", "incremental", "--wal-only", "--json").document)
    assert all(
        {"id", "kind", "engine", "slot", "size_bytes", "stored_bytes", "duration_s", "peak_memory_bytes"} <= set(each)
        for each in found
    )
    assert found[1]["from_lsn"] == found[0]["to_lsn"]
    assert found[2]["from_lsn"] == found[1]["to_lsn"]
    assert found[2]["spans"][0]["continues"] == found[1]["id"]
    (window,) = region(command)["windows"]
    assert window["to_at"] == found[2]["spans"][-1]["to_at"]
    assert window["from_at"] < found[0]["to_at"]
    assert region(command)["gaps"] == []


def test_a_span_is_sealed_beside_a_running_streamer(server: Cluster, command: BbOps) -> None:
    with command.start("wal", "stream") as running:
        write_some(server)
        wait_until_archived(command)
        done = command.ok("backup", "incremental", "--wal-only", "--json").document
        assert running.alive
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)
    assert done["size_bytes"] >= 3 << 20
    assert region(command)["gaps"] == []


def test_a_span_is_sealed_beside_a_streamer_that_lost_its_lock_while_the_store_was_away(
    server: Cluster, command: BbOps, room: Path
) -> None:
    with command.start("wal", "stream") as running:
        wait_until_archived(command)
        leases = list((room / "repository").rglob("locks/wal/*.json"))
        assert leases
        for lease in leases:
            lease.unlink()  # as one that ran out
        write_some(server)
        done = command.ok("backup", "incremental", "--wal-only", "--json", timeout_s=60).document
        assert running.alive
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)
    assert done["size_bytes"] >= 3 << 20
    assert region(command)["gaps"] == []


def test_a_deleted_segment_ends_the_window_until_the_next_full_backup(
    server: Cluster, command: BbOps, room: Path
) -> None:
    write_some(server)
    command.ok("backup", "incremental", "--wal-only")
    write_some(server)
    command.ok("backup", "incremental", "--wal-only")
    before = region(command)
    lost = segments(room / "repository")[-2]
    lost.unlink()
    answer = command.run("backup", "status", "--json").expect(4)
    after = region(command)
    assert len(after["gaps"]) == 1
    assert after["gaps"] == after["open_gaps"]
    assert after["windows"][-1]["to_at"] < before["windows"][-1]["to_at"]
    assert answer.document["healthy"] is False
    command.ok("backup", "full")
    write_some(server)
    command.ok("backup", "incremental", "--wal-only")
    assert region(command)["open_gaps"] == []
    assert len(region(command)["windows"]) == 2
    segments(room / "repository")[2].unlink()  # one that a later backup has left behind
    found = region(command)
    assert (len(found["gaps"]), len(found["open_gaps"]), len(found["windows"])) == (2, 1, 2)
    command.run("backup", "status").expect(4)
    command.ok("backup", "full")
    found = region(command)
    assert (len(found["gaps"]), found["open_gaps"]) == (2, [])


def test_a_deleted_segment_turns_a_healthy_status_into_exit_4_wherever_it_lay(
    server: Cluster, command: BbOps, room: Path
) -> None:
    """In a sealed hour, in the newest one, on the timeline before a promotion: the window ends before it."""
    command.ok("validate", "latest", "--level", "L5")
    alone = command.having(BB_OPS_REPLICA=None)
    standby = standby_of(server, room / "standby")
    try:
        sealed = [_seal(server, alone), _seal(server, alone)]
        end = server.value("SELECT pg_current_wal_flush_lsn()::text")
        wait_until(lambda: standby.value(f"SELECT pg_last_wal_replay_lsn() >= '{end}'"), "the standby did not catch up")
        server.kill()
        standby.execute("SELECT pg_promote()")
        alone = alone.having(DATABASE_URL=standby.url)
        sealed.append(_seal(standby, alone))
        healthy = alone.run("backup", "status", "--json").expect(0).document["regions"][0]
        assert healthy["gaps"] == []
        (window,) = healthy["windows"]
        assert window["to_at"] == sealed[2]["to_at"]
        assert [entry["timeline"] for entry in sealed] == [1, 1, 2]
        for span in sealed:
            lost = segment_name(span["timeline"], Lsn(Lsn.parse(span["from_lsn"]) + (1 << 20)), 1 << 20)
            (path,) = (room / "repository").rglob(f"{lost}.zst.age")
            path.rename(room / "lost")
            broken = alone.run("backup", "status", "--json").expect(4).document["regions"][0]
            (gap,) = broken["gaps"]
            assert f"on timeline {span['timeline']} is missing" in gap
            assert broken["open_gaps"] == [gap]
            (window,) = broken["windows"]
            before = [entry["to_at"] for entry in sealed if Lsn.parse(entry["to_lsn"]) <= Lsn.parse(span["from_lsn"])]
            assert max([window["from_at"], *before]) <= window["to_at"] < span["to_at"]
            (room / "lost").rename(path)
            assert alone.run("backup", "status", "--json").expect(0).document["regions"][0] == {
                **healthy,
                "lag_s": pytest.approx(healthy["lag_s"], abs=60),
            }
    finally:
        standby.stop()


def test_wal_lost_between_two_timelines_ends_the_window(server: Cluster, command: BbOps, room: Path) -> None:
    """The old primary's last segments were never archived, and the promoted standby does not have them."""
    command.ok("validate", "latest", "--level", "L5")
    alone = command.having(BB_OPS_REPLICA=None)
    _seal(server, alone)
    server.execute("SELECT pg_switch_wal();;CREATE TABLE lost AS SELECT 1 AS one;;SELECT pg_switch_wal()")
    standby = standby_of(server, room / "standby")
    try:
        standby.execute("SELECT pg_promote()")
        alone = alone.having(DATABASE_URL=standby.url)
        sealed = _seal(standby, alone)
        broken = alone.run("backup", "status", "--json").expect(4).document["regions"][0]
        assert len(broken["open_gaps"]) == 1
        assert broken["windows"][-1]["to_at"] < sealed["to_at"]
    finally:
        standby.stop()


def _seal(server: Cluster, command: BbOps) -> dict[str, Any]:
    """Write some, seal it, and return the newest span."""
    write_some(server)
    spans = command.ok("backup", "incremental", "--wal-only", "--json").document["spans"]
    return dict(max(spans, key=lambda span: span["timeline"]))


def test_wal_lost_before_it_was_sealed_is_recorded_and_exits_4(server: Cluster, command: BbOps, room: Path) -> None:
    with command.start("wal", "stream") as running:
        write_some(server)
        wait_until_archived(command)
        segments(room / "repository")[-2].unlink()
        answer = command.run("backup", "incremental", "--wal-only", "--json").expect(4)
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)
    assert len(answer.document["gaps"]) == 1
    assert len(list((room / "repository").rglob("gap-*.json"))) == 1


def test_a_damaged_segment_is_found_and_not_copied(server: Cluster, command: BbOps, room: Path) -> None:
    write_some(server)
    command.ok("backup", "incremental", "--wal-only")
    damaged = segments(room / "repository")[-2]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    answer = command.run("sync", "incremental", "--json").expect(5)
    assert damaged.name in " ".join(answer.document["failed"])
    assert not (room / "replica" / damaged.relative_to(room / "repository")).exists()


def test_the_other_region_restores_what_was_copied(
    server: Cluster, command: BbOps, wheel_18: Build, room: Path
) -> None:
    client = Client(server, filler=2000)
    with committing(server, client):
        write_some(server)
        command.ok("backup", "incremental", "--wal-only")
        write_some(server)
    command.ok("backup", "incremental", "--wal-only")
    (room / "replica").mkdir()
    planned = command.ok("sync", "incremental", "--dry-run", "--json").document
    done = command.ok("sync", "incremental", "--json").document
    assert done["wal"][0]["copied"] > 4
    assert (planned["wal_files"], planned["wal_raw_bytes"]) == (
        done["wal"][0]["copied"],
        done["wal"][0]["copied"] << 20,
    )
    assert command.ok("sync", "incremental", "--dry-run", "--json").document["wal_files"] == 0
    again = command.ok("sync", "full", "--json").document
    assert again["wal"][0]["copied"] == 0
    assert again["wal"][0]["verified"] == done["wal"][0]["copied"]
    primary, replica = region(command), region(command, "replica")
    assert replica["windows"] == primary["windows"]
    assert replica["gaps"] == []
    with restored(command, wheel_18, room, region="replica") as socket:
        assert missing_rows(client, socket) == []


def test_one_file_is_fetched_as_restore_command_asks(server: Cluster, command: BbOps, room: Path) -> None:
    write_some(server)
    command.ok("backup", "incremental", "--wal-only")
    name = segments(room / "repository")[-1].name.partition(".")[0]
    command.ok("wal", "fetch", name, room / "out")
    assert (room / "out").stat().st_size == 1 << 20
    command.run("wal", "fetch", "0000000100000099000000AA", room / "none").expect(1)
    command.run("wal", "fetch", "00000002.history", room / "none").expect(1)
    blind = command.having(BB_OPS_AGE_IDENTITY_FILE=None)
    assert blind.run("wal", "fetch", name, room / "none").returncode >= 126
    assert not (room / "none").exists()
