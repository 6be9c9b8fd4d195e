"""Durable, atomic, private files. A crash at any point leaves the old state or the new one."""

import os
import secrets
from pathlib import Path

PARTIAL_SUFFIX = ".bb_ops-partial"
"""Ends the name of every file that is not finished; such a file may be deleted when no run is active."""


def fsync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable (POSIX: a rename lasts only after this)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path, mode: int = 0o700) -> None:
    """Create ``directory`` and its missing parents, durably. Safe to repeat."""
    missing = []
    current = directory
    while not current.exists():
        missing.append(current)
        current = current.parent
    for path in reversed(missing):
        path.mkdir(mode=mode, exist_ok=True)
        fsync_directory(path.parent)


def partial_path(path: Path) -> Path:
    """Return a fresh temporary name beside ``path``, on the same file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")


def is_partial(path: Path, name: str) -> bool:
    """Say whether a path is an unfinished write of the file ``name``."""
    return path.name.startswith(f".{name}.") and path.name.endswith(PARTIAL_SUFFIX) and path.is_file()


def create_exclusive(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a new file, whole or not at all.

    Raises:
        FileExistsError: ``path`` exists; it is left as it was.
    """
    temporary = partial_path(path)
    try:
        _write_durably(temporary, data, mode)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write or replace a file; a reader sees the old content or the new one, never a mixture."""
    temporary = partial_path(path)
    try:
        _write_durably(temporary, data, mode)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _write_durably(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
