"""Archived WAL: its keys and its signed records. Documented in repository-format.md.

A segment exists once its sealed object *and* a signed record of its hashes do: the receipt that its writer leaves, or a
seal that took the receipt's place. What is named by neither is a leftover.
"""

from typing import Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from bb_ops.errors import AlreadyExists, IntegrityError
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.timelines import Ancestor
from bb_ops.repository import layout
from bb_ops.repository.repository import Repository
from bb_ops.repository.signing import open_document, sign_document
from bb_ops.storage.sealed import Expected

_LSN_DIGITS = 16
POSITIONS = "positions"
_HISTORY = ".history"
_HEX32 = 0x1_0000_0000
_T = TypeVar("_T", bound="WalRecord")


class WalRecord(Value):
    """What every signed record of WAL says."""

    cluster: str
    system_id: str = Field(pattern="^[0-9]+$")
    timeline: int = Field(ge=1)

    @property
    def key(self) -> str:
        """Where it is stored."""
        raise NotImplementedError


class Receipt(WalRecord):
    """One whole segment, or one history file, that is stored.

    Attributes:
        name: The file's name in ``pg_wal``.
        size_bytes: As stored.
        sha256: Of the stored bytes, in hexadecimal.
        raw_sha256: Of the file itself: two different files never pass for the same.
        at: Everything committed before this instant lies before the segment's end; None where it was not measured.
        ancestors: What a history file says, so that windows can be told without a key that opens it.
    """

    schema_id: Literal["bb-ops/wal-receipt/1"] = "bb-ops/wal-receipt/1"
    name: str = Field(pattern=r"^([0-9A-F]{24}|[0-9A-F]{8}\.history)$")
    suffix: Literal[".zst.age", ".zst"]
    size_bytes: int
    raw_size_bytes: int
    sha256: str
    raw_sha256: str
    at: AwareDatetime | None = None
    ancestors: tuple[Ancestor, ...] = ()

    @property
    def key(self) -> str:
        """Where it is stored."""
        return receipt_key(self.cluster, self.system_id, self.timeline, self.name)

    @property
    def expected(self) -> Expected:
        """What the file's object must be."""
        key = file_key(self.cluster, self.system_id, self.timeline, f"{self.name}{self.suffix}")
        return Expected(key, self.size_bytes, self.raw_size_bytes, self.sha256)


class Piece(Value):
    """A stored piece of a segment that is not whole yet."""

    name: str
    from_offset: int
    to_offset: int
    size_bytes: int
    sha256: str


class Position(WalRecord):
    """How far the WAL is durable: everything before ``lsn``.

    Attributes:
        segment: The unfinished segment, made of ``pieces`` in order; None where ``lsn`` is a segment's border.
        raw_sha256: Of that segment's bytes before ``lsn``.
        at: Everything committed before this instant lies before ``lsn``; None where it was not measured.
        written_ms: When it was written, in milliseconds since 1970; with ``lsn`` its name.
    """

    schema_id: Literal["bb-ops/wal-position/1"] = "bb-ops/wal-position/1"
    lsn: Lsn
    segment_bytes: int
    segment: str | None
    pieces: tuple[Piece, ...]
    raw_sha256: str | None
    at: AwareDatetime | None
    written_ms: int
    server_major: int

    @property
    def key(self) -> str:
        """Where it is stored."""
        prefix = positions_prefix(self.cluster, self.system_id, self.timeline)
        return f"{prefix}{self.lsn:0{_LSN_DIGITS}X}-{self.written_ms:013d}.json"

    def expected(self, piece: Piece) -> Expected:
        """Return what a piece's object must be."""
        key = file_key(self.cluster, self.system_id, self.timeline, piece.name)
        return Expected(key, piece.size_bytes, piece.to_offset - piece.from_offset, piece.sha256)


class SpanSegment(Value):
    """One segment of a sealed span; see ``Receipt``."""

    name: str
    suffix: Literal[".zst.age", ".zst"]
    size_bytes: int
    sha256: str
    raw_sha256: str
    at: AwareDatetime | None = None


class Span(WalRecord):
    """A sealed span: every segment between two positions is durable, and joins what came before.

    Attributes:
        continues: What it joins: the id of a span or a full backup; None where it begins the archive.
        from_at: The instant of ``from_lsn``, where known.
        to_at: Everything committed before this instant lies before ``to_lsn``.
        slot: The hour it was sealed in.
    """

    schema_id: Literal["bb-ops/wal-span/1"] = "bb-ops/wal-span/1"
    id: str
    kind: Literal["wal"] = "wal"
    engine: str
    slot: str
    server_version: str
    from_lsn: Lsn
    to_lsn: Lsn
    segment_bytes: int
    from_at: AwareDatetime | None
    to_at: AwareDatetime | None
    continues: str | None
    segments: tuple[SpanSegment, ...]
    started_at: AwareDatetime
    stopped_at: AwareDatetime
    duration_s: float
    bb_ops_version: str

    @property
    def key(self) -> str:
        """Where it is stored."""
        return span_key(self.cluster, self.system_id, self.timeline, self.from_lsn, self.to_lsn)

    @property
    def size_bytes(self) -> int:
        """Bytes of WAL."""
        return len(self.segments) * self.segment_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes that the segments take in a repository."""
        return sum(entry.size_bytes for entry in self.segments)

    def receipt(self, segment: SpanSegment) -> Receipt:
        """Return what the receipt of one of its segments said."""
        return Receipt(
            cluster=self.cluster,
            system_id=self.system_id,
            timeline=self.timeline,
            raw_size_bytes=self.segment_bytes,
            **segment.model_dump(),
        )


class Gap(WalRecord):
    """WAL that is lost: no restore passes it."""

    schema_id: Literal["bb-ops/wal-gap/1"] = "bb-ops/wal-gap/1"
    from_lsn: Lsn
    to_lsn: Lsn
    reason: str
    found_at: AwareDatetime

    @property
    def key(self) -> str:
        """Where it is stored."""
        return gap_key(self.cluster, self.system_id, self.timeline, self.from_lsn, self.to_lsn)

    def __str__(self) -> str:
        """Say it in one line."""
        return f"WAL from {self.from_lsn} to {self.to_lsn} on timeline {self.timeline} is missing: {self.reason}"


def wal_prefix(cluster: str, system_id: str) -> str:
    """Return the prefix of a system's WAL."""
    return f"{layout.cluster_prefix(cluster)}{system_id}/wal/"


