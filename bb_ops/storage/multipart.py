"""Writes objects of any size to S3 in bounded memory: parts of equal size, a few on their way at a time."""

import secrets
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from bb_ops.errors import BbOpsError, StoreFailed
from bb_ops.storage.base import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

    from bb_ops.storage.s3 import S3Store

_UPLOAD_PART_BYTES = 8 << 20
"""Parts of one multipart upload are of equal size (some servers demand it); 10,000 of them make 78 GiB."""
_UPLOAD_THREADS = 3


class S3Writer:
    """Writes one object: a single request while it is small, a multipart upload from the second part on."""

    def __init__(self, store: "S3Store", key: str) -> None:
        """Begin; nothing is contacted before the first full part."""
        self._store = store
        self._key = key
        self._buffer = bytearray()
        self._size_bytes = 0
        self._upload_id: str | None = None
        self._mark = secrets.token_hex(8)
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[CompletedPartTypeDef]] = deque()
        self._parts: list[CompletedPartTypeDef] = []
        self._open = True

    def write(self, data: bytes, /) -> int:
        """Take the next bytes; at most a few parts wait at a time."""
        if not self._open:
            raise StoreFailed(f"{self._key}: the object is already finished")
        self._buffer += data
        self._size_bytes += len(data)
        while len(self._buffer) >= _UPLOAD_PART_BYTES:
            part = bytes(memoryview(self._buffer)[:_UPLOAD_PART_BYTES])
            del self._buffer[:_UPLOAD_PART_BYTES]
            self._send(part)
        return len(data)

    def commit(self) -> ObjectInfo:
        """Make the object visible, if its key is free."""
        if not self._open:
            raise StoreFailed(f"{self._key}: the object is already finished")
        try:
            if self._upload_id is None:
                self._store.create(self._key, bytes(self._buffer))
            else:
                if self._buffer:
                    self._send(bytes(self._buffer))
                while self._waiting:
                    self._collect()
                self._store.complete_upload(self._key, self._upload_id, self._mark, self._parts)
                self._upload_id = None
        except BaseException:
            self._abandon_quietly()
            raise
        self.abandon()
        return ObjectInfo(self._key, self._size_bytes)

    def abandon(self) -> None:
        """Abort what was uploaded."""
        if not self._open:
            return
        self._open = False
        self._buffer = bytearray()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._upload_id is not None:
            self._store.abort(self._key, self._upload_id)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commit, or abandon when the block raised."""
        if kind is None:
            self.commit()
        else:
            self._abandon_quietly()

    def _abandon_quietly(self) -> None:
        """Abandon after a failure, which must not be hidden by that of a server that cannot be reached any more.

        What remains there is shown by the store's ``unfinished``.
        """
        with suppress(BbOpsError):
            self.abandon()

    def _send(self, part: bytes) -> None:
        if self._upload_id is None:
            self._upload_id = self._store.begin_upload(self._key, self._mark)
            self._pool = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload")
        if len(self._waiting) >= _UPLOAD_THREADS:
            self._collect()
        number = len(self._parts) + len(self._waiting) + 1
        pool = self._pool
        if pool is not None:
            self._waiting.append(pool.submit(self._store.upload_part, self._key, self._upload_id, number, part))

    def _collect(self) -> None:
        self._parts.append(self._waiting.popleft().result())
