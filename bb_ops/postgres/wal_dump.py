"""What pg_waldump says of the records of the write-ahead log, read as it comes.

The form of its lines was measured on PostgreSQL 15, 17 and 18; that of 16 is the same by its source (rmgrdesc).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bb_ops import process
from bb_ops.errors import NotMeasured, ProgramFailed
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import Programs

MAJORS = (15, 16, 17, 18)
"""Whose WAL can be read here: since 15, commit records name the statistics of what was dropped."""
_TIMEOUT_S = 24 * 3600.0
_PAGE_BYTES = 8192
_LONG_HEADER_BYTES = 40
_SHORT_HEADER_BYTES = 24
_ALIGNMENT_BYTES = 8
_BASE, _GLOBAL = 1663, 1664
_LINE = re.compile(
    r"rmgr: (\w+) +len \(rec/tot\): *\d+/ *(\d+), tx: *(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), "
    r"prev [0-9A-F]+/[0-9A-F]+, desc: (.*)",
    re.ASCII,
)
_MANAGER_AT = len("rmgr: ")
_TEXT = b"desc: "
_ENDED = re.compile(
    r"error in WAL record at ([0-9A-F]+/[0-9A-F]+)|could not find a valid record after |could not find file "
)
_BLOCK = re.compile(r"blkref #0: rel (\d+)/(\d+)/(\d+)(?: fork \w+)? blk (\d+)")
_END = re.compile(
    r"(COMMIT|COMMIT_PREPARED|ABORT|ABORT_PREPARED)(?: (\d+):)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC"
)
_PATH = re.compile(r"(?:base/(\d+)|pg_tblspc/(\d+)/[^/ ]+/(\d+)|global)/(\d+)(?:_\w+)?")
_CATCACHE = re.compile(r"catcache (\d+)")
_STATISTICS = re.compile(r"(\d+)/(\d+)/(\d+)")


Wanted = Mapping[str, tuple[str, ...]]
"""The resource managers whose records are wanted, and how these begin; every record of one where that is empty."""


class RelationFile(NamedTuple):
    """The file of a table, an index or a sequence: its tablespace, its database, its number (relfilenode)."""

    tablespace: int
    database: int
    number: int

    def __str__(self) -> str:
        """Name the database and the file, which is all that WAL says."""
        return f"{self.database}/{self.number}"


class Statistics(NamedTuple):
    """An entry of the cumulative statistics: of a database (kind 1), of a relation (kind 2)."""

    kind: int
    database: int
    oid: int


class Record(NamedTuple):
    """One record.

    Attributes:
        size_bytes: Its length with full-page images; page headers come in addition.
        text: What pg_waldump says of it.
    """

    manager: str
    xid: int
    lsn: Lsn
    size_bytes: int
    text: str


@dataclass(frozen=True)
class TransactionEnd:
    """What a commit or abort record says.

    Attributes:
        xid: The top-level transaction, also where it was prepared and somebody else ended it.
        files: Files that go with it, in the reverse of the order in which they were given up.
        dropped: Statistics that go with it, one of each relation or database that was dropped.
        caches: How many entries of each system catalog cache it makes invalid, by the cache's number.
    """

    committed: bool
    xid: int
    at: datetime
    subtransactions: tuple[int, ...]
    files: tuple[RelationFile, ...]
    dropped: tuple[Statistics, ...]
    caches: dict[int, int]


def parse_line(line: str) -> Record | None:
    """Read one line; None for what is no record. Pure."""
    found = _LINE.match(line)
    if found is None:
        return None
    return Record(found[1], int(found[3]), Lsn.parse(found[4]), int(found[2]), found[5])


def parse_end(record: Record) -> TransactionEnd | None:
    """Read the end of a transaction; None for other records. Pure."""
    found = _END.match(record.text) if record.manager == "Transaction" else None
    if found is None:
        return None
    parts: dict[str, str] = {}
    for part in record.text[found.end() :].split("; "):
        name, _, value = part.partition(": ")
        parts.setdefault(name, value)
    caches: dict[int, int] = {}
    for number in _CATCACHE.findall(parts.get("inval msgs", "")):
        caches[int(number)] = caches.get(int(number), 0) + 1
    return TransactionEnd(
        committed=found[1].startswith("COMMIT"),
        xid=int(found[2] or record.xid),
        at=datetime.strptime(found[3], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC),
        subtransactions=tuple(int(word) for word in parts.get("subxacts", "").split()),
        files=tuple(file for word in parts.get("rels", "").split() if (file := parse_path(word)) is not None),
        dropped=tuple(Statistics(*map(int, words)) for words in _STATISTICS.findall(parts.get("dropped stats", ""))),
        caches=caches,
    )


def parse_path(path: str) -> RelationFile | None:
    """Read a file's path below the data directory, as ``pg_relation_filepath`` gives it; None for others. Pure."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    if found[1]:
        return RelationFile(_BASE, int(found[1]), int(found[4]))
    if found[2]:
        return RelationFile(int(found[2]), int(found[3]), int(found[4]))
    return RelationFile(_GLOBAL, 0, int(found[4]))


