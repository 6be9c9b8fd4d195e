"""What an interrupted restore had finished stays when the same one goes on; nothing else of it does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bb_ops import process
from bb_ops.errors import TargetRefused
from bb_ops.recovery.finished_parts import RECORD, FinishedParts
from bb_ops.recovery.target import (
    MARKER,
    Target,
    check_target,
    finish_target,
    is_restored,
    mark_restored,
    prepare_target,
    server_account,
)
from bb_ops_tests.support.rooms import server_account as account_of_tests

BACKUP, OTHER = "20261124T020000Z-full-00000001", "20261124T020000Z-full-00000002"


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A target in which a restore was killed that had finished one part and half of another."""
    found = check_target(tmp_path / "back", None, 1, (16384,))
    assert prepare_target(found, BACKUP, "plan") is False
    (found.directory / "base/1").mkdir(parents=True)
    found.tablespaces.mkdir()
    made = [found.directory / "base/1/whole", found.tablespaces / "whole"]
    for path in (*made, found.directory / "base/1/half", found.tablespaces / "half"):
        path.write_bytes(b"content")
    (found.directory / "base/2").mkdir()
    FinishedParts(found.directory).add("part", map(str, made))
    return found


def tree(target: Target) -> list[str]:
    """Return what is there, but our own two files."""
    return sorted(
        path.relative_to(folder).as_posix()
        for folder in (target.directory, target.tablespaces)
        for path in folder.rglob("*")
        if path.name not in {MARKER, RECORD}
    )


def rewrite_mark(target: Target, **fields: object) -> None:
    mark = json.loads((target.directory / MARKER).read_bytes())
    (target.directory / MARKER).write_text(json.dumps({**mark, **fields}), encoding="utf-8")


def test_the_same_restore_keeps_what_was_finished_and_nothing_else(target: Target) -> None:
    assert prepare_target(target, BACKUP, "plan") is True
    assert tree(target) == ["base", "base/1", "base/1/whole", "whole"]
    assert "part" in FinishedParts(target.directory)
    assert prepare_target(target, BACKUP, "plan") is True


@pytest.mark.parametrize(
    ("backup_id", "plan", "mark"),
    [
        (OTHER, "plan", {}),
        (BACKUP, "another", {}),
        (BACKUP, None, {}),
        (BACKUP, "plan", {"boot_id": "another"}),
        (BACKUP, "plan", {"directory": "/somewhere/else"}),
        (BACKUP, "plan", {"phase": "restored"}),
        (BACKUP, "plan", {"schema_id": "bb-ops/restore-mark/2"}),
        (BACKUP, "plan", {"unknown": True}),
    ],
)
def test_another_restore_begins_anew(target: Target, backup_id: str, plan: str | None, mark: dict[str, Any]) -> None:
    rewrite_mark(target, **mark)
    assert prepare_target(target, backup_id, plan) is False
    assert tree(target) == []
    assert not FinishedParts(target.directory)
    assert prepare_target(target, backup_id, plan) is False, "nothing is finished in it"


def test_links_are_neither_followed_nor_kept(target: Target, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"mine")
    (target.directory / "link").symlink_to(outside)
    whole = target.directory / "base/1/whole"
    whole.unlink()
    whole.symlink_to(outside / "precious")
    prepare_target(target, BACKUP, "plan")
    assert not [path for path in target.directory.rglob("*") if path.is_symlink()]
    prepare_target(target, OTHER)
    assert (outside / "precious").read_bytes() == b"mine"


def test_a_second_name_of_a_kept_file_takes_nothing_from_it(target: Target) -> None:
    os.link(target.directory / "base/1/whole", target.directory / "base/1/stub")
    prepare_target(target, BACKUP, "plan")
    assert (target.directory / "base/1/whole").read_bytes() == b"content"
    assert not (target.directory / "base/1/stub").exists()


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_that_was_cut_off_counts_for_nothing(target: Target, cut: int) -> None:
    record = target.directory / RECORD
    FinishedParts(target.directory).add("second", ["x"])
    record.write_bytes(record.read_bytes()[: -cut - 1])
    FinishedParts(target.directory).add("third", ["y"])
    parts = FinishedParts(target.directory)
    assert [key in parts for key in ("part", "second", "third")] == [True, False, True]


