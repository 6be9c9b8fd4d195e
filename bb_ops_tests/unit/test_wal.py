"""What archived WAL is worth, decided from names and a few facts."""

import time
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.backup.wal_observer import Observation
from bb_ops.backup.wal_options import slot_name
from bb_ops.backup.wal_status import combine
from bb_ops.backup.wal_writer import merge
from bb_ops.errors import IntegrityError
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.timelines import Ancestor, History, parse_history
from bb_ops.repository import wal
from bb_ops.repository.wal import Piece
from bb_ops.repository.wal_listing import Stretch
from bb_ops.repository.windows import Point, WalFacts, Window, holes, reach, recovery_windows, union
from bb_ops_tests.unit.archives import MIB, START, facts, full, listing, names, position, sort_names


def test_stretches_are_what_is_stored_and_recorded() -> None:
    assert listing(1, [3, 4, 5, 9]).stretches(MIB) == [
        Stretch(Lsn(3 * MIB), Lsn(6 * MIB)),
        Stretch(Lsn(9 * MIB), Lsn(10 * MIB)),
    ]


def test_a_segment_without_a_record_does_not_count() -> None:
    (name,) = names(1, [6])
    assert listing(1, [3, 4, 5], f"{name}.zst.age").stretches(MIB) == [Stretch(Lsn(3 * MIB), Lsn(6 * MIB))]


def test_a_sealed_span_stands_for_the_receipts_of_its_segments() -> None:
    stored = [f"{name}.zst.age" for name in names(1, range(3, 6))]
    seal = wal.span_key("main", "1", 1, Lsn(3 * MIB), Lsn(5 * MIB)).rpartition("/")[2]
    assert sort_names(1, [*stored, seal]).stretches(MIB) == [Stretch(Lsn(3 * MIB), Lsn(5 * MIB))]