def first_block(record: Record) -> tuple[RelationFile, int] | None:
    """Return the file and the block that a record changes first; None where it changes none. Pure."""
    found = _BLOCK.search(record.text)
    if found is None:
        return None
    return RelationFile(int(found[1]), int(found[2]), int(found[3])), int(found[4])


def end_of(record: Record, segment_bytes: int) -> Lsn:
    """Return where a record ends, as PostgreSQL counts it (xlogreader.c: aligned, with the headers of its pages)."""
    at, left = int(record.lsn), record.size_bytes
    while left > (room := _PAGE_BYTES - at % _PAGE_BYTES):
        left -= room
        at += room
        at += _LONG_HEADER_BYTES if at % segment_bytes == 0 else _SHORT_HEADER_BYTES
    at += left
    return Lsn(at + -at % _ALIGNMENT_BYTES)


def precedes(xid: int, other: int) -> bool:
    """Say whether a transaction's number was given out before another's; they begin anew after 2^32 (transam.c)."""
    return (xid - other) % (1 << 32) >= 1 << 31


def pg_waldump(programs: Programs) -> Path:
    """Return the program.

    Raises:
        NotMeasured: it is missing, or WAL of this major version cannot be read here.
    """
    if programs.major not in MAJORS:
        raise NotMeasured(
            f"WAL of PostgreSQL {programs.major} cannot be searched: known are {MAJORS[0]} to {MAJORS[-1]}"
        )
    return programs.path("pg_waldump")


class Dump:
    """The records of a stretch of WAL.

    Attributes:
        ended_at: The last whole record, where WAL ended before the stretch did; None while it has not.
    """

    def __init__(self, pieces: Iterable[bytes], wanted: Wanted) -> None:
        """Read what pg_waldump writes, and of that what is wanted."""
        self._pieces = pieces
        self._beginnings = {
            name.encode(): tuple(word.encode() for word in words) for name, words in wanted.items() if words
        }
        self.ended_at: Lsn | None = None

    def __iter__(self) -> Iterator[Record]:
        """Yield the records as they come.

        Raises:
            ProgramFailed: pg_waldump failed for another reason than the end of the WAL.
        """
        last = Lsn(0)
        try:
            for line in _lines(self._pieces):
                if not self._wants(line):
                    continue
                record = parse_line(line.decode("utf-8", errors="replace"))
                if record is not None:
                    last = record.lsn
                    yield record
        except ProgramFailed as error:
            found = _ENDED.search(str(error))
            if found is None:
                raise
            self.ended_at = Lsn.parse(found[1]) if found[1] else last

    def _wants(self, line: bytes) -> bool:
        """Look at a line before it is read: of many records few are wanted."""
        beginnings = self._beginnings.get(line[_MANAGER_AT : line.find(b" ", _MANAGER_AT)])
        return beginnings is None or line.startswith(beginnings, line.find(_TEXT) + len(_TEXT))


@contextmanager
def dumping(  # noqa: PLR0913 - each is a separate fact
    programs: Programs, directory: Path, timeline: int, start: Lsn, end: Lsn, wanted: Wanted
) -> Iterator[Dump]:
    """Run pg_waldump over the segments in a folder; who leaves the block before its end stops it.

    Args:
        programs: Of the major version that wrote the WAL.
        directory: Where the segments are.
        timeline: In their names.
        start: The border of a segment; a record that begins before it is passed over.
        end: The border of a segment up to which there are files.
        wanted: Which records; every one where it is empty.

    Raises:
        NotMeasured: as ``pg_waldump``.
    """
    argv: list[str | Path] = [
        pg_waldump(programs),
        f"--path={directory}",
        f"--timeline={timeline}",
        f"--start={start}",
        f"--end={end}",
        *(f"--rmgr={name}" for name in wanted),
    ]
    with process.reading(argv, timeout_s=_TIMEOUT_S) as pieces:
        yield Dump(pieces, wanted)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest
