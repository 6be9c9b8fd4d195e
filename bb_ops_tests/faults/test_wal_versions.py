"""WAL of every supported version, and of large segments, comes back after kills on both sides."""

import os
import signal
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import bb_ops
from bb_ops_tests.support.postgres import Cluster, available, wait_until
from bb_ops_tests.support.wal import Client, committing, missing_rows, restored, status, wait_until_archived

BULK = "CREATE TABLE bulk{} AS SELECT g, repeat('b', 900) FROM generate_series(1, {}) g"


@pytest.mark.parametrize(
    ("name", "segment_mib"),
    [
        pytest.param("packaged", 1, marks=pytest.mark.requires("postgresql")),
        ("wheel_17", 1),
        ("wheel_18", 64),
    ],
)
def test_streamed_wal_is_whole_after_kills_of_streamer_and_server(
    session_room: Path, room: Path, name: str, segment_mib: int
) -> None:
    build = available(name, session_room)
    server = (
        Cluster(build, room / "cluster", settings={"min_wal_size": "256MB"})
        .create(f"--wal-segsize={segment_mib}")
        .start()
    )
    try:
        command = bb_ops(room, build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
        command.ok("backup", "full")
        client = Client(server, filler=3000)
        with committing(server, client):
            with command.start("wal", "stream") as running:
                wait_until(lambda: len(client.acked) > 200 and status(command)["lag_s"] is not None, "too slow")
                assert running.kill(), "the streamer had ended by itself"
            with command.start("wal", "stream") as running:
                wait_until(lambda: status(command)["slot_active"], "the streamer did not begin")
                server.execute(BULK.format(1, 1500 * segment_mib))  # more than one segment
                server.kill()
                server.start()
                known = len(client.acked)
                wait_until(lambda: len(client.acked) > known + 200, "no commits")
                client.stop()
                wait_until_archived(command)
                os.kill(running.pid, signal.SIGTERM)
                running.finish().expect(0)
        (region,) = [one for one in command.run("backup", "status", "--json").document["regions"] if one["backups"]]
        assert (region["gaps"], len(region["windows"])) == ([], 1)
    finally:
        server.stop()
    with restored(command, build, room) as socket:
        assert missing_rows(client, socket) == []
