"""What every object store keeps: one suite for a directory and for S3 over HTTP, then what only one of them can show."""

import base64
import hashlib
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from bb_ops.errors import AlreadyExists, BbOpsError, IntegrityError, RepositoryMissing, SettingsError, StoreFailed
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore
from bb_ops.storage.s3 import S3Store
from bb_ops_tests.support.postgres import wait_until
from bb_ops_tests.support.proxy import faulty_proxy
from bb_ops_tests.support.rooms import make_room, remove_room
from bb_ops_tests.support.s3 import HOST, REGION, S3Server

KINDS = ("local", "s3")
MIB = 1 << 20
SIZES = {
    "empty": 0,
    "one byte": 1,
    "5 MiB": 5 * MIB,
    "one part": 16 * MIB,
    "one part and a byte": 16 * MIB + 1,
    "four parts": 50 * MIB,
}
RACERS = 16
HOSTILE = ("", "/etc/x", "../x", "a/../x", "a/..", "./a", "a//b", "a/", "/", ".", "..", "a\0b", "a/x.bb_ops-partial")


@dataclass(frozen=True)
class Place:
    """A store, and how another process opens the same one."""

    kind: str
    store: ObjectStore
    expression: str
    environment: dict[str, str]


def local_place(room: Path) -> Place:
    root = room / f"store-{secrets.token_hex(4)}"
    root.mkdir()
    return Place(
        "local", LocalStore(root), f"from bb_ops.storage.local import LocalStore\nstore = LocalStore(Path({str(root)!r}))", {}
    )


