"""Positions in the write-ahead log, and the files that hold them (PostgreSQL manual, 28.6 WAL Internals)."""

import re
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_LONG_PAGE_HEADER_BYTES = 40
_SHORT_PAGE_HEADER_BYTES = 24
_PAGE_BYTES = 8192
_POSITION = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


class Lsn(int):
    """A byte position in the write-ahead log; prints as PostgreSQL does (``16/B374D848``)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``X/Y`` in hexadecimal.

        Raises:
            ValueError: the text is not a position.
        """
        found = _POSITION.fullmatch(text)
        if found is None:
            raise ValueError(f"not a WAL position: {text!r}")
        return cls((int(found[1], 16) << 32) | int(found[2], 16))

    def __str__(self) -> str:
        """Print as PostgreSQL does."""
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        """Name the type and the position."""
        return f"Lsn({self})"

    def segment_start(self, segment_bytes: int) -> "Lsn":
        """Return the position of the first byte of the segment that holds this one."""
        return Lsn(self - self % segment_bytes)

    def without_page_header(self, segment_bytes: int) -> "Lsn":
        """Return where the WAL before this position ends.

        An insert position at the start of a page already counts the page's header, which is not written before the
        first record of the page is (xlog.c, XLogBytePosToRecPtr and XLogBytePosToEndRecPtr).
        """
        header = _LONG_PAGE_HEADER_BYTES if self % segment_bytes < _PAGE_BYTES else _SHORT_PAGE_HEADER_BYTES
        return Lsn(self - header) if self % _PAGE_BYTES == header else Lsn(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        """Cross the process boundary as text."""
        del source, handler
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(str(value)),
            serialization=core_schema.to_string_ser_schema(),
        )


def segment_name(timeline: int, position: Lsn, segment_bytes: int) -> str:
    """Return the name of the WAL file that holds ``position`` (24 hexadecimal digits)."""
    per_log = 0x1_0000_0000 // segment_bytes
    number = position // segment_bytes
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"
