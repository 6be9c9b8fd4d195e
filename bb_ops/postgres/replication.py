"""The replication protocol (PostgreSQL manual, 53.4), spoken through psycopg's libpq wrapper.

Only the simple query protocol works on such a connection. A base backup is one COPY OUT stream of typed messages;
it succeeded only when the command completed without an error *after* the stream: a page-checksum failure is raised
behind the end position, so whoever stops there accepts a broken backup.
"""

import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

import psycopg
from psycopg import pq

from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import BackupFailed, IntegrityError
from bb_ops.postgres.connection import open_replication, redact
from bb_ops.postgres.lsn import Lsn

_XLOG_DATA_HEADER = struct.Struct("!QQQ")
_STATUS_UPDATE = struct.Struct("!cQQQQc")
_CHECKSUM_COMPLAINT = "checksum verification failed"
_POLL_S = 1.0
_MANIFEST_PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class SystemIdentity:
    """What IDENTIFY_SYSTEM says."""

    system_id: str
    timeline: int
    position: Lsn


@dataclass(frozen=True)
class Tablespace:
    """One tablespace of a base backup; the main data directory has neither oid nor location."""

    oid: int | None
    location: str | None
    size_bytes: int | None


@dataclass
class BaseBackupResult:
    """What the server says around the stream; complete only after ``base_backup`` returned."""

    start_lsn: Lsn = field(default_factory=lambda: Lsn(0))
    start_timeline: int = 0
    end_lsn: Lsn = field(default_factory=lambda: Lsn(0))
    end_timeline: int = 0
    tablespaces: list[Tablespace] = field(default_factory=list)


class BaseBackupReceiver(Protocol):
    """Takes the stream of a base backup, in order, while it arrives."""

    def tablespaces(self, found: list[Tablespace]) -> None:
        """Learn the tablespaces and their sizes, before the first byte."""
        ...

    def archive(self, name: str, location: str) -> None:
        """Begin an archive, a tar named ``name``; ``location`` is empty for the main data directory."""
        ...

    def manifest(self) -> None:
        """Begin the backup manifest."""
        ...

    def data(self, chunk: memoryview) -> None:
        """Take bytes of the current archive or of the manifest; the view is valid during the call only."""
        ...

    def progress(self, done_bytes: int) -> None:
        """Learn how many bytes the server has sent; at most once a second."""
        ...


