"""Which segments a way through the WAL asks for, and when it ends."""

from datetime import timedelta
from pathlib import Path

from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.recovery.moment.branch import Leg, segments_of
from bb_ops.repository import wal, windows
from bb_ops.repository.wal import Receipt
from bb_ops.repository.windows import Point
from bb_ops_tests.unit.builders import NOON, SYSTEM_ID, new_repository

SIZE = 1 << 24


def leg(timeline: int, from_lsn: int, to_lsn: int) -> Leg:
    return Leg(timeline=timeline, from_lsn=Lsn(from_lsn), to_lsn=Lsn(to_lsn))


def test_a_way_asks_for_every_segment_that_it_touches() -> None:
    assert [name for _, name in segments_of((leg(1, 7 * SIZE + 5, 9 * SIZE + 1),), SIZE)] == [
        "000000010000000000000007",
        "000000010000000000000008",
        "000000010000000000000009",
    ]


def test_where_nothing_is_archived_behind_a_backup_no_segment_is_asked_for() -> None:
    assert list(segments_of((leg(1, 7 * SIZE + 5, 7 * SIZE + 5),), SIZE)) == []


def test_an_end_within_a_segment_that_is_gone_is_no_later_than_the_segment_before(tmp_path: Path) -> None:
    repository = new_repository(tmp_path)
    for number in (6, 7):
        receipt = Receipt(
            cluster="main",
            system_id=SYSTEM_ID,
            timeline=1,
            name=segment_name(1, Lsn(number * SIZE), SIZE),
            suffix=".zst.age",
            size_bytes=1,
            raw_size_bytes=SIZE,
            sha256="",
            raw_sha256="",
            at=NOON + timedelta(minutes=number),
        )
        wal.write_record(repository, receipt)
    facts = windows.read_facts(repository, SYSTEM_ID)
    within, border = Point(1, Lsn(7 * SIZE + 5)), Point(1, Lsn(8 * SIZE))
    assert windows.read_times(repository, facts, [within, border]) == {
        within: NOON + timedelta(minutes=6),
        border: NOON + timedelta(minutes=7),
    }
