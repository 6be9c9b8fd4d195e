"""Keeps WAL in a second region in step with the first: what only one of them holds does not count as durable."""

from contextlib import suppress

from bb_ops.errors import BbOpsError
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Position, Receipt, WalRecord
from bb_ops.repository.wal_copy import copy_object, copy_record
from bb_ops.storage.sealed import Expected


class SecondRegion:
    """Copies what has just been recorded, byte for byte, and re-hashes it where it arrives. Safe to repeat."""

    def __init__(self, first: Repository, second: Repository) -> None:
        """Name both; the second one exists."""
        self._first = first
        self._second = second
        self._pieces: set[str] = set()

    def file(self, receipt: Receipt) -> None:
        """Copy a segment or history file, then its receipt; where a span took that over, the span follows with sync.

        Raises:
            StoreFailed: one of the regions is away.
            IntegrityError: the bytes differ from the signed hash, or the second region holds another record.
        """
        copy_object(self._first, self._second, receipt.expected)
        self._record(receipt)

    def position(self, position: Position) -> None:
        """Copy the unfinished segment's pieces, then the record of how far all is durable; raises like ``file``."""
        for piece in position.pieces:
            self._piece(position.expected(piece))
        self._record(position)

    def remove(self, key: str) -> None:
        """Remove what was superseded in the first; where the store does not let us, it stays."""
        self._pieces.discard(key)
        with suppress(BbOpsError):
            self._second.store.delete(key)

    def _piece(self, expected: Expected) -> None:
        if expected.key not in self._pieces:
            copy_object(self._first, self._second, expected)
            self._pieces.add(expected.key)

    def _record(self, record: WalRecord) -> None:
        copy_record(self._first, self._second, record.key, type(record))
