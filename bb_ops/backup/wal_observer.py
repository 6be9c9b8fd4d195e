"""Watches the server beside the stream: how far it is, at which instant, and what the slot makes it keep."""

import logging
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from threading import Event, Lock, Thread

import psycopg

from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError
from bb_ops.postgres.connection import connect
from bb_ops.postgres.lsn import Lsn

_LOGGER = logging.getLogger(__name__)
_INTERVAL_S = 1.0
_STALE_S = 3 * _INTERVAL_S
_SAMPLES = 7200
_WARN_EVERY_S = 60.0
_SERVER = """
WITH instant AS MATERIALIZED (SELECT clock_timestamp() AS at)
SELECT instant.at,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
       s.active, s.wal_status, s.restart_lsn::text,
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int END
FROM instant LEFT JOIN pg_replication_slots s ON s.slot_name = %s
"""


@dataclass(frozen=True)
class Observation:
    """The server at one instant, by its own clock.

    Attributes:
        at: Everything committed before it lies before ``lsn``.
        slot_active: Whether somebody streams from the slot; None where there is no slot.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost`` (view pg_replication_slots).
        retained_bytes: WAL that the slot makes the server keep; None where it keeps none or there is no slot.
        timeline: On which the server writes, or replays; None where it was not asked.
    """

    at: datetime
    lsn: Lsn
    slot_active: bool | None
    wal_status: str | None
    retained_bytes: int | None
    timeline: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far an archive is behind its server; None is "not measured", never zero.

    Attributes:
        lag_s: Everything committed longer ago than this is archived.
        lag_bytes: WAL that the server has and the archive has not.
        retained_bytes: WAL that the slot makes the server keep.
        archived_lsn: Everything before it is durable in the repository.
    """

    lag_s: float | None = None
    lag_bytes: int | None = None
    retained_bytes: int | None = None
    archived_lsn: Lsn | None = None


def measure_lag(server: Observation, archived: Lsn, archived_at: datetime | None) -> tuple[int, float | None]:
    """Return the lag in bytes and in seconds, the second None where no archived instant is known. Pure."""
    behind = max(0, server.lsn - archived)
    if behind == 0:
        return 0, 0.0
    return behind, None if archived_at is None else max(0.0, (server.at - archived_at).total_seconds())


def observe(connection: "psycopg.Connection[tuple[object, ...]]", slot: str) -> Observation:
    """Look once: the instant is read before the position, so no commit before it can be missing."""
    row = connection.execute(_SERVER, (slot,)).fetchone()
    if row is None:
        raise BbOpsError("the server did not say where its WAL ends")
    at, lsn, active, status, restart, timeline = row
    position = Lsn.parse(str(lsn))
    return Observation(
        at=at if isinstance(at, datetime) else datetime.fromisoformat(str(at)),
        lsn=position,
        slot_active=None if active is None else bool(active),
        wal_status=None if status is None else str(status),
        retained_bytes=None if restart is None else max(0, position - Lsn.parse(str(restart))),
        timeline=int(str(timeline)),
    )


def observe_once(dsn: Dsn, slot: str) -> Observation:
    """Connect, look, and go.

    Raises:
        BbOpsError: the server cannot be asked.
    """
    try:
        with connect(dsn) as connection:
            return observe(connection, slot)
    except psycopg.Error as error:
        raise BbOpsError(f"PostgreSQL at {dsn} does not say where its WAL ends: {type(error).__name__}") from None


class Observer:
    """Looks every second, in a thread. A server that does not answer gives no samples, and no lag is claimed."""

    def __init__(self, dsn: Dsn, slot: str, retained_limit_bytes: int, clock: Clock) -> None:
        """Start to look."""
        self._dsn = dsn
        self._slot = slot
        self._limit_bytes = retained_limit_bytes
        self._clock = clock
        self._samples: deque[Observation] = deque(maxlen=_SAMPLES)
        self._lock = Lock()
        self._ended = Event()
        self._warned: Stopwatch | None = None
        self._looked: Stopwatch | None = None
        self._durable: Lsn | None = None
        self._durable_at: datetime | None = None
        self._thread = Thread(target=self._run, name="observer", daemon=True)
        self._thread.start()

    def at(self, lsn: Lsn) -> datetime | None:
        """Return the newest instant whose every commit lies before ``lsn``; older samples are forgotten."""
        found = None
        with self._lock:
            for sample in self._samples:
                if sample.lsn > lsn:
                    break
                found = sample.at
        return found

    def archived(self, lsn: Lsn) -> None:
        """Learn up to where WAL is durable, and forget what lies before, except the newest of it."""
        with self._lock:
            while len(self._samples) > 1 and self._samples[1].lsn <= lsn:
                self._samples.popleft()
            if lsn and self._samples and self._samples[0].lsn <= lsn:
                self._durable_at = self._samples[0].at
            if lsn:
                self._durable = lsn

    def progress(self) -> Progress:
        """Say how far the archive is behind; a server that did not answer for a while has no lag that we know."""
        with self._lock:
            if self._looked is None or self._looked.elapsed_s > _STALE_S or not self._samples:
                return Progress(archived_lsn=self._durable)
            server = self._samples[-1]
            if self._durable is None:
                return Progress(retained_bytes=server.retained_bytes)
            lag_bytes, lag_s = measure_lag(server, self._durable, self._durable_at)
            return Progress(lag_s, lag_bytes, server.retained_bytes, self._durable)

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with connect(self._dsn) as connection:
                    while not self._ended.is_set():
                        sample = observe(connection, self._slot)
                        with self._lock:
                            if self._samples and sample.lsn < self._samples[-1].lsn:
                                self._samples.clear()  # another server, or a new timeline
                                self._durable = self._durable_at = None
                            self._samples.append(sample)
                            self._looked = Stopwatch()
                        self._guard(sample)
                        self._ended.wait(_INTERVAL_S)
            except (psycopg.Error, BbOpsError) as error:
                _LOGGER.info("the server does not answer", extra={"reason": str(error).splitlines()[0]})
                self._ended.wait(_INTERVAL_S)

    def _guard(self, sample: Observation) -> None:
        retained = sample.retained_bytes or 0
        in_danger = sample.wal_status in {"unreserved", "lost"}
        if not in_danger and retained <= self._limit_bytes:
            self._warned = None
            return
        if self._warned is not None and self._warned.elapsed_s < _WARN_EVERY_S:
            return
        self._warned = Stopwatch()
        _LOGGER.error(
            "the replication slot makes the server keep too much WAL: its disk fills up until this is archived",
            extra={
                "slot": self._slot,
                "retained_bytes": retained,
                "limit_bytes": self._limit_bytes,
                "wal_status": sample.wal_status,
            },
        )
