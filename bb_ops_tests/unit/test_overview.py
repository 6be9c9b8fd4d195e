"""An index makes reading quick and changes no answer, whatever happened since it was written."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from bb_ops.clock import SystemClock
from bb_ops.findings import Outcome
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.repository import layout, wal
from bb_ops.repository.ids import BackupKind, new_backup_id
from bb_ops.repository.index import Index
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.overview import Overview, read_overview
from bb_ops.repository.reports import Level
from bb_ops.repository.status import region_status
from bb_ops.repository.wal_listing import Stretch, TimelineWal
from bb_ops.repository.wal_reader import read_timelines
from bb_ops.repository.windows import Window
from bb_ops.storage.local import LocalStore
from bb_ops_tests.unit.builders import NOON, SYSTEM_ID, new_commit, new_proof, new_repository, stored_backup

MIB = 1 << 20
LATER = timedelta(days=400)
"""Beyond every file's time of change: what a test has just written counts as settled."""
DAY = timedelta(days=1)


class World:
    """A repository with a full, an increment on it, another full, proofs, and WAL."""

    def __init__(self, room: Path) -> None:
        self.repository = new_repository(room)
        self.root = room / "primary"
        self.cache = room / "cache"
        self.full = self.backup(NOON, 3 * MIB)
        self.increment = self.backup(
            NOON + timedelta(hours=1),
            5 * MIB,
            kind=BackupKind.INCREMENTAL,
            id=new_backup_id(BackupKind.INCREMENTAL, NOON + timedelta(hours=1)),
            parent_id=self.full.id,
            depth=1,
        )
        self.last = self.backup(NOON + DAY, 6 * MIB)
        self.repository.record_proof(self.full, new_proof(self.full, Level.L6))
        for number in range(3, 9):
            self.segment(number)

    def backup(self, at: object, position: int, **changes: object) -> PhysicalCommit:
        return stored_backup(
            self.repository,
            started_at=at,
            start_lsn=Lsn(position),
            end_lsn=Lsn(position),
            wal_end_lsn=Lsn(position),
            wal_segment_bytes=MIB,
            **changes,
        )

    def segment(self, number: int, timeline: int = 1) -> None:
        name = segment_name(timeline, Lsn(number * MIB), MIB)
        receipt = wal.Receipt(
            cluster="main",
            system_id=SYSTEM_ID,
            timeline=timeline,
            name=name,
            suffix=".zst.age",
            size_bytes=1,
            raw_size_bytes=MIB,
            sha256="0" * 64,
            raw_sha256="0" * 64,
            at=NOON + timedelta(hours=number),
        )
        self.repository.store.create(receipt.expected.key, b"x")
        wal.write_record(self.repository, receipt)

    def path(self, commit: PhysicalCommit, name: str) -> Path:
        return self.root / layout.backup_prefix("main", SYSTEM_ID, commit.id) / name

    def foreign_names(self) -> None:
        """Leave what file systems, browsers of buckets and moved objects leave."""
        prefix = f"main/{SYSTEM_ID}/wal/"
        for name in ("lost+found/x", "00000001/.snapshot/x", "00000001/seal-x.json", "00000001/00000000/desktop.json"):
            self.repository.store.create(prefix + name, b"x")
        for name in ("000000010000000500000009.zst.age", "000000010000000500000009.json"):  # of another log
            self.repository.store.create(f"{prefix}00000001/00000000/{name}", b"x")

    def find(self, pattern: str) -> Path:
        return max(self.root.rglob(pattern))

    def read(self, *, anew: bool) -> Overview:
        return read_overview(self.repository, None if anew else self.cache, NOON + LATER)


def answer(overview: Overview) -> object:
    return region_status(overview, NOON + 2 * DAY)


