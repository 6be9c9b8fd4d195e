"""Where a restore may go: an empty place with room, that no server uses."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bb_ops import process
from bb_ops.clock import sleep
from bb_ops.errors import TargetRefused
from bb_ops.files import create_exclusive, is_partial, make_directory
from bb_ops.process import Account

MARKER = ".bb_ops-restore.json"
"""Says that a restore is under way in this directory, and so that everything in it is ours."""
_ROOM_FACTOR = 1.05
_ACCOUNTS = ("postgres", "nobody")
_REMOVAL_ATTEMPTS = 20
_REMOVAL_PAUSE_S = 0.1


@dataclass(frozen=True)
class Target:
    """A directory that a backup may be restored into.

    Attributes:
        directory: The data directory to be.
        tablespaces: Where tablespaces go, one folder each, named by oid; only made when there are any.
        owner: The account that will run the server; None where we are not root and run it ourselves.
    """

    directory: Path
    tablespaces: Path
    owner: Account | None

    def chown(self, path: Path) -> None:
        """Give a file or directory to the server's account."""
        if self.owner is not None:
            os.chown(path, self.owner.uid, self.owner.gid, follow_symlinks=False)


def server_account(wanted: str | None) -> Account | None:
    """Return the account that servers run as: ours, unless we are root, whom PostgreSQL refuses.

    Raises:
        UsageError: the wanted account does not exist.
    """
    if os.geteuid() != 0:
        return None
    if wanted is not None:
        return process.account(wanted)
    return process.first_account(_ACCOUNTS)


def check_target(directory: Path, owner: Account | None, needed_bytes: int, tablespace_oids: tuple[int, ...]) -> Target:
    """Prove that a restore into ``directory`` destroys nothing and has room; changes nothing.

    Raises:
        TargetRefused: it is not empty, a server runs in it, it has too little room, or it cannot be reached.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow links
    target = Target(directory, directory.with_name(directory.name + ".tablespaces"), owner)
    for path in (directory, *((target.tablespaces,) if tablespace_oids else ())):
        _check_empty(path, ours=_is_ours(directory))
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise TargetRefused(f"{existing} cannot be written to: choose another directory")
    if owner is not None:
        _check_reachable(existing, owner)
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes * _ROOM_FACTOR:
        raise TargetRefused(
            f"{existing} has {free_bytes >> 20} MiB free, and the restore needs "
            f"{int(needed_bytes * _ROOM_FACTOR) >> 20} MiB: free some or choose another directory"
        )
    return target


def prepare_target(target: Target, backup_id: str) -> None:
    """Make the directory and mark it as ours; clear what an interrupted restore left in it."""
    make_directory(target.directory)
    if not (target.directory / MARKER).exists():
        create_exclusive(target.directory / MARKER, json.dumps({"backup_id": backup_id}).encode())
    for entry in target.directory.iterdir():
        if entry.name != MARKER:
            _remove(entry)
    if target.tablespaces.exists():
        remove_tree(target.tablespaces)
    target.directory.chmod(0o700)
    target.chown(target.directory)


def finish_target(target: Target) -> None:
    """Take the mark away: from now on the directory belongs to its user and is never touched again."""
    (target.directory / MARKER).unlink(missing_ok=True)


def _check_empty(path: Path, *, ours: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise TargetRefused(f"{path} is not a directory: choose another one")
    if _server_runs_in(path):
        raise TargetRefused(f"a PostgreSQL server is running in {path}: restores go beside, choose an empty directory")
    if not ours and any(path.iterdir()):
        raise TargetRefused(f"{path} is not empty: restores go beside, choose an empty directory")


def _is_ours(directory: Path) -> bool:
    """Say whether a restore began here, also where it was killed while it wrote its mark."""
    if not directory.is_dir() or (directory / "postmaster.pid").exists():
        return False
    return (directory / MARKER).is_file() or all(is_partial(entry, MARKER) for entry in directory.iterdir())


def _server_runs_in(directory: Path) -> bool:
    try:
        first_line = (directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]
        return process.start_ticks(int(first_line)) is not None
    except (OSError, ValueError, IndexError):
        return False


def _check_reachable(existing: Path, owner: Account) -> None:
    for path in (existing, *existing.parents):
        mode = path.stat()
        bits = mode.st_mode
        reachable = (
            bits & 0o001
            or (mode.st_uid == owner.uid and bits & 0o100)
            or (mode.st_gid == owner.gid and bits & 0o010)
            or path == existing
        )
        if not reachable:
            raise TargetRefused(
                f"{path} cannot be entered by the account {owner.name}, which runs the restored server: choose a "
                "directory elsewhere, or another account in BB_OPS_SERVER_USER"
            )


def remove_tree(path: Path) -> None:
    """Remove a directory, also while a program of PostgreSQL that was killed a moment ago still removes files in it."""
    for _ in range(_REMOVAL_ATTEMPTS):
        with suppress(OSError):  # a name that has gone by itself, or a folder that was filled again
            shutil.rmtree(path)
        if not path.exists():
            return
        sleep(_REMOVAL_PAUSE_S)
    shutil.rmtree(path)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        remove_tree(entry)
    else:
        entry.unlink(missing_ok=True)


def is_restored(target: Target, backup_id: str, plan: str | None) -> bool:
    return False


def mark_restored(target: Target) -> None:
    pass
