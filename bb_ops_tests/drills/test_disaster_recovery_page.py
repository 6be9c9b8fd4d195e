"""The printed page: it fits on two sheets, and its commands, as they stand, bring a table and a cluster back."""

import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BB_OPS, BbOps, bb_ops
from bb_ops_tests.support.page import blocks
from bb_ops_tests.support.postgres import Build, Cluster, free_port, stop_server_in, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "disaster-recovery.md"
COLUMNS, LINES = 108, 2 * 80
"""What two A4 pages take of text in 8 point, with margins of half an inch."""
pytestmark = pytest.mark.timeout(240)


def test_the_page_fits_on_two_printed_sheets() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    printed = sum(max(1, len(textwrap.wrap(line, COLUMNS))) for line in lines)
    assert printed <= LINES


def test_its_commands_bring_everything_back_without_dagster(wheel_18: Build, room: Path) -> None:
    server = Cluster(wheel_18, room / "cluster").create("--wal-segsize=1").start()
    copy, port = room / "recovered", free_port()
    try:
        server.execute("CREATE TABLE orders AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, 700) g")
        command = bb_ops(room, wheel_18, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
        command.ok("backup", "full")
        with command.start("wal", "stream") as streamer:
            server.execute("INSERT INTO orders SELECT g, 'new' FROM generate_series(701, 800) g")
            moment = str(server.value("SELECT clock_timestamp()"))
            server.execute("DROP TABLE orders;;CREATE TABLE late (id int)")
            wait_until(lambda: _is_archived(server, command, moment), "the moment is not archived")
            command.ok("backup", "incremental", "--wal-only")
            command.ok("sync", "incremental")
            streamer.kill()
        script = _script(moment, copy, port)
        answer = subprocess.run(
            ["/bin/bash", "-c", script],
            env=_environment(room, command, server),
            cwd=room,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
        assert "DROP" in answer.stdout.upper(), "the events name the drop"
        assert "no dagster" not in answer.stderr
        assert server.value("SELECT count(*) FROM orders") == 800
        assert server.value("SELECT to_regclass('late')") is None
        assert [path.name for path in server.directory.glob("data.bb_ops-old-*") if path.is_dir()]
    finally:
        server.stop()
        for directory in (copy, server.data):
            stop_server_in(directory)


def _is_archived(server: Cluster, command: BbOps, moment: str) -> bool:
    server.execute("SELECT pg_logical_emit_message(true, 'test', 'time goes on')")
    return command.run("recover", "plan", moment).returncode == 0


def _script(moment: str, copy: Path, port: int) -> str:
    """Fill in what the page leaves to its reader, and run the page; the region is gone for one step only."""
    steps = [f"({step})" if "OFFLINE_KEY" in step else step for step in blocks(PAGE.read_text(encoding="utf-8"))]
    text = "set -euo pipefail\n" + "\n".join(steps)
    text = re.sub(r"(?m)^export MOMENT=\S+ \S+", f"export MOMENT={shlex.quote(moment)}", text)
    text = re.sub(r"(?m)^export COPY=\S+", f"export COPY={shlex.quote(str(copy))}", text)
    return text.replace("5433", str(port))


def _environment(room: Path, command: BbOps, server: Cluster) -> dict[str, str]:
    """Everything that bb-ops needs stands in a file, as on a host; a module stands in Dagster's way."""
    blocking = room / "blocking"
    blocking.mkdir()
    (blocking / "dagster.py").write_text("raise ImportError('no dagster here')\n", encoding="utf-8")
    settings = {name: value for name, value in command.environment.items() if name not in {"PATH", "LC_ALL"}}
    env_file = room / "settings.env"
    env_file.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()), encoding="utf-8")
    return {
        "PATH": f"{BB_OPS.parent}:{server.build.bindir}:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(blocking),
        "BB_OPS_ENV": str(env_file),
        "PGDATA": str(server.data),
        "OFFLINE_KEY": str(room / "keys" / "offline.agekey"),
    }
