"""Bring archived WAL back: whole files, checked against their signed hashes, as a restore needs them in one folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bb_ops.errors import IntegrityError, UsageError
from bb_ops.files import fsync_directory, make_directory, partial_path
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.timelines import history_name
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Position, Receipt
from bb_ops.repository.wal_listing import TimelineWal
from bb_ops.storage.sealed import open_sealed


class FetchedWal(Value):
    """What was brought back.

    Attributes:
        files: Segments and history files, in order.
        to_lsn: Up to where the newest timeline's WAL reaches.
    """

    schema_id: str = "bb-ops/fetched-wal/1"
    system_id: str
    directory: Path
    files: tuple[str, ...]
    timeline: int | None
    to_lsn: str | None


@dataclass
class _Hashing:
    """Hashes what passes."""

    handle: IO[bytes]

    def __post_init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self.hash.update(data)
        self.handle.write(data)
        return len(data)


def fetch_all(repository: Repository, system_id: str, directory: Path, start: Lsn | None = None) -> FetchedWal:
    """Write all archived WAL of a system, from the segment that holds ``start`` on, into a folder. Safe to repeat.

    The unfinished segment is filled up with zeros, as PostgreSQL does itself.

    Raises:
        IntegrityError: a file differs from its signed hash; it is not written.
    """
    make_directory(directory)
    files: list[str] = []
    newest: Position | None = None
    for timeline, listing in wal_reader.read_timelines(repository, system_id).items():
        position = wal_reader.timeline_position(repository, system_id, timeline)
        newest = position or newest
        if listing.history:
            files.append(_fetch_history(repository, system_id, timeline, directory))
        size = wal_reader.segment_size(repository, system_id, listing) or 1
        reader = wal_reader.ReceiptReader(repository, listing, system_id, size)
        for name in sorted(listing.stored):
            receipt = reader.receipt(name)
            if receipt is None:
                continue
            if start is None or wal.segment_position(name, receipt.raw_size_bytes) + receipt.raw_size_bytes > start:
                write_file(repository, receipt, directory / name)
                files.append(name)
        if position is not None and position.segment is not None and position.segment not in listing.stored:
            write_unfinished(repository, position, directory / position.segment)
            files.append(position.segment)
    return FetchedWal(
        system_id=system_id,
        directory=directory,
        files=tuple(files),
        timeline=newest.timeline if newest else None,
        to_lsn=str(newest.lsn) if newest else None,
    )


def fetch_file(repository: Repository, system_id: str, name: str, path: Path) -> bool:
    """Write one archived file, as ``restore_command`` asks for it; False where it is really absent.

    Raises:
        IntegrityError, KeyRejected, StoreFailed: it could not be read: a recovery must not end here as if it were done.
    """
    timeline = _timeline_of(name)
    if name == history_name(timeline):
        listing = TimelineWal(timeline)
        receipt = wal_reader.read_receipt(repository, listing, system_id, name, 1)
        if receipt is not None:
            write_file(repository, receipt, path)
        return receipt is not None
    spans = wal_reader.read_spans(repository, system_id, timeline)
    size = wal_reader.segment_size(repository, system_id, spans) or 1
    receipt = wal_reader.read_receipt(repository, spans, system_id, name, size)
    if receipt is not None:
        write_file(repository, receipt, path)
        return True
    position = wal_reader.timeline_position(repository, system_id, timeline)
    if position is not None and position.segment == name:
        write_unfinished(repository, position, path)
        return True
    return False


def _timeline_of(name: str) -> int:
    try:
        return int(name[:8], 16)
    except ValueError as error:
        raise UsageError(f"{name!r} is no WAL file name") from error


def _fetch_history(repository: Repository, system_id: str, timeline: int, directory: Path) -> str:
    name = history_name(timeline)
    receipt = wal_reader.read_receipt(repository, TimelineWal(timeline), system_id, name, 1)
    if receipt is None:
        raise IntegrityError(f"{repository.store.url}: the receipt of {name} is gone")
    write_file(repository, receipt, directory / name)
    return name


def write_file(repository: Repository, receipt: Receipt, path: Path, *, durable: bool = True) -> None:
    """Write a whole segment or a history file, atomically.

    Raises:
        IntegrityError: it differs from its signed hash; nothing is written.
        KeyRejected: our identities do not open it.
    """
    temporary = partial_path(path)
    identities = repository.identities if receipt.suffix.endswith(".age") else ()
    try:
        with temporary.open("wb") as handle:
            sink = _Hashing(handle)
            open_sealed(repository.store, receipt.expected, identities, sink)
        if sink.hash.hexdigest() != receipt.raw_sha256:
            raise IntegrityError(f"{repository.store.url}/{receipt.expected.key} opens to another file than was signed")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_directory(path.parent)


def write_unfinished(repository: Repository, position: Position, path: Path, *, durable: bool = True) -> None:
    """Put an unfinished segment together from its pieces, filled up with zeros; see ``write_file``."""
    temporary = partial_path(path)
    try:
        with temporary.open("wb") as handle:
            sink = _Hashing(handle)
            for piece in position.pieces:
                expected = position.expected(piece)
                identities = repository.identities if expected.key.endswith(".age") else ()
                open_sealed(repository.store, expected, identities, sink)
            handle.truncate(position.segment_bytes)
        if sink.hash.hexdigest() != position.raw_sha256:
            raise IntegrityError(
                f"{repository.store.url}: the pieces of {position.segment} make another file than signed"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_directory(path.parent)