class ReplicationConnection:
    """One physical replication connection. Use as a context manager."""

    def __init__(self, dsn: Dsn) -> None:
        """Connect.

        Raises:
            ServerUnusable: the server cannot be reached or refuses replication.
        """
        self._dsn = dsn
        self._connection = open_replication(dsn)
        self._notices: list[str] = []
        self._connection.notice_handler = self._note

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; a temporary slot goes with it."""
        self._connection.finish()

    def identify(self) -> SystemIdentity:
        """Ask which system this is."""
        row = self._query("IDENTIFY_SYSTEM")[0]
        return SystemIdentity(system_id=row[0] or "", timeline=int(row[1] or 0), position=Lsn.parse(row[2] or ""))

    def show(self, name: str) -> str:
        """Return a setting of the server."""
        return self._query(f"SHOW {name}")[0][0] or ""

    def create_temporary_slot(self, name: str) -> None:
        """Reserve WAL from the last checkpoint on, for as long as this connection lives."""
        self._query(f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY PHYSICAL RESERVE_WAL')

    @property
    def is_alive(self) -> bool:
        """Whether the connection survived what was asked last."""
        return self._connection.status == pq.ConnStatus.OK

    def upload_manifest(self, manifest: bytes) -> None:
        """Give the server the manifest of the backup that the next one on this connection builds on (17 and later).

        Raises:
            BackupFailed: the server does not accept it, or the connection broke off.
        """
        self._connection.send_query(b"UPLOAD_MANIFEST")
        answer = self._next_result()
        if answer is None or answer.status != pq.ExecStatus.COPY_IN:
            raise self._failure(answer.get_error_message() if answer else "the connection was lost")
        try:
            for start in range(0, len(manifest), _MANIFEST_PIECE_BYTES):
                self._connection.put_copy_data(manifest[start : start + _MANIFEST_PIECE_BYTES])
            self._connection.put_copy_end()
        except psycopg.OperationalError as error:
            raise self._failure(str(error)) from None
        complaint = None
        while (answer := self._next_result()) is not None:
            if answer.status != pq.ExecStatus.COMMAND_OK:
                complaint = complaint or answer.get_error_message()
        if complaint is not None:
            raise self._failure(complaint)

    def base_backup(self, command: str, receiver: BaseBackupReceiver) -> BaseBackupResult:
        """Run BASE_BACKUP and hand its stream to ``receiver``.

        Raises:
            IntegrityError: the server found pages whose checksum is wrong; the message names them.
            BackupFailed: the server or the connection broke off.
        """
        self._connection.send_query(command.encode())
        result = BaseBackupResult()
        tables = iter((self._take_start, self._take_tablespaces, self._take_end))
        while (answer := self._next_result()) is not None:
            if answer.status == pq.ExecStatus.TUPLES_OK:
                take = next(tables, None)
                if take is not None:
                    take(answer, result)
            elif answer.status == pq.ExecStatus.COPY_OUT:
                receiver.tablespaces(result.tablespaces)
                self._pump(receiver)
            elif answer.status != pq.ExecStatus.COMMAND_OK:
                raise self._failure(answer.get_error_message())
        if not result.end_lsn:
            raise BackupFailed(f"PostgreSQL at {self._dsn}: the connection ended before the backup did")
        return result

    def stream_wal(self, slot: str, timeline: int, start: Lsn, until: Lsn, timeout_s: float) -> Iterator[bytes]:
        """Yield the WAL from ``start`` up to exactly ``until``.

        Raises:
            BackupFailed: it did not arrive within ``timeout_s`` seconds without progress, or the stream broke.
        """
        command = f'START_REPLICATION SLOT "{slot}" PHYSICAL {start} TIMELINE {timeline}'
        answer = self._connection.exec_(command.encode())
        if answer.status != pq.ExecStatus.COPY_BOTH:
            raise self._failure(answer.get_error_message())
        position, watch = start, Stopwatch()
        while position < until:
            length, data = self._connection.get_copy_data(1)
            if length < 0:
                raise self._failure(self._connection.get_error_message() or "the WAL stream ended early")
            if length == 0:
                if watch.elapsed_s > timeout_s:
                    raise BackupFailed(f"WAL up to {until} did not arrive within {timeout_s:g} s of {position}")
                self._wait_for_input()
                continue
            message = bytes(data)
            if message[:1] == b"k" and message[17:18] == b"\x01":
                self._send_status(position)
            if message[:1] != b"w":
                continue
            payload = message[1 + _XLOG_DATA_HEADER.size :]
            wanted = payload[: until - position]
            position = Lsn(position + len(wanted))
            watch = Stopwatch()
            yield wanted

    def _send_status(self, position: Lsn) -> None:
        self._connection.put_copy_data(_STATUS_UPDATE.pack(b"r", position, position, 0, 0, b"\x00"))
        self._connection.flush()

    def _next_result(self) -> pq.abc.PGresult | None:
        """Wait for the next result in a way that lets an interrupt through; libpq's own waiting does not."""
        self._connection.flush()
        while self._connection.is_busy():
            self._wait_for_input()
        return self._connection.get_result()

    def _wait_for_input(self) -> None:
        select.select([self._connection.socket], [], [], _POLL_S)
        try:
            self._connection.consume_input()
        except psycopg.OperationalError as error:
            raise self._failure(str(error)) from None

    def _pump(self, receiver: BaseBackupReceiver) -> None:
        get = self._connection.get_copy_data
        data = receiver.data
        while True:
            length, message = get(1)
            if length == 0:
                self._wait_for_input()
                continue
            if length < 0:
                break
            kind = message[0]
            if kind == 0x64:  # noqa: PLR2004 - 'd', the one that matters for speed
                data(message[1:])
            elif kind == ord("n"):
                name, location, _ = bytes(message[1:]).split(b"\0", 2)
                receiver.archive(name.decode(), location.decode())
            elif kind == ord("m"):
                receiver.manifest()
            elif kind == ord("p"):
                receiver.progress(int.from_bytes(message[1:9], "big"))
            else:
                raise BackupFailed(f"the server sent a message of unknown type {kind}: its version is too new for us")
        if length == -2:  # noqa: PLR2004 - libpq: -1 is the end of COPY, -2 an error
            raise self._failure(self._connection.get_error_message())

    def _query(self, command: str) -> list[list[str | None]]:
        answer = self._connection.exec_(command.encode())
        if answer.status not in {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}:
            raise self._failure(answer.get_error_message())
        return _rows(answer)

    def _failure(self, complaint: str) -> IntegrityError | BackupFailed:
        pages = [notice for notice in self._notices if _CHECKSUM_COMPLAINT in notice]
        if pages:
            return IntegrityError(f"page checksums at {self._dsn}: {'; '.join(pages)}: the backup was not committed")
        lines = [line for line in redact(self._dsn, complaint).splitlines() if line.strip()]
        return BackupFailed(f"PostgreSQL at {self._dsn}: {lines[0] if lines else 'the connection was lost'}")

    def _note(self, notice: pq.abc.PGresult) -> None:
        text = notice.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        self._notices.append(redact(self._dsn, text.decode("utf-8", errors="replace")))

    def _take_start(self, answer: pq.abc.PGresult, result: BaseBackupResult) -> None:
        row = _rows(answer)[0]
        result.start_lsn, result.start_timeline = Lsn.parse(row[0] or ""), int(row[1] or 0)

    def _take_tablespaces(self, answer: pq.abc.PGresult, result: BaseBackupResult) -> None:
        for oid, location, kibibytes in _rows(answer):
            size_bytes = int(kibibytes) * 1024 if kibibytes else None
            result.tablespaces.append(Tablespace(int(oid) if oid else None, location, size_bytes))

    def _take_end(self, answer: pq.abc.PGresult, result: BaseBackupResult) -> None:
        row = _rows(answer)[0]
        result.end_lsn, result.end_timeline = Lsn.parse(row[0] or ""), int(row[1] or 0)


def _rows(answer: pq.abc.PGresult) -> list[list[str | None]]:
    return [
        [None if (cell := answer.get_value(row, column)) is None else cell.decode() for column in range(answer.nfields)]
        for row in range(answer.ntuples)
    ]
