"""Records of WAL in, events out; and which archived segments hold them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.clock import SystemClock
from bb_ops.errors import NotMeasured
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.timelines import Ancestor, History
from bb_ops.postgres.wal_dump import (
    Record,
    RelationFile,
    Statistics,
    end_of,
    parse_end,
    parse_line,
    parse_path,
    pg_waldump,
    precedes,
)
from bb_ops.recovery.events.finder import Change, EventFinder, Kind, Named
from bb_ops.recovery.events.relation_names import RelationNames
from bb_ops.recovery.events.wal_path import Batch, Segment, batches, readable, wal_path
from bb_ops.repository.repository import KeyFiles, Repository
from bb_ops.repository.wal import Position
from bb_ops.repository.wal_listing import assemble, read_folder
from bb_ops.repository.windows import WalFacts
from bb_ops.storage.local import LocalStore

MIB = 1 << 20
TABLE = RelationFile(1663, 5, 16384)
INDEX = RelationFile(1663, 5, 16389)
AT = "2026-11-24 22:39:17.436388 UTC"
A_TABLE_GOES = "inval msgs: catcache 80 catcache 79 catcache 80 catcache 79 relcache 16384"


class Known:
    """Names that are given."""

    def __init__(self, known: dict[RelationFile, Named] | None = None) -> None:
        self.known = known or {}
        self.moves: dict[RelationFile, RelationFile] = {}

    def find(self, file: RelationFile, before: Lsn) -> Named | None:
        del before
        return self.known.get(file)

    def dropped(self, database: int, oid: int, before: Lsn) -> Named | None:
        del before
        return next((one for file, one in self.known.items() if (file.database, one.oid) == (database, oid)), None)

    def move(self, new: RelationFile, old: RelationFile) -> None:
        self.moves[new] = old


def follow(*told: tuple[str, int, str], names: Known | None = None, rows: int = 2) -> list[Change]:
    """Return what a finder makes of (resource manager, transaction, text)."""
    finder = EventFinder(15, MIB, names or Known(), rows)
    found: list[Change] = []
    for number, (manager, xid, text) in enumerate(told):
        found += finder.feed(Record(manager, xid, Lsn(MIB + 64 * number), 60, text))
    return found


def delete(xid: int, flags: str = "0x00", file: RelationFile = TABLE) -> tuple[str, int, str]:
    place = f"rel {file.tablespace}/{file.database}/{file.number} blk 1"
    return "Heap", xid, f"DELETE off 2 flags {flags} KEYS_UPDATED , blkref #0: {place}"


def create(xid: int, number: int) -> tuple[str, int, str]:
    return "Storage", xid, f"CREATE base/5/{number}"


def commit(xid: int, *parts: str) -> tuple[str, int, str]:
    return "Transaction", xid, "; ".join((f"COMMIT {AT}", *parts))


def test_a_line_is_read_as_pg_waldump_writes_it() -> None:
    line = (
        "rmgr: Transaction len (rec/tot):    397/  8397, tx:        826, lsn: 1/02593068, prev 0/02593030, "
        f"desc: COMMIT {AT}; rels: base/5/16509 pg_tblspc/99/PG_17_202406281/5/7; subxacts: 827 828; "
        "dropped stats: 2/5/16411 1/16477/0; inval msgs: catcache 80 catcache 80 relcache 5"
    )
    record = parse_line(line)
    assert record is not None
    assert (record.manager, record.xid, record.lsn, record.size_bytes) == ("Transaction", 826, 0x1_0259_3068, 8397)
    ended = parse_end(record)
    assert ended is not None
    assert ended.at == datetime(2026, 11, 24, 22, 39, 17, 436388, tzinfo=UTC)
    assert ended.files == (RelationFile(1663, 5, 16509), RelationFile(99, 5, 7))
    assert ended.subtransactions == (827, 828)
    assert ended.dropped == (Statistics(2, 5, 16411), Statistics(1, 16477, 0))
    assert ended.caches == {80: 2}
    assert parse_line("first record is after 0/2000028, at 0/2000060, skipping over 56 bytes") is None


def test_the_end_of_a_prepared_transaction_belongs_to_it() -> None:
    ended = parse_end(Record("Transaction", 0, Lsn(1), 60, f"COMMIT_PREPARED 784: {AT}; rels: base/5/16384"))
    assert ended is not None
    assert (ended.committed, ended.xid) == (True, 784)
    assert parse_end(Record("Transaction", 784, Lsn(1), 60, f"PREPARE gid p: {AT}; rels(commit): base/5/1")) is None


def test_paths_are_files_of_any_tablespace() -> None:
    assert parse_path("base/5/16570_init") == RelationFile(1663, 5, 16570)
    assert parse_path("global/1262") == RelationFile(1664, 0, 1262)
    assert parse_path("16384") is None


@given(st.integers(0, 1 << 30), st.integers(1, 4 * MIB))
def test_a_record_ends_behind_its_bytes_and_the_headers_between(place: int, size: int) -> None:
    start = Lsn(MIB + place * 8)
    end = end_of(Record("XLOG", 0, start, size, ""), MIB)
    pages = (end - 1) // 8192 - start // 8192
    segments = (end - 1) // MIB - start // MIB
    assert end % 8 == 0
    assert 0 <= end - start - size - 24 * pages - 16 * segments < 8


@given(st.integers(3, (1 << 32) - 1), st.integers(1, (1 << 31) - 1))
def test_numbers_of_transactions_begin_anew(xid: int, further: int) -> None:
    later = (xid + further) % (1 << 32)
    assert precedes(xid, later)
    assert not precedes(later, xid)
    assert not precedes(xid, xid)


def test_a_dropped_table_is_told_from_a_dropped_index_and_a_dropped_sequence() -> None:
    files, stats = "rels: base/5/16384 base/5/16389", "dropped stats: 2/5/16389 2/5/16384"
    (table,) = follow(commit(7, files, stats, A_TABLE_GOES))
    assert (table.kind, [one.file for one in table.touched]) == (Kind.DROP, [TABLE])
    assert follow(commit(7, "rels: base/5/16389", "dropped stats: 2/5/16389", "inval msgs: catcache 32")) == []


def test_an_abort_is_no_event_and_a_rolled_back_savepoint_counts_for_nothing() -> None:
    assert follow(delete(7), delete(7), ("Transaction", 7, f"ABORT {AT}; rels: base/5/16384")) == []
    told = (delete(7), delete(8), delete(8), ("Transaction", 8, f"ABORT {AT}"), commit(7))
    assert follow(*told) == []
    (one,) = follow(delete(7), delete(8), commit(7, "subxacts: 8"))
    assert (one.kind, one.touched[0].rows) == (Kind.DELETE, 2)


def test_rows_that_move_to_another_partition_or_go_with_their_file_are_no_deletes() -> None:
    assert follow(delete(7, "0x10"), delete(7, "0x12"), delete(7, "0x08"), delete(7, "0x18"), commit(7)) == []
    gone = follow(delete(7), delete(7), commit(7, "rels: base/5/16384", "dropped stats: 2/5/16384", A_TABLE_GOES))
    assert [one.kind for one in gone] == [Kind.DROP]


def test_rows_of_a_known_toast_table_are_not_another_tables() -> None:
    names = Known({TABLE: Named("shop", "public.t", 16384, toast=True)})
    assert follow(delete(7), delete(7), commit(7), names=names) == []


def test_a_truncated_table_is_followed_to_its_new_file() -> None:
    names = Known({TABLE: Named("shop", "public.t", 16384)})
    image = ("XLOG", 7, "FPI , blkref #0: rel 1663/5/16468 blk 0 FPW")
    (one,) = follow(
        create(7, 16467), create(7, 16468), image, commit(7, "rels: base/5/16389 base/5/16384"), names=names
    )
    assert (one.kind, [of.file for of in one.touched]) == (Kind.TRUNCATE, [TABLE])
    assert names.moves == {RelationFile(1663, 5, 16467): TABLE, RelationFile(1663, 5, 16468): INDEX}


def test_a_dropped_table_is_named_by_its_oid_where_its_file_is_not_known() -> None:
    names = Known({TABLE: Named("shop", "public.t", 16384)})
    stats = "dropped stats: 2/5/16389 2/5/16384"
    (one,) = follow(commit(7, "rels: base/5/20001 base/5/20002", stats, A_TABLE_GOES), names=names)
    assert [(of.file, of.named) for of in one.touched] == [(None, names.known[TABLE])]


def test_a_file_is_named_by_the_server_that_knows_what_took_its_place(tmp_path: Path) -> None:
    named = Named("shop", "public.t", 16384)
    newest = RelationFile(1663, 5, 20002)
    files = KeyFiles("none", None, None, None, None)
    repository = Repository(LocalStore(tmp_path), "primary", "main", files, SystemClock())
    names = RelationNames(repository, (), {newest: named})
    names.move(RelationFile(1663, 5, 20001), TABLE)
    assert names.later(TABLE) is None
    names.move(newest, RelationFile(1663, 5, 20001))
    assert (names.later(TABLE), names.find(TABLE, Lsn(0)), names.later(newest)) == (named, None, None)


def test_a_table_that_moved_to_another_tablespace_is_not_truncated() -> None:
    names = Known({TABLE: Named("shop", "public.t", 16384)})
    moved = ("Storage", 7, "CREATE pg_tblspc/99/PG_15_202209061/5/16467")
    (one,) = follow(moved, commit(7, "rels: base/5/16384"), names=names)
    assert one.kind == Kind.REWRITE


def test_a_file_that_went_in_a_transaction_whose_beginning_was_not_read_is_said_to_be_uncertain() -> None:
    (one,) = follow(commit(7, "rels: base/5/16384"))
    assert one.kind == Kind.TRUNCATE
    assert "its beginning was not read" in (one.note or "")


def test_of_several_unknown_files_none_is_called_the_table() -> None:
    stats = "dropped stats: 2/5/3 2/5/16389 2/5/16384"
    both = f"{A_TABLE_GOES} catcache 80 catcache 80"
    (one,) = follow(commit(7, "rels: base/5/16384 base/5/16389 base/5/16390", stats, both))
    assert len(one.touched) == 3
    assert "name not known" in (one.note or "")


def test_a_database_is_dropped_before_its_commit_and_a_moved_one_is_not_dropped() -> None:
    mark = ("Heap", 0, "INPLACE off 4, blkref #0: rel 1664/0/1262 blk 0")
    row = ("Heap", 7, "DELETE off 4 flags 0x00 KEYS_UPDATED , blkref #0: rel 1664/0/1262 blk 0")
    files = ("Database", 7, "DROP dir 1663/16466")
    (one,) = follow(mark, row, files, commit(7, "dropped stats: 1/16466/0"))
    assert (one.kind, one.database, one.before, one.lsn) == (Kind.DROP_DATABASE, 16466, MIB, MIB + 3 * 64)
    (older,) = follow(row, files, commit(7, "dropped stats: 1/16466/0"))
    assert older.before == MIB
    assert follow(files, commit(7)) == []


def test_transactions_that_died_without_a_word_are_forgotten() -> None:
    running = ("Standby", 0, "RUNNING_XACTS nextXid 12 latestCompletedXid 11 oldestRunningXid 9")
    assert follow(delete(8), delete(8), running, commit(8)) == []
    assert [one.xid for one in follow(delete(9), delete(9), running, commit(9))] == [9]


@pytest.mark.parametrize("major", [14, 15])
def test_without_pg_waldump_of_a_known_version_nothing_is_measured(tmp_path: Path, major: int) -> None:
    with pytest.raises(NotMeasured):
        pg_waldump(Programs(tmp_path, major))


def archive(numbers: dict[int, Sequence[int]], *histories: History) -> WalFacts:
    """Return what is archived: whole segments by timeline."""
    listings = {}
    for timeline, found in numbers.items():
        names = [segment_name(timeline, Lsn(number * MIB), MIB) for number in found]
        stored = [f"{name}{ending}" for name in names for ending in (".zst.age", ".json")]
        listings[timeline] = assemble(timeline, (), {0: read_folder(timeline, 0, stored)})
    return WalFacts("1", listings, histories={one.timeline: one for one in histories}, segment_bytes=MIB)


def test_the_path_to_a_timeline_leaves_each_ancestor_where_the_next_one_did() -> None:
    second = History(2, (Ancestor(1, Lsn(3 * MIB + 5)),))
    third = History(3, (Ancestor(1, Lsn(3 * MIB + 5)), Ancestor(2, Lsn(5 * MIB + 9))))
    facts = archive({1: range(1, 7), 2: range(3, 6), 3: [5, 6, 8]}, second, third)
    path = wal_path(facts)
    assert path is not None
    assert [(one.start // MIB, one.timeline) for one in path.segments] == [
        *((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 3))
    ]
    assert [(hole.start // MIB, hole.end // MIB) for hole in path.holes] == [(7, 8)]
    assert [path.timeline_at(Lsn(at)) for at in (3 * MIB, 3 * MIB + 5, 5 * MIB + 9)] == [1, 2, 3]
    first = wal_path(facts, 1, Lsn(5 * MIB))
    assert first is not None
    assert [(one.start // MIB, one.timeline) for one in first.segments] == [(5, 1), (6, 1)]
    assert wal_path(WalFacts("1")) is None


def test_the_unfinished_segment_is_on_the_path_also_while_its_pieces_change() -> None:
    facts = archive({1: [1, 2]})
    facts.positions[1] = Position(
        cluster="main",
        system_id="1",
        timeline=1,
        lsn=Lsn(3 * MIB + 64),
        segment_bytes=MIB,
        segment=segment_name(1, Lsn(3 * MIB), MIB),
        pieces=(),
        raw_sha256=None,
        at=None,
        written_ms=1,
        server_major=15,
    )
    path = wal_path(facts)
    assert path is not None
    assert [(one.start // MIB, one.finished) for one in path.segments] == [(1, True), (2, True), (3, False)]
    facts.positions[1] = facts.positions[1].model_copy(update={"segment": segment_name(1, Lsn(2 * MIB), MIB)})
    path = wal_path(facts)
    assert path is not None
    assert [one.finished for one in path.segments] == [True, True]


@given(st.sets(st.integers(1, 60), min_size=1), st.integers(1, 8 * MIB))
def test_batches_hold_every_segment_once_and_look_ahead_without_a_hole(numbers: set[int], size: int) -> None:
    path = wal_path(archive({1: sorted(numbers)}))
    assert path is not None
    wanted = batches(path, size)
    assert [one for batch in wanted for one in batch.segments] == list(path.segments)
    for batch in wanted:
        places = [one.start // MIB for one in batch.all]
        assert places == list(range(places[0], places[0] + len(places)))
        assert bool(batch.ahead) == (places[len(batch.segments) - 1] + 1 in numbers)


def test_a_batch_is_cut_where_a_segment_is_lost() -> None:
    one = [Segment(Lsn(number * MIB), 1) for number in range(6)]
    batch = Batch(one[:4], one[4:])
    assert readable(batch, MIB, frozenset({one[1]})) == [Batch(one[:1], ()), Batch(one[2:4], one[4:])]
    assert readable(batch, MIB, frozenset({one[4]})) == [Batch(one[:4], ())]
    assert readable(batch, MIB, frozenset({one[3]})) == [Batch(one[:3], ())]
