"""Folders of tests: others may pass through, as PostgreSQL is another account when we are root; short, for sockets."""

import os
import pwd
import shutil
import tempfile
from pathlib import Path

_OTHERS_MAY_ENTER = 0o001


def make_room() -> Path:
    """Make an empty folder with a short path; who makes it removes it."""
    room = Path(tempfile.mkdtemp(prefix="bbt-", dir=_base()))
    room.chmod(0o755)
    return room


def remove_room(room: Path) -> None:
    """Remove a folder and all that is in it."""
    shutil.rmtree(room)


def server_account() -> pwd.struct_passwd | None:
    """Return the account that PostgreSQL runs as; None for our own, because we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def hand_over(path: Path) -> None:
    """Give a folder and all in it to the account that PostgreSQL runs as."""
    account = server_account()
    if account is None:
        return
    for entry in (path, *path.rglob("*")):
        os.chown(entry, account.pw_uid, account.pw_gid, follow_symlinks=False)


def others_may_enter(path: Path) -> bool:
    """Say whether every folder from the root down to this one lets every account pass."""
    return all(folder.stat().st_mode & _OTHERS_MAY_ENTER for folder in (path, *path.parents))


def _base() -> Path:
    wanted = Path(tempfile.gettempdir())
    candidates = (wanted, Path("/tmp"), Path("/var/tmp"))
    if os.geteuid() != 0:
        return wanted
    return next(path for path in candidates if path.is_dir() and others_may_enter(path))
