"""Reads the records of archived WAL: segments are fetched ahead, in parallel, and never many at once on disk."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from bb_ops.errors import IntegrityError
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.wal_dump import Record, Wanted, dumping, parse_end, pg_waldump
from bb_ops.recovery.events.wal_path import Batch, Segment, WalPath, readable
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.wal import fetch_file, write_file
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal_reader import ReceiptReader

ENDS: Wanted = {"Transaction": ()}
"""The records that end transactions."""
_THREADS = 4
_ATTEMPTS = 3
_DISORDER = timedelta(seconds=10)
"""How far the order of commit records may differ from that of their times."""
_LOOK_BACK = 16
"""How many segments before one are asked for an instant, where it has none."""


@dataclass
class SegmentReader:
    """Reads what is recorded of a path's segments, and fetches them.

    Attributes:
        lost: Segments that could not be read, with the reason; what they hold was not looked at.
    """

    repository: Repository
    path: WalPath
    lost: dict[Segment, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read no record yet."""
        facts = self.path.facts
        self._receipts = {
            timeline: ReceiptReader(self.repository, listing, facts.system_id, self.path.segment_bytes)
            for timeline, listing in facts.timelines.items()
        }

    def ends_at(self, segment: Segment) -> datetime | None:
        """Return an instant: everything committed before it lies before the segment's end; None where not measured."""
        if not segment.finished:
            return self.path.facts.positions[segment.timeline].at
        receipt = self._receipts[segment.timeline].receipt(self.path.name(segment))
        return receipt.at if receipt is not None else None

    def around(self, since: datetime, until: datetime | None) -> tuple[int, int]:
        """Return the first and the last segment that may be wanted, by what is recorded of their ends.

        What was committed before ``until`` does not lie behind the last; what was committed after ``since`` may lie
        before the first, where the instants are older than the segments' ends.
        """
        segments = self.path.segments

        def ends_at(index: int) -> datetime:
            """Ask the nearest segment before it that knows; ancient where none does."""
            for one in reversed(segments[max(0, index - _LOOK_BACK) : index + 1]):
                at = self.ends_at(one)
                if at is not None:
                    return at
            return datetime.min.replace(tzinfo=since.tzinfo)

        places = range(len(segments))  # their instants ascend, so a few of them are read
        first = max(0, bisect_right(places, since, key=ends_at) - 1)
        last = bisect_left(places, until, key=ends_at) if until is not None else len(segments) - 1
        return first, min(last, len(segments) - 1)

    def fetch(self, segment: Segment, path: Path) -> bool:
        """Write a segment to a file; False, and noted, where it is damaged or gone."""
        name = self.path.name(segment)
        for _ in range(1 if segment.finished else _ATTEMPTS):  # a streamer may replace the pieces of the last one
            try:
                if self._write(segment, name, path):
                    self.lost.pop(segment, None)
                    return True
                self.lost[segment] = f"the record of {name} is gone"
            except IntegrityError as error:
                self.lost[segment] = str(error)
        return False

    def _write(self, segment: Segment, name: str, path: Path) -> bool:
        """Write a segment; of one that was not whole when the archive was listed, what there is of it by now."""
        facts = self.path.facts
        if not segment.finished:
            return fetch_file(self.repository, facts.system_id, name, path)
        receipt = self._receipts[segment.timeline].receipt(name)
        if receipt is not None:
            write_file(self.repository, receipt, path)
        return receipt is not None


@dataclass(frozen=True)
class Scanner:
    """Where the records of a path are read from, and with what.

    Attributes:
        programs: Of the major version that wrote the WAL.
        parent: Where the throw-away directory is made; the temporary directory where it is None.
        tell: Called with the bytes of WAL that were read.
    """

    reader: SegmentReader
    programs: Programs
    parent: Path | None
    tell: Callable[[int], None]

    def read(self, parts: Sequence[Batch], wanted: Wanted) -> Iterator[Iterator[Record]]:
        """Yield the records of each batch in turn; they can be read until the next one is asked for.

        A crash leaves a throw-away directory, which the next search or restore test sweeps.

        Args:
            parts: Of the reader's path; the following one is fetched while one is read.
            wanted: Which records.

        Raises:
            NotMeasured: pg_waldump is missing, or does not know WAL of this version.
            KeyRejected: our identities do not open the WAL.
        """
        pg_waldump(self.programs)
        size = self.reader.path.segment_bytes
        with ExitStack() as held:
            directory = held.enter_context(scratch_directory(self.parent, None))
            pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="wal")
            held.callback(pool.shutdown, wait=True, cancel_futures=True)
            files, done = _Files(self.reader, directory, pool), 0
            for number, batch in enumerate(parts):
                following = parts[number + 1 : number + 2]
                files.hold([batch, *following])
                whole = readable(batch, size, files.lost(batch))
                yield (record for part in whole for record in self._dump(directory, part, wanted))
                done += len(batch.segments) * size
                self.tell(done)

    def between(self, since: datetime, until: datetime | None) -> WalPath:
        """Return the path cut to what holds all that was committed from ``since`` to ``until``.

        It begins with a segment in which a transaction ended well before ``since``, or with the path's first.
        """
        segments = self.reader.path.segments
        first, last = self.reader.around(since, until)
        step = 1
        while first > 0:
            at = self._first_end(segments[first])
            if at is not None and at < since - _DISORDER:
                break
            first, step = max(0, first - step), step * 2
        return replace(self.reader.path, segments=segments[first : last + 1])

    def _first_end(self, segment: Segment) -> datetime | None:
        """Return when the first transaction ended that ends in a segment."""
        for records in self.read([Batch([segment], ())], ENDS):
            for record in records:
                ended = parse_end(record)
                if ended is not None:
                    return ended.at
        return None

    def _dump(self, directory: Path, part: Batch, wanted: Wanted) -> Iterator[Record]:
        path, size = self.reader.path, self.reader.path.segment_bytes
        border, end = Lsn(part.segments[-1].start + size), Lsn(part.all[-1].start + size)
        with dumping(self.programs, directory, path.history.timeline, part.segments[0].start, end, wanted) as dump:
            for record in dump:
                if record.lsn >= border:
                    return
                yield record
        breaks_off = dump.ended_at is not None and dump.ended_at < border
        if breaks_off and part.ahead and path.segments[-1] not in part.all:
            self.reader.lost[part.segments[-1]] = f"the WAL breaks off behind {dump.ended_at}"


class _Files:
    """The segments on disk, under the names of one timeline, whichever wrote them."""

    def __init__(self, reader: SegmentReader, directory: Path, pool: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._directory = directory
        self._pool = pool
        self._held: dict[Segment, Future[bool]] = {}

    def hold(self, wanted: Sequence[Batch]) -> None:
        """Begin to fetch what these batches need and is not there, and remove what none of them needs."""
        needed = dict.fromkeys(one for batch in wanted for one in batch.all)
        for segment in [one for one in self._held if one not in needed]:
            self._held.pop(segment).result()
            self._place(segment).unlink(missing_ok=True)
        for segment in needed:
            if segment not in self._held:
                self._held[segment] = self._pool.submit(self._reader.fetch, segment, self._place(segment))

    def lost(self, batch: Batch) -> frozenset[Segment]:
        """Wait for a batch; return what of it could not be read."""
        return frozenset(one for one in batch.all if not self._held[one].result())

    def _place(self, segment: Segment) -> Path:
        path = self._reader.path
        return self._directory / segment_name(path.history.timeline, segment.start, path.segment_bytes)