def s3_place(server: S3Server) -> Place:
    bucket = server.make_bucket()
    return Place(
        "s3",
        server.store(bucket, "some/prefix"),
        "from bb_ops.storage.s3 import S3Store\n"
        f"store = S3Store({bucket!r}, 'some/prefix', endpoint_url={server.endpoint_url!r})",
        {"AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key},
    )


def new_place(kind: str, request: pytest.FixtureRequest, room: Path) -> Place:
    return local_place(room) if kind == "local" else s3_place(request.getfixturevalue("s3_server"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, room: Path) -> Place:
    return new_place(request.param, request, room)


@pytest.fixture
def store(place: Place) -> ObjectStore:
    return place.store


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.objects(prefix)]


def read_all(store: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes | None:
    reader = store.reader(key, start, length)
    if reader is None:
        return None
    try:
        return b"".join(iter(lambda: reader.read(1 << 18), b""))
    finally:
        reader.close()


class TestCreate:
    def test_what_was_created_can_be_read(self, store: ObjectStore) -> None:
        info = store.create("main/1/COMMIT.json", b"bytes")
        assert (info.key, info.size_bytes) == ("main/1/COMMIT.json", 5)
        assert store.read("main/1/COMMIT.json") == b"bytes"
        assert store.stat("main/1/COMMIT.json") == info

    def test_a_taken_key_is_refused_and_keeps_its_bytes(self, store: ObjectStore) -> None:
        store.create("key", b"first")
        with pytest.raises(AlreadyExists) as refused:
            store.create("key", b"second")
        assert not refused.value.retryable
        assert store.read("key") == b"first"

    def test_equal_bytes_do_not_make_a_second_write_succeed(self, store: ObjectStore) -> None:
        store.create("key", b"same")
        with pytest.raises(AlreadyExists):
            store.create("key", b"same")

    def test_of_many_racing_writers_exactly_one_wins(self, store: ObjectStore) -> None:
        barrier = threading.Barrier(RACERS)

        def race(number: int) -> int | None:
            barrier.wait()
            try:
                store.create("races/key", b"%d" % number)
            except AlreadyExists:
                return None
            return number

        with ThreadPoolExecutor(RACERS) as pool:
            winners = [number for number in pool.map(race, range(RACERS)) if number is not None]
        assert len(winners) == 1
        assert store.read("races/key") == b"%d" % winners[0]
        assert keys_of(store) == ["races/key"]
        assert list(store.unfinished()) == []

    def test_of_many_racing_large_writers_exactly_one_wins(self, store: ObjectStore) -> None:
        racers = 4
        barrier = threading.Barrier(racers)

        def race(number: int) -> int | None:
            writer = store.writer("races/large")
            writer.write(bytes([number]) * (17 * MIB))
            barrier.wait()
            try:
                writer.commit()
            except AlreadyExists:
                return None
            return number

        with ThreadPoolExecutor(racers) as pool:
            winners = [number for number in pool.map(race, range(racers)) if number is not None]
        assert len(winners) == 1
        assert store.read("races/large") == bytes([winners[0]]) * (17 * MIB)
        assert list(store.unfinished()) == []


class TestWriter:
    @pytest.mark.parametrize("size_bytes", SIZES.values(), ids=SIZES.keys())
    def test_every_size_arrives_whole(self, store: ObjectStore, size_bytes: int) -> None:
        data = noise(size_bytes)
        with store.writer("a/part") as writer:
            for start in range(0, size_bytes, 3 * MIB):
                writer.write(data[start : start + 3 * MIB])
        assert store.stat("a/part") is not None
        assert hashlib.sha256(read_all(store, "a/part") or b"").digest() == hashlib.sha256(data).digest()
        assert list(store.unfinished()) == []

    def test_commit_says_what_it_stored(self, store: ObjectStore) -> None:
        writer = store.writer("key")
        assert writer.write(b"12345") == 5
        assert writer.commit() == store.stat("key")

    def test_one_large_write_is_as_good_as_many(self, store: ObjectStore) -> None:
        data = noise(40 * MIB)
        with store.writer("key") as writer:
            writer.write(data)
        assert store.read("key") == data

    @pytest.mark.parametrize("size_bytes", [1, 40 * MIB])
    def test_nothing_is_visible_before_the_commit(self, store: ObjectStore, size_bytes: int) -> None:
        writer = store.writer("a/key")
        writer.write(bytes(size_bytes))
        assert (store.read("a/key"), store.stat("a/key"), store.reader("a/key"), keys_of(store)) == (None, None, None, [])
        writer.commit()
        assert keys_of(store) == ["a/key"]

    @pytest.mark.parametrize("size_bytes", [0, 1, 40 * MIB])
    def test_abandoning_leaves_nothing(self, store: ObjectStore, size_bytes: int) -> None:
        writer = store.writer("a/key")
        writer.write(bytes(size_bytes))
        writer.abandon()
        writer.abandon()
        assert (store.stat("a/key"), keys_of(store), list(store.unfinished())) == (None, [], [])

    def test_a_block_that_raises_abandons_its_object(self, store: ObjectStore) -> None:
        with pytest.raises(ZeroDivisionError), store.writer("key") as writer:
            writer.write(bytes(20 * MIB))
            raise ZeroDivisionError
        assert (keys_of(store), list(store.unfinished())) == ([], [])

    @pytest.mark.parametrize("size_bytes", [6, 40 * MIB])
    def test_commit_on_a_taken_key_leaves_the_older_object(self, store: ObjectStore, size_bytes: int) -> None:
        writer = store.writer("key")
        writer.write(bytes(size_bytes))
        store.create("key", b"older")
        with pytest.raises(AlreadyExists):
            writer.commit()
        assert store.read("key") == b"older"
        assert list(store.unfinished()) == []

    def test_a_finished_writer_takes_nothing_more(self, store: ObjectStore) -> None:
        writer = store.writer("key")
        writer.commit()
        writer.abandon()
        with pytest.raises(StoreFailed):
            writer.write(b"more")
        with pytest.raises(StoreFailed):
            writer.commit()
        assert store.read("key") == b""

    def test_two_writers_of_siblings_do_not_disturb_each_other(self, store: ObjectStore) -> None:
        first, second = store.writer("a/1"), store.writer("a/2")
        first.write(b"1")
        second.write(b"2")
        first.abandon()
        second.commit()
        assert keys_of(store) == ["a/2"]

    def test_no_thread_outlives_a_writer(self, store: ObjectStore) -> None:
        before = set(threading.enumerate())
        for finish in ("commit", "abandon"):
            writer = store.writer(f"key-{finish}")
            writer.write(bytes(40 * MIB))
            getattr(writer, finish)()
        assert set(threading.enumerate()) <= before


class TestRead:
    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (0, 4, b"0123"),
            (3, 4, b"3456"),
            (9, 1, b"9"),
            (4, None, b"456789"),
            (4, 0, b""),
            (8, 100, b"89"),
            (10, None, b""),
            (25, 5, b""),
        ],
    )
    def test_ranges(self, store: ObjectStore, start: int, length: int | None, expected: bytes) -> None:
        store.create("key", b"0123456789")
        assert read_all(store, "key", start, length) == expected

    def test_a_range_of_a_large_object(self, store: ObjectStore) -> None:
        data = noise(33 * MIB)
        with store.writer("key") as writer:
            writer.write(data)
        assert read_all(store, "key", 15 * MIB, 3 * MIB) == data[15 * MIB : 18 * MIB]

    def test_an_empty_object_reads_as_nothing_and_not_as_missing(self, store: ObjectStore) -> None:
        store.create("key", b"")
        assert (store.read("key"), read_all(store, "key")) == (b"", b"")

    @pytest.mark.parametrize("key", ["missing", "a/missing", "a/key/below", "a", "missing/a/b"])
    def test_what_is_no_object_is_none(self, store: ObjectStore, key: str) -> None:
        store.create("a/key", b"bytes")
        assert (store.read(key), store.stat(key), store.reader(key), store.reader(key, 1, 1)) == (None,) * 4

    def test_reading_with_no_limit_gives_the_rest(self, store: ObjectStore) -> None:
        store.create("key", b"0123456789")
        reader = store.reader("key")
        assert reader is not None
        assert (reader.read(3), reader.read(), reader.read(3)) == (b"012", b"3456789", b"")
        reader.close()


