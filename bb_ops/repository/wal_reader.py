"""Reads what is archived of WAL: listings, positions, receipts. Nothing is written."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from bb_ops.repository.index import Index
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import (
    Position,
    Receipt,
    Span,
    log_prefix,
    positions_prefix,
    read_record,
    receipt_key,
    segment_position,
    span_key,
    timeline_prefix,
    wal_prefix,
)
from bb_ops.repository.wal_listing import LogFolder, Stretch, TimelineWal, assemble, hexadecimal, read_folder
from bb_ops.storage.base import Marks

_RECORDS = ("seal-", "gap-")


def read_timelines(repository: Repository, system_id: str, index: Index | None = None) -> dict[int, TimelineWal]:
    """List the WAL of a system, by timeline, with what an index knows of its folders; reads no object."""
    if index is None or repository.store.marks(()) is None:
        return _list_all(repository, system_id)
    found = timelines(repository, system_id)
    return {timeline: _list_timeline(repository, system_id, timeline, index) for timeline in found}


def timelines(repository: Repository, system_id: str) -> list[int]:
    """Return the timelines that have a folder, in order; other names beside them are none of ours."""
    return _numbers(repository.store.children(wal_prefix(repository.cluster, system_id)))


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(number for name in names if (number := hexadecimal(name)) is not None)


def read_spans(repository: Repository, system_id: str, timeline: int) -> TimelineWal:
    """List a timeline's sealed spans alone."""
    prefix = timeline_prefix(repository.cluster, system_id, timeline)
    infos = repository.store.objects(f"{prefix}{_RECORDS[0]}")
    return assemble(timeline, (info.key.removeprefix(prefix) for info in infos), {})


def _list_all(repository: Repository, system_id: str) -> dict[int, TimelineWal]:
    """List everything at once, for stores where each folder would cost a request."""
    prefix = wal_prefix(repository.cluster, system_id)
    names: dict[int, list[str]] = defaultdict(list)
    logs: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for info in repository.store.objects(prefix):
        folder, _, name = info.key.removeprefix(prefix).partition("/")
        inner, found, rest = name.rpartition("/")
        timeline, log = hexadecimal(folder), hexadecimal(inner)
        if timeline is not None and not found:
            names[timeline].append(name)
        elif timeline is not None and log is not None:
            logs[timeline][log].append(rest)
    return {
        timeline: assemble(
            timeline,
            names.get(timeline, ()),
            {log: read_folder(timeline, log, found) for log, found in logs.get(timeline, {}).items()},
        )
        for timeline in sorted({*names, *logs})
    }


def _list_timeline(repository: Repository, system_id: str, timeline: int, index: Index) -> TimelineWal:
    cluster = repository.cluster
    prefix = timeline_prefix(cluster, system_id, timeline)
    names, children = _known_or_read(repository, index, [prefix], lambda key: _list_records(repository, key))[0]
    logs = _numbers(children)
    folders = {log_prefix(cluster, system_id, timeline, log): log for log in logs}
    rows = _known_or_read(
        repository, index, list(folders), lambda key: _list_log(repository, key, timeline, folders[key])
    )
    return assemble(timeline, names, {log: LogFolder(*row) for log, row in zip(logs, rows, strict=True)})


def _known_or_read(
    repository: Repository, index: Index, folders: list[str], read: Callable[[str], list[Any]]
) -> list[list[Any]]:
    """Return what is known of folders that have not changed, else read them; their marks are taken before that."""
    marks, found = repository.store.marks(folders) or Marks(), []
    for number, folder in enumerate(folders):
        mark = marks.part(number, number + 1)
        row = index.find(folder, mark)
        if row is None:
            row = read(folder)
            index.keep(folder, [], mark, row)
        found.append(row)
    return found


