"""The far end of the network fails while WAL is streamed: the server, the line to it, or the object store."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, Running, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.proxy import FaultyProxy
from bb_ops_tests.support.wal import (
    Client,
    committing,
    missing_rows,
    restored,
    status,
    wait_until_archived,
)

TRUST = ("local all all trust", "local replication all trust", "host all all 127.0.0.1/32 trust")
REPLICATION = "host replication all 127.0.0.1/32 trust"


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    """A server of its own with small segments, that can be reached through a proxy."""
    cluster = Cluster(wheel_18, room / "cluster", hba=(*TRUST, REPLICATION)).create("--wal-segsize=1").start()
    yield cluster
    cluster.stop()


@pytest.fixture
def command(server: Cluster, room: Path) -> BbOps:
    """The command with a full backup to stand on."""
    command = bb_ops(room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
    command.ok("backup", "full")
    return command


@contextmanager
def streaming(command: BbOps) -> Iterator[Running]:
    with command.start("wal", "stream") as running:
        wait_until(lambda: status(command)["archived_to_lsn"] is not None, "the streamer did not begin", 60)
        yield running
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)


def test_a_line_that_is_cut_again_and_again_loses_nothing(
    server: Cluster, command: BbOps, wheel_18: Build, room: Path
) -> None:
    client = Client(server, filler=4000)
    with FaultyProxy(server.port) as proxy:
        through = command.having(DATABASE_URL=f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres")
        with streaming(through), committing(server, client):
            for _ in range(4):
                time.sleep(1.5)
                proxy.break_now()
                time.sleep(0.3)
                proxy.come_back()
            time.sleep(1)
            client.stop()
            wait_until_archived(command)
        assert proxy.connections > 6
    with restored(command, wheel_18, room) as socket:
        assert missing_rows(client, socket) == []


def test_with_both_regions_required_the_second_alone_brings_everything_back(
    server: Cluster, command: BbOps, wheel_18: Build, room: Path
) -> None:
    command.ok("sync", "incremental")
    both = command.having(BB_OPS_WAL_BOTH_REGIONS="on")
    client = Client(server, filler=4000)
    replica, aside = room / "replica", room / "aside"
    with streaming(both):
        with committing(server, client):
            time.sleep(2)
            replica.rename(aside)
            replica.write_text("not a directory", encoding="utf-8")
            time.sleep(3)
            held_back = status(command)["lag_bytes"]
            time.sleep(2)
            assert status(command)["lag_bytes"] > held_back > 0, "confirmed although the second region is away"
            replica.unlink()
            aside.rename(replica)
            time.sleep(1)
            client.stop()
        wait_until_archived(command)
    assert len(client.acked) > 500
    server.kill()
    shutil.rmtree(server.data)
    shutil.rmtree(room / "repository")
    with restored(command, wheel_18, room, region="replica") as socket:
        assert missing_rows(client, socket) == []


def test_a_server_can_stop_while_the_store_is_away(server: Cluster, command: BbOps, room: Path) -> None:
    repository, aside = room / "repository", room / "aside"
    with command.start("wal", "stream") as running:
        server.execute("CREATE TABLE a AS SELECT g FROM generate_series(1, 100) g")
        wait_until_archived(command)
        repository.rename(aside)
        repository.write_text("not a directory", encoding="utf-8")
        server.execute("INSERT INTO a SELECT repeat('1', 5)::int FROM generate_series(1, 20000)")
        time.sleep(3)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 40
        repository.unlink()
        aside.rename(repository)
        server.start()
        wait_until_archived(command)
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)


def test_status_shows_unknown_where_nothing_answers(command: BbOps, room: Path) -> None:
    unreachable = command.having(DATABASE_URL=f"postgresql://postgres@/postgres?host={room}/nowhere")
    found = unreachable.run("wal", "status", "--json").expect(4).document
    assert [found[name] for name in ("lag_s", "lag_bytes", "slot_active", "retained_bytes")] == [None] * 4
