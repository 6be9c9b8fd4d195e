"""Archives cut into parts: each a whole archive of its own, and all of them together what was sent."""

import io
import random
import tarfile
from pathlib import Path

import pyrage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bb_ops.engines.parts import PartWriter
from bb_ops.engines.tar import END_OF_ARCHIVE
from bb_ops.errors import IntegrityError
from bb_ops.repository.manifest import ObjectRole, StoredObject
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore
from bb_ops.storage.sealed import Expected, Seal, open_sealed

IDENTITY = pyrage.x25519.Identity.generate()
SEAL = Seal((IDENTITY.to_public(), pyrage.x25519.Identity.generate().to_public()), 1, 0)
PREFIX = "main/1/base/x/"
KIB = 1 << 10
Contents = list[tuple[str, bytes]]

contents = st.lists(st.integers(0, 40_000).map(lambda size: random.Random(size).randbytes(size)), max_size=12).map(
    lambda blobs: [(f"base/{number}", blob) for number, blob in enumerate(blobs)]
)


def archive(members: Contents) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def feed(parts: PartWriter, data: bytes, chunk_bytes: int = 32 * KIB) -> None:
    view = memoryview(data)
    while view:
        parts.feed(view[:chunk_bytes])
        view = view[chunk_bytes:]


def opened(store: ObjectStore, entry: StoredObject) -> bytes:
    class Sink(io.BytesIO):
        pass

    sink = Sink()
    want = Expected(PREFIX + entry.name, entry.size_bytes, entry.raw_size_bytes, entry.sha256)
    open_sealed(store, want, (IDENTITY,), sink)
    return sink.getvalue()


def members_of(data: bytes) -> Contents:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as known:
        return [(info.name, (known.extractfile(info) or io.BytesIO()).read()) for info in known]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=contents, part_size_bytes=st.integers(1, 100_000), chunk_bytes=st.integers(1, 33_000))
def test_every_part_is_an_archive_and_together_they_hold_every_member_once(
    tmp_path_factory: pytest.TempPathFactory, members: Contents, part_size_bytes: int, chunk_bytes: int
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    parts = PartWriter(store, PREFIX, SEAL, part_size_bytes)
    parts.begin_archive("base", None)
    feed(parts, archive(members), chunk_bytes)
    parts.close()
    found = [members_of(opened(store, entry)) for entry in parts.objects]
    assert [member for part in found for member in part] == members
    assert [entry.name for entry in parts.objects] == [f"base.{n:04d}.tar.zst.age" for n in range(len(found))]
    assert [info.key for info in store.objects("")] == [PREFIX + entry.name for entry in parts.objects]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=contents, part_size_bytes=st.integers(1, 100_000))
