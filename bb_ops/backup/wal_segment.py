"""A WAL segment as it arrives, and where it goes."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bb_ops.clock import Clock
from bb_ops.errors import IntegrityError, StoreFailed
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.repository.repository import Repository
from bb_ops.storage.sealed import Seal, SealedWriter

_IN_MEMORY_BYTES = 64 << 20
"""Larger segments are collected in an unnamed file, so that memory stays bounded."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """Where WAL goes, and of what.

    Attributes:
        second: Another region's repository, without which nothing counts as durable; None where one is enough.
    """

    repository: Repository
    second: Repository | None
    system_id: str
    segment_bytes: int
    server_major: int
    seal: Seal
    scratch: Path | None
    clock: Clock


class Segment:
    """One segment while it arrives."""

    def __init__(self, archive: Archive, timeline: int, start: Lsn) -> None:
        """Begin at a segment's border."""
        self.timeline = timeline
        self.start = start
        self.name = segment_name(timeline, start, archive.segment_bytes)
        self.offset = 0
        self.hash = hashlib.sha256()
        self._size = archive.segment_bytes
        in_memory = archive.segment_bytes <= _IN_MEMORY_BYTES
        self._bytes = bytearray(archive.segment_bytes) if in_memory else None
        self._file = None if in_memory else tempfile.TemporaryFile(dir=archive.scratch, buffering=0)  # noqa: SIM115 - lives as long as the segment

    @property
    def end(self) -> Lsn:
        """Up to where it has arrived."""
        return Lsn(self.start + self.offset)

    @property
    def whole(self) -> bool:
        """Whether all of it has arrived."""
        return self.offset == self._size

    def take(self, data: memoryview, check_at: int, check_sha256: str | None) -> memoryview:
        """Take what belongs to this segment and return the rest.

        Args:
            data: What arrived.
            check_at: An offset whose prefix was archived before.
            check_sha256: The hash of that prefix; None where there is none.

        Raises:
            IntegrityError: the server's WAL differs from what was archived under this name.
        """
        mine, rest = data[: self._size - self.offset], data[self._size - self.offset :]
        while mine:
            piece = mine
            if self.offset < check_at:
                piece = mine[: check_at - self.offset]
            self._keep(piece)
            self.hash.update(piece)
            self.offset += len(piece)
            mine = mine[len(piece) :]
            if self.offset == check_at and check_sha256 is not None and self.hash.hexdigest() != check_sha256:
                raise IntegrityError(
                    f"the server's WAL before {self.end} differs from what is archived as {self.name}: it is another "
                    "cluster with the same system identifier (a clone), or it was rolled back; nothing was overwritten"
                )
        return rest

    def write_to(self, writer: SealedWriter, start: int, end: int) -> None:
        """Write a part of it."""
        for at in range(start, end, _CHUNK_BYTES):
            writer.write(self._read(at, min(at + _CHUNK_BYTES, end)))

    def _keep(self, piece: memoryview) -> None:
        if self._bytes is not None:
            self._bytes[self.offset : self.offset + len(piece)] = piece
        elif self._file is not None:
            try:
                written = os.pwrite(self._file.fileno(), piece, self.offset)
            except OSError as error:
                raise StoreFailed(f"the scratch directory: {error.strerror} (free space there)") from error
            if written != len(piece):
                raise StoreFailed("the scratch directory takes no more WAL (free space there)")

    def _read(self, start: int, end: int) -> bytes:
        if self._bytes is not None:
            return bytes(memoryview(self._bytes)[start:end])
        return os.pread(self._file.fileno(), end - start, start) if self._file is not None else b""
