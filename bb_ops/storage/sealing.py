"""The stages of sealing, each at its own pace: compression in a pool, encryption and storing in a thread."""

import hashlib
from collections.abc import Sequence
from queue import Queue
from threading import Thread, local
from typing import TYPE_CHECKING

import pyrage
import zstandard

from bb_ops.errors import BbOpsError, StoreFailed
from bb_ops.storage.base import ObjectWriter

if TYPE_CHECKING:
    from concurrent.futures import Future

_QUEUE_PIECES = 32
"""Pieces on their way, raw or compressed: the pool keeps busy while the server or the store falters."""


class HashingWriter:
    """Hashes what goes to the store."""

    def __init__(self, writer: ObjectWriter) -> None:
        """Write to ``writer``."""
        self.writer = writer
        self.error: BbOpsError | None = None
        self._hash = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        """Hash the next bytes and pass them on; remember the store's own error, which age would wrap."""
        self._hash.update(data)
        try:
            return self.writer.write(data)
        except BbOpsError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Nothing waits here."""

    def hexdigest(self) -> str:
        """Return the SHA-256 of everything written."""
        return self._hash.hexdigest()


class Compression:
    """Makes one frame of one piece; each thread keeps a compressor of its own."""

    def __init__(self, level: int) -> None:
        """Compress with zstd's ``level``."""
        self._level = level
        self._of_thread = local()

    def __call__(self, data: bytes | bytearray) -> bytes:
        """Return the frame."""
        if not hasattr(self._of_thread, "compressor"):
            self._of_thread.compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
        return bytes(self._of_thread.compressor.compress(data))


class SealingStage:
    """Encrypts and stores in a thread: age pulls, compression pushes. Without recipients it only stores."""

    def __init__(self, target: HashingWriter, recipients: Sequence[pyrage.x25519.Recipient]) -> None:
        """Start the thread."""
        self._queue: Queue[Future[bytes] | None] = Queue(_QUEUE_PIECES)
        self._rest = memoryview(b"")
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, args=(target, list(recipients)), name="seal", daemon=True)
        self._thread.start()

    def write(self, data: "Future[bytes]") -> None:
        """Take the next frame, which may still be in the making; blocks while too many wait."""
        if self._error is not None:
            self._raise()
        self._queue.put(data)

    def finish(self) -> None:
        """Wait until everything is with the store's writer."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            self._raise()

    def stop(self) -> None:
        """End the thread without finishing. Safe to repeat."""
        self._stopped = True
        while self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(0.1)

    def read(self, size: int, /) -> bytes:
        """Give age its next bytes."""
        if not self._rest:
            self._rest = memoryview(self._next())
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def _next(self) -> bytes:
        data = None if self._ended else self._queue.get()
        self._ended = data is None
        return b"" if data is None else data.result()

    def _run(self, target: HashingWriter, recipients: list[pyrage.x25519.Recipient]) -> None:
        try:
            if recipients:
                pyrage.encrypt_io(self, target, recipients)
            while data := self._next():
                target.write(data)
        except BaseException as error:  # noqa: BLE001 - handed to the writing thread, which raises it
            self._error = target.error or error  # age wraps what goes wrong while it writes its header
        while not self._ended and (self._error is not None or self._stopped):
            self._ended = self._queue.get() is None

    def _raise(self) -> None:
        error = self._error
        if isinstance(error, BbOpsError):
            raise error
        raise StoreFailed(f"sealing stopped: {error}") from error
