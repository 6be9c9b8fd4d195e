"""Writes an archive's members below one directory, and nothing anywhere else."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

from bb_ops.engines.tar import Member, TarWalker
from bb_ops.errors import IntegrityError
from bb_ops.recovery.target import Target, cannot_write

CONTROL_FILE = "global/pg_control"
CONTROL_PARTIAL = "global/pg_control.bb_ops-partial"
"""The control file bears this name until everything else is there: a server refuses to start without it."""
_FILE_KINDS = {b"0", b"\0"}
_DIRECTORY_KIND = b"5"
_STUB_PREFIX = "INCREMENTAL."
_STUB_BYTES = 12
"""An increment holds a file for each relation; of one that did not change only this header (basebackup.c, sendFile)."""


class Extractor:
    """Takes one part of an archive, piece by piece. Use as a context manager; use each once.

    Attributes:
        made: The paths of all that the part holds; the control file's under both of its names.
    """

    def __init__(self, target: Target, root: Path, without: str | None = None) -> None:
        """Write below ``root``, the target's directory or that of a tablespace, all but what is in ``without/``."""
        self._without = None if without is None else PurePosixPath(without)
        self._target = target
        self._root = root
        self._walker = TarWalker(self._begin, self._content)
        self._descriptor: int | None = None
        self._left = 0
        self._made: set[Path] = set()
        self._stub: tuple[Path, bytearray] | None = None
        self._stubs: dict[bytes, Path] = {}
        self.made: list[str] = []

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
        name = safe_name(member.name)
        if self._without is not None and self._without in name.parents:
            return
        path = self._root / name
        if member.kind == _DIRECTORY_KIND:
            self._make(path)
            self.made.append(str(path))
            return
        if member.kind not in _FILE_KINDS or path == self._root:
            raise IntegrityError(f"the archive holds {member.name!r}, which is neither a file nor a directory: refused")
        self.made.append(str(path))
        if path == self._root / CONTROL_FILE:
            path = self._root / CONTROL_PARTIAL
            self.made.append(str(path))
        self._make(path.parent)
        self._left = member.size_bytes
        if path.name.startswith(_STUB_PREFIX) and member.size_bytes == _STUB_BYTES:
            self._stub = path, bytearray()
        else:
            self._create(path)

    def _create(self, path: Path) -> None:
        with self._telling(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            if self._target.owner is not None:
                os.fchown(self._descriptor, self._target.owner.uid, self._target.owner.gid)

    def _content(self, piece: memoryview) -> None:
        piece = piece[: self._left]
        self._left -= len(piece)
        if self._stub is not None:
            self._stub[1].extend(piece)
            return
        with self._telling(self._root):
            while piece and self._descriptor is not None:
                piece = piece[os.write(self._descriptor, piece) :]

    def _close(self) -> None:
        if self._stub is not None:
            (path, content), self._stub = self._stub, None
            if not self._link_stub(path, bytes(content)):
                self._create(path)
                os.write(self._descriptor or -1, content)
                self._stubs[bytes(content)] = path
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _link_stub(self, path: Path, content: bytes) -> bool:
        """Give an equal stub a second name: thousands of inodes, times the chain's length, need not be made.

        They are read by pg_combinebackup only, and never become files of the result.
        """
        known = self._stubs.get(content)
        if known is None:
            return False
        with self._telling(path):
            try:
                os.link(known, path)
            except OSError as error:
                if error.errno == errno.EMLINK:
                    return False
                raise
        return True

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
            raise cannot_write(self._root, error) from error


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
