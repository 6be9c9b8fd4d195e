"""Stores WAL as it arrives: whole segments, pieces of the unfinished one, and signed records of how far it is durable.

Every step can be repeated and killed anywhere. Failures of the store are tried again, loudly and for as long as it
takes; the server keeps what is not durable yet.
"""

import hashlib
import logging
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event
from typing import TypeVar

from bb_ops.backup.wal_second import SecondRegion
from bb_ops.backup.wal_segment import Archive, Segment
from bb_ops.clock import Stopwatch
from bb_ops.errors import (
    AlreadyExists,
    BbOpsError,
    IntegrityError,
    RepositoryMissing,
    SettingsError,
    StoreFailed,
)
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.timelines import Ancestor, parse_history
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.wal import Piece, Position, Receipt
from bb_ops.repository.wal_listing import TimelineWal
from bb_ops.storage.sealed import SealedObject, SealedWriter, seal_bytes, share_interpreter

_LOGGER = logging.getLogger(__name__)
_IN_FLIGHT = 3
"""Segments on their way at a time; more would only hold more memory."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
_TEMPORARY = (StoreFailed, SettingsError, RepositoryMissing)
"""What a store says while it is away: also that it refuses us, or that the bucket is gone."""
_T = TypeVar("_T")


@dataclass
class Outage:
    """Whether the store can be written to."""

    since: Stopwatch | None = None
    reason: str = ""

    @property
    def lasts_s(self) -> float:
        """Seconds since the first failure; 0 while all is well."""
        return self.since.elapsed_s if self.since is not None else 0.0


@dataclass(frozen=True)
class _Job:
    end: Lsn
    future: "Future[None]"


@dataclass
class WalWriter:
    """Stores segments, pieces and positions in order, a few at a time.

    Attributes:
        durable: Everything before this is stored and recorded; 0 while nothing is known.
        outage: Whether the store fails at present.
    """

    archive: Archive
    durable: Lsn
    outage: Outage = field(default_factory=Outage)
    _jobs: "deque[_Job]" = field(default_factory=deque)
    _pieces: list[Piece] = field(default_factory=list)
    _pieces_of: str | None = None
    _partial: "Future[None] | None" = None
    _stored_pieces: set[str] = field(default_factory=set)
    _positions: list[str] = field(default_factory=list)
    _given_up: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        """Start the threads."""
        archive = self.archive
        self._second = None if archive.second is None else SecondRegion(archive.repository, archive.second)
        share_interpreter()
        self._pool = ThreadPoolExecutor(_IN_FLIGHT + 1, thread_name_prefix="wal")

    @property
    def full(self) -> bool:
        """Whether as much is on its way as may be: the server must wait."""
        return len(self._running()) >= _IN_FLIGHT

    @property
    def busy(self) -> bool:
        """Whether a partial segment or position is on its way."""
        return self._partial is not None and not self._partial.done()

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._jobs

    def resume(self, position: Position) -> None:
        """Go on with the pieces that an earlier run stored."""
        self._pieces, self._pieces_of = list(position.pieces), position.segment
        if position.segment is not None:
            found = self.archive.repository.store.objects(self._file_key(position.timeline, f"{position.segment}."))
            self._stored_pieces = {info.key for info in found if ".partial." in info.key}

    def settle(self) -> None:
        """Learn what has become durable.

        Raises:
            BbOpsError: something that trying again cannot mend.
        """
        while self._jobs and self._jobs[0].future.done():
            job = self._jobs.popleft()
            job.future.result()
            self.durable = max(self.durable, job.end)

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until something on its way has arrived or failed, but not for long."""
        wait(self._running(), timeout_s, FIRST_COMPLETED)

    def wait_until_settled(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way; return whether that came to be."""
        wait([job.future for job in self._jobs], timeout_s)
        self.settle()
        return self.idle

    def close(self) -> None:
        """Give up what is on its way and end the threads. What was recorded stays."""
        self._given_up.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def segment(self, segment: Segment, at: datetime | None) -> "Future[None]":
        """Store a whole segment; it is durable and recorded when the future is done without an error."""
        raw_sha256 = segment.hash.hexdigest()
        return self._submit(segment.end, lambda: self._store_segment(segment, raw_sha256, at))

    def partial(self, segment: Segment, at: datetime | None) -> None:
        """Store what is new of an unfinished segment, and record how far all is durable."""
        earlier = [job.future for job in self._jobs]
        end, offset, raw_sha256 = segment.end, segment.offset, segment.hash.hexdigest()
        self._partial = self._submit(end, lambda: self._store_partial(segment, offset, raw_sha256, at, earlier))

    def history(self, timeline: int, content: bytes) -> None:
        """Store a timeline's history file now.

        Raises:
            IntegrityError: another one is stored under its name.
        """
        self._persist(lambda: self._store_history(timeline, content))

    def _submit(self, end: Lsn, action: Callable[[], None]) -> "Future[None]":
        future = self._pool.submit(self._persist, action)
        self._jobs.append(_Job(end, future))
        return future

    def _running(self) -> "list[Future[None]]":
        return [job.future for job in self._jobs if not job.future.done()]

    def _persist(self, action: Callable[[], _T]) -> _T:
        """Try until it works, or until there is no hope."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                done = action()
            except AlreadyExists:
                raise
            except _TEMPORARY as error:
                if self.outage.since is None:
                    self.outage.since = Stopwatch()
                self.outage.reason = str(error)
                _LOGGER.error(  # noqa: TRY400 - the reason is a line, and a traceback says no more
                    "WAL cannot be stored; the server keeps it until it can be",
                    extra={"reason": str(error), "outage_s": self.outage.lasts_s, "again_in_s": pause_s},
                )
                if self._given_up.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                if self.outage.since is not None:
                    _LOGGER.warning("WAL is stored again", extra={"outage_s": self.outage.lasts_s})
                    self.outage.since = None
                return done

    def _store_segment(self, segment: Segment, raw_sha256: str, at: datetime | None) -> None:
        key = self._file_key(segment.timeline, segment.name + self.archive.seal.suffix)

        def write() -> SealedObject:
            return self._seal(key, segment, 0, segment.offset)

        self._store_once(segment.timeline, segment.name, key, raw_sha256, at, write)

    def _store_history(self, timeline: int, content: bytes) -> None:
        name = f"{timeline:08X}.history"
        key = self._file_key(timeline, name + self.archive.seal.suffix)
        store, seal = self.archive.repository.store, self.archive.seal
        digest = hashlib.sha256(content).hexdigest()
        ancestors = parse_history(timeline, content).ancestors
        self._store_once(
            timeline, name, key, digest, None, lambda: seal_bytes(store, key, content, seal), ancestors=ancestors
        )

    def _store_once(  # noqa: PLR0913 - one fact each
        self,
        timeline: int,
        name: str,
        key: str,
        raw_sha256: str,
        at: datetime | None,
        write: Callable[[], SealedObject],
        *,
        ancestors: tuple[Ancestor, ...] = (),
    ) -> None:
        """Store a file and its receipt; a file that is there already must be the same.

        Raises:
            IntegrityError: another file is archived under this name; nothing is overwritten.
        """
        try:
            sealed = write()
        except AlreadyExists:
            recorded = self._recorded(timeline, name, raw_sha256)
            if recorded is not None:
                self._second_file(recorded)
                return
            self.archive.repository.store.delete(key)  # of a dead run, never recorded: a leftover
            sealed = write()
        receipt = Receipt(
            cluster=self.archive.repository.cluster,
            system_id=self.archive.system_id,
            timeline=timeline,
            name=name,
            suffix=".zst.age" if self.archive.seal.recipients else ".zst",
            size_bytes=sealed.size_bytes,
            raw_size_bytes=sealed.raw_size_bytes,
            sha256=sealed.sha256,
            raw_sha256=raw_sha256,
            at=at,
            ancestors=ancestors,
        )
        found = wal.write_or_read(self.archive.repository, receipt)
        if found.raw_sha256 != raw_sha256:
            self._remove(key)  # ours, without a receipt of ours
            raise self._other_content(name)
        if found.sha256 != sealed.sha256:  # its object had been removed: the receipt described that one
            self.archive.repository.store.delete(receipt.key)
            wal.write_record(self.archive.repository, receipt)
        self._second_file(receipt)

    def _second_file(self, receipt: Receipt) -> None:
        if self._second is not None:
            self._second.file(receipt)

    def _recorded(self, timeline: int, name: str, raw_sha256: str) -> Receipt | None:
        listing = TimelineWal(timeline)
        if not name.endswith(".history"):
            listing = wal_reader.read_spans(self.archive.repository, self.archive.system_id, timeline)
        receipt = wal_reader.read_receipt(self.archive.repository, listing, self.archive.system_id, name, self._size)
        if receipt is not None and receipt.raw_sha256 != raw_sha256:
            raise self._other_content(name)
        return receipt

    def _other_content(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{name} is archived in {self.archive.repository.store.url} with other content: another server with the "
            "same system identifier wrote it (a clone), or this one was rolled back; nothing was overwritten"
        )

    def _store_partial(
        self,
        segment: Segment,
        offset: int,
        raw_sha256: str,
        at: datetime | None,
        earlier: "list[Future[None]]",
    ) -> None:
        if self._pieces_of != segment.name:
            if self._pieces_of is not None and int(self._pieces_of[:8], 16) != segment.timeline:
                self._stored_pieces = set()  # they are the end of the timeline that was left, and stay
            self._pieces, self._pieces_of = [], segment.name
        pieces = list(self._pieces)
        done = pieces[-1].to_offset if pieces else 0
        if offset > done:
            start, kept = merge(pieces, done, offset)
            pieces = [*kept, self._store_piece(segment, start, offset)]
        wait(earlier)
        for future in earlier:
            future.result()
        position = Position(
            cluster=self.archive.repository.cluster,
            system_id=self.archive.system_id,
            timeline=segment.timeline,
            lsn=Lsn(segment.start + offset),
            segment_bytes=self._size,
            segment=segment.name if offset else None,
            pieces=tuple(pieces) if offset else (),
            raw_sha256=raw_sha256 if offset else None,
            at=at,
            written_ms=int(self.archive.clock.now().timestamp() * 1000),
            server_major=self.archive.server_major,
        )
        with suppress(AlreadyExists):
            wal.write_record(self.archive.repository, position)
        if self._second is not None:
            self._second.position(position)
        self._pieces = pieces
        needed = {position.expected(piece).key for piece in position.pieces}
        for key in self._stored_pieces - needed:
            self._remove(key)
        self._stored_pieces &= needed
        self._forget_positions(position)

    def _store_piece(self, segment: Segment, start: int, end: int) -> Piece:
        suffix = self.archive.seal.suffix
        name = f"{segment.name}.{start:08X}-{end:08X}.{secrets.token_hex(4)}.partial{suffix}"
        key = self._file_key(segment.timeline, name)
        self._stored_pieces.add(key)
        sealed = self._seal(key, segment, start, end)
        return Piece(name=name, from_offset=start, to_offset=end, size_bytes=sealed.size_bytes, sha256=sealed.sha256)

    def _seal(self, key: str, segment: Segment, start: int, end: int) -> SealedObject:
        writer = SealedWriter(self.archive.repository.store, key, self.archive.seal)
        try:
            segment.write_to(writer, start, end)
        except BaseException:  # also an interrupt leaves no unfinished write
            writer.abandon()
            raise
        return writer.finish()

    def _forget_positions(self, newest: Position) -> None:
        """Remove superseded records; the newest two stay, so that a reader always finds one."""
        prefix = wal.positions_prefix(newest.cluster, newest.system_id, newest.timeline)
        if not self._positions or not self._positions[-1].startswith(prefix):
            self._positions = [info.key for info in self.archive.repository.store.objects(prefix)]
        if newest.key not in self._positions:
            self._positions.append(newest.key)
        while len(self._positions) > 2:  # noqa: PLR2004 - the newest and the one before
            self._remove(self._positions.pop(0))

    def _remove(self, key: str) -> None:
        """Remove what nobody relies on; where the store does not let us, it stays."""
        with suppress(BbOpsError):
            self.archive.repository.store.delete(key)
        if self._second is not None:
            self._second.remove(key)

    def _file_key(self, timeline: int, name: str) -> str:
        return wal.file_key(self.archive.repository.cluster, self.archive.system_id, timeline, name)

    @property
    def _size(self) -> int:
        return self.archive.segment_bytes


def merge(pieces: list[Piece], done: int, offset: int) -> tuple[int, list[Piece]]:
    """Decide where the next piece begins, and which pieces stay. Pure.

    Pieces at most twice as long as what follows them are stored again with it, so that their number grows with the
    logarithm of the segment's size, and every byte is stored a few times at most.
    """
    start, kept = done, list(pieces)
    while kept and kept[-1].to_offset - kept[-1].from_offset <= 2 * (offset - start):
        start = kept.pop().from_offset
    return start, kept
