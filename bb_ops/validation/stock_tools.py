"""Open what is stored with ``age`` and ``zstd`` alone, as somebody would who has the offline key and not bb_ops."""

import hashlib
import shutil
from pathlib import Path

from bb_ops import process
from bb_ops.errors import IntegrityError, KeyRejected, NotMeasured, ProgramFailed
from bb_ops.findings import Outcome
from bb_ops.repository.manifest import ObjectRole, PhysicalCommit
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Receipt
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.sealed import Expected, verify_stored

_TIMEOUT_S = 24 * 3600.0
_SEALED = ".age"


def open_with_stock_tools(
    repository: Repository, commit: PhysicalCommit, segment: Receipt | None, identity: Path, room: Path
) -> tuple[Outcome, str]:
    """Open the smallest archive part of a backup and one WAL segment: ``age -d -i KEY PART | zstd -d``.

    The stored bytes are compared with their signed hash before, and what comes out with the signed size (a part) or
    hash (a segment).

    Args:
        repository: Where they are.
        commit: The backup.
        segment: The record of the WAL segment; None where none is archived.
        identity: The offline key.
        room: A directory for copies; they are removed.

    Raises:
        NotMeasured: a program is missing, or what is stored is not encrypted.
        IntegrityError: the bytes differ.
        KeyRejected: age does not open it with this key.
    """
    missing = [name for name in ("age", "zstd") if shutil.which(name) is None]
    if missing:
        words = " and ".join(missing)
        raise NotMeasured(f"{words} not installed, so nothing was opened without bb_ops: apt-get install age zstd")
    part = min(commit.with_role(ObjectRole.ARCHIVE), key=lambda entry: entry.size_bytes)
    size_bytes, _ = _opened(repository.store, repository.expected(commit, part), identity, room)
    if size_bytes != part.raw_size_bytes:
        raise IntegrityError(f"{part.name} opens to {size_bytes} bytes instead of {part.raw_size_bytes}")
    said = f"age and zstd open {part.name}, {size_bytes} bytes as signed"
    if segment is None:
        return Outcome.PASS, f"{said}; no WAL segment is archived"
    _, sha256 = _opened(repository.store, segment.expected, identity, room)
    if sha256 != segment.raw_sha256:
        raise IntegrityError(f"{segment.name} opens to another file than was signed")
    return Outcome.PASS, f"{said}, and WAL segment {segment.name}, whose SHA-256 is the signed one"


def _opened(store: ObjectStore, expected: Expected, identity: Path, room: Path) -> tuple[int, str]:
    """Return size and hash of what an object holds."""
    if not expected.key.endswith(_SEALED):
        raise NotMeasured(f"{store.url}/{expected.key} is not encrypted, so no key was tried")
    stored, opened = room / "stored.age", room / "opened.zst"
    try:
        with stored.open("wb") as handle:
            verify_stored(store, expected, handle.write)
        try:
            process.run([_program("age"), "-d", "-i", identity, "-o", opened, stored], timeout_s=_TIMEOUT_S)
        except ProgramFailed as error:
            raise KeyRejected(f"{store.url}/{expected.key}: {error}") from error
        digest, size_bytes = hashlib.sha256(), 0
        with process.reading([_program("zstd"), "-q", "-d", "-c", opened], timeout_s=_TIMEOUT_S) as pieces:
            for piece in pieces:
                digest.update(piece)
                size_bytes += len(piece)
    finally:
        stored.unlink(missing_ok=True)
        opened.unlink(missing_ok=True)
    return size_bytes, digest.hexdigest()


def _program(name: str) -> str:
    return shutil.which(name) or name