class TestListing:
    SIBLINGS = ("a!", "a-b", "a.b", "a/b", "a/c/d", "a0", "ab", "b/1", "b/10", "b/2", "Z", "z", "é/x", "日本")

    @pytest.fixture
    def filled(self, store: ObjectStore) -> ObjectStore:
        for key in self.SIBLINGS:
            store.create(key, key.encode())
        return store

    @pytest.mark.parametrize("prefix", ["", "a", "a/", "a/c", "b/1", "b/10", "é", "é/x", "none", "none/", "a/b/"])
    def test_a_prefix_is_the_beginning_of_a_key_and_order_is_that_of_bytes(
        self, filled: ObjectStore, prefix: str
    ) -> None:
        expected = sorted((key for key in self.SIBLINGS if key.startswith(prefix)), key=str.encode)
        assert keys_of(filled, prefix) == expected

    def test_sizes_are_listed(self, filled: ObjectStore) -> None:
        assert {info.key: info.size_bytes for info in filled.objects("")} == {
            key: len(key.encode()) for key in self.SIBLINGS
        }

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [("", ["a", "b", "é"]), ("a/", ["c"]), ("a/c/", []), ("none/", []), ("z/", [])],
    )
    def test_children_are_names_with_keys_below(
        self, filled: ObjectStore, prefix: str, expected: list[str]
    ) -> None:
        assert filled.children(prefix) == expected

    def test_a_deleted_key_is_listed_nowhere(self, filled: ObjectStore) -> None:
        filled.delete("a/c/d")
        assert "a/c/d" not in keys_of(filled)
        assert filled.children("a/") == []


@pytest.fixture(scope="module", params=KINDS)
def crowded(request: pytest.FixtureRequest, module_room: Path) -> tuple[ObjectStore, list[str]]:
    """More keys than one page of a listing holds."""
    store = new_place(request.param, request, module_room).store
    expected = [f"main/{number % 7}/base/{number:05d}/COMMIT.json" for number in range(2_100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.create(key, b"x"), expected))
    return store, sorted(expected)


class TestManyKeys:
    def test_all_are_listed_once_and_in_order(self, crowded: tuple[ObjectStore, list[str]]) -> None:
        store, expected = crowded
        assert keys_of(store) == expected

    def test_a_prefix_that_ends_inside_a_name_lists_only_its_keys(
        self, crowded: tuple[ObjectStore, list[str]]
    ) -> None:
        store, expected = crowded
        assert keys_of(store, "main/3/base/01") == [key for key in expected if key.startswith("main/3/base/01")]

    def test_children_of_a_crowded_folder_are_all_there(self, crowded: tuple[ObjectStore, list[str]]) -> None:
        store, expected = crowded
        assert store.children("main/") == [str(number) for number in range(7)]
        assert len(store.children("main/0/base/")) == sum(key.startswith("main/0/") for key in expected)


