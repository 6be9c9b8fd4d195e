"""Sealed objects: zstd, then age, over any store. Stock tools open them: ``age -d -i key object | zstd -d``.

Only public keys are needed to write. Each piece that is written becomes one zstd frame of its own (RFC 8878, 3: data
are one or more frames), so a pool compresses several at once; a bounded queue of their futures keeps their order, and
is the bound of the memory.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import pyrage
import zstandard

from bb_ops.errors import BbOpsError, IntegrityError, KeyRejected
from bb_ops.storage.base import ObjectReader, ObjectStore
from bb_ops.storage.sealing import Compression, HashingWriter, SealingStage

_SWITCH_INTERVAL_S = 0.0005
"""pyrage works without letting go of the interpreter: others wait for it no longer than this, instead of 5 ms."""
_READ_BYTES = 1 << 20
_NO_KEY = "No matching keys"


@dataclass(frozen=True)
class Seal:
    """How new objects are sealed.

    Attributes:
        recipients: age public keys; empty only where encryption is off by explicit wish.
        level: zstd level.
        threads: How many threads compress a large object.
    """

    recipients: tuple[pyrage.x25519.Recipient, ...]
    level: int
    threads: int

    @property
    def suffix(self) -> str:
        """What the keys of sealed objects end with."""
        return ".zst.age" if self.recipients else ".zst"


@dataclass(frozen=True)
class SealedObject:
    """One sealed object that was written.

    Attributes:
        size_bytes: As stored.
        raw_size_bytes: Before compression.
        sha256: Of the stored bytes, in hexadecimal.
    """

    key: str
    size_bytes: int
    raw_size_bytes: int
    sha256: str


class Sink(Protocol):
    """What takes opened bytes."""

    def write(self, data: bytes, /) -> int:
        """Take the next bytes."""
        ...


def share_interpreter() -> None:
    """Let threads that seal or open objects side by side wait less for each other; call before many of them work."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


class SealedWriter:
    """Writes one sealed object. Call ``finish``, or ``abandon`` after a failure."""

    def __init__(self, store: ObjectStore, key: str, seal: Seal, pool: Executor | None = None) -> None:
        """Begin the object at ``key``; compress in ``pool``, or in the calling thread without one."""
        self._key = key
        self._raw_size_bytes = 0
        self._pool = pool
        self._compression = Compression(seal.level)
        self._stored = HashingWriter(store.writer(key))
        self._stage = SealingStage(self._stored, seal.recipients)

    def write(self, data: bytes | bytearray) -> None:
        """Take the next raw bytes, about half a MiB; they belong to us from now on."""
        self._raw_size_bytes += len(data)
        if self._pool is not None:
            self._stage.write(self._pool.submit(self._compression, data))
            return
        compressed: Future[bytes] = Future()
        compressed.set_result(self._compression(data))
        self._stage.write(compressed)

    def finish(self) -> SealedObject:
        """Commit the object and describe it.

        Raises:
            AlreadyExists: the key is taken.
            StoreFailed: the store refused or failed.
        """
        try:
            if not self._raw_size_bytes:
                self.write(b"")  # no bytes at all would be no zstd data
            self._stage.finish()
            info = self._stored.writer.commit()
        except BaseException:
            self.abandon()
            raise
        return SealedObject(self._key, info.size_bytes, self._raw_size_bytes, self._stored.hexdigest())

    def abandon(self) -> None:
        """Throw the object away. Safe to repeat."""
        self._stage.stop()
        self._stored.writer.abandon()


def seal_bytes(store: ObjectStore, key: str, data: bytes, seal: Seal) -> SealedObject:
    """Write a small sealed object whole."""
    writer = SealedWriter(store, key, seal)
    try:
        writer.write(data)
    except BaseException:
        writer.abandon()
        raise
    return writer.finish()


@dataclass(frozen=True)
class Expected:
    """What a stored object must be, from the signed commit.

    Attributes:
        size_bytes: As stored.
        raw_size_bytes: Before compression.
        sha256: Of the stored bytes, in hexadecimal.
    """

    key: str
    size_bytes: int
    raw_size_bytes: int
    sha256: str


