"""Whatever breaks while WAL is streamed: what was acknowledged as durable comes back, and nothing false is archived."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.wal import (
    Client,
    committing,
    missing_rows,
    restored,
    status,
    wait_until_archived,
)

SMALL_SEGMENTS = "--wal-segsize=1"


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    """A server of its own, with segments of 1 MiB so that there are many."""
    cluster = Cluster(wheel_18, room / "cluster", settings={"wal_keep_size": "0", "checkpoint_timeout": "30s"})
    cluster.create(SMALL_SEGMENTS).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def command(server: Cluster, room: Path) -> BbOps:
    """The command with a full backup to stand on."""
    command = bb_ops(room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
    command.ok("backup", "full")
    return command


def test_a_streamer_killed_at_random_moments_loses_nothing(
    server: Cluster, command: BbOps, wheel_18: Build, room: Path
) -> None:
    client = Client(server, filler=4000)
    with committing(server, client):
        for _ in range(6):
            with command.start("wal", "stream") as running:
                time.sleep(0.6 + 2.5 * random.random())
                assert running.kill(), "it had ended by itself"
        with command.start("wal", "stream") as running:
            time.sleep(1)
            client.stop()
            wait_until_archived(command)
            os.kill(running.pid, signal.SIGTERM)
            running.finish().expect(0)
    assert len(client.acked) > 500
    with restored(command, wheel_18, room) as socket:
        assert missing_rows(client, socket) == []


def test_sudden_death_of_the_server_and_its_disk_costs_no_more_than_the_shown_lag(
    server: Cluster, command: BbOps, wheel_18: Build, room: Path
) -> None:
    client = Client(server, filler=2000)
    with command.start("wal", "stream") as running:
        with committing(server, client):
            time.sleep(6)
            shown = status(command)
            asked_at = time.time()
            client.stop()
            server.kill()
        shutil.rmtree(server.data)
        time.sleep(2)
        running.kill()
    assert shown["lag_s"] is not None
    assert shown["lag_s"] <= 5
    with restored(command, wheel_18, room) as socket:
        missing = missing_rows(client, socket)
    # the position shown was a promise: everything acknowledged before it is back
    promised = asked_at - shown["lag_s"]
    answer_took_s = 2.0
    assert [row for row in missing if row[1] < promised - answer_took_s] == []
    assert len(missing) < len(client.acked)


def test_wal_that_the_server_lost_is_a_recorded_gap(server: Cluster, command: BbOps, room: Path) -> None:
    with command.start("wal", "stream") as running:
        server.execute("CREATE TABLE a AS SELECT g FROM generate_series(1, 1000) g")
        wait_until_archived(command)
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)
    server.execute("SELECT pg_drop_replication_slot('bb_ops_main')")
    for _ in range(4):
        server.execute(
            "CREATE TABLE IF NOT EXISTS c (t text);; INSERT INTO c SELECT repeat('c', 900) FROM "
            "generate_series(1, 3000);; SELECT pg_switch_wal();; CHECKPOINT"
        )
    with command.start("wal", "stream") as running:
        wait_until(lambda: list((room / "repository").rglob("gap-*.json")), "no gap was recorded")
        wait_until_archived(command)
        os.kill(running.pid, signal.SIGTERM)
        answer = running.finish().expect(0)
    assert "take a new full backup" in answer.stderr
