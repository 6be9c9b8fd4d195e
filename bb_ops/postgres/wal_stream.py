"""Streaming replication of the write-ahead log (PostgreSQL manual, 53.4), one message at a time.

Nothing here waits for long: the caller decides when to read, so that it can hold the server back and still answer it.
"""

import re
import select
import struct
from dataclasses import dataclass

import psycopg
from psycopg import pq

from bb_ops.errors import BackupFailed
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.replication import ReplicationConnection

_HEADER = struct.Struct("!cQQQ")
_STATUS = struct.Struct("!cQQQQc")
_REPLY_FLAG_AT = 17
_REMOVED = re.compile(r"requested WAL segment \S+ has already been removed")
_AHEAD = re.compile(r"requested starting point \S+ is ahead of the WAL flush position")
_BUSY = re.compile(r"replication slot \S+ is active for PID")
_SIZE = re.compile(r"(\d+)(kB|MB|GB)")
_UNITS = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_DRAIN_S = 5.0


class WalRemoved(BackupFailed):
    """The server no longer has the WAL that was asked for."""


class WalAhead(BackupFailed):
    """The server has not yet written the position that was asked for."""


class SlotBusy(BackupFailed):
    """Somebody else streams from the slot."""


@dataclass(frozen=True)
class SlotState:
    """A physical replication slot; ``restart_lsn`` is None where it holds nothing."""

    restart_lsn: Lsn | None
    restart_timeline: int | None


@dataclass(frozen=True)
class WalData:
    """A piece of the log, in order."""

    start: Lsn
    data: memoryview


@dataclass(frozen=True)
class KeepAlive:
    """The server shows that it lives; ``wants_reply`` also when it waits for us in order to stop."""

    wants_reply: bool


@dataclass(frozen=True)
class TimelineEnd:
    """The stream ended because the server's history goes on in another timeline."""

    next_timeline: int
    begins: Lsn


class WalConnection(ReplicationConnection):
    """A replication connection that streams the log."""

    def segment_bytes(self) -> int:
        """Return the size of the server's WAL segments."""
        found = _SIZE.fullmatch(self.show("wal_segment_size"))
        if found is None:
            raise BackupFailed(f"PostgreSQL at {self._dsn}: its wal_segment_size is not understood")
        return int(found[1]) * _UNITS[found[2]]

    def major(self) -> int:
        """Return the server's major version."""
        return self._connection.server_version // 10000

    def slot(self, name: str) -> SlotState | None:
        """Describe a slot; None where there is none (READ_REPLICATION_SLOT, PostgreSQL 15)."""
        kind, position, timeline = self._query(f'READ_REPLICATION_SLOT "{name}"')[0]
        if kind is None:
            return None
        return SlotState(Lsn.parse(position) if position else None, int(timeline) if timeline else None)

    def create_slot(self, name: str) -> None:
        """Make a permanent slot that holds WAL from the last checkpoint on."""
        self._query(f'CREATE_REPLICATION_SLOT "{name}" PHYSICAL RESERVE_WAL')

    def drop_slot(self, name: str) -> None:
        """Remove a slot."""
        self._query(f'DROP_REPLICATION_SLOT "{name}"')

    def history(self, timeline: int) -> bytes:
        """Return a timeline's history file.

        Raises:
            BackupFailed: the server does not have it.
        """
        answer = self._connection.exec_(f"TIMELINE_HISTORY {timeline}".encode())
        if answer.status != pq.ExecStatus.TUPLES_OK:
            raise self._failure(answer.get_error_message())
        return answer.get_value(0, 1) or b""

    def begin(self, slot: str, timeline: int, start: Lsn) -> None:
        """Begin to stream; ``start`` lies before the end of ``timeline``.

        Raises:
            WalRemoved: the server no longer has it.
            WalAhead: the server has not got so far.
            SlotBusy: somebody else streams from the slot.
            BackupFailed: it refuses for another reason.
        """
        command = f'START_REPLICATION SLOT "{slot}" PHYSICAL {start} TIMELINE {timeline}'
        answer = self._connection.exec_(command.encode())
        if answer.status != pq.ExecStatus.COPY_BOTH:
            raise self._refusal(answer.get_error_message())

    def receive(self) -> WalData | KeepAlive | TimelineEnd | None:
        """Return the next message; None where none has arrived.

        Raises:
            WalRemoved: the server removed what comes next.
            BackupFailed: the stream broke or the server stopped.
        """
        length, message = self._connection.get_copy_data(1)
        if length == 0:
            return None
        if length < 0:
            return self._ended(failed=length != -1)
        if message[0] == ord("k"):
            return KeepAlive(wants_reply=message[_REPLY_FLAG_AT] == 1)
        if message[0] != ord("w"):
            raise BackupFailed("the server sent a message of unknown type: its version is too new for us")
        _, start, _, _ = _HEADER.unpack_from(message)
        return WalData(Lsn(start), message[_HEADER.size :])

    def wait(self, timeout_s: float) -> None:
        """Wait for input."""
        ready, _, _ = select.select([self._connection.socket], [], [], timeout_s)
        if ready:
            self._consume()

    def send_status(self, received: Lsn, durable: Lsn) -> None:
        """Tell the server what we have (``received``) and what it may forget (before ``durable``; 0 says nothing)."""
        try:
            self._connection.put_copy_data(_STATUS.pack(b"r", received, durable, 0, 0, b"\x00"))
            self._connection.flush()
        except psycopg.Error as error:
            raise self._failure(str(error)) from None

    def finish_stream(self) -> None:
        """End the stream in an orderly way; what still arrives is thrown away. Never fails."""
        try:
            self._connection.put_copy_end()
            self._connection.flush()
            for _ in range(int(_DRAIN_S / 0.1)):
                length, _ = self._connection.get_copy_data(1)
                if length < 0:
                    return
                if length == 0:
                    self.wait(0.1)
        except (psycopg.Error, BackupFailed, OSError, ValueError):
            return

    def _consume(self) -> None:
        try:
            self._connection.consume_input()
        except psycopg.OperationalError as error:
            raise self._failure(str(error)) from None

    def _ended(self, *, failed: bool) -> TimelineEnd:
        if failed:
            raise self._refusal(self._connection.get_error_message())
        answer = self._connection.get_result()
        if answer is not None and answer.status in {pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH}:
            self._connection.put_copy_end()
            self._connection.flush()
            answer = self._connection.get_result()
        if answer is None or answer.status == pq.ExecStatus.COMMAND_OK:
            raise BackupFailed(f"PostgreSQL at {self._dsn}: the server stops")
        if answer.status != pq.ExecStatus.TUPLES_OK:
            raise self._refusal(answer.get_error_message())
        return self._timeline_end(answer)

    def _timeline_end(self, answer: pq.abc.PGresult) -> TimelineEnd:
        timeline, begins = answer.get_value(0, 0) or b"", answer.get_value(0, 1) or b""
        while self._connection.get_result() is not None:
            pass
        return TimelineEnd(int(timeline), Lsn.parse(begins.decode()))

    def _refusal(self, complaint: str) -> Exception:
        failure = self._failure(complaint)
        if _REMOVED.search(str(failure)):
            return WalRemoved(str(failure))
        if _AHEAD.search(str(failure)):
            return WalAhead(str(failure))
        if _BUSY.search(str(failure)):
            return SlotBusy(str(failure))
        return failure
