"""kill -9 at any moment leaves the old state, and nothing that stands in the way of the same command."""

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, Running, backups_of, objects_below
from bb_ops_tests.support.postgres import Cluster, wait_until

MOMENTS = 10
ATTEMPTS = 5


def test_a_backup_killed_at_ten_moments_is_never_listed_and_blocks_nothing(
    source: Cluster, command: BbOps, slow: BbOps, room: Path
) -> None:
    whole_s = slow.ok("backup", "full").duration_s
    assert whole_s > 1.0, "too quick to be caught at its work"
    command.ok("sync", "incremental")
    listed, killed_at_work = 1, 0
    for moment in range(MOMENTS):
        with slow.start("backup", "full") as running:
            time.sleep(whole_s * 0.9 * (moment + random.random()) / MOMENTS)
            was_alive = running.kill()
        now = len(backups_of(command))
        assert now in ({listed, listed + 1} if was_alive else {listed + 1})  # it may die between its commit and its end
        killed_at_work += was_alive
        wait_until(lambda: _is_idle(source), "the server still works for a dead backup", 10)
        command.ok("backup", "full")
        listed = now + 1
        assert len(backups_of(command)) == listed
    assert killed_at_work >= MOMENTS // 2, "too few were caught at their work to show anything"
    command.ok("sync", "incremental")
    _leftovers_are_named_and_removed(command, room / "repository")
    assert len(backups_of(command)) == listed


def test_a_copy_killed_at_its_work_is_not_listed_and_goes_on_where_it_was(slow: BbOps, room: Path) -> None:
    stored_bytes = slow.ok("backup", "full", "--json").document["stored_bytes"]
    replica = room / "replica"
    objects = len(objects_below(room / "repository"))
    for least in (6, objects // 4, objects // 4):
        _kill_at_work(slow, ("sync", "incremental"), replica, "*/*/base/*/COMMIT.json", least)
        assert "replica" not in backups_of(slow)[0]["proofs"]
        findings = slow.run("doctor", "--json").expect(4).document["findings"]
        assert any(entry["check_id"] == "leftovers" and entry["outcome"] == "fail" for entry in findings)
    done = slow.ok("sync", "incremental", "--json").document
    assert [entry["verified_bytes"] for entry in done["copied"]] == [stored_bytes]
    assert done["copied"][0]["copied_bytes"] < stored_bytes, "what had arrived whole was sent again"
    slow.ok("validate", "latest", "--region", "replica", "--integrity-only")
    _leftovers_are_named_and_removed(slow, replica)
    assert len(objects_below(replica)) == objects


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
    left = [path for path in _backup_folders(repository) if not (path / "COMMIT.json").exists()]
    assert not any(list(path.iterdir()) for path in left), "an empty folder is no object, all else is a leftover"


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


def _kill_at_work(command: BbOps, words: Sequence[str | Path], folder: Path, last_step: str, least: int) -> None:
    """Kill a command once it has made so many files in ``folder``; where it came to its last step, begin anew."""
    for _ in range(ATTEMPTS):
        with command.start(*words) as running:
            started_at = time.time()
            _wait_for_files(running, folder, started_at, least)
            running.kill()
        if not list(folder.glob(last_step)):
            return
        shutil.rmtree(folder)
    raise AssertionError(f"{words} was always quicker than we")


def _wait_for_files(running: Running, folder: Path, since: float, least: int) -> None:
    wait_until(lambda: _new_files_in(folder, since) >= least or not running.alive, "it does not begin")


def _new_files_in(folder: Path, since: float) -> int:
    """Count the files made after an instant, while others may be removed."""
    found = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += (Path(directory) / name).lstat().st_ctime >= since
    return found
