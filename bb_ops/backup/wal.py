"""Stream WAL into a repository: what the server may forget is durable there first.

One session lasts as long as its connection. Whatever breaks, the next one resumes at the newest position that is
recorded in the repository, and compares what it receives again with what is archived.
"""

import logging
from dataclasses import dataclass
from threading import Event

from bb_ops.backup.wal_admission import Refused, WalForm, read_form, refuse_foreign, refuse_other_form
from bb_ops.backup.wal_observer import Observer, Progress
from bb_ops.backup.wal_options import WalOptions, slot_name
from bb_ops.backup.wal_segment import Archive, Segment
from bb_ops.backup.wal_start import NothingToCompare, Start
from bb_ops.backup.wal_writer import WalWriter
from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import AlreadyExists, BackupFailed, RepositoryMissing, ServerUnusable, StoreFailed
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.replication import SystemIdentity
from bb_ops.postgres.timelines import History, parse_history
from bb_ops.postgres.wal_stream import (
    KeepAlive,
    SlotBusy,
    SlotState,
    TimelineEnd,
    WalAhead,
    WalConnection,
    WalData,
    WalRemoved,
)
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Gap

_LOGGER = logging.getLogger(__name__)
LOCK_NAME = "wal"
_STATUS_S = 1.0
_POLL_S = 0.05
_IDLE_S = 10.0
"""How often the position is recorded anew while nothing is written: it moves the restorable window on."""
_MESSAGES_AT_ONCE = 64
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_FINISH_S = 20.0
_LET_GO_S = 10.0
"""A server that wants to stop is not kept waiting longer than this by a store that is away; its slot keeps the WAL."""


class WalStreamer:
    """Streams one server's WAL. Use ``run``."""

    def __init__(self, dsn: Dsn, repository: Repository, options: WalOptions, clock: Clock) -> None:
        """Name the server and the repository; nothing is contacted yet."""
        self._dsn = dsn
        self._repository = repository
        self._options = options
        self._clock = clock
        self._slot = slot_name(repository.cluster)
        self._system_id: str | None = None
        self._observer: Observer | None = None

    def progress(self) -> Progress:
        """Say how far the archive is behind the server; contacts nothing, and may be asked by any thread."""
        return self._observer.progress() if self._observer is not None else Progress()

    def run(self, stop: Event, until: Lsn | None = None) -> None:
        """Stream until ``stop`` is set, or until everything before ``until`` is durable.

        Raises:
            Locked: another streamer of this cluster runs.
            ServerUnusable: the server cannot be streamed from at all, or it is another system.
            SlotBusy: one streams without the lock, and ``until`` is given; else it is waited for.
            IntegrityError: the server's WAL differs from what is archived under the same name.
        """
        _ = self._repository.recipients, self._repository.signing_key  # unusable keys are found before any work
        self._repository.initialise()
        if self._options.second is not None:
            self._options.second.initialise()
        with self._repository.lock(LOCK_NAME, "wal stream"):
            observer = Observer(self._dsn, self._slot, self._options.retained_limit_bytes, self._clock)
            self._observer = observer
            try:
                self._run(observer, stop, until)
            finally:
                observer.close()

    def _run(self, observer: Observer, stop: Event, until: Lsn | None) -> None:
        pause_s, gone, removed, looks_back = _FIRST_PAUSE_S, Stopwatch(), False, True
        hopeless = AlreadyExists | Refused if until is None else AlreadyExists | Refused | SlotBusy
        while not stop.is_set():
            try:
                with WalConnection(self._dsn) as connection:
                    session = _Session(self._prepare(connection), connection, self._slot, self._options, observer)
                    if session.run(stop, until, removed=removed, looks_back=looks_back):
                        return
            except NothingToCompare:
                looks_back = False
                continue
            except WalRemoved as error:
                removed = True
                self._log_loss(error, gone, pause_s)
            except (BackupFailed, StoreFailed, ServerUnusable) as error:
                if isinstance(error, hopeless) or self._system_id is None:
                    raise
                removed, looks_back = False, True
                self._log_loss(error, gone, pause_s)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @staticmethod
    def _log_loss(error: Exception, gone: Stopwatch, pause_s: float) -> None:
        _LOGGER.warning(
            "the WAL stream broke off; it is resumed where it was",
            extra={"reason": str(error), "since_s": gone.elapsed_s, "again_in_s": pause_s},
        )

    def _prepare(self, connection: WalConnection) -> "_Source":
        identity = connection.identify()
        expected = [self._system_id] if self._system_id is not None else self._repository.system_ids()
        refuse_foreign(self._repository, identity.system_id, expected, f"PostgreSQL at {self._dsn}")
        archive = Archive(
            repository=self._repository,
            second=self._options.second,
            system_id=identity.system_id,
            segment_bytes=connection.segment_bytes(),
            server_major=connection.major(),
            seal=self._repository.seal(self._options.compression_level, 0),
            scratch=self._options.scratch,
            clock=self._clock,
        )
        self._system_id = identity.system_id
        return _Source(self._dsn, identity, archive)


