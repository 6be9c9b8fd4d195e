"""Archives of WAL as a listing shows them: which segments of which timelines are there."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.timelines import History
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.wal import Piece, Position
from bb_ops.repository.wal_listing import TimelineWal, assemble, read_folder
from bb_ops.repository.windows import WalFacts

MIB = 1 << 20
START = datetime(2026, 11, 24, 2, tzinfo=UTC)


def names(timeline: int, numbers: range | list[int], size: int = MIB) -> list[str]:
    return [segment_name(timeline, Lsn(number * size), size) for number in numbers]


def sort_names(timeline: int, found: list[str]) -> TimelineWal:
    """Sort names as a listing shows them, of whatever folder."""
    logs: dict[int, list[str]] = defaultdict(list)
    for name in found:
        if len(name) > 24 and name[24] == ".":
            logs[int(name[8:16], 16)].append(name)
    return assemble(timeline, found, {log: read_folder(timeline, log, inside) for log, inside in logs.items()})


def listing(timeline: int, numbers: range | list[int], *more: str) -> TimelineWal:
    found = names(timeline, numbers)
    return sort_names(timeline, [*(f"{n}.zst.age" for n in found), *(f"{n}.json" for n in found), *more])


def position(timeline: int, lsn: int, *pieces: Piece) -> Position:
    return Position(
        cluster="main",
        system_id="1",
        timeline=timeline,
        lsn=Lsn(lsn),
        segment_bytes=MIB,
        segment=segment_name(timeline, Lsn(lsn), MIB) if lsn % MIB else None,
        pieces=pieces,
        raw_sha256=None,
        at=START,
        written_ms=1,
        server_major=18,
    )


def facts(
    *listings: TimelineWal, positions: tuple[Position, ...] = (), histories: tuple[History, ...] = ()
) -> WalFacts:
    return WalFacts(
        "1",
        {entry.timeline: entry for entry in listings},
        {entry.timeline: entry for entry in positions},
        {entry.timeline: entry for entry in histories},
        MIB,
    )


def full(timeline: int, wal_end: int, as_of: datetime = START) -> PhysicalCommit:
    construct: Any = PhysicalCommit.model_construct
    commit: PhysicalCommit = construct(
        id=f"20261124T020000Z-full-{wal_end:08x}",
        kind=BackupKind.FULL,
        timeline=timeline,
        wal_end_lsn=Lsn(wal_end),
        as_of=as_of,
        wal_segment_bytes=MIB,
    )
    return commit
