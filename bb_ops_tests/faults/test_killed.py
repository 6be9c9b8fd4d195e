"""kill -9 at any moment leaves the old state, and nothing that stands in the way of the same command."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from bb_ops_tests.faults.conftest import ROWS
from bb_ops_tests.support.commands import BbOps, backups_of, objects_below
from bb_ops_tests.support.postgres import Cluster, connection_to, free_port, stop_server_in, wait_until

MOMENTS = 10


def test_a_backup_killed_at_ten_moments_is_never_listed_and_blocks_nothing(
    source: Cluster, command: BbOps, slow: BbOps, room: Path
) -> None:
    whole_s = slow.ok("backup", "full").duration_s
    assert whole_s > 1.5, "too quick to be caught at its work"
    command.ok("sync", "incremental")
    listed, killed_at_work = 1, 0
    for moment in range(MOMENTS):
        with slow.start("backup", "full") as running:
            time.sleep(whole_s * 0.9 * (moment + random.random()) / MOMENTS)
            was_alive = running.kill()
        now = len(backups_of(command))
        assert now in ({listed} if was_alive else {listed + 1})
        killed_at_work += was_alive
        wait_until(lambda: _is_idle(source), "the server still works for a dead backup", 10)
        command.ok("backup", "full")
        listed = now + 1
        assert len(backups_of(command)) == listed
    assert killed_at_work >= MOMENTS - 2
    command.ok("sync", "incremental")
    _leftovers_are_named_and_removed(command, room / "repository")
    assert len(backups_of(command)) == listed


def test_a_copy_killed_at_its_work_is_not_listed_and_goes_on_where_it_was(slow: BbOps, room: Path) -> None:
    stored_bytes = slow.ok("backup", "full", "--json").document["stored_bytes"]
    replica = room / "replica"
    objects = len(objects_below(room / "repository"))
    for least in (1, objects // 4, objects // 2):
        with slow.start("sync", "incremental") as running:
            wait_until(lambda least=least: len(objects_below(replica)) >= least, "the copy did not begin", 30)  # type: ignore[misc]
            assert running.kill()
        assert "replica" not in backups_of(slow)[0]["proofs"]
        findings = slow.run("doctor", "--json").expect(4).document["findings"]
        assert any(entry["check_id"] == "leftovers" and entry["outcome"] == "fail" for entry in findings)
    done = slow.ok("sync", "incremental", "--json").document
    assert [entry["verified_bytes"] for entry in done["copied"]] == [stored_bytes]
    assert done["copied"][0]["copied_bytes"] < stored_bytes, "what had arrived whole was sent again"
    slow.ok("validate", "latest", "--region", "replica", "--integrity-only")
    _leftovers_are_named_and_removed(slow, replica)
    assert len(objects_below(replica)) == objects


def test_a_restore_killed_at_its_work_cannot_be_started_and_can_be_repeated(slow: BbOps, room: Path) -> None:
    slow.ok("backup", "full")
    target, port = room / "back", free_port()
    recover = ("recover", "full", "latest", "--into", target, "--start", "--port", str(port))
    for least in (1, 200, 600):
        with slow.start(*recover) as running:
            wait_until(lambda least=least: _files_in(target) >= least, "the restore did not begin", 30)  # type: ignore[misc]
            assert running.kill()
        assert not (target / "global" / "pg_control").exists()
    try:
        slow.ok(*recover)
        with connection_to(target, port, "postgres") as connection:
            assert connection.execute("SELECT count(*) FROM t7").fetchone() == (ROWS,)
    finally:
        stop_server_in(target)


def test_a_restore_killed_while_it_marked_its_directory_can_be_repeated(command: BbOps, room: Path) -> None:
    command.ok("backup", "full")
    target = room / "back"
    target.mkdir()
    (target / "..bb_ops-restore.json.0123456789ab.bb_ops-partial").write_bytes(b"")
    command.ok("recover", "full", "latest", "--into", target)
    assert not list(target.glob(".*"))


def test_a_killed_restore_test_leaves_no_server_and_is_cleaned_up(command: BbOps, room: Path) -> None:
    command.ok("backup", "full")
    scratch = room / "tmp"
    with command.start("validate", "latest") as running:
        wait_until(lambda: list(scratch.glob("*/data/postmaster.pid")), "no throw-away server started", 60)
        (pid_file,) = scratch.glob("*/data/postmaster.pid")
        pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
        assert running.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the throw-away server lives on", 20)
    findings = command.run("doctor", "--json").expect(4).document["findings"]
    copies = [entry for entry in findings if entry["check_id"] == "leftovers" and str(scratch) in entry["resource"]]
    assert [entry["outcome"] for entry in copies] == ["fail"], "an abandoned copy of the data must be named"
    command.run("doctor", "--remove-leftovers")
    assert list(scratch.iterdir()) == []
    command.ok("validate", "latest")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_restore_test_leaves_no_server_and_no_copy(
    command: BbOps, room: Path, number: signal.Signals
) -> None:
    command.ok("backup", "full")
    scratch = room / "tmp"
    with command.start("validate", "latest") as running:
        wait_until(lambda: list(scratch.glob("*/data/postmaster.pid")), "no throw-away server started", 60)
        (pid_file,) = scratch.glob("*/data/postmaster.pid")
        pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
        os.kill(running.pid, number)
        assert "interrupted" in running.finish().expect(130).complaint
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the throw-away server lives on", 20)
    assert list(scratch.iterdir()) == []


def test_a_running_restore_test_is_not_taken_for_a_leftover(command: BbOps, room: Path) -> None:
    command.ok("backup", "full")
    command.ok("sync", "incremental")
    with command.start("validate", "latest") as running:
        wait_until(lambda: list((room / "tmp").glob("*/data/PG_VERSION")), "no throw-away copy appeared", 60)
        command.run("doctor", "--remove-leftovers").expect(0)
        running.finish().expect(0)


def _leftovers_are_named_and_removed(command: BbOps, repository: Path) -> None:
    findings = command.run("doctor", "--json")
    uncommitted = [path for path in _backup_folders(repository) if not (path / "COMMIT.json").exists()]
    partial = list(repository.rglob("*.bb_ops-partial"))
    assert findings.returncode == (4 if uncommitted or partial else 0)
    messages = " ".join(entry["message"] for entry in findings.document["findings"] if entry["outcome"] == "fail")
    assert all(folder.name in messages for folder in uncommitted if objects_in(folder))
    command.run("doctor", "--remove-leftovers").expect(0)
    assert not list(repository.rglob("*.bb_ops-partial"))
    assert all((path / "COMMIT.json").exists() for path in _backup_folders(repository))


def objects_in(folder: Path) -> list[Path]:
    """Return a backup folder's finished objects."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _backup_folders(repository: Path) -> list[Path]:
    return [path for path in repository.glob("*/*/base/*") if path.is_dir()]


def _is_idle(source: Cluster) -> bool:
    return not source.value(
        "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_progress_basebackup)"
        " + (SELECT count(*) FROM pg_stat_replication)"
    )


def _files_in(directory: Path) -> int:
    return sum(1 for path in directory.rglob("*") if path.is_file()) if directory.exists() else 0
