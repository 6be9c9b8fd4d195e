"""Seal a span of WAL, on every physical engine each hour: how far one can restore, proven and signed.

The span joins the one before, or the full backup, without a hole; every segment in it is durable. A hole is recorded as
a gap: nothing that comes later pretends to join what came before.
"""

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event, Timer

import psycopg

from bb_ops import __version__
from bb_ops.backup.wal import WalStreamer
from bb_ops.backup.wal_options import WalOptions
from bb_ops.clock import Clock, Stopwatch, sleep
from bb_ops.dsn import Dsn
from bb_ops.errors import BackupFailed, BbOpsError, FindingsPresent, IntegrityError, Locked, ServerUnusable
from bb_ops.findings import Value
from bb_ops.postgres.cluster import ServerFacts, read_facts, refusals
from bb_ops.postgres.connection import connect
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.wal_stream import SlotBusy, WalConnection
from bb_ops.repository import wal, wal_reader, windows
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Gap, Receipt, Span, SpanSegment
from bb_ops.repository.wal_listing import Stretch
from bb_ops.repository.windows import WalFacts

_LOGGER = logging.getLogger(__name__)
LOCK_NAME = "incremental"
ENGINE = "native"
_WAIT_S = 300.0
_POLL_S = 0.25
_BUSY_S = 1.0
_THREADS = 8
_SLOT_FORM = "%Y-%m-%d-%H:%M"
_MARK = "SELECT pg_logical_emit_message(true, 'bb_ops', 'span')"
"""A commit of our own, so that there is something to seal, and recovery can reach this very instant."""


class Incremental(Value):
    """What sealing did.

    Attributes:
        spans: What was sealed, in order; several after a change of timeline or behind a gap.
        gaps: Holes that were found and recorded.
    """

    spans: tuple[Span, ...]
    gaps: tuple[Gap, ...]


class IncrementalPlan(Value):
    """What sealing would do; nothing has been changed.

    Attributes:
        to_lsn: Where the server's WAL ends now.
        archived_to_lsn: What is durable so far; None where nothing is.
        refusals: Why it can not be done; empty where it can.
    """

    schema_id: str = "bb-ops/wal-span-plan/1"
    kind: str = "wal"
    engine: str = ENGINE
    slot: str
    server: str
    repository: str
    to_lsn: str
    archived_to_lsn: str | None
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class _Target:
    """A segment's border, and the instant whose every commit lies before it, where known."""

    lsn: Lsn
    at: datetime | None


@dataclass(frozen=True)
class _Beginning:
    """Where the next span begins, and what it continues."""

    lsn: Lsn
    continues: str | None
    at: datetime | None


