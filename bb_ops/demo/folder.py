"""The one directory of a demo world: claimed, locked, and laid out."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bb_ops import files
from bb_ops.demo import accounts
from bb_ops.errors import Locked, TargetRefused
from bb_ops.process import Account

_LOCK_NAME = "world.lock"
_LONGEST_SOCKET_NAME = ".us-east-1-filer.sock"
_SOCKET_PATH_LIMIT = 100  # the kernel's is 107 (unix(7))


def claim(directory: Path, run_as: Account | None) -> None:
    """Create the world's directory, or recognise it as ours. Safe to repeat.

    Raises:
        TargetRefused: it belongs to someone else, holds something else, or the servers' account cannot enter it.
    """
    files.make_directory(directory, mode=0o700 if run_as is None else 0o755)
    _check_owner(directory)
    if any(directory.iterdir()) and not (directory / _LOCK_NAME).exists():
        raise TargetRefused(f"{directory} holds something that is not a demo world: name an empty or new directory")
    directory.chmod(0o700 if run_as is None else 0o755)
    if not accounts.can_enter(directory, run_as):
        name = "this user" if run_as is None else run_as.name
        raise TargetRefused(f"account {name!r} cannot reach {directory}: name a directory whose parents it may enter")
    (directory / _LOCK_NAME).touch(mode=0o600)
    (directory / "logs").mkdir(mode=0o700, exist_ok=True)


def exists(directory: Path) -> bool:
    """Tell whether a world was ever begun here, by us.

    Raises:
        TargetRefused: it belongs to someone else.
    """
    if not (directory / _LOCK_NAME).exists():
        return False
    _check_owner(directory)
    return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the world for one ``up`` or ``down``; the lock ends with the process that holds it.

    Raises:
        Locked: another process holds it.
    """
    with (directory / _LOCK_NAME).open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(
                f"another command is starting or stopping the demo world in {directory}: wait for it"
            ) from error
        yield


def socket_directory(directory: Path, known: Path | None, run_as: Account | None) -> Path:
    """Return a directory for Unix sockets: in the world where paths are short enough, else a fresh one under /tmp."""
    if known is not None and known.is_dir():
        return known
    inside = directory / "sockets"
    if len(str(inside / _LONGEST_SOCKET_NAME)) < _SOCKET_PATH_LIMIT:
        return accounts.owned_directory(inside, run_as)
    outside = Path(tempfile.mkdtemp(prefix="bb_ops-demo-", dir="/tmp"))
    accounts.hand_over(outside, run_as)
    return outside


def remove_outside(directory: Path, sockets: Path) -> None:
    """Remove a socket directory that is not in the world's directory. Safe to repeat."""
    if not sockets.is_relative_to(directory):
        shutil.rmtree(sockets, ignore_errors=True)


def _check_owner(directory: Path) -> None:
    if directory.stat().st_uid != os.geteuid():
        raise TargetRefused(f"{directory} belongs to another user: name another directory, or become that user")
