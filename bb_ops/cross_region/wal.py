"""Copies archived WAL to another repository: whole segments in order, each re-read and re-hashed where it arrived.

Records follow the bytes they speak of, so a copy that is killed shows no segment that is not there. Pieces of the
unfinished segment stay behind. Never deletes what the other side relies on.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError, IntegrityError, KeyRejected
from bb_ops.findings import Value
from bb_ops.progress import Progress
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Gap, Receipt, Span, WalRecord
from bb_ops.repository.wal_copy import copy_object, copy_record
from bb_ops.repository.wal_listing import Stretch, TimelineWal
from bb_ops.repository.wal_reader import ReceiptReader
from bb_ops.storage.sealed import Expected, verify_stored

_THREADS = 4
_BATCH = 32
_T = TypeVar("_T")


class CopiedWal(Value):
    """What was copied of one system's WAL.

    Attributes:
        copied: Segments and history files that arrived now.
        copied_bytes: Bytes sent.
        verified: Segments that were there and whose bytes were read again.
        failed: What could not be copied or differs, each with its reason.
    """

    system_id: str
    copied: int
    copied_bytes: int
    verified: int
    failed: tuple[str, ...]
    duration_s: float


def copy_wal(
    source: Repository, destination: Repository, progress: Progress, *, verify_all: bool
) -> tuple[list[CopiedWal], BbOpsError | None]:
    """Copy what the destination lacks of every system's WAL. Safe to repeat and to kill.

    Returns:
        What was done, and the first error; None where everything succeeded.
    """
    done: list[CopiedWal] = []
    first_error: BbOpsError | None = None
    for system_id in source.system_ids():
        work = _Work(source, destination, system_id, progress)
        timelines = wal_reader.read_timelines(source, system_id)
        there = wal_reader.read_timelines(destination, system_id)
        for timeline, listing in timelines.items():
            work.timeline(listing, there.get(timeline) or TimelineWal(timeline), verify_all=verify_all)
        if timelines:
            done.append(work.report())
        first_error = first_error or work.first_error
    return done, first_error


def count_missing(source: Repository, destination: Repository) -> tuple[int, int]:
    """Return how many segments and history files the destination lacks, and their bytes before compression."""
    files = raw_bytes = 0
    for system_id in source.system_ids():
        arrived = wal_reader.read_timelines(destination, system_id)
        for timeline, here in wal_reader.read_timelines(source, system_id).items():
            there = arrived.get(timeline) or TimelineWal(timeline)
            size = wal_reader.segment_size(source, system_id, here)
            missing = len(_recorded(here, size) - _recorded(there, size)) if size is not None else 0
            files += missing + (here.history and not there.history)
            raw_bytes += missing * (size or 0)
    return files, raw_bytes


class _Work:
    def __init__(self, source: Repository, destination: Repository, system_id: str, progress: Progress) -> None:
        self._source = source
        self._destination = destination
        self._system_id = system_id
        self._progress = progress
        self._watch = Stopwatch()
        self._copied = self._copied_bytes = self._verified = 0
        self._failed: list[str] = []
        self.first_error: BbOpsError | None = None

    def report(self) -> CopiedWal:
        return CopiedWal(
            system_id=self._system_id,
            copied=self._copied,
            copied_bytes=self._copied_bytes,
            verified=self._verified,
            failed=tuple(self._failed),
            duration_s=self._watch.elapsed_s,
        )

    def timeline(self, here: TimelineWal, there: TimelineWal, *, verify_all: bool) -> None:
        size = wal_reader.segment_size(self._source, self._system_id, here)
        if here.history and not there.history:
            self._copy_history(here)
        if size is None:
            return
        reader = ReceiptReader(self._source, here, self._system_id, size)
        present = _recorded(there, size)
        missing = sorted(_recorded(here, size) - present)
        for first in range(0, len(missing), _BATCH):
            self._copy_batch(here, reader, missing[first : first + _BATCH])
        for stretch in here.spans:
            if stretch not in there.spans:
                self._copy_span(here, there, stretch, size)
        for stretch in here.gaps:
            if stretch not in there.gaps:
                self._copy_gap(here, stretch)
        if verify_all and present:
            self._verify(ReceiptReader(self._destination, there, self._system_id, size), sorted(present))

    def _copy_history(self, here: TimelineWal) -> None:
        name = f"{here.timeline:08X}.history"
        reader = ReceiptReader(self._source, here, self._system_id, 1)
        self._copy_batch(here, reader, [name])

    def _copy_batch(self, here: TimelineWal, reader: ReceiptReader, names: list[str]) -> None:
        receipts = [receipt for name in names if (receipt := self._guard(lambda name=name: reader.receipt(name)))]  # type: ignore[misc]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as pool:
            arrived = list(pool.map(lambda receipt: self._guard(lambda: self._copy_object(receipt.expected)), receipts))
        for receipt, sent in zip(receipts, arrived, strict=True):
            if sent is None:
                continue
            self._copied += 1
            self._copied_bytes += sent
            if receipt.name in here.receipts or receipt.name.endswith(".history"):
                self._guard(lambda key=receipt.key: self._copy_record(key, Receipt))  # type: ignore[misc]
        self._progress("wal", self._copied_bytes, None)

    def _copy_object(self, expected: Expected) -> int:
        return copy_object(self._source, self._destination, expected)

    def _copy_record(self, key: str, kind: type[WalRecord]) -> bool:
        return copy_record(self._source, self._destination, key, kind)

    def _copy_span(self, here: TimelineWal, there: TimelineWal, stretch: Stretch, size: int) -> None:
        key = wal.span_key(self._source.cluster, self._system_id, here.timeline, stretch.start, stretch.end)
        if self._guard(lambda: self._copy_record(key, Span)):
            for name in wal.segments_of(here.timeline, stretch.start, stretch.end, size):
                if name in there.receipts:
                    with suppress(BbOpsError):
                        self._destination.store.delete(
                            wal.receipt_key(self._source.cluster, self._system_id, here.timeline, name)
                        )

    def _copy_gap(self, here: TimelineWal, stretch: Stretch) -> None:
        key = wal.gap_key(self._source.cluster, self._system_id, here.timeline, stretch.start, stretch.end)
        self._guard(lambda: self._copy_record(key, Gap))

    def _verify(self, reader: ReceiptReader, names: list[str]) -> None:
        def verify(name: str) -> bool:
            receipt = reader.receipt(name)
            if receipt is not None:
                verify_stored(self._destination.store, receipt.expected)
            return receipt is not None

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
            self._verified += sum(
                bool(found) for found in pool.map(lambda name: self._guard(lambda: verify(name)), names)
            )

    def _guard(self, action: Callable[[], _T]) -> _T | None:
        """Do one thing; what differs or is damaged is remembered, and the rest goes on."""
        try:
            return action()
        except (IntegrityError, KeyRejected) as error:
            self._failed.append(str(error))
            self.first_error = self.first_error or error
            return None


def _recorded(listing: TimelineWal, size: int) -> set[str]:
    return {
        name
        for stretch in listing.stretches(size)
        for name in wal.segments_of(listing.timeline, stretch.start, stretch.end, size)
    }