class TestDelete:
    def test_it_removes_its_key_and_no_other(self, store: ObjectStore) -> None:
        for key in ("a/1", "a/10", "a/1x/y", "b"):
            store.create(key, b"x")
        store.delete("a/1")
        assert keys_of(store) == ["a/10", "a/1x/y", "b"]

    def test_it_can_be_repeated(self, store: ObjectStore) -> None:
        store.create("a/key", b"x")
        store.delete("a/key")
        store.delete("a/key")
        store.delete("never/was")
        assert keys_of(store) == []

    def test_the_key_is_free_again(self, store: ObjectStore) -> None:
        store.create("a/key", b"old")
        store.delete("a/key")
        store.create("a/key", b"new")
        assert store.read("a/key") == b"new"

    def test_a_folder_is_no_key(self, store: ObjectStore) -> None:
        store.create("a/key", b"x")
        with pytest.raises(StoreFailed):
            store.delete("a/")
        assert store.read("a/key") == b"x"

    def test_siblings_that_come_and_go_disturb_no_one(self, store: ObjectStore) -> None:
        """The last file that leaves a folder takes the folder along; the next one to come must not trip over that."""
        failures: list[BaseException] = []

        def come_and_go(number: int) -> None:
            try:
                for turn in range(60):
                    key = f"deep/er/folder/{number}-{turn}"
                    store.create(key, b"x")
                    assert store.read(key) == b"x"
                    list(store.objects("deep/"))
                    store.children("deep/er/")
                    store.delete(key)
            except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
                failures.append(error)

        threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert keys_of(store) == []


