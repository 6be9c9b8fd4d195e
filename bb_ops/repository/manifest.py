"""The commit of a backup: what it is, which objects it has, and their hashes. Plain to read, signed, no secrets."""

from abc import abstractmethod
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, model_validator

from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey


class ObjectRole(StrEnum):
    """What an object of a backup is."""

    ARCHIVE = "archive"
    MANIFEST = "backup_manifest"
    FINGERPRINTS = "fingerprints"
    DUMP = "dump"
    CONTENTS = "contents"
    SCHEMA = "schema"
    GLOBALS = "globals"


_PAYLOAD = frozenset({ObjectRole.ARCHIVE, ObjectRole.DUMP, ObjectRole.SCHEMA, ObjectRole.GLOBALS})
"""What is restored; the other roles describe it."""


class StoredObject(Value):
    """One object of a backup.

    Attributes:
        name: Below the backup's prefix.
        size_bytes: As stored.
        raw_size_bytes: Before compression and encryption.
        sha256: Of the stored bytes, in hexadecimal.
        tablespace_oid: For a part of a tablespace's archive; None for the main data directory.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
    role: ObjectRole
    size_bytes: int = Field(ge=0)
    raw_size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tablespace_oid: int | None = None


class StoredTablespace(Value):
    """A tablespace outside the data directory, and where it was at the source."""

    oid: int
    location: str


class BackupCommit(Value):
    """What every ``COMMIT.json`` says; the backup exists from the moment it is written.

    Attributes:
        started_at: When the work began, by our clock.
        stopped_at: When the last byte was stored.
        as_of: The instant whose state a restore shows.
        slot: The slot that it represents: a day's, or a week's for a schema.
        reconstructed: Made from the archive after its slot was over, not live.
        superuser: The role that initdb made, by whose name a restored server can always be entered.
        encryption: ``age``, or ``none`` by explicit wish.
        recipients: The age public keys that open it.
    """

    schema_id: str
    id: BackupId
    kind: BackupKind
    engine: str
    cluster: str
    system_id: str = Field(pattern="^[0-9]+$")
    server_version: str
    server_major: int
    superuser: str
    slot: SlotKey
    reconstructed: bool = False
    started_at: AwareDatetime
    stopped_at: AwareDatetime
    as_of: AwareDatetime
    duration_s: float
    encryption: Literal["age", "none"]
    recipients: tuple[str, ...]
    compression: str
    objects: tuple[StoredObject, ...]
    bb_ops_version: str

    @property
    @abstractmethod
    def position(self) -> Lsn:
        """Where it stands in the write-ahead log, for ordering: names and clocks never order."""

    @property
    def stored_bytes(self) -> int:
        """Bytes that the backup takes in a repository, without its commit."""
        return sum(entry.size_bytes for entry in self.objects)

    @property
    def size_bytes(self) -> int:
        """Bytes of what a restore reads, before compression."""
        return sum(entry.raw_size_bytes for entry in self.objects if entry.role in _PAYLOAD)

    def with_role(self, role: ObjectRole) -> tuple[StoredObject, ...]:
        """Return the objects of one role."""
        return tuple(entry for entry in self.objects if entry.role == role)

    def late_s(self, opened_at: datetime) -> float:
        """Return how many seconds after its slot opened the backup began."""
        return (self.started_at - opened_at).total_seconds()


class PhysicalCommit(BackupCommit):
    """The commit of a data directory's backup, which write-ahead log can carry forward.

    Attributes:
        as_of: The fingerprints' anchor, else the backup's end: what a restore without further WAL shows.
        start_lsn: Where replay begins.
        end_lsn: The least position at which a restored copy is consistent.
        wal_end_lsn: Up to where the WAL inside the backup reaches; a restore ends exactly there.
        data_checksums: Whether the server checked page checksums while it sent the pages.
        parent_id: The backup whose blocks an increment builds on; None for a full.
        depth: How many increments a restore applies: 0 for a full, its parent's and one more for an increment.
        cluster_bytes: What the server held when it was asked, an estimate of what a restore leaves; None where it did
            not say.
        fallback_reason: Why this full was taken where an increment was asked for.
        combined_from: The chain, full first, that a synthetic full was made of with pg_combinebackup; empty where the
            server sent the backup.
    """

    schema_id: Literal["bb-ops/backup-commit/1"] = "bb-ops/backup-commit/1"
    kind: Literal[BackupKind.FULL, BackupKind.INCREMENTAL]
    timeline: int
    start_lsn: Lsn
    end_lsn: Lsn
    wal_end_lsn: Lsn
    wal_segment_bytes: int
    data_checksums: bool
    tablespaces: tuple[StoredTablespace, ...] = ()
    parent_id: BackupId | None = None
    depth: int = Field(default=0, ge=0)
    cluster_bytes: int | None = None
    fallback_reason: str | None = None
    combined_from: tuple[BackupId, ...] = ()

    @model_validator(mode="after")
    def _increments_have_parents(self) -> Self:
        """An increment without a parent could never be restored, and a full has none."""
        if len({self.kind == BackupKind.INCREMENTAL, self.parent_id is not None, self.depth > 0}) != 1:
            raise ValueError("an increment, and nothing else, has a parent and a depth")
        return self

    @property
    def position(self) -> Lsn:
        """The position from which on a copy is consistent."""
        return self.end_lsn


class NamedTablespace(StoredTablespace):
    """A tablespace as a dump knows it: by name."""

    name: str


class LocaleFacts(Value):
    """What initdb must be told to make a cluster like the source's; taken from its template0.

    Attributes:
        provider: ``c`` (the operating system), ``i`` (ICU) or ``b`` (built in).
        locale: The provider's own locale; None for the operating system's.
    """

    encoding: str
    collate: str
    ctype: str
    provider: str
    locale: str | None


class StoredDatabase(Value):
    """One database in a dump, as one snapshot saw it.

    Attributes:
        oid: At the source; names the objects, since a database's name may be any text.
        dump: The object that holds it: a dump in PostgreSQL's custom format, or a script for a schema.
        contents: The object that lists what the dump must hold; None for a schema.
        size_bytes: On the source's disk.
        snapshot: The exported snapshot's name, as the server's log shows it.
        anchor_lsn: A position that the snapshot was taken at or after.
    """

    name: str
    oid: int
    dump: str
    contents: str | None
    size_bytes: int
    snapshot: str
    anchor_lsn: Lsn
    as_of: AwareDatetime


class LogicalCommit(BackupCommit):
    """The commit of dumps made by PostgreSQL's own programs. It has no range of WAL: it can never be carried forward.

    Attributes:
        kind: ``logical`` holds rows, ``schema`` only definitions.
        as_of: The oldest snapshot's instant; each database has its own.
        client_version: Of the programs that made the dumps, and that load them.
        left_out: What the server has and the backup has not, each with its reason.
    """

    schema_id: Literal["bb-ops/logical-commit/1"] = "bb-ops/logical-commit/1"
    kind: Literal[BackupKind.LOGICAL, BackupKind.SCHEMA]
    engine: Literal["logical"] = "logical"
    client_version: str
    client_major: int
    locale: LocaleFacts
    databases: tuple[StoredDatabase, ...] = Field(min_length=1)
    tablespaces: tuple[NamedTablespace, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def position(self) -> Lsn:
        """The oldest snapshot's position."""
        return min(database.anchor_lsn for database in self.databases)

    def named(self, name: str) -> StoredObject:
        """Return an object by its name, which a database bears."""
        return next(entry for entry in self.objects if entry.name == name)


Commit = PhysicalCommit | LogicalCommit
"""Every kind; ``isinstance`` tells them apart, and mypy sees that none is forgotten."""
_COMMITS: TypeAdapter[Commit] = TypeAdapter(
    Annotated[Commit, Field(discriminator="schema_id")], config=ConfigDict(defer_build=True)
)


def parse_commit(body: dict[str, Any]) -> Commit:
    """Return the commit that a document holds, of the kind that its ``schema_id`` names.

    Raises:
        pydantic.ValidationError: it is of no format that we know.
    """
    return _COMMITS.validate_python(body)
