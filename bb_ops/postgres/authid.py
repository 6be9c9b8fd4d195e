"""The name of the role that initdb made, read from a data directory that nobody serves.

A copy that came without a word about its roles can only be entered by that name. The files are pg_authid's and the map
of shared relations (relmapper.c, bufpage.h, htup_details.h); the oid has been a plain column since PostgreSQL 12.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

_AUTHID = 1260
_BOOTSTRAP = 10
_PAGE_BYTES = 8192
_MAP_MAGIC = 0x592717
_NAME_BYTES = 64
_NORMAL = 1
_XMAX_AT, _HEADER_LENGTH_AT = 4, 22


def bootstrap_superuser(directory: Path) -> str | None:
    """Return the name of the role with oid 10; None where the files do not show it."""
    try:
        shared = (directory / "global" / "pg_filenode.map").read_bytes()
        data = (directory / "global" / str(_filenode(shared))).read_bytes()
    except (OSError, struct.error):
        return None
    found = [(xmax == 0, name) for oid, xmax, name in _roles(data) if oid == _BOOTSTRAP]
    return max(found, key=lambda one: one[0])[1] if found else None


def _filenode(shared: bytes) -> int:
    magic, count = struct.unpack_from("<ii", shared)
    pairs = dict(struct.iter_unpack("<II", shared[8 : 8 + 8 * count])) if magic == _MAP_MAGIC else {}
    return int(pairs.get(_AUTHID, _AUTHID))


def _roles(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield oid, xmax and name of every version of every role."""
    for start in range(0, len(data), _PAGE_BYTES):
        page = data[start : start + _PAGE_BYTES]
        (lower,) = struct.unpack_from("<H", page, 12)
        for (pointer,) in struct.iter_unpack("<I", page[24:lower]):
            at, flags = pointer & 0x7FFF, (pointer >> 15) & 3
            if flags != _NORMAL:
                continue
            (xmax,) = struct.unpack_from("<I", page, at + _XMAX_AT)
            begin = at + page[at + _HEADER_LENGTH_AT]
            (oid,) = struct.unpack_from("<I", page, begin)
            name = page[begin + 4 : begin + 4 + _NAME_BYTES].rstrip(b"\0")
            yield oid, xmax, name.decode("utf-8", "replace")