class TestKeys:
    @pytest.mark.parametrize("key", HOSTILE)
    def test_a_key_that_leads_elsewhere_is_refused_by_every_operation(
        self, store: ObjectStore, room: Path, key: str
    ) -> None:
        outside = sorted(room.iterdir())
        for refuse in (
            lambda: store.create(key, b"x"),
            lambda: store.writer(key),
            lambda: store.read(key),
            lambda: store.reader(key),
            lambda: store.reader(key, 0, 0),
            lambda: store.stat(key),
            lambda: store.delete(key),
        ):
            with pytest.raises(StoreFailed, match="not a key"):
                refuse()
        assert keys_of(store) == []
        assert sorted(room.iterdir()) == outside

    @pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", "./", "\0"])
    def test_a_prefix_that_leads_elsewhere_is_refused(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(StoreFailed, match="no key begins"):
            list(store.objects(prefix))
        with pytest.raises(StoreFailed):
            store.children(prefix)

    @pytest.mark.parametrize("key", ["..x", "x..", "a/.hidden", ".tmp.abc/COMMIT.json", "a b", "ü/é", "a+b&c=d?e#f%2F"])
    def test_unusual_names_are_only_names(self, store: ObjectStore, key: str) -> None:
        store.create(key, b"x")
        assert (keys_of(store), store.read(key)) == ([key], b"x")
        store.delete(key)
        assert keys_of(store) == []


WRITE_AND_WAIT = """
import sys
from pathlib import Path
{place}
store.create("done/before", b"x")
writer = store.writer("main/1/base/x/base.0000.tar.zst.age")
for _ in range(40):
    writer.write(bytes(1 << 20))
print("written", flush=True)
sys.stdin.read()
"""


def killed_writer(place: Place) -> None:
    """Kill a process for real in the middle of a write."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT.format(place=place.expression)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", **place.environment},
        cwd=Path(__file__).parents[2],
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL


class TestKilledWriter:
    def test_it_leaves_no_object_but_something_that_can_be_found_and_removed(self, place: Place) -> None:
        killed_writer(place)
        store = place.store
        assert keys_of(store) == ["done/before"]
        (leftover,) = store.unfinished()
        assert leftover.key == "main/1/base/x/base.0000.tar.zst.age"
        assert 0 < leftover.size_bytes <= 40 * MIB
        store.remove_unfinished(leftover)
        assert list(store.unfinished()) == []
        store.remove_unfinished(leftover)
        assert keys_of(store) == ["done/before"]

    def test_its_key_is_free_for_the_next_run(self, place: Place) -> None:
        killed_writer(place)
        store = place.store
        with store.writer("main/1/base/x/base.0000.tar.zst.age") as writer:
            writer.write(b"again")
        assert store.read("main/1/base/x/base.0000.tar.zst.age") == b"again"

    def test_a_living_writer_is_shown_too_and_removing_another_leaves_it_alone(self, place: Place) -> None:
        killed_writer(place)
        store = place.store
        writer = store.writer("alive")
        writer.write(bytes(20 * MIB))
        wait_until(lambda: len(list(store.unfinished())) == 2, "the living writer is not shown")
        dead = next(leftover for leftover in store.unfinished() if leftover.key != "alive")
        store.remove_unfinished(dead)
        writer.commit()
        assert keys_of(store) == ["alive", "done/before"]


class TestMissingPlace:
    def test_a_missing_directory_is_a_missing_repository(self, room: Path) -> None:
        with pytest.raises(RepositoryMissing) as missing:
            LocalStore(room / "none").check()
        assert missing.value.exit_code == 10
        assert f"file://{room}/none" in str(missing.value)

    def test_a_file_in_place_of_a_directory_is_a_missing_repository(self, room: Path) -> None:
        (room / "file").write_bytes(b"")
        with pytest.raises(RepositoryMissing):
            LocalStore(room / "file").check()
        with pytest.raises(StoreFailed):
            LocalStore(room / "file").create("key", b"x")

    def test_a_missing_bucket_is_a_missing_repository_for_every_operation(self, s3_server: S3Server) -> None:
        store = s3_server.store("never-made")
        for operation in (
            store.check,
            lambda: store.create("key", b"x"),
            lambda: store.read("key"),
            lambda: list(store.objects("")),
            lambda: store.children(""),
            lambda: list(store.unfinished()),
        ):
            with pytest.raises(RepositoryMissing) as missing:
                operation()
            assert missing.value.exit_code == 10
            assert "never-made" in str(missing.value)
            assert s3_server.endpoint_url in str(missing.value)

    def test_an_existing_place_passes(self, store: ObjectStore) -> None:
        store.check()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to grow any file beyond a size (setrlimit(2)): a medium that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


class TestLocalTrouble:
    def test_a_full_medium_fails_the_write_and_leaves_nothing(self, room: Path) -> None:
        store = LocalStore(room / "store")
        writer = store.writer("a/key")
        with pytest.raises(StoreFailed) as failed, file_size_limit(MIB):
            for _ in range(4):
                writer.write(bytes(MIB))
        assert failed.value.retryable
        writer.abandon()
        assert [path for path in (room / "store").rglob("*") if path.is_file()] == []

    def test_a_folder_that_cannot_be_looked_into_is_an_error_and_not_empty(self, room: Path) -> None:
        """A listing that leaves out what it may not see would show a repository without its backups."""
        store = LocalStore(room / "store")
        store.create("main/1/key", b"x")
        script = (
            "import os, sys; from pathlib import Path; from bb_ops.storage.local import LocalStore\n"
            "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"print(list(LocalStore(Path({str(room / 'store')!r})).objects('main/')))"
        )
        (room / "store" / "main" / "1").chmod(0o000)
        answer = subprocess.run(
            [sys.executable, "-c", f"import bb_ops.storage.local\n{script}"],
            capture_output=True,
            check=False,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        (room / "store" / "main" / "1").chmod(0o700)
        assert answer.returncode == 1
        assert "StoreFailed" in answer.stderr
        assert "Permission denied" in answer.stderr

    def test_files_are_private(self, room: Path) -> None:
        store = LocalStore(room / "store")
        store.create("a/key", b"x")
        assert (room / "store" / "a" / "key").stat().st_mode & 0o777 == 0o600
        assert (room / "store" / "a").stat().st_mode & 0o777 == 0o700

    def test_a_folder_that_was_emptied_is_gone(self, room: Path) -> None:
        store = LocalStore(room / "store")
        store.create("a/b/key", b"x")
        store.delete("a/b/key")
        assert os.listdir(room / "store") == []

    def test_what_the_root_leads_through_may_be_a_link(self, room: Path) -> None:
        (room / "real").mkdir()
        (room / "link").symlink_to(room / "real")
        LocalStore(room / "link").create("a/key", b"x")
        assert LocalStore(room / "real").read("a/key") == b"x"


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


class TestS3Credentials:
    @pytest.mark.parametrize("wrong", ["key", "secret"])
    def test_wrong_ones_are_a_wrong_setting(self, s3_server: S3Server, bucket: str, wrong: str) -> None:
        secret = "canary-secret-0123456789" if wrong == "secret" else s3_server.secret_access_key
        store = S3Store(
            bucket,
            "",
            endpoint_url=s3_server.endpoint_url,
            region=REGION,
            access_key_id="unknown" if wrong == "key" else s3_server.access_key_id,
            secret_access_key=SecretStr(secret),
        )
        for operation in (store.check, lambda: store.create("key", b"x"), lambda: list(store.objects(""))):
            with pytest.raises(SettingsError) as refused:
                operation()
            assert refused.value.exit_code == 2
            assert "credentials" in str(refused.value)
            assert secret not in str(refused.value)

    def test_none_at_all_is_a_missing_setting(
        self, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, room: Path
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(room / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(room / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(SettingsError, match="credentials"):
            S3Store(bucket, "", endpoint_url=s3_server.endpoint_url).check()

    def test_no_printed_form_of_a_store_holds_the_secret(self, s3_server: S3Server, bucket: str) -> None:
        store = s3_server.store(bucket, "prefix")
        assert store.url == f"s3://{bucket}/prefix"
        assert s3_server.secret_access_key not in f"{store!r} {store} {vars(store)}"


class TestS3Network:
    def test_nobody_listening_is_a_failed_store(self, s3_server: S3Server, bucket: str) -> None:
        with faulty_proxy(s3_server.port) as proxy:
            proxy.break_now()
            with pytest.raises(StoreFailed) as failed:
                s3_server.store(bucket, port=proxy.port).check()
        assert failed.value.retryable
        assert str(proxy.port) in str(failed.value)

    @pytest.mark.parametrize("size_bytes", [4 * MIB, 40 * MIB])
    def test_a_server_gone_in_the_middle_of_a_read_is_a_failure_and_never_a_short_object(
        self, s3_server: S3Server, bucket: str, size_bytes: int
    ) -> None:
        with s3_server.store(bucket).writer("key") as writer:
            writer.write(noise(size_bytes))
        with faulty_proxy(s3_server.port, download_bytes=2 * MIB) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            reader = store.reader("key")
            assert reader is not None
            with pytest.raises(StoreFailed, match="broke off"):
                while reader.read(MIB):
                    pass
            reader.close()

    def test_a_whole_read_that_breaks_off_is_a_failure(self, s3_server: S3Server, bucket: str) -> None:
        s3_server.store(bucket).create("key", noise(4 * MIB))
        with faulty_proxy(s3_server.port, download_bytes=MIB) as proxy, pytest.raises(StoreFailed):
            s3_server.store(bucket, port=proxy.port).read("key")

    def test_a_server_gone_in_the_middle_of_a_write_fails_it_and_shows_nothing(
        self, s3_server: S3Server, bucket: str
    ) -> None:
        before = set(threading.enumerate())
        with faulty_proxy(s3_server.port, upload_bytes=20 * MIB) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            with pytest.raises(StoreFailed, match="no usable answer"), store.writer("key") as writer:
                for _ in range(50):
                    writer.write(bytes(MIB))
        assert set(threading.enumerate()) <= before
        direct = s3_server.store(bucket)
        assert keys_of(direct) == []
        (leftover,) = direct.unfinished()
        direct.remove_unfinished(leftover)
        assert list(direct.unfinished()) == []

    def test_the_reason_for_abandoning_is_not_hidden_by_a_server_that_is_gone(
        self, s3_server: S3Server, bucket: str
    ) -> None:
        with faulty_proxy(s3_server.port) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            with pytest.raises(ZeroDivisionError), store.writer("key") as writer:
                writer.write(bytes(20 * MIB))
                wait_until(lambda: len(list(store.unfinished())) == 1, "nothing was uploaded")
                proxy.break_now()
                raise ZeroDivisionError

    def test_a_connection_that_breaks_once_is_survived(self, s3_server: S3Server, bucket: str) -> None:
        data = noise(50 * MIB)
        with faulty_proxy(s3_server.port, upload_bytes=20 * MIB, comes_back=True) as proxy:
            with s3_server.store(bucket, port=proxy.port).writer("key") as writer:
                for start in range(0, len(data), MIB):
                    writer.write(data[start : start + MIB])
            assert proxy.connections > 1
        assert s3_server.store(bucket).read("key") == data

    def test_a_write_whose_answer_was_lost_counts_as_ours(self, s3_server: S3Server, bucket: str) -> None:
        """The SDK repeats it, and the repetition finds the key taken: by us."""
        with faulty_proxy(s3_server.port, lose_answer_to=b"PUT /") as proxy:
            info = s3_server.store(bucket, port=proxy.port).create("COMMIT.json", b"bytes")
            assert proxy.connections > 1
        assert info.size_bytes == 5
        assert s3_server.store(bucket).read("COMMIT.json") == b"bytes"

    def test_a_repeated_write_does_not_count_as_ours_where_another_was_first(
        self, s3_server: S3Server, bucket: str
    ) -> None:
        s3_server.store(bucket).create("COMMIT.json", b"bytes")
        with faulty_proxy(s3_server.port, lose_answer_to=b"PUT /") as proxy:
            with pytest.raises(AlreadyExists):
                s3_server.store(bucket, port=proxy.port).create("COMMIT.json", b"bytes")
            assert proxy.connections > 1

    def test_a_completion_whose_answer_was_lost_counts_as_ours(self, s3_server: S3Server, bucket: str) -> None:
        data = noise(20 * MIB)
        with faulty_proxy(s3_server.port, lose_answer_to=b"uploadId=", answers_lost=0) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            writer = store.writer("key")
            writer.write(data)
            wait_until(lambda: sum(each.size_bytes for each in store.unfinished()) == 16 * MIB, "nothing was uploaded")
            proxy.lose_next_answer_to(b"<CompleteMultipartUpload")
            assert writer.commit().size_bytes == len(data)
            assert proxy.lost == 1
        direct = s3_server.store(bucket)
        assert direct.read("key") == data
        assert list(direct.unfinished()) == []


class TestS3Checksums:
    def test_a_small_object_bears_its_sha256(self, s3_server: S3Server, bucket: str) -> None:
        s3_server.store(bucket).create("key", b"bytes")
        head = s3_server.client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
        assert head["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(b"bytes").digest()).decode()

    def test_a_large_object_bears_a_checksum_of_its_parts(self, s3_server: S3Server, bucket: str) -> None:
        with s3_server.store(bucket).writer("key") as writer:
            writer.write(noise(33 * MIB))
        head = s3_server.client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
        assert head["ChecksumCRC32"].endswith("-3")
        assert head["ContentLength"] == 33 * MIB

    def test_an_upload_that_does_not_match_its_checksum_is_refused(self, s3_server: S3Server, bucket: str) -> None:
        wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        with pytest.raises(ClientError) as refused:
            s3_server.client.put_object(Bucket=bucket, Key="key", Body=b"bytes", ChecksumSHA256=wrong)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        assert s3_server.store(bucket).stat("key") is None

    def test_bytes_changed_on_their_way_to_us_are_noticed(self, s3_server: S3Server, bucket: str) -> None:
        s3_server.store(bucket).create("key", b"a long text, and a byte that will change")
        with faulty_proxy(s3_server.port, flip_in=b"a long text") as proxy:
            with pytest.raises(IntegrityError) as damaged:
                s3_server.store(bucket, port=proxy.port).read("key")
        assert damaged.value.exit_code == 5
        assert f"s3://{bucket}/key" in str(damaged.value)

    def test_two_prefixes_of_one_bucket_do_not_see_each_other(self, s3_server: S3Server, bucket: str) -> None:
        first, second = s3_server.store(bucket, "a"), s3_server.store(bucket, "ab")
        first.create("key", b"1")
        second.create("key", b"2")
        assert (keys_of(first), keys_of(second)) == (["key"], ["key"])
        assert (first.read("key"), second.read("key")) == (b"1", b"2")
        assert keys_of(s3_server.store(bucket)) == ["a/key", "ab/key"]


def test_a_server_that_was_killed_and_started_again_has_every_object() -> None:
    """What was acknowledged is durable: the store's own promise, on the server that the demo and these tests use."""
    room = make_room()
    try:
        server = S3Server(room)
        server.start()
        store = server.store(server.make_bucket())
        objects = {f"key-{number}": noise(number * 1000) for number in range(20)}
        for key, data in objects.items():
            store.create(key, data)
        bucket = store.url.removeprefix("s3://")
        server.stop()
        server.start()
        again = server.store(bucket)
        assert {key: again.read(key) for key in objects} == objects
        server.stop()
    finally:
        remove_room(room)


def test_every_store_error_is_one_of_ours(store: ObjectStore) -> None:
    store.create("key", b"x")
    for operation in (lambda: store.create("key", b"y"), lambda: store.read("../x")):
        with pytest.raises(BbOpsError) as error:
            operation()
        assert "\n" not in str(error.value)


def test_the_s3_server_listens_only_on_the_loopback_address(s3_server: S3Server) -> None:
    assert s3_server.endpoint_url.startswith(f"http://{HOST}:")
