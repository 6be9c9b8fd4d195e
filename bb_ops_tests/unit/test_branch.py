"""Which segments a way through the WAL asks for."""

from bb_ops.postgres.lsn import Lsn
from bb_ops.recovery.branch import Leg, segments_of

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