@dataclass(frozen=True)
class _Source:
    dsn: Dsn
    identity: SystemIdentity
    archive: Archive


class _Session:
    """One connection's work."""

    def __init__(
        self, source: _Source, connection: WalConnection, slot: str, options: WalOptions, observer: Observer
    ) -> None:
        self._source = source
        self._archive = source.archive
        self._connection = connection
        self._slot = slot
        self._options = options
        self._observer = observer
        self._writer = WalWriter(source.archive, Lsn(0))
        self._histories: dict[int, History] = {}
        self._stopping: Stopwatch | None = None
        self._looked_back = False

    def run(self, stop: Event, until: Lsn | None, *, removed: bool, looks_back: bool) -> bool:
        """Stream until told to stop; return whether all is done.

        Args:
            stop: Tells.
            until: Also stop once everything before this is durable.
            removed: The server no longer has what the last session wanted: record the gap and begin behind it.
            looks_back: Where the archive ends at a segment's border, receive the segment before once more, so that
                there is something to compare.
        """
        try:
            start = self._find_start(looks_back=looks_back)
            if removed:
                start = self._behind(start)
            while True:
                ended = self._stream(start, stop, until)
                if ended is None:
                    return True
                start = self._next_timeline(start.timeline, ended)
        except WalRemoved as error:
            if self._looked_back:
                raise NothingToCompare(str(error)) from error
            raise
        finally:
            self._writer.close()

    def _find_start(self, *, looks_back: bool) -> Start:
        stored = read_form(self._archive.repository, self._archive.system_id)
        refuse_other_form(stored, WalForm(self._archive.server_major, self._size), f"PostgreSQL at {self._source.dsn}")
        history = self._history(self._source.identity.timeline)
        slot = self._open_slot()  # only now: a slot on a server that is refused would hold its WAL for ever
        known = wal_reader.newest_position(self._archive.repository, self._archive.system_id)
        if known is None:
            return self._first_start(slot, history)
        timeline = known.timeline
        if timeline > history.timeline:
            raise BackupFailed(
                f"the archive has reached timeline {timeline}, and the server is on {history.timeline}: it is an older "
                "primary; is DATABASE_URL the right one?"
            )
        until = history.until(timeline)
        if timeline != history.timeline and until is None:
            return self._branch(history)
        if until is not None and known.lsn >= until:
            following = history.after(timeline)
            position = wal_reader.timeline_position(self._archive.repository, self._archive.system_id, following)
            return Start(following, until.segment_start(self._size), position, until)
        start = known.lsn.segment_start(self._size)
        if slot.restart_lsn is not None and slot.restart_timeline in {None, timeline}:
            start = min(start, slot.restart_lsn.segment_start(self._size))
        if start == known.lsn and looks_back and start - self._size >= history.begin_of(timeline):
            self._looked_back, start = True, Lsn(start - self._size)
        return Start(timeline, start, known, known.lsn)

    def _first_start(self, slot: SlotState, history: History) -> Start:
        """Begin at the newest full backup where the server still has its WAL, else where the slot begins."""
        restart = slot.restart_lsn or self._source.identity.position
        start, timeline = restart.segment_start(self._size), slot.restart_timeline or history.timeline
        try:
            catalog = read_catalog(self._archive.repository, self._archive.system_id)
        except RepositoryMissing:
            return Start(timeline, start, None, Lsn(0))
        commits = [entry.physical for entry in catalog.physical if entry.physical.timeline == timeline]
        wanted = max((commit.wal_end_lsn.segment_start(self._size) for commit in commits), default=None)
        if wanted is not None and wanted < start:
            return Start(timeline, wanted, None, Lsn(0))
        return Start(timeline, start, None, Lsn(0))

    def _branch(self, history: History) -> Start:
        """Begin on a timeline that does not descend from the newest archived one, where it leaves its parent."""
        _LOGGER.warning(
            "the server is on a timeline that does not descend from the archived one",
            extra={"timeline": history.timeline, "begins": str(history.begins)},
        )
        return Start(history.timeline, history.begins.segment_start(self._size), None, history.begins)

    def _next_timeline(self, timeline: int, ended: TimelineEnd) -> Start:
        history = self._history(max(ended.next_timeline, self._source.identity.timeline))
        del history
        _LOGGER.warning(
            "the server's history goes on in another timeline",
            extra={"from_timeline": timeline, "timeline": ended.next_timeline, "at": str(ended.begins)},
        )
        return Start(ended.next_timeline, ended.begins.segment_start(self._size), None, ended.begins)

    def _history(self, timeline: int) -> History:
        """Read and archive a timeline's history, before anything of that timeline.

        Raises:
            ServerUnusable: the server has lost it: a restore could never follow.
        """
        if timeline == 1:
            return History(1)
        if timeline not in self._histories:
            try:
                content = self._connection.history(timeline)
            except BackupFailed as error:
                raise Refused(
                    f"{error}: without the history file of timeline {timeline} no restore could follow it: put it back "
                    "into pg_wal"
                ) from error
            self._histories[timeline] = parse_history(timeline, content)
            self._writer.history(timeline, content)
        return self._histories[timeline]

    def _open_slot(self) -> SlotState:
        slot = self._connection.slot(self._slot)
        if slot is not None and slot.restart_lsn is None:
            _LOGGER.error("the replication slot holds nothing any more: made anew", extra={"slot": self._slot})
            self._connection.drop_slot(self._slot)
            slot = None
        if slot is None:
            self._connection.create_slot(self._slot)
            slot = self._connection.slot(self._slot)
        return slot or SlotState(None, None)

    def _behind(self, start: Start) -> Start:
        """Begin behind WAL that the server removed; it is recorded as a gap, which no restore passes."""
        restart = self._open_slot().restart_lsn
        if restart is None or restart.segment_start(self._size) <= start.start:
            self._connection.drop_slot(self._slot)  # what it promises to hold is gone
            restart = self._open_slot().restart_lsn
        behind = (restart or self._source.identity.position).segment_start(self._size)
        gap = Gap(
            cluster=self._archive.repository.cluster,
            system_id=self._archive.system_id,
            timeline=start.timeline,
            from_lsn=start.durable or start.start,
            to_lsn=behind,
            reason="the server removed it before it was archived",
            found_at=self._archive.clock.now(),
        )
        wal.write_or_read(self._archive.repository, gap)
        _LOGGER.error("%s: take a new full backup", gap)
        return Start(self._source.identity.timeline, behind, None, behind)

    def _stream(self, start: Start, stop: Event, until: Lsn | None) -> TimelineEnd | None:
        try:
            self._connection.begin(self._slot, start.timeline, start.start)
        except WalAhead as error:
            raise BackupFailed(
                f"{error}: it was rolled back to before {start.durable}, which is archived, or has not caught up yet"
            ) from error
        _LOGGER.info("streaming WAL", extra={"timeline": start.timeline, "start": str(start.start), "slot": self._slot})
        writer = self._writer
        writer.durable = Lsn(0)  # nothing is confirmed before the server's WAL was compared with what is archived
        if start.position is not None:
            writer.resume(start.position)
        segment = Segment(self._archive, start.timeline, start.start)
        recorded = start.durable
        status, partial = Stopwatch(), Stopwatch()
        confirmed = Lsn(0)
        while True:
            writer.settle()
            self._observer.archived(writer.durable)
            if status.elapsed_s >= _STATUS_S or writer.durable != confirmed:
                self._connection.send_status(segment.end, writer.durable)
                status, confirmed = Stopwatch(), writer.durable
            if stop.is_set() or (until is not None and writer.durable >= until):
                self._finish(segment, recorded)
                return None
            due = self._options.partial_interval_s if segment.end > recorded else _IDLE_S
            if start.durable > writer.durable:
                due = 0.0  # it was compared
            self._let_go(segment)
            wanted = self._stopping is not None and segment.end > recorded
            if not writer.busy and (partial.elapsed_s >= due or wanted) and segment.end >= start.durable:
                writer.partial(segment, self._observer.at(segment.end))
                recorded, partial = segment.end, Stopwatch()
            if writer.full:
                writer.wait_for_room(_POLL_S)
                continue
            ended, segment = self._receive(segment, start)
            if ended is not None:
                self._drain(segment, recorded)
                return ended

    def _receive(self, segment: Segment, start: Start) -> tuple[TimelineEnd | None, Segment]:
        for _ in range(_MESSAGES_AT_ONCE):
            message = self._connection.receive()
            if message is None:
                self._connection.wait(_POLL_S if not self._writer.idle else 0.2)
                break
            if isinstance(message, TimelineEnd):
                return message, segment
            if isinstance(message, KeepAlive):
                if message.wants_reply:
                    self._stopping = self._stopping or Stopwatch()
                    self._connection.send_status(segment.end, self._writer.durable)
                continue
            segment = self._take(segment, message, start)
            if self._writer.full:
                break
        return None, segment

    def _take(self, segment: Segment, message: WalData, start: Start) -> Segment:
        if message.start != segment.end:
            raise BackupFailed(f"the server sent WAL at {message.start} instead of {segment.end}")
        position = start.position
        data = message.data
        while data:
            ours = position is not None and position.segment == segment.name
            check_at = int(position.lsn - segment.start) if position is not None and ours else 0
            data = segment.take(data, check_at, position.raw_sha256 if position is not None and ours else None)
            if segment.whole:
                self._writer.segment(segment, self._observer.at(segment.end))
                segment = Segment(self._archive, segment.timeline, segment.end)
        return segment

    def _let_go(self, segment: Segment) -> None:
        """End the connection where the server wants to stop and the store is away: it would wait for us for ever.

        We answer every second, so the server asks for an answer only while it waits for us in order to stop.
        """
        if self._stopping is None or self._writer.durable >= segment.end:
            self._stopping = None
        elif self._writer.outage.lasts_s > _LET_GO_S and self._stopping.elapsed_s > _LET_GO_S:
            raise BackupFailed("the server wants to stop while the store is away: its slot keeps what is not archived")

    def _finish(self, segment: Segment, recorded: Lsn) -> None:
        """Make what has arrived durable, say so, and go."""
        self._drain(segment, recorded)
        self._connection.send_status(segment.end, self._writer.durable)
        self._connection.finish_stream()

    def _drain(self, segment: Segment, recorded: Lsn) -> None:
        if segment.end > recorded:
            self._writer.partial(segment, self._observer.at(segment.end))
        if not self._writer.wait_until_settled(_FINISH_S):
            raise StoreFailed("what arrived last could not be stored in time: the slot keeps it")

    @property
    def _size(self) -> int:
        return self._archive.segment_bytes