def _list_records(repository: Repository, prefix: str) -> list[Any]:
    """List what lies directly in a timeline's folder: records, and the folders of its log numbers."""
    timeline = prefix.rstrip("/").rpartition("/")[2]
    kinds = [f"{prefix}{kind}" for kind in (*_RECORDS, f"{timeline}.history.json")]
    names = [info.key.removeprefix(prefix) for kind in kinds for info in repository.store.objects(kind)]
    return [names, repository.store.children(prefix)]


def _list_log(repository: Repository, prefix: str, timeline: int, log: int) -> list[Any]:
    here = read_folder(timeline, log, (info.key.removeprefix(prefix) for info in repository.store.objects(prefix)))
    return [here.suffix, here.stored, here.receipts, here.pieces]


def newest_position(repository: Repository, system_id: str) -> Position | None:
    """Return how far the newest timeline's WAL is durable; None where nothing was archived."""
    for timeline in reversed(timelines(repository, system_id)):
        position = timeline_position(repository, system_id, timeline)
        if position is not None:
            return position
    return None


def timeline_position(repository: Repository, system_id: str, timeline: int) -> Position | None:
    """Return how far one timeline's WAL is durable, by its newest record."""
    for _ in range(3):  # a writer removes old records while we look
        keys = [
            info.key for info in repository.store.objects(positions_prefix(repository.cluster, system_id, timeline))
        ]
        if not keys:
            return None
        position = read_record(repository, keys[-1], Position)
        if position is not None:
            return position
    return None


class ReceiptReader:
    """Reads what is recorded of segments: in their receipts, or in the spans that sealed them, each read once."""

    def __init__(self, repository: Repository, wal: TimelineWal, system_id: str, segment_bytes: int) -> None:
        """Name the timeline, by its listing."""
        self._repository = repository
        self._wal = wal
        self._system_id = system_id
        self._segment_bytes = segment_bytes
        self._spans: dict[Stretch, dict[str, Receipt]] = {}

    def receipt(self, name: str) -> Receipt | None:
        """Return what is recorded of a segment or history file; None where nothing is.

        Raises:
            IntegrityError, KeyRejected: the record is damaged or forged.
        """
        cluster, timeline = self._repository.cluster, self._wal.timeline
        if name in self._wal.receipts or not self._wal.spans:
            receipt = read_record(self._repository, receipt_key(cluster, self._system_id, timeline, name), Receipt)
            if receipt is not None or not self._wal.spans:
                return receipt
        for stretch in self._wal.spans:
            if stretch.start <= segment_position(name, self._segment_bytes) < stretch.end:
                return self._of_span(stretch).get(name)
        return read_record(self._repository, receipt_key(cluster, self._system_id, timeline, name), Receipt)

    def _of_span(self, stretch: Stretch) -> dict[str, Receipt]:
        if stretch not in self._spans:
            key = span_key(self._repository.cluster, self._system_id, self._wal.timeline, stretch.start, stretch.end)
            span = read_record(self._repository, key, Span)
            entries = span.segments if span is not None else ()
            self._spans[stretch] = {entry.name: span.receipt(entry) for entry in entries if span is not None}
        return self._spans[stretch]


def read_receipt(repository: Repository, wal: TimelineWal, system_id: str, name: str, size: int) -> Receipt | None:
    """Return what is recorded of one segment, in its receipt or in the span that sealed it; None where nothing is."""
    return ReceiptReader(repository, wal, system_id, size).receipt(name)


def segment_size(repository: Repository, system_id: str, listing: TimelineWal) -> int | None:
    """Return the size of a timeline's segments, from any record of it; None where nothing is recorded."""
    position = timeline_position(repository, system_id, listing.timeline)
    if position is not None:
        return position.segment_bytes
    for name in sorted(listing.receipts)[:1]:
        receipt = read_record(repository, receipt_key(repository.cluster, system_id, listing.timeline, name), Receipt)
        if receipt is not None:
            return receipt.raw_size_bytes
    for stretch in listing.spans[:1]:
        key = span_key(repository.cluster, system_id, listing.timeline, stretch.start, stretch.end)
        span = read_record(repository, key, Span)
        if span is not None:
            return span.segment_bytes
    return None
