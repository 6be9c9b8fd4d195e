"""Walks a tar stream member by member, without holding it: the form that BASE_BACKUP sends.

PostgreSQL writes plain ustar headers (src/port/tar.c): names under 100 bytes, sizes in octal or base 256.
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass

from bb_ops.errors import IntegrityError

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
_ZERO_BLOCK = bytes(BLOCK_BYTES)


@dataclass(frozen=True)
class Member:
    """One entry of an archive, by its header."""

    name: str
    kind: bytes
    size_bytes: int
    mode: int

    @property
    def padded_bytes(self) -> int:
        """Bytes of content and padding that follow the header."""
        return -(-self.size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def parse_header(block: bytes) -> Member:
    """Read a member's header.

    Raises:
        IntegrityError: it is no tar header, or its checksum is wrong.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise IntegrityError(f"the archive is damaged: {error}") from error
    if info.size < 0:
        raise IntegrityError(f"the archive is damaged: {info.name!r} has a negative size")
    return Member(info.name, info.type, info.size, info.mode)


def file_header(name: str, size_bytes: int, modified_at_s: int) -> bytes:
    """Return the header of a private regular file."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size_bytes, 0o600, modified_at_s
    info.uname = info.gname = "postgres"
    return info.tobuf(tarfile.USTAR_FORMAT)


def directory_header(name: str, modified_at_s: int) -> bytes:
    """Return the header of a private directory."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o700, modified_at_s
    info.uname = info.gname = "postgres"
    return info.tobuf(tarfile.USTAR_FORMAT)


class TarWalker:
    """Splits a stream into headers and content, and hands both on as they arrive."""

    def __init__(self, on_member: Callable[[Member, bytes], None], on_content: Callable[[memoryview], None]) -> None:
        """Call ``on_member`` with each header and its bytes, and ``on_content`` with what follows, padding included."""
        self._on_member = on_member
        self._on_content = on_content
        self._header = bytearray()
        self._left = 0

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes of the archive."""
        while chunk:
            if self._left:
                piece, chunk = chunk[: self._left], chunk[self._left :]
                self._left -= len(piece)
                self._on_content(piece)
                continue
            missing = BLOCK_BYTES - len(self._header)
            self._header += chunk[:missing]
            chunk = chunk[missing:]
            if len(self._header) == BLOCK_BYTES:
                self._begin(bytes(self._header))
                self._header.clear()

    def finish(self) -> None:
        """Prove that the archive did not end inside a member.

        Raises:
            IntegrityError: it did.
        """
        if self._left or self._header:
            raise IntegrityError("the archive ends inside a member")

    def _begin(self, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            return
        member = parse_header(block)
        self._left = member.padded_bytes
        self._on_member(member, block)