@given(st.sets(st.integers(0, 60)), st.sampled_from([MIB, 16 * MIB, 1 << 30]))
def test_stretches_cover_exactly_the_segments(numbers: set[int], size: int) -> None:
    found = names(1, sorted(numbers), size)
    whole = sort_names(1, [*(f"{n}.zst" for n in found), *(f"{n}.json" for n in found)]).stretches(size)
    assert {at // size for entry in whole for at in range(entry.start, entry.end, size)} == numbers
    assert all(first.end < second.start for first, second in pairwise(whole))


def test_other_names_are_sorted_by_what_they_are() -> None:
    (name,) = names(2, [7])
    found = sort_names(
        2,
        [
            "00000002.history.zst.age",
            "00000002.history.json",
            f"{name}.00000000-00000400.0a1b2c3d.partial.zst.age",
            "gap-0000000000100000-0000000000200000.json",
            "positions/0000000000700400-1795541924904.json",
        ],
    )
    assert (found.history, list(found.stored), list(found.receipts)) == (True, [], [])
    assert len(found.pieces) == 1
    assert found.gaps == [Stretch(Lsn(MIB), Lsn(2 * MIB))]


def test_a_million_segments_are_sorted_and_joined_in_seconds() -> None:
    size = 16 * MIB
    keys = [f"{segment_name(1, Lsn(number * size), size)}.zst.age" for number in range(1_000_000)]
    keys.append(wal.span_key("main", "1", 1, Lsn(0), Lsn(1_000_000 * size)).rpartition("/")[2])
    del keys[500_000]
    started = time.monotonic()
    found = sort_names(1, keys).stretches(size)
    assert time.monotonic() - started < 15
    assert [entry.end for entry in found] == [Lsn(500_000 * size), Lsn(1_000_000 * size)]


@given(st.lists(st.integers(1, 1 << 16), min_size=1, max_size=200))
def test_pieces_are_few_cover_everything_and_are_stored_a_few_times(steps: list[int]) -> None:
    pieces: list[Piece] = []
    done = stored = 0
    for step in steps:
        start, kept = merge(pieces, done, done + step)
        done += step
        stored += done - start
        pieces = [*kept, Piece(name="p", from_offset=start, to_offset=done, size_bytes=1, sha256="")]
    assert [piece.from_offset for piece in pieces] == [0, *(piece.to_offset for piece in pieces[:-1])]
    assert pieces[-1].to_offset == done
    lengths = [piece.to_offset - piece.from_offset for piece in pieces]
    assert all(first > 2 * second for first, second in pairwise(lengths))
    assert stored <= done * (2 + len(steps).bit_length() * 2)


def test_a_window_reaches_to_the_last_whole_segment_before_a_hole() -> None:
    there = facts(listing(1, [3, 4, 6]), positions=(position(1, 7 * MIB),))
    assert reach(there, Point(1, Lsn(3 * MIB + 5))) == Point(1, Lsn(5 * MIB))
    assert [str(hole) for hole in holes(there, [Point(1, Lsn(3 * MIB))])] == [
        "WAL from 0/500000 to 0/600000 on timeline 1 is missing"
    ]


def test_segments_still_on_their_way_are_no_hole() -> None:
    there = facts(listing(1, [3, 4, 6]), positions=(position(1, 5 * MIB),))
    assert holes(there, [Point(1, Lsn(3 * MIB))]) == []


def test_a_last_segment_that_vanished_is_a_hole() -> None:
    there = facts(listing(1, [3, 4]), positions=(position(1, 6 * MIB),))
    assert len(holes(there, [Point(1, Lsn(3 * MIB))])) == 1


def test_pieces_of_the_unfinished_segment_count_and_their_loss_is_a_hole() -> None:
    name = f"{segment_name(1, Lsn(5 * MIB), MIB)}.00000000-0000004D.0a1b2c3d.partial.zst.age"
    piece = Piece(name=name, from_offset=0, to_offset=77, size_bytes=1, sha256="")
    here = position(1, 5 * MIB + 77, piece)
    with_pieces = facts(listing(1, [3, 4], name), positions=(here,))
    assert reach(with_pieces, Point(1, Lsn(3 * MIB))) == Point(1, Lsn(5 * MIB + 77))
    assert holes(with_pieces, [Point(1, Lsn(3 * MIB))]) == []
    assert len(holes(facts(listing(1, [3, 4]), positions=(here,)), [Point(1, Lsn(3 * MIB))])) == 1


def test_a_window_goes_on_in_the_descending_timeline() -> None:
    history = History(2, (Ancestor(1, Lsn(5 * MIB + 100)),))
    there = facts(listing(1, [3, 4]), listing(2, [5, 6]), histories=(history,))
    assert reach(there, Point(1, Lsn(3 * MIB))) == Point(2, Lsn(7 * MIB))
    assert holes(there, [Point(1, Lsn(3 * MIB))]) == []


def test_a_hole_at_a_change_of_timeline_ends_the_window() -> None:
    history = History(2, (Ancestor(1, Lsn(5 * MIB + 100)),))
    there = facts(listing(1, [3, 4]), listing(2, [6, 7]), histories=(history,))
    assert reach(there, Point(1, Lsn(3 * MIB))) == Point(1, Lsn(5 * MIB))
    assert [hole.timeline for hole in holes(there, [Point(1, Lsn(3 * MIB))])] == [2]


def test_a_backup_behind_a_fork_does_not_jump_to_the_other_branch() -> None:
    history = History(2, (Ancestor(1, Lsn(4 * MIB)),))
    there = facts(listing(1, range(3, 9)), listing(2, [4, 5]), histories=(history,))
    assert reach(there, Point(1, Lsn(6 * MIB))) == Point(1, Lsn(9 * MIB))


def test_windows_are_joined_where_they_overlap_and_a_new_full_closes_a_gap() -> None:
    there = facts(listing(1, [3, 4, 6, 7]), positions=(position(1, 8 * MIB),))
    later = START + timedelta(hours=2)
    times = {Point(1, Lsn(5 * MIB)): START + timedelta(hours=1), Point(1, Lsn(8 * MIB)): START + timedelta(hours=3)}
    first = recovery_windows([full(1, 3 * MIB)], there, times)
    assert first.windows == (Window(from_at=START, to_at=START + timedelta(hours=1)),)
    assert first.open_gaps == first.gaps != ()
    both = recovery_windows([full(1, 3 * MIB), full(1, 6 * MIB, later)], there, times)
    assert [(w.from_at, w.to_at) for w in both.windows] == [
        (START, START + timedelta(hours=1)),
        (later, START + timedelta(hours=3)),
    ]
    assert both.open_gaps == both.gaps != (), "nobody knows of it yet: a full backup must record it"
    there.timelines[1].gaps.append(Stretch(Lsn(5 * MIB), Lsn(6 * MIB)))
    known = recovery_windows([full(1, 3 * MIB), full(1, 6 * MIB, later)], there, times)
    assert (known.windows, known.gaps, known.open_gaps) == (both.windows, both.gaps, ())
    before = recovery_windows([full(1, 3 * MIB)], there, times)
    assert before.open_gaps == before.gaps != (), "recorded, and yet nothing later can be restored"


def test_without_archived_wal_a_window_is_one_instant() -> None:
    found = recovery_windows([full(1, 3 * MIB)], WalFacts("1"), {})
    assert found.windows == (Window(from_at=START, to_at=START),)
    assert found.gaps == ()


def test_union_joins_what_touches() -> None:
    hour = timedelta(hours=1)
    found = union(
        [
            (START + hour, START + 2 * hour),
            (START, START + hour),
            (START + 4 * hour, START + 4 * hour),
        ]
    )
    assert [(w.from_at, w.to_at) for w in found] == [(START, START + 2 * hour), (START + 4 * hour, START + 4 * hour)]


def test_a_history_file_is_read_as_postgresql_writes_it() -> None:
    found = parse_history(11, b"1\t0/5000028\tno recovery target specified\n\n10\t2/A0\tbefore 2026-11-24\n")
    assert found.ancestors == (Ancestor(1, Lsn.parse("0/5000028")), Ancestor(10, Lsn.parse("2/A0")))
    assert (found.after(1), found.after(10), found.until(10), found.until(3)) == (10, 11, Lsn.parse("2/A0"), None)


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"2\t0/5\tx\n1\t0/6\ty\n", b"7\t0/5\tx\n"])
def test_a_damaged_history_file_is_refused(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_history(7, content)


def test_lag_is_unknown_where_either_side_does_not_answer() -> None:
    server = Observation(at=START, lsn=Lsn(100), slot_active=True, wal_status="reserved", retained_bytes=5)
    assert combine("s", None, position(1, MIB)).lag_bytes is None
    assert combine("s", None, position(1, MIB)).lag_s is None
    assert combine("s", server, None).lag_s is None
    behind = combine(
        "s",
        Observation(START + timedelta(seconds=3), Lsn(MIB + 9), slot_active=True, wal_status="", retained_bytes=9),
        position(1, MIB),
    )
    assert (behind.lag_bytes, behind.lag_s) == (9, 3.0)


def test_on_another_timeline_than_the_archive_no_lag_is_claimed() -> None:
    ahead = Observation(START, Lsn(9), slot_active=True, wal_status="", retained_bytes=0, timeline=2)
    assert (combine("s", ahead, position(1, MIB)).lag_bytes, combine("s", ahead, position(1, MIB)).lag_s) == (
        None,
        None,
    )
    assert combine("s", ahead, position(2, MIB)).lag_bytes == 0


def test_a_slot_has_a_name_that_postgresql_accepts() -> None:
    assert slot_name("eu-west.1") == "bb_ops_eu_west_1"


def test_wal_that_is_missing_before_a_timeline_was_left_is_a_hole() -> None:
    history = History(2, (Ancestor(1, Lsn(5 * MIB + 100)),))
    found = facts(
        listing(1, range(1, 3)), listing(2, range(5, 8)), positions=(position(1, 3 * MIB),), histories=(history,)
    )
    (hole,) = holes(found, [Point(1, Lsn(MIB))])
    assert (hole.timeline, hole.stretch) == (1, Stretch(Lsn(3 * MIB), Lsn(5 * MIB)))


def test_a_timeline_of_which_only_the_history_is_archived_yet_makes_no_hole() -> None:
    history = History(2, (Ancestor(1, Lsn(5 * MIB + 100)),))
    found = facts(listing(1, range(1, 3)), listing(2, []), positions=(position(1, 3 * MIB),), histories=(history,))
    assert holes(found, [Point(1, Lsn(MIB))]) == []
