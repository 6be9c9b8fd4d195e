"""The contract that every object store keeps. One conformance suite checks them all."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from bb_ops.errors import StoreFailed
from bb_ops.files import PARTIAL_SUFFIX

_NO_PART = {"", ".", ".."}


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object."""

    key: str
    size_bytes: int


class Marks:
    """What differs when an object's bytes differ, or the names directly in a folder; for many of them at once.

    Three numbers each, kept flat because there may be a hundred thousand: when it changed (nanoseconds since 1970, by
    the store's clock), its size in bytes, and its own number. All are zero for what does not exist.

    Attributes:
        numbers: The three numbers of each, one after the other.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.numbers = array("q")

    def part(self, start: int, end: int) -> "Marks":
        """Return the marks of some of the keys."""
        found = Marks()
        found.numbers = self.numbers[3 * start : 3 * end]
        return found

    @property
    def newest_ns(self) -> int:
        """When the last of them changed."""
        return max(self.numbers[::3], default=0)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each."""
        return list(self.numbers[1::3])


def joined(marks: Iterable[Marks]) -> Marks:
    """Return the marks of several lists of keys, one after the other."""
    found = Marks()
    for each in marks:
        found.numbers.extend(each.numbers)
    return found


@dataclass(frozen=True)
class Unfinished:
    """Bytes of a write that never finished; they are not an object and no listing shows them."""

    key: str
    reference: str
    size_bytes: int


class ObjectReader(Protocol):
    """A stream of an object's bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, b"" at the end.

        Raises:
            StoreFailed: the store broke off, or the object ended before its size.
            IntegrityError: what arrived differs from the checksum that the store keeps.
        """
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class ObjectWriter(Protocol):
    """Writes one new object, of any size, in bounded memory.

    As a context manager it commits at the end of the block and abandons the object when the block raises.
    Nothing is visible before the commit.
    """

    def write(self, data: bytes, /) -> int:
        """Take the next bytes; blocks while too many wait to be stored."""
        ...

    def commit(self) -> ObjectInfo:
        """Make the object visible and durable, if its key is free.

        Raises:
            AlreadyExists: the key is taken; the older object is untouched.
            StoreFailed: the store refused or failed; the object is not visible.
        """
        ...

    def abandon(self) -> None:
        """Throw away what was written. Safe to repeat, and after a commit it does nothing."""
        ...

    def __enter__(self) -> Self:
        """Return self."""
        ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commit, or abandon when the block raised."""
        ...


class ObjectStore(Protocol):
    """A place for write-once objects, named by ``/``-separated keys (see ``check_key``).

    Keys are never overwritten: every write is create-if-absent, decided by the store itself, so of many writers of one
    key exactly one wins. Reads see every finished write (strong consistency). Each error is a StoreFailed or one of
    its kinds, or RepositoryMissing where the bucket or directory does not exist.
    """

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        ...

    @property
    def endpoint_url(self) -> str | None:
        """The server that must be named to reach it; None where ``url`` says enough."""
        ...

    def check(self) -> None:
        """Prove that the place exists and answers.

        Raises:
            RepositoryMissing: it does not exist.
        """
        ...

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Store a small object, if its key is free.

        Raises:
            AlreadyExists: the key is taken.
        """
        ...

    def writer(self, key: str) -> ObjectWriter:
        """Begin a new object of unknown size."""
        ...

    def read(self, key: str) -> bytes | None:
        """Return a small object whole; None where there is none."""
        ...

    def reader(self, key: str, start: int = 0, length: int | None = None) -> ObjectReader | None:
        """Open a stream from byte ``start``, of ``length`` bytes or to the end; None where there is no object.

        Behind the object's end there is nothing: the stream is shorter, or empty.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Describe an object; None where there is none."""
        ...

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix``, in the order of the keys' bytes, however many."""
        ...

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below ``prefix`` (which ends with ``/`` or is empty) that have keys below them."""
        ...

    def marks(self, keys: Sequence[str]) -> Marks | None:
        """Return a mark for each object, or folder (its key ends with ``/``).

        An object's mark differs after any change of its bytes, a folder's after any name directly in it came or went.
        None where the store cannot tell without listing and reading.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that does not exist is no error."""
        ...

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield what dead writers left, active ones included: the caller knows which runs are alive."""
        ...

    def remove_unfinished(self, leftover: Unfinished) -> None:
        """Remove one of them; one that is gone is no error."""
        ...


def check_key(key: str) -> str:
    """Return a key, if it can only mean one object below the store's root, in every store.

    Raises:
        StoreFailed: a part of it is empty, ``.`` or ``..``, or it bears the name of an unfinished file.
    """
    if any(part in _NO_PART for part in key.split("/")) or "\0" in key or key.endswith(PARTIAL_SUFFIX):
        raise StoreFailed(f"not a key: {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return what keys may begin with: whole parts, and the beginning of one more.

    Raises:
        StoreFailed: no key begins like that.
    """
    if any(part in _NO_PART for part in prefix.split("/")[:-1]) or "\0" in prefix:
        raise StoreFailed(f"no key begins with {prefix!r}")
    return prefix
