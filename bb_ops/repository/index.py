"""What was read before, and need not be read again while nothing has changed: a cache, never a truth.

A row is trusted only while everything that it was made of bears the marks that it bore then (``ObjectStore.marks``: for
files inode, size and time of change, which no write leaves as they were). So an answer is the same with an index, with
an old one, and with none; only the time differs. Stores that give no marks are read anew each time.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bb_ops import __version__
from bb_ops.files import make_directory, write_atomic
from bb_ops.repository.repository import Repository
from bb_ops.storage.base import Marks

_LOGGER = logging.getLogger(__name__)
_FORMAT = 1
_SETTLED_NS = 2_000_000_000
"""Younger changes are not kept: another one in the same tick of a file system's clock (10 ms, NFS 1 s) looks equal."""
_OTHERS = 0o077


class Index:
    """Rows by key, in one private file for a repository and cluster."""

    def __init__(self, path: Path | None, identity: str, now: datetime) -> None:
        """Load what an earlier run left; ``path`` None keeps nothing."""
        self._path = path
        self._identity = identity
        self._settled_before = int(now.timestamp() * 1_000_000_000) - _SETTLED_NS
        self._rows: dict[str, list[Any]] = _load(path, identity) if path is not None else {}
        self._kept: dict[str, list[Any]] = {}

    @classmethod
    def of(cls, repository: Repository, directory: Path | None, now: datetime, form: Sequence[str]) -> "Index":
        """Open the index of a repository's cluster in a folder of caches, which need not exist.

        Rows of another ``form``, the members of what is kept, are not read: no version needs to be counted by hand.
        """
        if directory is None:
            return cls(None, "", now)
        key = repository.public_key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        place = json.dumps([repository.store.url, repository.cluster])
        identity = json.dumps([_FORMAT, __version__, list(form), place, repository.open().repository_id, key])
        name = hashlib.sha256(place.encode()).hexdigest()[:32]
        return cls(directory / f"{name}.index", identity, now)

    def names(self, key: str) -> Any | None:  # noqa: ANN401 - as it was kept
        """Return of what a row was made, so that its marks can be asked for; None where there is no row."""
        row = self._rows.get(key)
        return None if row is None else row[1]

    def find(self, key: str, marks: Marks) -> Any | None:  # noqa: ANN401 - any JSON value
        """Return a row's value, if everything that it was made of is still as it was."""
        row = self._rows.get(key)
        if row is None or row[0] != _digest(marks):
            return None
        self._kept[key] = row
        return row[2]

    def keep(self, key: str, names: object, marks: Marks, value: object) -> None:
        """Keep what was read *after* the marks were taken."""
        if marks.newest_ns < self._settled_before:
            self._kept[key] = [_digest(marks), names, value]

    def save(self) -> None:
        """Write what this run used or read; where that cannot be, the next run reads again."""
        if self._path is None or (self._kept.keys() == self._rows.keys() and self._kept == self._rows):
            return
        body = json.dumps([self._identity, self._kept], separators=(",", ":")).encode()
        with suppress(OSError):
            make_directory(self._path.parent)
            write_atomic(self._path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            _LOGGER.info("index written", extra={"rows": len(self._kept), "size_bytes": len(body)})


def _digest(marks: Marks) -> str:
    return hashlib.blake2b(marks.numbers, digest_size=12).hexdigest()


def _load(path: Path, identity: str) -> dict[str, list[Any]]:
    """Read the file, if it is ours alone, whole, and of this repository; else begin anew."""
    try:
        with path.open("rb") as handle:
            facts = os.fstat(handle.fileno())
            if facts.st_uid != os.geteuid() or facts.st_mode & _OTHERS:
                return {}
            checksum, _, body = handle.read().partition(b"\n")
    except OSError:
        return {}
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        return {}
    found_identity, rows = json.loads(body)
    return rows if found_identity == identity else {}
