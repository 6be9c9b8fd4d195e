"""Physical backups over the replication protocol: BASE_BACKUP, streamed, with the WAL that it needs inside.

A temporary replication slot keeps the WAL of the whole backup on the server, so it can not be recycled under us. After
the server's part, the rows are fingerprinted at an exact position and the WAL up to that very position is added: a
restored copy replays to there and nowhere else, which makes "equal" provable without tolerance.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from bb_ops.clock import Clock
from bb_ops.dsn import Dsn
from bb_ops.engines.parts import PartWriter
from bb_ops.engines.tar import BLOCK_BYTES, file_header
from bb_ops.errors import BackupFailed, IncrementRefused
from bb_ops.postgres.cluster import ServerFacts
from bb_ops.postgres.fingerprint import Fingerprints, take_fingerprints
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.replication import BaseBackupResult, ReplicationConnection, SystemIdentity, Tablespace
from bb_ops.progress import Progress
from bb_ops.repository import layout
from bb_ops.repository.manifest import ObjectRole, StoredTablespace

NAME = "native"
_WAL_TIMEOUT_S = 60.0
_WAL_ARCHIVE = "wal"
_MAIN_ARCHIVE = "base"


@dataclass(frozen=True)
class NativeBackup:
    """What the server and we know after a base backup."""

    identity: SystemIdentity
    result: BaseBackupResult
    wal_end_lsn: Lsn
    fingerprints: Fingerprints | None
    tablespaces: tuple[StoredTablespace, ...]


class NativeEngine:
    """Takes physical backups of a self-managed server, PostgreSQL 15 and later."""

    name = NAME

    def __init__(self, dsn: Dsn, facts: ServerFacts, clock: Clock, max_rate_mib: int | None = None) -> None:
        """Name the server, and how many MiB a second it may send (None: all it can); nothing is contacted yet."""
        self._dsn = dsn
        self._options = "" if max_rate_mib is None else f", MAX_RATE {max_rate_mib << 10}"
        self._facts = facts
        self._clock = clock

    def identify(self) -> SystemIdentity:
        """Ask which system this is, over the replication protocol: proves that a backup may be taken."""
        with ReplicationConnection(self._dsn) as connection:
            return connection.identify()

    def take(  # noqa: PLR0913 - each is a separate property of the backup
        self,
        parts: PartWriter,
        suffix: str,
        label: str,
        budget_s: float,
        progress: Progress,
        parent_manifest: bytes | None = None,
    ) -> NativeBackup:
        """Stream a backup into ``parts``: a full one, or the blocks changed since the parent.

        Args:
            parts: Where it goes; the caller closes or discards it.
            suffix: What sealed names end with.
            label: For the server's log and ``backup_label``.
            budget_s: Seconds that fingerprints may take; 0 takes none.
            progress: Told about bytes.
            parent_manifest: The backup manifest of an increment's parent; None takes a full.

        Raises:
            IncrementRefused: the server takes no increment on this parent; nothing was written.
            BackupFailed: the server or the connection broke off.
            IntegrityError: the server found damaged pages.
        """
        receiver = _Receiver(parts, suffix, progress, is_increment=parent_manifest is not None)
        slot = f"bb_ops_{secrets.token_hex(6)}"
        with ReplicationConnection(self._dsn) as wal, ReplicationConnection(self._dsn) as data:
            wal.create_temporary_slot(slot)
            identity = data.identify()
            if parent_manifest is None:
                result = data.base_backup(_command(label, self._options), receiver)
            else:
                result = self._increment(data, receiver, label, parent_manifest)
            receiver.finish()
            fingerprints = None
            if budget_s > 0:
                progress("fingerprints", 0, None)
                fingerprints = take_fingerprints(self._dsn, budget_s=budget_s)
                parts.add(
                    layout.fingerprints_name(suffix),
                    ObjectRole.FINGERPRINTS,
                    fingerprints.model_dump_json().encode(),
                )
            wal_end = self._add_wal(wal, slot, result, fingerprints, parts)
        return NativeBackup(
            identity=identity,
            result=result,
            wal_end_lsn=wal_end,
            fingerprints=fingerprints,
            tablespaces=tuple(
                StoredTablespace(oid=space.oid, location=space.location or "")
                for space in result.tablespaces
                if space.oid is not None
            ),
        )

    def _increment(
        self, data: ReplicationConnection, receiver: "_Receiver", label: str, parent_manifest: bytes
    ) -> BaseBackupResult:
        """Take an increment, and tell a server that refuses it from one that broke off."""
        try:
            data.upload_manifest(parent_manifest)
            return data.base_backup(_command(label, f", INCREMENTAL{self._options}"), receiver)
        except BackupFailed as error:
            if receiver.has_begun or not data.is_alive:
                raise
            raise IncrementRefused(str(error)) from error

    def _add_wal(
        self,
        wal: ReplicationConnection,
        slot: str,
        result: BaseBackupResult,
        fingerprints: Fingerprints | None,
        parts: PartWriter,
    ) -> Lsn:
        """Add the WAL between the end of the server's part and the fingerprints' anchor; zeros end the last segment."""
        segment_bytes = self._facts.wal_segment_bytes
        start = Lsn(-(-result.end_lsn // segment_bytes) * segment_bytes)
        if fingerprints is None:
            return start
        until = fingerprints.anchor_lsn.without_page_header(segment_bytes)
        if until <= start:
            return start
        parts.begin_archive(_WAL_ARCHIVE, None)
        position, now_s = start, int(self._clock.now().timestamp())
        for piece in wal.stream_wal(slot, result.end_timeline, start, until, _WAL_TIMEOUT_S):
            view = memoryview(piece)
            while view:
                if position % segment_bytes == 0:
                    name = segment_name(result.end_timeline, position, segment_bytes)
                    parts.feed(memoryview(file_header(f"pg_wal/{name}", segment_bytes, now_s)))
                taken = view[: segment_bytes - position % segment_bytes]
                parts.feed(taken)
                position, view = Lsn(position + len(taken)), view[len(taken) :]
        self._pad(parts, -position % segment_bytes)
        parts.end_archive()
        return until

    @staticmethod
    def _pad(parts: PartWriter, size_bytes: int) -> None:
        zeros = memoryview(bytes(BLOCK_BYTES * 128))
        while size_bytes:
            piece = zeros[:size_bytes]
            parts.feed(piece)
            size_bytes -= len(piece)


class _Receiver:
    """Sorts the server's stream into archives and the manifest."""

    def __init__(self, parts: PartWriter, suffix: str, progress: Progress, *, is_increment: bool) -> None:
        self.has_begun = False
        self._parts = parts
        self._is_increment = is_increment
        self._suffix = suffix
        self._progress = progress
        self._total_bytes: int | None = None
        self._manifest: bytearray | None = None
        self._oids: dict[str, int | None] = {}

    def tablespaces(self, found: list[Tablespace]) -> None:
        """Learn the sizes."""
        self.has_begun = True
        if not self._is_increment:  # the server estimates whole files, of which it sends an increment's blocks only
            self._total_bytes = cluster_bytes(found)
        self._oids = {f"{space.oid}.tar": space.oid for space in found if space.oid is not None}

    def archive(self, name: str, location: str) -> None:
        """Begin an archive."""
        del location
        oid = self._oids.get(name)
        self._parts.begin_archive(_MAIN_ARCHIVE if oid is None else str(oid), oid)

    def manifest(self) -> None:
        """Begin the manifest."""
        self._parts.end_archive()
        self._manifest = bytearray()

    def data(self, chunk: memoryview) -> None:
        """Take bytes of the archive or the manifest."""
        if self._manifest is None:
            self._parts.feed(chunk)
        else:
            self._manifest += chunk

    def progress(self, done_bytes: int) -> None:
        """Pass the server's own count on."""
        self._progress("data", done_bytes, self._total_bytes)

    def finish(self) -> None:
        """Store the manifest, without which nobody could tell a complete backup from an incomplete one."""
        if not self._manifest:
            raise BackupFailed("the server sent no backup manifest")
        self._parts.add(layout.manifest_name(self._suffix), ObjectRole.MANIFEST, bytes(self._manifest))


def cluster_bytes(spaces: Sequence[Tablespace]) -> int | None:
    """Return the server's estimate of all its files without WAL; None where it gave none."""
    return sum(space.size_bytes or 0 for space in spaces) or None


def _command(label: str, options: str) -> str:
    quoted = label.replace("'", "''")
    return (
        f"BASE_BACKUP (LABEL '{quoted}', PROGRESS, CHECKPOINT 'fast', WAL true, WAIT false, TABLESPACE_MAP true, "
        f"MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C', TARGET 'client'{options})"
    )
