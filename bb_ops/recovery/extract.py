"""Writes an archive's members below one directory, and nothing anywhere else."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

from bb_ops.engines.tar import Member, TarWalker
from bb_ops.errors import IntegrityError, TargetRefused
from bb_ops.recovery.target import Target

CONTROL_FILE = "global/pg_control"
CONTROL_PARTIAL = "global/pg_control.bb_ops-partial"
"""The control file bears this name until everything else is there: a server refuses to start without it."""
_FILE_KINDS = {b"0", b"\0"}
_DIRECTORY_KIND = b"5"


class Extractor:
    """Takes one part of an archive, piece by piece. Use as a context manager; use each once."""

    def __init__(self, target: Target, root: Path) -> None:
        """Write below ``root``, which is the target's directory or that of a tablespace."""
        self._target = target
        self._root = root
        self._walker = TarWalker(self._begin, self._content)
        self._descriptor: int | None = None
        self._left = 0
        self._made: set[Path] = set()

    def write(self, data: bytes, /) -> int:
        """Take the next bytes of the archive."""
        self._walker.feed(memoryview(data))
        return len(data)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the last file; a whole archive must not end inside a member."""
        self._close()
        if kind is None:
            self._walker.finish()

    def _begin(self, member: Member, header: bytes) -> None:
        del header
        self._close()
        path = self._root / safe_name(member.name)
        if member.kind == _DIRECTORY_KIND:
            self._make(path)
            return
        if member.kind not in _FILE_KINDS or path == self._root:
            raise IntegrityError(f"the archive holds {member.name!r}, which is neither a file nor a directory: refused")
        if path == self._root / CONTROL_FILE:
            path = self._root / CONTROL_PARTIAL
        self._make(path.parent)
        with self._telling(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            if self._target.owner is not None:
                os.fchown(self._descriptor, self._target.owner.uid, self._target.owner.gid)
        self._left = member.size_bytes

    def _content(self, piece: memoryview) -> None:
        piece = piece[: self._left]
        self._left -= len(piece)
        with self._telling(self._root):
            while piece and self._descriptor is not None:
                piece = piece[os.write(self._descriptor, piece) :]

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _make(self, directory: Path) -> None:
        if directory in self._made:
            return
        if directory != self._root:
            self._make(directory.parent)
        with _MAKING, self._telling(directory):
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                self._target.chown(directory)
        self._made.add(directory)

    @contextmanager
    def _telling(self, path: Path) -> Iterator[None]:
        """Tell an archive that contradicts itself from a target that cannot be written to."""
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            name = path.relative_to(self._root)
            raise IntegrityError(f"the archive holds {str(name)!r} twice, or as file and directory: refused") from error
        except OSError as error:
            raise TargetRefused(f"cannot write below {self._root}: {error.strerror}") from error


_MAKING = threading.Lock()


def safe_name(name: str) -> PurePosixPath:
    """Return a member's name as a relative path that stays below its root.

    Raises:
        IntegrityError: the name would lead elsewhere.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise IntegrityError(f"the archive holds {name!r}, which leads out of the target directory: refused")
    return path