def whole_stretches(found: dict[int, TimelineWal]) -> dict[int, list[Stretch]]:
    return {timeline: listing.stretches(MIB) for timeline, listing in found.items() if listing.stretches(MIB)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file in place, as a failing disk or a careless hand does: its folder does not notice."""
    data = change(path.read_bytes())
    with path.open("r+b") as handle:
        handle.truncate(0)
        handle.write(data)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


EVENTS: dict[str, Callable[[World], object]] = {
    "nothing": lambda _: None,
    "an object is gone": lambda w: w.path(w.full, "base.0000.tar.zst.age").unlink(),
    "an object is cut": lambda w: overwrite(w.path(w.full, "base.0000.tar.zst.age"), lambda data: data[:-1]),
    "a commit is cut": lambda w: overwrite(w.path(w.last, "COMMIT.json"), lambda data: data[:-9]),
    "a bit of a commit is flipped": lambda w: overwrite(w.path(w.last, "COMMIT.json"), flipped),
    "a commit is gone": lambda w: w.path(w.last, "COMMIT.json").unlink(),
    "the parent is gone": lambda w: shutil.rmtree(w.path(w.full, "")),
    "a bit of a proof is flipped": lambda w: overwrite(w.find("evidence/*/*.json"), flipped),
    "a proof is gone": lambda w: w.find("evidence/*/*.json").unlink(),
    "a test failed": lambda w: w.repository.record_proof(
        w.full, new_proof(w.full, Level.L3, Outcome.FAIL, after_s=9.0)
    ),
    "a first proof": lambda w: w.repository.record_proof(w.last, new_proof(w.last, Level.L6)),
    "another backup": lambda w: w.backup(NOON + 2 * DAY, 7 * MIB),
    "an uncommitted backup": lambda w: w.repository.store.create(
        layout.backup_prefix("main", SYSTEM_ID, new_commit().id) + "x", b"x"
    ),
    "a segment is gone": lambda w: w.find("*0000000000000007.zst.age").unlink(),
    "a receipt is gone": lambda w: w.find("*0000000000000007.json").unlink(),
    "a receipt is damaged": lambda w: overwrite(w.find("*0000000000000008.json"), flipped),
    "another segment": lambda w: w.segment(9),
    "a segment of another folder": lambda w: w.segment(5000),
    "a record of a gap": lambda w: wal.write_record(
        w.repository,
        wal.Gap(
            cluster="main",
            system_id=SYSTEM_ID,
            timeline=1,
            from_lsn=Lsn(9 * MIB),
            to_lsn=Lsn(10 * MIB),
            reason="lost",
            found_at=NOON,
        ),
    ),
    "another timeline": lambda w: w.segment(8, timeline=2),
    "names that are none of ours": lambda w: w.foreign_names(),
}


SILENT = {"nothing", "names that are none of ours", "an uncommitted backup", "a record of a gap", "another timeline"}
"""Events that change nothing of what can be promised."""


@pytest.mark.parametrize("event", EVENTS)
def test_an_answer_is_the_same_with_an_index_and_without(world: World, event: str) -> None:
    assert answer(world.read(anew=False)) == answer(world.read(anew=True))
    before = answer(world.read(anew=False))
    EVENTS[event](world)
    found = world.read(anew=False)
    assert answer(found) == answer(world.read(anew=True))
    assert answer(world.read(anew=False)) == answer(found)
    assert (answer(found) == before) == (event in SILENT)
    assert whole_stretches(read_timelines(world.repository, SYSTEM_ID)) == whole_stretches(
        read_timelines(world.repository, SYSTEM_ID, Index(None, "", NOON))
    )


class NotingStore(LocalStore):
    """A directory that notes which objects were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.was_read: list[str] = []

    def read(self, key: str) -> bytes | None:
        self.was_read.append(key.rpartition("/")[2])
        return super().read(key)


def test_what_is_known_is_not_read_again(world: World) -> None:
    expected = answer(world.read(anew=False))
    store = NotingStore(world.root)
    world.repository.store = store
    assert answer(world.read(anew=False)) == expected
    assert not [name for name in store.was_read if name in {"COMMIT.json", "proof-0.json"}]
    overwrite(world.path(world.last, "COMMIT.json"), lambda data: data)
    assert answer(world.read(anew=False)) == expected
    assert store.was_read.count("COMMIT.json") == 1


def test_what_has_just_changed_is_not_trusted(world: World) -> None:
    read_overview(world.repository, world.cache, SystemClock().now())
    assert not world.cache.exists()


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:0], lambda data: data[:-5], flipped, lambda data: b"{}\n[]" + data[:0]]
)
def test_a_spoilt_index_is_as_good_as_none(world: World, spoil: Callable[[bytes], bytes]) -> None:
    expected = answer(world.read(anew=False))
    (index,) = world.cache.iterdir()
    assert index.stat().st_mode & 0o777 == 0o600
    overwrite(index, spoil)
    assert answer(world.read(anew=False)) == expected


def test_an_index_that_others_may_write_is_not_read(world: World) -> None:
    world.read(anew=False)
    (index,) = world.cache.iterdir()
    index.chmod(0o666)
    world.path(world.full, "base.0000.tar.zst.age").unlink()
    assert answer(world.read(anew=False)) == answer(world.read(anew=True))
    assert index.stat().st_mode & 0o777 == 0o600


def test_where_no_index_can_be_kept_everything_is_read(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = read_overview(world.repository, tmp_path / "file" / "cache", NOON + LATER)
    assert answer(found) == answer(world.read(anew=True))


def test_windows_join_backups_and_wal(world: World) -> None:
    assert world.read(anew=False).archived.windows == (
        Window(from_at=world.full.as_of, to_at=NOON + timedelta(hours=8)),
        Window(from_at=world.last.as_of, to_at=world.last.as_of),
    )
