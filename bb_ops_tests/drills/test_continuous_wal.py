"""One archive through everything that may happen to it, with commits throughout: nothing is missing, no false gap.

Streamer killed, store cut, server restarted, server crashed, standby promoted: on one archive that grows, in a bucket.
BB_OPS_TEST_LONG=1 cuts the store for 60 s.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bb_ops_tests.support.commands import BbOps, Running, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.proxy import FaultyProxy
from bb_ops_tests.support.s3 import running_s3
from bb_ops_tests.support.wal import Client, committing, missing_rows, restored, standby_of, status, wait_until_archived

LONG = os.environ.get("BB_OPS_TEST_LONG") == "1"
CUT_S = 60.0 if LONG else 5.0
pytestmark = pytest.mark.timeout(900 if LONG else 300)


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    """A server whose WAL fills many small segments, and which keeps none of them without reason."""
    settings = {"wal_keep_size": "0", "checkpoint_timeout": "30s", "wal_retrieve_retry_interval": "200ms"}
    cluster = Cluster(wheel_18, room / "cluster", settings=settings).create("--wal-segsize=1").start()
    yield cluster
    cluster.stop()


@pytest.fixture
def proxy(room: Path) -> Iterator[FaultyProxy]:
    """The line to an object store, which can be cut; its bucket and keys are in the environment of ``command``."""
    with running_s3(room) as s3, FaultyProxy(s3.port) as proxy:
        (room / "bucket.env").write_text(f"{s3.make_bucket()} {s3.access_key_id} {s3.secret_access_key}")
        yield proxy


@pytest.fixture
def command(server: Cluster, proxy: FaultyProxy, room: Path) -> BbOps:
    """The command with a full backup in the bucket to stand on."""
    bucket, access_key_id, secret_access_key = (room / "bucket.env").read_text().split()
    command = bb_ops(room, server.build, server.url).having(
        BB_OPS_WAL_PARTIAL_INTERVAL_S="1",
        BB_OPS_REPOSITORY=f"s3://{bucket}/bb_ops",
        BB_OPS_S3_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
        BB_OPS_S3_ACCESS_KEY_ID=access_key_id,
        BB_OPS_S3_SECRET_ACCESS_KEY=secret_access_key,
        BB_OPS_REPLICA=None,
    )
    command.ok("backup", "full")
    return command


def test_an_archive_that_lives_through_everything_has_every_commit_in_one_window(
    server: Cluster, proxy: FaultyProxy, command: BbOps, wheel_18: Build, room: Path
) -> None:
    full_as_of = _region(command)["windows"][0]["from_at"]
    standby, client = standby_of(server, room / "standby"), Client(server, filler=3000)
    # What is acknowledged is on the standby too, so that a promotion amid commits loses nothing of it.
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'walreceiver';;SELECT pg_reload_conf()")
    try:
        with committing(server, client):
            with command.start("wal", "stream") as running:
                _more(client, 300)
                assert running.kill(), "the streamer had ended by itself"
            _more(client, 100)
            with command.start("wal", "stream") as running:
                _more(client, 300)
                wait_until(lambda: status(command)["slot_active"], "the streamer did not begin")
                command.ok("backup", "incremental", "--wal-only")
                _cut_store(proxy, command, client, running)
                server.stop()
                server.start()
                _more(client, 300)
                server.kill()
                server.start()
                _more(client, 300)
                command.ok("backup", "incremental", "--wal-only")
                _promote(server, standby)
                _more(client, 300)
                wait_until(lambda: status(command)["timeline"] == 2, "the new timeline is not followed")
                command.ok("backup", "incremental", "--wal-only")
                _more(client, 100)
                client.stop()
                wait_until_archived(command, 120)
                found = _region(command)
                _end(running)
        _prove_one_window(found, full_as_of)
        assert _region(command)["windows"][0]["from_at"] == full_as_of
        assert len(client.acked) > 1500
        with restored(command, wheel_18, room) as socket:
            assert missing_rows(client, socket) == []
    finally:
        standby.stop()


def _cut_store(proxy: FaultyProxy, command: BbOps, client: Client, running: Running) -> None:
    """Cut the store amid commits, which go on, and give it back."""
    before, began = len(client.acked), time.monotonic()
    proxy.break_now()
    shown = status(command)
    assert (shown["lag_s"], shown["lag_bytes"]) == (None, None), "a store that does not answer has no known lag"
    time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
    proxy.come_back()
    assert running.alive, running.finish().stderr
    assert len(client.acked) > before + 100, "the server did not work on while the store was away"
    wait_until(lambda: (status(command)["lag_s"] or 99) < 5, "the archive did not catch up", 60 + 2 * CUT_S)


def _promote(server: Cluster, standby: Cluster) -> None:
    """Kill the primary amid commits, promote the standby, and let it take over the primary's address."""
    wait_until(lambda: standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming", "no streaming standby")
    server.kill()
    standby.execute("SELECT pg_promote()")
    standby.stop()
    shutil.move(server.data, standby.directory / "lost")
    shutil.move(standby.data, server.data)
    server.start()


def _prove_one_window(region: dict[str, Any], full_as_of: str) -> None:
    assert (region["gaps"], region["open_gaps"], region["problems"]) == ([], [], [])
    (window,) = region["windows"]
    assert window["from_at"] == full_as_of
    age_s = (datetime.now(UTC) - datetime.fromisoformat(window["to_at"])).total_seconds()
    assert age_s < 20, f"the window ends {age_s} s ago"


def _region(command: BbOps) -> dict[str, Any]:
    answer = command.run("backup", "status", "--json")
    assert answer.returncode in {0, 4}, answer.stderr
    (region,) = answer.document["regions"]
    return dict(region)


def _more(client: Client, commits: int) -> None:
    """Wait until so many more commits were acknowledged."""
    goal = len(client.acked) + commits
    wait_until(lambda: len(client.acked) >= goal, f"no commits: {len(client.acked)} of {goal}", 90)


def _end(running: Running) -> None:
    assert running.alive
    os.kill(running.pid, signal.SIGTERM)
    answer = running.finish().expect(0)
    assert "cannot be stored" in answer.stderr
    assert "stored again" in answer.stderr
