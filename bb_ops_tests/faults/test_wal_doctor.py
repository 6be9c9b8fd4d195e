"""The doctor says when nobody stores WAL any more, and whether the server can tell which blocks change."""

import os
import signal
from pathlib import Path
from typing import Any

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, available, running_cluster
from bb_ops_tests.support.wal import wait_until_archived


def examine(command: BbOps, exit_code: int = 0) -> dict[str, dict[str, Any]]:
    findings = command.run("doctor", "--json").expect(exit_code).document["findings"]
    return {entry["check_id"]: entry for entry in findings}


def test_a_slot_or_an_archive_that_nobody_writes_is_named(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster", settings={"summarize_wal": "on"}) as server:
        command = bb_ops(room, wheel_18, server.url)
        command.ok("backup", "full")
        command.ok("sync", "full")
        found = examine(command)
        assert found["wal_streamed"]["outcome"] == "not_applicable"
        assert found["summarize_wal"]["outcome"] == "pass"
        with command.start("wal", "stream") as running:
            wait_until_archived(command)
            assert examine(command)["wal_streamed"]["outcome"] == "pass"
            os.kill(running.pid, signal.SIGTERM)
            running.finish().expect(0)
        idle = examine(command, 4)["wal_streamed"]
        assert (idle["outcome"], idle["severity"]) == ("fail", "high")
        assert "pg_drop_replication_slot('bb_ops_main')" in idle["remedy"]
        server.execute("SELECT pg_drop_replication_slot('bb_ops_main')")
        left = examine(command, 4)["wal_streamed"]
        assert "nobody stores it now" in left["message"]


def test_summaries_that_are_off_are_told_and_need_not_be_mended(session_room: Path, room: Path) -> None:
    build = available("wheel_17", session_room)
    with running_cluster(build, room / "cluster") as server:
        command = bb_ops(room, build, server.url)
        command.ok("backup", "full")
        command.ok("sync", "full")
        found = examine(command)["summarize_wal"]
        assert (found["severity"], found["outcome"]) == ("info", "fail")
