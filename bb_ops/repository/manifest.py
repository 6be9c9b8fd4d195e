"""The commit of a backup: what it is, which objects it has, and their hashes. Plain to read, signed, no secrets."""

from datetime import datetime
from enum import StrEnum
from typing import Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository.ids import BackupId, BackupKind, SlotKey


class ObjectRole(StrEnum):
    """What an object of a backup is."""

    ARCHIVE = "archive"
    MANIFEST = "backup_manifest"
    FINGERPRINTS = "fingerprints"


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
    """What ``COMMIT.json`` says; the backup exists from the moment it is written.

    Attributes:
        started_at: When the server began, by our clock.
        stopped_at: When the last byte was stored.
        as_of: The instant that a restore without further WAL shows: the fingerprints' anchor, else the backup's end.
        slot: The daily slot it represents.
        reconstructed: Made from the archive after its slot was over, not live.
        superuser: The role that initdb made, by whose name a restored server can always be entered.
        start_lsn: Where replay begins.
        end_lsn: The least position at which a restored copy is consistent.
        wal_end_lsn: Up to where the WAL inside the backup reaches; a restore ends exactly there.
        encryption: ``age``, or ``none`` by explicit wish.
        recipients: The age public keys that open it.
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
    id: BackupId
    kind: BackupKind
    engine: str
    cluster: str
    system_id: str = Field(pattern="^[0-9]+$")
    server_version: str
    server_major: int
    superuser: str
    timeline: int
    start_lsn: Lsn
    end_lsn: Lsn
    wal_end_lsn: Lsn
    wal_segment_bytes: int
    slot: SlotKey
    reconstructed: bool = False
    started_at: AwareDatetime
    stopped_at: AwareDatetime
    as_of: AwareDatetime
    duration_s: float
    encryption: Literal["age", "none"]
    recipients: tuple[str, ...]
    compression: str
    data_checksums: bool
    tablespaces: tuple[StoredTablespace, ...] = ()
    objects: tuple[StoredObject, ...]
    bb_ops_version: str
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
    def stored_bytes(self) -> int:
        """Bytes that the backup takes in a repository, without its commit."""
        return sum(entry.size_bytes for entry in self.objects)

    @property
    def size_bytes(self) -> int:
        """Bytes of the archives before compression."""
        return sum(entry.raw_size_bytes for entry in self.objects if entry.role == ObjectRole.ARCHIVE)

    def with_role(self, role: ObjectRole) -> tuple[StoredObject, ...]:
        """Return the objects of one role."""
        return tuple(entry for entry in self.objects if entry.role == role)

    def late_s(self, opened_at: datetime) -> float:
        """Return how many seconds after its slot opened the backup began."""
        return (self.started_at - opened_at).total_seconds()