def test_a_restored_directory_is_known_by_its_backup_plan_and_boot(target: Target) -> None:
    assert not is_restored(target, BACKUP, "plan")
    mark_restored(target)
    assert is_restored(target, BACKUP, "plan")
    assert not is_restored(target, OTHER, "plan")
    assert not is_restored(target, BACKUP, None)
    rewrite_mark(target, boot_id="another")
    assert not is_restored(target, BACKUP, "plan")
    finish_target(target)
    assert not is_restored(target, BACKUP, "plan")
    assert not [name for name in (MARKER, RECORD) if (target.directory / name).exists()]


def test_a_server_that_died_is_ours_only_where_wal_was_replayed(target: Target) -> None:
    (target.directory / "postmaster.pid").write_text("999999999\n", encoding="utf-8")
    with pytest.raises(TargetRefused, match="not empty"):
        check_target(target.directory, None, 1, (16384,))
    mark_restored(target)
    check_target(target.directory, None, 1, (16384,))
    (target.directory / "postmaster.pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
    with pytest.raises(TargetRefused, match="server is running"):
        check_target(target.directory, None, 1, (16384,))


def test_a_restore_that_is_at_work_is_not_disturbed(target: Target) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        rewrite_mark(target, writer=f"{other.pid}@{process.start_ticks(other.pid)}")
        with pytest.raises(TargetRefused, match=f"process {other.pid}, is at work"):
            check_target(target.directory, None, 1, (16384,))
        other.communicate(b"\n")
    check_target(target.directory, None, 1, (16384,))


def test_tablespaces_of_others_are_never_cleared(tmp_path: Path) -> None:
    theirs = tmp_path / "back.tablespaces"
    theirs.mkdir()
    (theirs / "live").write_bytes(b"mine")
    (tmp_path / "back").mkdir()
    with pytest.raises(TargetRefused, match=r"back\.tablespaces is not empty"):
        check_target(tmp_path / "back", None, 1, (16384,))
    without = check_target(tmp_path / "back", None, 1, ())
    for backup_id in (BACKUP, OTHER):
        prepare_target(without, backup_id)
    with pytest.raises(TargetRefused, match=r"back\.tablespaces is not empty"):
        check_target(tmp_path / "back", None, 1, (16384,))
    assert (theirs / "live").read_bytes() == b"mine"


def test_what_an_interrupted_restore_fills_counts_as_room(target: Target) -> None:
    (target.directory / "half").write_bytes(bytes(64 << 20))
    free_bytes = os.statvfs(target.directory).f_bavail * os.statvfs(target.directory).f_frsize
    check_target(target.directory, None, int((free_bytes + (32 << 20)) / 1.05), (16384,))
    with pytest.raises(TargetRefused, match="MiB free"):
        check_target(target.directory, None, int(free_bytes * 1.05) + (1 << 30), (16384,))


def test_a_place_that_cannot_be_written_to_or_entered_is_refused(room: Path) -> None:
    (room / "file").write_bytes(b"")
    (room / "file").chmod(0o777)
    with pytest.raises(TargetRefused, match="cannot be written to"):
        check_target(room / "file" / "back", None, 1, ())
    closed = room / "closed"
    closed.mkdir(mode=0o700 if os.geteuid() == 0 else 0o500)
    with pytest.raises(TargetRefused, match=r"cannot be entered by the account|cannot be written to"):
        check_target(closed / "back", server_account(None), 1, ())
    assert list(closed.iterdir()) == []


def test_folders_that_are_missing_above_are_made_for_the_servers_account(room: Path) -> None:
    wanted = check_target(room / "a/b/back", server_account(None), 1, ())
    prepare_target(wanted, BACKUP)
    account = account_of_tests()
    owners = {(room / name).stat().st_uid for name in ("a", "a/b", "a/b/back")}
    assert owners == {account.pw_uid if account else os.geteuid()}
