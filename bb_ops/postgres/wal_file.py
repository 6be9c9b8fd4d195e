"""What a WAL file says of itself in its first page (xlog_internal.h, XLogLongPageHeaderData)."""

import struct
from dataclasses import dataclass

from bb_ops.errors import IntegrityError
from bb_ops.postgres.lsn import Lsn, segment_name

_HEADER = struct.Struct("=HHIQI4xQII")
HEADER_BYTES = _HEADER.size
_LONG_HEADER = 0x0002
_MAJORS = {0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}
"""XLOG_PAGE_MAGIC of each major version."""
KNOWN_MAJORS = f"{min(_MAJORS.values())} to {max(_MAJORS.values())}"


@dataclass(frozen=True)
class WalFileHeader:
    """Whose file it is, and which."""

    major: int | None
    start: Lsn
    system_id: str
    segment_bytes: int


def read_header(name: str, first: bytes) -> WalFileHeader:
    """Read the first page's header and prove that it is the file that its name says.

    Raises:
        IntegrityError: it is no WAL file of this byte order, or another one.
    """
    if len(first) < HEADER_BYTES:
        raise IntegrityError(f"{name} is too short to be a WAL file")
    magic, info, _, start, _, system_id, segment_bytes, _ = _HEADER.unpack_from(first)
    sizes = range(20, 31)
    if magic >> 8 != 0xD1 or not info & _LONG_HEADER or segment_bytes not in {1 << bits for bits in sizes}:  # noqa: PLR2004
        raise IntegrityError(f"{name} does not begin as a WAL file")
    timeline = int(name[:8], 16)
    if segment_name(timeline, Lsn(start), segment_bytes) != name:
        raise IntegrityError(
            f"{name} holds the WAL of {segment_name(timeline, Lsn(start), segment_bytes)}: it was renamed"
        )
    return WalFileHeader(_MAJORS.get(magic), Lsn(start), str(system_id), segment_bytes)