def hourly_slot(at: datetime) -> str:
    """Return the hour that holds ``at``, as Dagster names hourly partitions."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0).strftime(_SLOT_FORM)


def plan_incremental(dsn: Dsn, repository: Repository, clock: Clock) -> IncrementalPlan:
    """Look at both sides; changes nothing."""
    server = read_facts(dsn)
    with WalConnection(dsn) as connection:
        identity = connection.identify()
    position = wal_reader.newest_position(repository, identity.system_id)
    return IncrementalPlan(
        slot=hourly_slot(clock.now()),
        server=str(dsn),
        repository=repository.store.url,
        to_lsn=str(identity.position),
        archived_to_lsn=str(position.lsn) if position else None,
        refusals=tuple(refusals(server)),
    )


def take_incremental(
    dsn: Dsn, repository: Repository, options: WalOptions, clock: Clock
) -> tuple[Incremental, BbOpsError | None]:
    """Seal the WAL up to now. Where no streamer runs, stream it first. Safe to repeat and to kill.

    Returns:
        What was sealed, and a complaint where WAL is missing.

    Raises:
        ServerUnusable: the server can not be streamed from, or is another system.
        BackupFailed: the WAL did not become durable in time.
        IntegrityError: a segment differs from its receipt.
        Locked: another span is being sealed.
    """
    server = read_facts(dsn)
    if refusals(server):
        raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(refusals(server))}")
    repository.initialise()
    with WalConnection(dsn) as connection:
        identity = connection.identify()
    with repository.lock(LOCK_NAME, "backup incremental"):
        watch, started_at = Stopwatch(), clock.now()
        target = _switch(dsn, server)
        _wait_until_durable(dsn, repository, options, clock, identity.system_id, target.lsn)
        facts = windows.read_facts(repository, identity.system_id)
        if facts.damaged:
            raise facts.damaged[0]
        sealer = _Sealer(repository, facts, server, clock, started_at, watch, target)
        done = sealer.seal()
    _LOGGER.info(
        "WAL is sealed", extra={"to_lsn": str(target.lsn), "spans": len(done.spans), "duration_s": watch.elapsed_s}
    )
    if done.gaps:
        return done, FindingsPresent(f"{'; '.join(str(gap) for gap in done.gaps)}: take a new full backup")
    return done, None


def _switch(dsn: Dsn, server: ServerFacts) -> _Target:
    """End the current segment, and return the border behind it; where we may not, the last border that was passed."""
    size = server.wal_segment_bytes
    with connect(dsn) as connection:
        instant = connection.execute("SELECT clock_timestamp()").fetchone()
        at = instant[0] if instant is not None and isinstance(instant[0], datetime) else None
        with suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute(_MARK)
            row = connection.execute("SELECT pg_switch_wal()::text").fetchone()
            if row is not None:
                return _Target(Lsn(-(-Lsn.parse(str(row[0])) // size) * size), at)
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    if row is None:
        raise BackupFailed(f"PostgreSQL at {dsn} does not say where its WAL ends")
    _LOGGER.warning(
        "the role may not call pg_switch_wal(): only whole segments are sealed", extra={"role": server.role}
    )
    return _Target(Lsn.parse(str(row[0])).segment_start(size), None)


def _wait_until_durable(  # noqa: PLR0913 - one fact each
    dsn: Dsn, repository: Repository, options: WalOptions, clock: Clock, system_id: str, target: Lsn
) -> None:
    watch = Stopwatch()
    while not _is_durable(repository, system_id, target):
        if watch.elapsed_s > _WAIT_S:
            raise BackupFailed(
                f"WAL up to {target} did not become durable in {repository.store.url} within {_WAIT_S:.0f} s: see "
                "`bb-ops wal status` and the log of `bb-ops wal stream`"
            )
        stop = Event()
        timer = Timer(_WAIT_S, stop.set)
        timer.daemon = True
        try:
            timer.start()
            WalStreamer(dsn, repository, options, clock).run(stop, until=target)
        except Locked:
            sleep(_POLL_S)  # a streamer is at work
        except SlotBusy:
            sleep(_BUSY_S)  # likewise, and it has lost its lock while the store was away
        finally:
            timer.cancel()


def _is_durable(repository: Repository, system_id: str, target: Lsn) -> bool:
    position = wal_reader.newest_position(repository, system_id)
    return position is not None and position.lsn >= target


class _Sealer:
    """Writes spans and gap records from what is archived."""

    def __init__(  # noqa: PLR0913 - one fact each
        self,
        repository: Repository,
        facts: WalFacts,
        server: ServerFacts,
        clock: Clock,
        started_at: datetime,
        watch: Stopwatch,
        target: _Target,
    ) -> None:
        self._target = target
        self._repository = repository
        self._facts = facts
        self._server = server
        self._clock = clock
        self._started_at = started_at
        self._watch = watch

    def seal(self) -> Incremental:
        spans: list[Span] = []
        gaps: list[Gap] = []
        for timeline in sorted(self._facts.timelines):
            for found in self._seal_timeline(timeline):
                if isinstance(found, Gap):
                    gaps.append(found)
                else:
                    spans.append(found)
        return Incremental(spans=tuple(spans), gaps=tuple(gaps))

    def _seal_timeline(self, timeline: int) -> Iterator[Span | Gap]:
        size = self._facts.segment_bytes or self._server.wal_segment_bytes
        durable = self._facts.durable(timeline).segment_start(size)
        beginning = self._beginning(timeline)
        at = beginning.lsn if beginning is not None else None
        for stretch in self._facts.stretches(timeline):
            end = min(stretch.end, durable)
            if at is not None and end <= at:
                continue
            if at is not None and at < stretch.start:
                yield self._record_gap(timeline, Stretch(at, stretch.start))
                beginning, at = None, stretch.start
            start = max(at or stretch.start, stretch.start)
            if start < end:
                span = self._seal_span(timeline, Stretch(start, end), beginning, size)
                yield span
                beginning, at = _Beginning(end, span.id, span.to_at), end
        if at is not None and at < durable:
            yield self._record_gap(timeline, Stretch(at, durable))

    def _beginning(self, timeline: int) -> _Beginning | None:
        """Return where the last span ends, else where the timeline begins, else where the newest full backup ends."""
        listing = self._facts.timelines[timeline]
        size = self._facts.segment_bytes or self._server.wal_segment_bytes
        if listing.spans:
            last = max(listing.spans, key=lambda entry: entry.end)
            key = wal.span_key(self._repository.cluster, self._facts.system_id, timeline, last.start, last.end)
            span = wal.read_record(self._repository, key, Span)
            return _Beginning(last.end, span.id if span else None, span.to_at if span else None)
        if timeline in self._facts.histories:
            return _Beginning(self._facts.histories[timeline].begins.segment_start(size), None, None)
        catalog = read_catalog(self._repository, self._facts.system_id)
        for entry in reversed(catalog.physical):
            commit = entry.physical
            if commit.timeline == timeline and not entry.failed:
                return _Beginning(commit.wal_end_lsn.segment_start(size), commit.id, commit.as_of)
        return None

    def _seal_span(self, timeline: int, stretch: Stretch, beginning: _Beginning | None, size: int) -> Span:
        names = wal.segments_of(timeline, stretch.start, stretch.end, size)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="seal") as pool:
            receipts = list(pool.map(lambda name: self._receipt(timeline, name), names))
        if stretch.end == self._target.lsn and self._target.at is not None:
            known = receipts[-1].at
            newest = self._target.at if known is None else max(known, self._target.at)
            receipts[-1] = receipts[-1].model_copy(update={"at": newest})
        now = self._clock.now()
        span = Span(
            cluster=self._repository.cluster,
            system_id=self._facts.system_id,
            timeline=timeline,
            id=f"{now:%Y%m%dT%H%M%SZ}-wal-{secrets.token_hex(4)}",
            engine=ENGINE,
            slot=hourly_slot(now),
            server_version=self._server.version,
            from_lsn=stretch.start,
            to_lsn=stretch.end,
            segment_bytes=size,
            from_at=beginning.at if beginning is not None else None,
            to_at=receipts[-1].at,
            continues=beginning.continues if beginning is not None else None,
            segments=tuple(
                SpanSegment(
                    name=entry.name,
                    suffix=entry.suffix,
                    size_bytes=entry.size_bytes,
                    sha256=entry.sha256,
                    raw_sha256=entry.raw_sha256,
                    at=entry.at,
                )
                for entry in receipts
            ),
            started_at=self._started_at,
            stopped_at=now,
            duration_s=self._watch.elapsed_s,
            bb_ops_version=__version__,
        )
        span = wal.write_or_read(self._repository, span)
        for entry in receipts:  # the span says all that they say
            with suppress(BbOpsError):
                self._repository.store.delete(entry.key)
        return span

    def _receipt(self, timeline: int, name: str) -> Receipt:
        key = wal.receipt_key(self._repository.cluster, self._facts.system_id, timeline, name)
        receipt = wal.read_record(self._repository, key, Receipt)
        if receipt is None:
            raise IntegrityError(f"{self._repository.store.url}/{key} is gone")
        info = self._repository.store.stat(receipt.expected.key)
        if info is None or info.size_bytes != receipt.size_bytes:
            found = "is gone" if info is None else f"has {info.size_bytes} bytes instead of {receipt.size_bytes}"
            raise IntegrityError(f"{self._repository.store.url}/{receipt.expected.key} {found}")
        return receipt

    def _record_gap(self, timeline: int, stretch: Stretch) -> Gap:
        gap = Gap(
            cluster=self._repository.cluster,
            system_id=self._facts.system_id,
            timeline=timeline,
            from_lsn=stretch.start,
            to_lsn=stretch.end,
            reason="it is not in the archive",
            found_at=self._clock.now(),
        )
        return wal.write_or_read(self._repository, gap)