def timeline_prefix(cluster: str, system_id: str, timeline: int) -> str:
    """Return the prefix of one timeline's WAL."""
    return f"{wal_prefix(cluster, system_id)}{timeline:08X}/"


def log_prefix(cluster: str, system_id: str, timeline: int, log: int) -> str:
    """Return the prefix of the segments of one WAL log number: 4 GiB of WAL."""
    return f"{timeline_prefix(cluster, system_id, timeline)}{log:08X}/"


def file_key(cluster: str, system_id: str, timeline: int, name: str) -> str:
    """Return the key of what belongs to a segment, in the folder of its log number, or to a history file."""
    prefix = timeline_prefix(cluster, system_id, timeline)
    return f"{prefix}{name}" if _HISTORY in name else f"{prefix}{name[8:16]}/{name}"


def positions_prefix(cluster: str, system_id: str, timeline: int) -> str:
    """Return the prefix of one timeline's position records."""
    return f"{timeline_prefix(cluster, system_id, timeline)}{POSITIONS}/"


def receipt_key(cluster: str, system_id: str, timeline: int, name: str) -> str:
    """Return the key of the receipt of a segment or history file."""
    return file_key(cluster, system_id, timeline, f"{name}.json")


def span_key(cluster: str, system_id: str, timeline: int, start: Lsn, end: Lsn) -> str:
    """Return the key of a sealed span."""
    prefix = timeline_prefix(cluster, system_id, timeline)
    return f"{prefix}seal-{start:0{_LSN_DIGITS}X}-{end:0{_LSN_DIGITS}X}.json"


def gap_key(cluster: str, system_id: str, timeline: int, start: Lsn, end: Lsn) -> str:
    """Return the key of a gap record."""
    prefix = timeline_prefix(cluster, system_id, timeline)
    return f"{prefix}gap-{start:0{_LSN_DIGITS}X}-{end:0{_LSN_DIGITS}X}.json"


def segment_number(name: str, segment_bytes: int) -> int:
    """Return which segment of its timeline a file is."""
    return int(name[8:16], 16) * (_HEX32 // segment_bytes) + int(name[16:24], 16)


def segment_position(name: str, segment_bytes: int) -> Lsn:
    """Return the position of a segment's first byte."""
    return Lsn(segment_number(name, segment_bytes) * segment_bytes)


def write_record(repository: Repository, record: WalRecord) -> bytes:
    """Store a signed record, once.

    Raises:
        AlreadyExists: there is one.
    """
    document = sign_document(record.model_dump(mode="json"), repository.signing_key)
    repository.store.create(record.key, document)
    return document


def write_or_read(repository: Repository, record: _T) -> _T:
    """Store a signed record, or return the one that is there."""
    for _ in range(3):
        try:
            write_record(repository, record)
        except AlreadyExists:
            found = read_record(repository, record.key, type(record))
            if found is not None:
                return found
        else:
            return record
    raise IntegrityError(f"{repository.store.url}/{record.key} comes and goes")


def read_record(repository: Repository, key: str, kind: type[_T]) -> _T | None:
    """Read and authenticate a record; None where there is none.

    Raises:
        IntegrityError: it is damaged, or that of another place.
        KeyRejected: it is not signed by our key.
    """
    data = repository.store.read(key)
    return None if data is None else parse_record(repository, data, key, kind)


def parse_record(repository: Repository, data: bytes, key: str, kind: type[_T]) -> _T:
    """Authenticate the bytes of the record stored at ``key``."""
    where = f"{repository.store.url}/{key}"
    body = open_document(data, where, repository.public_key)
    try:
        record = kind.model_validate(body)
    except ValidationError as error:
        raise IntegrityError(f"{where} is signed but not a record of a format that we know") from error
    if record.key != key:
        raise IntegrityError(f"{where} is the record of another place, {record.key}: it was moved")
    return record


def segments_of(timeline: int, start: Lsn, end: Lsn, segment_bytes: int) -> list[str]:
    """Return the names of the segments from ``start``, a border, up to ``end``, another one."""
    return [segment_name(timeline, Lsn(at), segment_bytes) for at in range(start, end, segment_bytes)]
