"""A directory as object store: what only a directory can show."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bb_ops.errors import RepositoryMissing, StoreFailed
from bb_ops.storage.local import LocalStore
from bb_ops_tests.support.stores import MIB, run_python


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to grow any file beyond a size (setrlimit(2)): a medium that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_missing_directory_is_a_missing_repository(room: Path) -> None:
    with pytest.raises(RepositoryMissing) as missing:
        LocalStore(room / "none").check()
    assert missing.value.exit_code == 10
    assert f"file://{room}/none" in str(missing.value)


def test_a_file_in_place_of_a_directory_is_a_missing_repository(room: Path) -> None:
    (room / "file").write_bytes(b"")
    with pytest.raises(RepositoryMissing):
        LocalStore(room / "file").check()
    with pytest.raises(StoreFailed):
        LocalStore(room / "file").create("key", b"x")


def test_a_full_medium_fails_the_write_and_leaves_nothing(room: Path) -> None:
    store = LocalStore(room / "store")
    writer = store.writer("a/key")
    writer.write(bytes(MIB))
    with pytest.raises(StoreFailed) as failed, file_size_limit(2 * MIB):
        writer.write(bytes(4 * MIB))
    assert failed.value.retryable
    writer.abandon()
    assert [path for path in (room / "store").rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_looked_into_is_an_error_and_not_empty(room: Path) -> None:
    """A listing that leaves out what it may not see would show a repository without its backups."""
    store = LocalStore(room / "store")
    store.create("main/1/key", b"x")
    script = (
        "import os; from pathlib import Path; from bb_ops.storage.local import LocalStore\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"print(list(LocalStore(Path({str(room / 'store')!r})).objects('main/')))"
    )
    (room / "store" / "main" / "1").chmod(0o000)
    answer = run_python(script)
    (room / "store" / "main" / "1").chmod(0o700)
    assert answer.returncode == 1
    assert "StoreFailed" in answer.stderr
    assert "Permission denied" in answer.stderr


def test_files_are_private(room: Path) -> None:
    store = LocalStore(room / "store")
    store.create("a/key", b"x")
    assert (room / "store" / "a" / "key").stat().st_mode & 0o777 == 0o600
    assert (room / "store" / "a").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_emptied_is_gone(room: Path) -> None:
    store = LocalStore(room / "store")
    store.create("a/b/key", b"x")
    store.delete("a/b/key")
    assert list((room / "store").iterdir()) == []


def test_what_the_root_leads_through_may_be_a_link(room: Path) -> None:
    (room / "real").mkdir()
    (room / "link").symlink_to(room / "real")
    LocalStore(room / "link").create("a/key", b"x")
    assert LocalStore(room / "real").read("a/key") == b"x"


class TestMarks:
    """Marks differ after every change: an index may rely on them."""

    def test_equal_marks_mean_that_nothing_changed(self, room: Path) -> None:
        store = LocalStore(room)
        store.create("a/b/x", b"1")
        keys = ["a/b/", "a/b/x", "a/none", "a/none/"]
        first = store.marks(keys)
        assert store.marks(keys).numbers == first.numbers
        assert first.sizes[1:3] == [1, 0]
        assert first.part(2, 4).numbers.tolist() == [0] * 6
        assert first.newest_ns > 0

    @pytest.mark.parametrize(
        ("change", "differs"),
        [
            (lambda folder: (folder / "x").write_bytes(b"2"), "a/b/x"),
            (lambda folder: (folder / "x").touch(), "a/b/x"),
            (lambda folder: (folder / "x").unlink(), "a/b/"),
            (lambda folder: (folder / "y").write_bytes(b""), "a/b/"),
            (lambda folder: (folder / "x").rename(folder / "z"), "a/b/"),
        ],
    )
    def test_every_change_shows(self, room: Path, change: Callable[[Path], object], differs: str) -> None:
        store = LocalStore(room)
        store.create("a/b/x", b"1")
        before = store.marks([differs]).numbers
        time.sleep(0.02)  # longer than a tick of the kernel's clock
        change(room / "a" / "b")
        assert store.marks([differs]).numbers != before

    def test_a_folder_that_cannot_be_entered_is_an_error_and_no_mark(self, room: Path) -> None:
        (room / "a").symlink_to(room / "a")
        with pytest.raises(StoreFailed):
            LocalStore(room).marks(["a/x"])
