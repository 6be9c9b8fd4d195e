"""What a listing shows of archived WAL: which segments are there, which of them are recorded, what is whole.

Segments are kept as runs of consecutive numbers, folder by folder, so that a million of them take little room and time.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bb_ops.postgres.lsn import Lsn

SUFFIXES = (".zst.age", ".zst")
_NAME_DIGITS = 24
_LOG = slice(8, 16)
_NUMBER = slice(16, 24)
_HEX32 = 0x1_0000_0000
_HEX8 = re.compile("[0-9A-F]{8}")
_RECORD = re.compile(r"(seal|gap)-([0-9A-F]{16})-([0-9A-F]{16})\.json")
Runs = list[list[int]]
"""First and last number of consecutive ones, in order."""


@dataclass(frozen=True, order=True)
class Stretch:
    """Positions from ``start`` up to ``end``."""

    start: Lsn
    end: Lsn


class SegmentNames:
    """Names of segments of one timeline."""

    def __init__(self, timeline: int) -> None:
        """Begin without any."""
        self._timeline = timeline
        self._logs: dict[int, Runs] = {}

    def take(self, log: int, runs: Runs) -> None:
        """Take what one folder holds."""
        if runs:
            self._logs[log] = runs

    def intervals(self, per_log: int) -> list[tuple[int, int]]:
        """Return the segments' numbers within the timeline as half-open intervals, in order, joined."""
        return merge(
            (log * per_log + first, log * per_log + last + 1)
            for log, runs in sorted(self._logs.items())
            for first, last in runs
        )

    def __contains__(self, name: object) -> bool:
        """Whether a segment of this name is among them."""
        if not isinstance(name, str) or len(name) != _NAME_DIGITS or int(name[:8], 16) != self._timeline:
            return False
        runs, number = self._logs.get(int(name[_LOG], 16), []), int(name[_NUMBER], 16)
        at = bisect_right(runs, [number, _HEX32]) - 1
        return at >= 0 and number <= runs[at][1]

    def __iter__(self) -> Iterator[str]:
        """Yield the names in order."""
        for log, runs in sorted(self._logs.items()):
            for first, last in runs:
                for number in range(first, last + 1):
                    yield f"{self._timeline:08X}{log:08X}{number:08X}"

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._logs)


@dataclass
class TimelineWal:
    """What a listing shows of one timeline.

    Attributes:
        suffix: How the stored segments' names end.
        stored: Segments with an object.
        receipts: Segments with a receipt.
        spans: What the sealed spans cover, by their keys.
        gaps: What gap records cover.
        pieces: Names of pieces of unfinished segments.
        history: Whether the receipt of its history file is there.
    """

    timeline: int
    suffix: str = SUFFIXES[0]
    spans: list[Stretch] = field(default_factory=list)
    gaps: list[Stretch] = field(default_factory=list)
    pieces: set[str] = field(default_factory=set)
    history: bool = False
    stored: SegmentNames = field(init=False)
    receipts: SegmentNames = field(init=False)

    def __post_init__(self) -> None:
        """Begin without segments."""
        self.stored, self.receipts = SegmentNames(self.timeline), SegmentNames(self.timeline)

    def stretches(self, segment_bytes: int) -> list[Stretch]:
        """Return the stretches of whole, recorded segments, in order; each is as long as it can be."""
        per_log = _HEX32 // segment_bytes
        sealed = [(entry.start // segment_bytes, entry.end // segment_bytes) for entry in self.spans]
        recorded = merge(sorted([*sealed, *self.receipts.intervals(per_log)]))
        return [
            Stretch(Lsn(first * segment_bytes), Lsn(end * segment_bytes))
            for first, end in overlaps(self.stored.intervals(per_log), recorded)
        ]


def hexadecimal(name: str) -> int | None:
    """Return the number that a folder of a timeline or a log, or the end of a segment's name, says; None for others."""
    return int(name, 16) if _HEX8.fullmatch(name) else None


@dataclass(frozen=True)
class LogFolder:
    """What the folder of one WAL log number holds, of segments and pieces."""

    suffix: str
    stored: Runs
    receipts: Runs
    pieces: list[str]


def read_folder(timeline: int, log: int, names: Iterable[str]) -> LogFolder:
    """Sort the names in the folder of one WAL log number; what does not belong there counts for nothing. Pure."""
    begin = f"{timeline:08X}{log:08X}"
    stored: list[int] = []
    receipts: list[int] = []
    pieces: list[str] = []
    suffix = SUFFIXES[0]
    for name in names:
        rest = name[_NAME_DIGITS:]
        number = hexadecimal(name[_NUMBER]) if name.startswith(begin) else None
        if number is None:
            continue
        if rest == ".json":
            receipts.append(number)
        elif rest in SUFFIXES:
            stored.append(number)
            suffix = rest
        elif ".partial." in rest:
            pieces.append(name)
    return LogFolder(suffix, _runs(stored), _runs(receipts), pieces)


def assemble(timeline: int, names: Iterable[str], folders: Mapping[int, LogFolder]) -> TimelineWal:
    """Put together what one timeline holds: the names directly in its folder, and its folders by log number. Pure."""
    found = TimelineWal(timeline)
    for name in names:
        record = _RECORD.fullmatch(name)
        if record is not None:
            stretches = found.spans if record[1] == "seal" else found.gaps
            stretches.append(Stretch(Lsn(int(record[2], 16)), Lsn(int(record[3], 16))))
        elif name == f"{timeline:08X}.history.json":
            found.history = True
    for log, folder in folders.items():
        found.stored.take(log, folder.stored)
        found.receipts.take(log, folder.receipts)
        found.pieces.update(folder.pieces)
        found.suffix = folder.suffix
    return found


def join(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Join stretches that touch or overlap; in order."""
    return [Stretch(Lsn(start), Lsn(end)) for start, end in merge((one.start, one.end) for one in sorted(stretches))]


def merge(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join half-open intervals, given in order, that touch or overlap."""
    found: list[tuple[int, int]] = []
    for start, end in intervals:
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def overlaps(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what lies in both of two lists of disjoint half-open intervals, each in order."""
    found = []
    at = 0
    for start, end in ours:
        while at < len(theirs) and theirs[at][1] <= start:
            at += 1
        look = at
        while look < len(theirs) and theirs[look][0] < end:
            found.append((max(start, theirs[look][0]), min(end, theirs[look][1])))
            look += 1
    return found


def _runs(numbers: list[int]) -> Runs:
    numbers.sort()
    found: Runs = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        elif not found or number != found[-1][1]:
            found.append([number, number])
    return found