def test_a_part_is_larger_than_asked_only_for_one_large_member(
    tmp_path_factory: pytest.TempPathFactory, members: Contents, part_size_bytes: int
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    parts = PartWriter(store, PREFIX, SEAL, part_size_bytes)
    parts.begin_archive("base", None)
    feed(parts, archive(members))
    parts.close()
    for entry in parts.objects:
        held = members_of(opened(store, entry))
        largest = max((len(data) for _, data in held), default=0)
        assert entry.raw_size_bytes <= part_size_bytes + 512 + -(-largest // 512) * 512 + len(END_OF_ARCHIVE)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def test_members_that_fit_share_a_part(store: LocalStore) -> None:
    parts = PartWriter(store, PREFIX, SEAL, 10 * KIB)
    parts.begin_archive("base", None)
    feed(parts, archive([(f"f{number}", noise(1000)) for number in range(6)]))
    parts.close()
    assert [len(members_of(opened(store, entry))) for entry in parts.objects] == [6]


def test_archives_are_numbered_and_marked_apart(store: LocalStore) -> None:
    parts = PartWriter(store, PREFIX, SEAL, 5 * KIB)
    parts.begin_archive("base", None)
    feed(parts, archive([("a", noise(6 * KIB)), ("b", noise(6 * KIB))]))
    parts.begin_archive("16385", 16385)
    feed(parts, archive([("c", noise(KIB))]))
    parts.end_archive()
    parts.add("backup_manifest.zst.age", ObjectRole.MANIFEST, b"{}")
    parts.close()
    assert [(entry.name, entry.role, entry.tablespace_oid) for entry in parts.objects] == [
        ("16385.0000.tar.zst.age", ObjectRole.ARCHIVE, 16385),
        ("backup_manifest.zst.age", ObjectRole.MANIFEST, None),
        ("base.0000.tar.zst.age", ObjectRole.ARCHIVE, None),
        ("base.0001.tar.zst.age", ObjectRole.ARCHIVE, None),
    ]


def test_sizes_and_hashes_are_those_of_what_is_stored(store: LocalStore) -> None:
    parts = PartWriter(store, PREFIX, SEAL, 5 * KIB)
    parts.begin_archive("base", None)
    feed(parts, archive([("a", noise(20 * KIB))]))
    parts.close()
    (entry,) = parts.objects
    assert entry.raw_size_bytes == len(opened(store, entry)) == 512 + 20 * KIB + 1024
    info = store.stat(PREFIX + entry.name)
    assert info is not None
    assert info.size_bytes == entry.size_bytes


@pytest.mark.parametrize("part_size_bytes", [KIB, 1 << 30])
def test_discarding_takes_everything_back(store: LocalStore, part_size_bytes: int) -> None:
    parts = PartWriter(store, PREFIX, SEAL, part_size_bytes)
    parts.add("fingerprints.json.zst.age", ObjectRole.FINGERPRINTS, b"{}")
    parts.begin_archive("base", None)
    feed(parts, archive([(f"f{number}", noise(3000)) for number in range(20)])[:-3000])
    parts.discard()
    assert list(store.objects("")) == []
    assert list(store.unfinished()) == []


def test_discarding_what_was_closed_takes_everything_back(store: LocalStore) -> None:
    parts = PartWriter(store, PREFIX, SEAL, KIB)
    parts.begin_archive("base", None)
    feed(parts, archive([("a", noise(3000)), ("b", noise(3000))]))
    parts.close()
    parts.discard()
    assert list(store.objects("")) == []


def test_discarding_leaves_what_others_wrote(store: LocalStore) -> None:
    store.create("main/1/base/y/base.0000.tar.zst.age", b"another backup's")
    parts = PartWriter(store, PREFIX, SEAL, KIB)
    parts.begin_archive("base", None)
    feed(parts, archive([("a", noise(3000))]))
    parts.discard()
    assert [info.key for info in store.objects("")] == ["main/1/base/y/base.0000.tar.zst.age"]


def test_an_archive_that_ends_inside_a_member_makes_no_part(store: LocalStore) -> None:
    parts = PartWriter(store, PREFIX, SEAL, 1 << 30)
    parts.begin_archive("base", None)
    feed(parts, archive([("a", noise(3000))])[:1500])
    with pytest.raises(IntegrityError, match="inside a member"):
        parts.close()
    parts.discard()
    assert list(store.objects("")) == []


def test_a_failure_in_the_background_reaches_the_caller(store: LocalStore) -> None:
    """A part's key that is taken is found when the part is finished, in another thread."""
    store.create(f"{PREFIX}base.0000.tar.zst.age", b"taken")
    parts = PartWriter(store, PREFIX, SEAL, KIB)
    parts.begin_archive("base", None)
    with pytest.raises(Exception, match="never overwritten") as failed:
        feed_and_close(parts, archive([(f"f{number}", noise(3000)) for number in range(4)]))
    assert failed.type.__name__ == "AlreadyExists"
    parts.discard()
    assert [(info.key, store.read(info.key)) for info in store.objects("")] == [
        (f"{PREFIX}base.0000.tar.zst.age", b"taken")
    ]


def feed_and_close(parts: PartWriter, data: bytes) -> None:
    feed(parts, data)
    parts.close()