class _HashingReader:
    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.error: BbOpsError | None = None

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._reader.read(size)
        except BbOpsError as error:
            self.error = error
            raise
        self._hash.update(data)
        self.size_bytes += len(data)
        return data

    def drain(self) -> None:
        while self.read(_READ_BYTES):
            pass

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def verify_stored(store: ObjectStore, expected: Expected, copy: Callable[[bytes], object] | None = None) -> None:
    """Read a stored object whole and compare it with its signed size and hash.

    Args:
        store: Where it is.
        expected: What it must be.
        copy: Also takes every piece, for instance to write it elsewhere.

    Raises:
        IntegrityError: it is missing or differs; the message names it.
    """
    reader = _open(store, expected)
    try:
        while data := reader.read(_READ_BYTES):
            if copy is not None:
                copy(data)
    finally:
        reader.close()
    _compare(store, expected, reader)


def open_sealed(
    store: ObjectStore, expected: Expected, identities: Sequence[pyrage.x25519.Identity], sink: Sink
) -> int:
    """Decrypt and decompress a sealed object into ``sink``, and check its signed hash on the way.

    Returns:
        The number of raw bytes.

    Raises:
        IntegrityError: the object is missing, cut short, or differs from its hash; the message names it.
        KeyRejected: it is whole, but none of our identities opens it.
    """
    reader = _open(store, expected)
    counting = _Decompression(sink)
    try:
        if expected.key.endswith(".age"):
            pyrage.decrypt_io(_Buffered(reader), counting, list(identities))
        else:
            while data := reader.read(_READ_BYTES):
                counting.write(data)
        reader.drain()
        counting.finish()
    except (pyrage.DecryptError, zstandard.ZstdError, OSError, BbOpsError) as error:
        if reader.error is not None:  # age wraps what goes wrong while it reads the header
            raise reader.error from error
        reader.drain()
        _compare(store, expected, reader)
        if isinstance(error, BbOpsError):
            raise
        if isinstance(error, pyrage.DecryptError) and _NO_KEY in str(error):
            raise KeyRejected(
                f"{store.url}/{expected.key}: none of the given age identities opens it: check BB_OPS_AGE_IDENTITY_FILE"
            ) from error
        raise IntegrityError(f"{store.url}/{expected.key}: its hash is right but it does not open: {error}") from error
    finally:
        reader.close()
    _compare(store, expected, reader)
    if counting.raw_size_bytes != expected.raw_size_bytes:
        raise IntegrityError(
            f"{store.url}/{expected.key}: its hash is right but it opens to {counting.raw_size_bytes} bytes, "
            f"its signed commit says {expected.raw_size_bytes}"
        )
    return counting.raw_size_bytes


class _Closing(_HashingReader):
    def __init__(self, reader: ObjectReader) -> None:
        super().__init__(reader)
        self.close = reader.close


class _Buffered:
    """Turns age's small reads into large ones from the store."""

    def __init__(self, reader: _HashingReader) -> None:
        self._reader = reader
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        if not self._rest:
            self._rest = memoryview(self._reader.read(_READ_BYTES))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


class _Decompression:
    """Decompresses what is written to it and passes it on piece by piece, so that little of it is ever held at once."""

    def __init__(self, sink: Sink) -> None:
        self._counting = _Counting(sink)
        self._inner = zstandard.ZstdDecompressor().stream_writer(
            self._counting,  # type: ignore[arg-type] # of a file it needs only ``write``
            write_size=_READ_BYTES,
        )
        self._waiting = bytearray()

    @property
    def raw_size_bytes(self) -> int:
        return self._counting.size_bytes

    def write(self, data: bytes, /) -> int:
        self._waiting += data
        if len(self._waiting) >= _READ_BYTES:
            self.finish()
        return len(data)

    def flush(self) -> None:
        """Age calls this at its end; ``finish`` does the work."""

    def finish(self) -> None:
        self._inner.write(self._waiting)
        self._waiting.clear()


class _Counting:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.size_bytes = 0

    def write(self, data: bytes, /) -> int:
        self.size_bytes += len(data)
        return self._sink.write(data)


def _open(store: ObjectStore, expected: Expected) -> _Closing:
    reader = store.reader(expected.key)
    if reader is None:
        raise IntegrityError(f"{store.url}/{expected.key} is missing: the signed commit names it")
    return _Closing(reader)


def _compare(store: ObjectStore, expected: Expected, reader: _HashingReader) -> None:
    if reader.size_bytes != expected.size_bytes:
        raise IntegrityError(
            f"{store.url}/{expected.key} has {reader.size_bytes} bytes, its signed commit says {expected.size_bytes}"
        )
    if reader.hexdigest() != expected.sha256:
        raise IntegrityError(f"{store.url}/{expected.key} differs from the SHA-256 in its signed commit")
