"""The lag that Prometheus is told: it rises while the store is away, falls afterwards, and is never made up."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, free_port, wait_until

LABELS = '{cluster="main",region="primary"}'
NAMES = ("lag_seconds", "lag_bytes", "retained_bytes", "archived_lsn_bytes")


@pytest.fixture
def server(wheel_18: Build, room: Path) -> Iterator[Cluster]:
    cluster = Cluster(wheel_18, room / "cluster").create("--wal-segsize=1").start()
    yield cluster
    cluster.stop()


@pytest.fixture
def command(server: Cluster, room: Path) -> BbOps:
    return bb_ops(room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")


def scrape(port: int) -> dict[str, float]:
    """Return the samples by the names that follow ``bb_ops_wal_``; nothing where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    assert "# TYPE bb_ops_wal_lag_seconds gauge" in lines
    found = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.partition(LABELS)
            found[name.removeprefix("bb_ops_wal_")] = float(value)
    return found


def test_the_lag_rises_while_the_store_is_away_falls_afterwards_and_is_absent_without_a_server(
    server: Cluster, command: BbOps, room: Path
) -> None:
    port, repository, aside = free_port(), room / "repository", room / "aside"
    with command.start("wal", "stream", "--metrics-port", str(port)) as running:
        wait_until(lambda: set(scrape(port)) == set(NAMES), f"not all is measured: {scrape(port)}")
        wait_until(lambda: scrape(port)["lag_bytes"] == 0, "the lag does not fall")
        assert scrape(port)["lag_seconds"] == 0
        archived = scrape(port)["archived_lsn_bytes"]

        repository.rename(aside)
        repository.write_text("not a directory", encoding="utf-8")
        server.execute("CREATE TABLE a AS SELECT repeat('a', 900) FROM generate_series(1, 4000) g")
        wait_until(lambda: scrape(port)["lag_seconds"] > 4, "the lag in seconds does not rise")
        shown = scrape(port)
        assert shown["lag_bytes"] > 3 << 20
        assert shown["retained_bytes"] > 3 << 20

        repository.unlink()
        aside.rename(repository)
        wait_until(lambda: scrape(port)["lag_bytes"] == 0, "the lag does not fall again")
        assert scrape(port)["lag_seconds"] == 0
        archived_now = scrape(port)["archived_lsn_bytes"]
        assert archived_now > archived + (3 << 20)

        server.kill()
        wait_until(lambda: "lag_seconds" not in scrape(port), "a lag is claimed though nobody knows the server's end")
        assert scrape(port) == {"archived_lsn_bytes": archived_now}

        server.start()
        wait_until(lambda: scrape(port).get("lag_bytes") == 0, "the lag is not measured again")
        os.kill(running.pid, signal.SIGTERM)
        running.finish().expect(0)
    assert scrape(port) == {}


def test_a_port_in_use_is_one_line_and_exit_2(command: BbOps, server: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = command.run("wal", "stream", "--metrics-port", str(port), timeout_s=60).expect(2)
    assert f"--metrics-port {port}" in answer.complaint
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 0


def test_nobody_from_outside_may_ask(command: BbOps) -> None:
    port = free_port()
    with command.start("wal", "stream", "--metrics-port", str(port)):
        wait_until(lambda: scrape(port), "nobody answers")
        listening = Path("/proc/net/tcp").read_text(encoding="ascii").upper()
    assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
    assert f"00000000:{port:04X} 00000000:0000 0A" not in listening


def test_the_library_is_loaded_only_when_metrics_are_asked_for() -> None:
    code = "import bb_ops.cli.wal, sys; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)
