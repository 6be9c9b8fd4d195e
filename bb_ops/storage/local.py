"""A directory as object store: one file an object, durable, created by link(2) so that the first writer wins."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NoReturn, Self, TypeVar

from bb_ops.errors import AlreadyExists, BbOpsError, RepositoryMissing, StoreFailed
from bb_ops.files import PARTIAL_SUFFIX, fsync_directory, make_directory, partial_path
from bb_ops.storage.base import Marks, ObjectInfo, ObjectReader, Unfinished, check_key, check_prefix

_T = TypeVar("_T")
_OPEN_ATTEMPTS = 100
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStore:
    """Objects as files below one directory."""

    def __init__(self, root: Path) -> None:
        """Use the directory ``root``, which may not exist yet."""
        self._root = root

    @property
    def url(self) -> str:
        """Where it is."""
        return f"file://{self._root}"

    @property
    def endpoint_url(self) -> None:
        """No server is asked."""
        return

    def check(self) -> None:
        """Prove that the directory exists and can be read."""
        if not self._root.is_dir():
            raise RepositoryMissing(
                f"{self.url} does not exist: create the directory, or take the first backup into it"
            )
        self._guard(lambda: next(self._root.iterdir(), None))

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Store a small object, if its key is free."""
        with self.writer(key) as writer:
            writer.write(data)
        return ObjectInfo(key, len(data))

    def writer(self, key: str) -> "LocalWriter":
        """Begin a new object."""
        path = self._path(key)
        return self._guard(lambda: LocalWriter(key, path))

    def read(self, key: str) -> bytes | None:
        """Return a small object whole."""
        return self._guard_or_none(self._path(key).read_bytes)

    def reader(self, key: str, start: int = 0, length: int | None = None) -> ObjectReader | None:
        """Open a stream."""
        handle = self._guard_or_none(lambda: self._path(key).open("rb"))
        if handle is None:
            return None
        handle.seek(start)
        return _LocalReader(handle, length)

    def stat(self, key: str) -> ObjectInfo | None:
        """Describe an object."""
        size_bytes = self._guard_or_none(partial(_file_size, self._path(key)))
        return None if size_bytes is None else ObjectInfo(key, size_bytes)

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix``."""
        folder, _, begin = check_prefix(prefix).rpartition("/")
        found = []
        for path, key in self._walk(self._root / folder, begin):
            if not key.endswith(PARTIAL_SUFFIX):
                size_bytes = self._guard_or_none(partial(_file_size, path))
                if size_bytes is not None:
                    found.append(ObjectInfo(key, size_bytes))
        yield from sorted(found, key=lambda info: info.key.encode())

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below ``prefix``."""
        folder = self._path(prefix.removesuffix("/")) if prefix else self._root
        names = self._guard_or_none(lambda: [entry.name for entry in os.scandir(folder) if entry.is_dir()])
        return sorted(names or ())

    def marks(self, keys: Sequence[str]) -> Marks:
        """Return inode, size and time of change (ctime, which nobody can set) of files and folders."""
        found = Marks()
        if not keys:
            return found
        begin = os.path.commonprefix(keys).rpartition("/")[0]  # noqa: RUF071 - characters will do
        folder = self._guard_or_none(lambda: os.open(f"{self._root}/{begin}", os.O_RDONLY | os.O_DIRECTORY))
        if folder is None:
            found.numbers.extend([0] * 3 * len(keys))
            return found
        try:
            cut = len(begin) + 1 if begin else 0
            for key in keys:
                try:
                    facts = os.stat(key[cut:] or ".", dir_fd=folder)
                except _NO_FILE:
                    found.numbers.extend((0, 0, 0))
                else:
                    found.numbers.extend((facts.st_ctime_ns, facts.st_size, facts.st_ino))
        except OSError as error:
            self._raise(error)
        finally:
            os.close(folder)
        return found

    def delete(self, key: str) -> None:
        """Remove an object, and the folders that it leaves empty."""
        self._remove(self._path(key))

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield temporary files of writers, alive or dead."""
        for path, key in self._walk(self._root):
            if key.endswith(PARTIAL_SUFFIX):
                folder, _, name = key.rpartition("/")
                target = name.removeprefix(".").removesuffix(PARTIAL_SUFFIX).rpartition(".")[0]
                size_bytes = self._guard_or_none(partial(_file_size, path))
                if size_bytes is not None:
                    yield Unfinished(f"{folder}/{target}".lstrip("/"), key, size_bytes)

    def remove_unfinished(self, leftover: Unfinished) -> None:
        """Remove one of them."""
        check_key(leftover.reference.removesuffix(PARTIAL_SUFFIX))
        self._remove(self._root / leftover.reference)

    def _remove(self, path: Path) -> None:
        self._guard_or_none(path.unlink)
        parent = path.parent
        while parent != self._root:
            try:
                parent.rmdir()
            except OSError:  # not empty, gone already, or not ours: an empty folder is no object
                return
            parent = parent.parent

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, folder: Path, begin: str = "") -> Iterator[tuple[str, str]]:
        """Yield every file and its key, where the first name below ``folder`` begins with ``begin``.

        One that vanishes meanwhile may be missing, one that cannot be looked at is an error.
        """
        above = len(f"{self._root}/")
        for directory, folders, names in os.walk(folder, onerror=self._raise_unless_gone):
            if begin:
                folders[:] = [name for name in folders if name.startswith(begin)]
                names, begin = [name for name in names if name.startswith(begin)], ""  # noqa: PLW2901
            for name in names:
                path = f"{directory}/{name}"
                yield path, path[above:]

    def _raise_unless_gone(self, error: OSError) -> None:
        if not isinstance(error, _NO_FILE):
            self._raise(error)

    def _guard_or_none(self, action: Callable[[], _T]) -> _T | None:
        """Return what ``action`` gives, None where there is no such file."""
        try:
            return action()
        except _NO_FILE:
            return None
        except OSError as error:
            self._raise(error)

    def _guard(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except OSError as error:
            self._raise(error)

    def _raise(self, error: OSError) -> NoReturn:
        raise _failed(self.url, error) from error


class LocalWriter:
    """Writes a new file under a temporary name and links it to its own when it is whole."""

    def __init__(self, key: str, path: Path) -> None:
        """Open the temporary file."""
        self._key = key
        self._path = path
        self._temporary = partial_path(path)
        self._handle: IO[bytes] | None = _open_new(self._temporary)
        self._size_bytes = 0

    def write(self, data: bytes, /) -> int:
        """Take the next bytes."""
        if self._handle is None:
            raise StoreFailed(f"{self._key}: the object is already finished")
        try:
            view = memoryview(data)
            while view:
                view = view[self._handle.write(view) :]
            self._size_bytes += len(data)
        except OSError as error:
            self.abandon()
            raise _failed(str(self._path), error) from error
        return len(data)

    def commit(self) -> ObjectInfo:
        """Make the object visible and durable, if its key is free."""
        if self._handle is None:
            raise StoreFailed(f"{self._key}: the object is already finished")
        try:
            os.fsync(self._handle.fileno())
            os.link(self._temporary, self._path)
            fsync_directory(self._path.parent)
        except FileExistsError as error:
            raise AlreadyExists(f"{self._path} exists already and is never overwritten") from error
        except OSError as error:
            raise _failed(str(self._path), error) from error
        finally:
            self.abandon()
        return ObjectInfo(self._key, self._size_bytes)

    def abandon(self) -> None:
        """Remove the temporary file."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commit, or abandon when the block raised."""
        if kind is None:
            self.commit()
        else:
            self.abandon()


class _LocalReader:
    def __init__(self, handle: IO[bytes], length: int | None) -> None:
        self._handle = handle
        self._left = length

    def read(self, size: int = -1, /) -> bytes:
        if self._left is not None:
            size = self._left if size < 0 else min(size, self._left)
        try:
            data = self._handle.read(size)
        except OSError as error:
            raise _failed(str(self._handle.name), error) from error
        if self._left is not None:
            self._left -= len(data)
        return data

    def close(self) -> None:
        self._handle.close()


def _open_new(path: Path) -> IO[bytes]:
    """Open a new file; another process may remove its folders, while they are empty, between any two steps."""
    for _ in range(_OPEN_ATTEMPTS):
        try:
            make_directory(path.parent)
            return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
        except FileNotFoundError:
            continue
    raise OSError(errno.ENOENT, "its folder keeps disappearing")


def _file_size(path: Path | str) -> int:
    found = os.stat(path)  # noqa: PTH116 - likewise
    if not stat.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file", str(path))
    return found.st_size


def _failed(where: str, error: OSError) -> BbOpsError:
    advice = " (free space there)" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return StoreFailed(f"{where}: {error.strerror}{advice}")
