"""The head of pg_dump's archives: what they were made from, and by what (pg_backup_archiver.c, ReadHead)."""

import re
from dataclasses import dataclass

from bb_ops.errors import IntegrityError

MAGIC = b"PGDMP"
_HAS_REVISION = (1, 1)
_HAS_ALGORITHM = (1, 15)
_OLDEST = (1, 10)
_TIME_FIELDS = 7
_LONGEST_TEXT = 4096
_MAJOR = re.compile(r"(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Origin:
    """Where a dump comes from.

    Attributes:
        database: The database that it holds; None where it does not say.
        server_major: The source's major version; None likewise.
        client_major: The version of the pg_dump that wrote it; its output suits no older server.
    """

    database: str | None
    server_major: int | None
    client_major: int | None

    @property
    def least_major(self) -> int | None:
        """The oldest major version that takes it; None where it does not say."""
        return max((one for one in (self.server_major, self.client_major) if one is not None), default=None)


def major_of(version: str | None) -> int | None:
    """Return the major version in a text such as ``15.18 (Debian …)``; all of 9.x count as 9."""
    found = _MAJOR.match(version or "")
    return int(found[1]) if found else None


def read_archive_header(head: bytes) -> Origin:
    """Read an archive's first bytes, a few KiB at most.

    Raises:
        IntegrityError: it is cut there, or of a form that we do not know.
    """
    try:
        return _Header(head).origin()
    except (IndexError, ValueError) as error:
        raise IntegrityError("the dump is damaged: its header cannot be read") from error


class _Header:
    def __init__(self, head: bytes) -> None:
        if not head.startswith(MAGIC):
            raise ValueError("no archive")
        self._head = head
        self._at = len(MAGIC)
        self._int_bytes = 4

    def origin(self) -> Origin:
        version = self._byte(), self._byte()
        if version >= _HAS_REVISION:
            self._byte()
        if version < _OLDEST:
            raise ValueError("older than PostgreSQL 8.0")
        self._int_bytes = self._byte()
        self._byte(), self._byte()  # the size of offsets, and the format
        if version >= _HAS_ALGORITHM:
            self._byte()
        else:
            self._int()
        for _ in range(_TIME_FIELDS):
            self._int()
        database, server, client = self._text(), self._text(), self._text()
        return Origin(database, major_of(server), major_of(client))

    def _byte(self) -> int:
        self._at += 1
        return self._head[self._at - 1]

    def _int(self) -> int:
        negative = self._byte()
        value = sum(self._byte() << (8 * place) for place in range(self._int_bytes))
        return -value if negative else value

    def _text(self) -> str | None:
        length = self._int()
        if length < 0:
            return None
        if length > _LONGEST_TEXT or self._at + length > len(self._head):
            raise ValueError("no text")
        self._at += length
        return self._head[self._at - length : self._at].decode("utf-8", "replace")
