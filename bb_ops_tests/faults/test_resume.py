"""A restore that was killed, or that ran out of room, goes on where it was when the same command is given again."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from bb_ops_tests.support import foreign
from bb_ops_tests.support.commands import BbOps, Running, bb_ops, objects_below
from bb_ops_tests.support.postgres import (
    Build,
    Cluster,
    available,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
    wait_until,
)
from bb_ops_tests.support.rooms import hand_over

MOMENTS = 10
ATTEMPTS = 10
LONGEST_S = 0.5
TABLES = 4
ROWS = 20_000
MARKER, RECORD, CONTROL = ".bb_ops-restore.json", ".bb_ops-restore.parts", "global/pg_control"


@dataclass(frozen=True)
class Stored:
    """What is restored here again and again, in many small parts."""

    command: BbOps
    repository: Path
    ids: tuple[str, ...]
    rows: foreign.Rows

    def recover(self, target: Path) -> tuple[str | Path, ...]:
        """Return the words that restore it."""
        return ("recover", "full", self.ids[-1], "--into", target, "--json")

    def killed_at_work(self, target: Path, least: int, awaited: str = "") -> None:
        """Begin a restore and kill it once so many parts are finished and something is there."""
        for _ in range(ATTEMPTS):
            with self.command.start(*self.recover(target)) as running:
                _wait_for_parts(running, target, least, awaited)
                running.kill()
            if (target / MARKER).exists():
                return
            _remove(target)
        raise AssertionError("the restore was always quicker than we")


@pytest.fixture(scope="module")
def full(session_room: Path, module_room: Path) -> Stored:
    """A full of the system's PostgreSQL."""
    return _taken(available("packaged", session_room), module_room, increments=0)


@pytest.fixture(scope="module")
def chain(wheel_18: Build, module_room: Path) -> Stored:
    """A full and an increment."""
    return _taken(wheel_18, module_room, increments=1)


@pytest.fixture(params=[pytest.param("full", marks=pytest.mark.requires("postgresql")), "chain"])
def stored(request: pytest.FixtureRequest) -> Stored:
    """Each of both."""
    found: Stored = request.getfixturevalue(request.param)
    return found


def test_a_restore_killed_at_ten_random_moments_completes_and_equals_the_source(stored: Stored, room: Path) -> None:
    target, port = room / "back", free_port()
    kills = 0
    while kills < MOMENTS:
        with stored.command.start(*stored.recover(target)) as running:
            wait_until(lambda running=running: (target / MARKER).exists() or not running.alive, "it does not begin")  # type: ignore[misc]
            with suppress(subprocess.TimeoutExpired):
                running.finish(random.uniform(0.0, LONGEST_S))
            kills += running.alive and running.kill()
        if not (target / MARKER).exists():  # it had come to its end
            _remove(target)
        elif (target / CONTROL).exists():
            assert len(_finished(target)) >= len(objects_below(stored.repository)) // 2, "startable before all is there"
    try:
        done = stored.command.ok(*stored.recover(target), "--start", "--port", str(port)).document
        assert (done["proof"], done["outcome"]) == ("L4", "pass")
        assert "pg_verifybackup" in done["steps"][2]["evidence"]
        assert foreign.read_rows(partial(connection_to, target, port)) == stored.rows
        assert not list(target.glob(".bb_ops*"))
    finally:
        stop_server_in(target)


def test_a_chain_killed_while_it_is_joined_or_moved_into_place_goes_on(chain: Stored, room: Path) -> None:
    target = room / "back"
    for awaited in (".bb_ops-chain/result/base", "base"):
        chain.killed_at_work(target, least=12, awaited=awaited)
    done = chain.command.ok(*chain.recover(target)).document
    assert (done["proof"], done["found_bytes"]) == ("L3", done["restored_bytes"])
    assert not list(target.glob(".bb_ops*"))


def test_what_was_finished_is_not_read_again(chain: Stored, room: Path) -> None:
    target = room / "back"
    chain.killed_at_work(target, least=12)
    paths = [path for key, path in _objects(chain).items() if key in _finished(target)]
    assert len(paths) >= 10
    with _spoilt(paths):
        done = chain.command.ok(*chain.recover(target)).document
        assert (done["proof"], done["found_bytes"] > 0) == ("L3", True)
        assert f"{done['found_bytes']} raw bytes of them by a run that was interrupted" in done["steps"][1]["evidence"]
        chain.command.run(*chain.recover(room / "other")).expect(5)  # who has nothing yet must read them


def test_a_byte_that_flipped_meanwhile_is_found_and_the_next_run_begins_anew(stored: Stored, room: Path) -> None:
    target = room / "back"
    stored.killed_at_work(target, least=12, awaited=".bb_ops-chain/0001" if len(stored.ids) > 1 else "")
    tables = [Path(name) for names in _finished(target).values() for name in names if "/base/" in name]
    victim = max((path for path in tables if path.is_file()), key=lambda path: path.stat().st_size)
    _flip(victim, victim.stat().st_size // 2)
    answer = stored.command.run(*stored.recover(target)).expect(5)
    assert victim.name in answer.stderr.splitlines()[-1]
    again = stored.command.ok(*stored.recover(target)).document
    assert (again["proof"], again["found_bytes"]) == ("L3", 0)


@pytest.mark.requires("postgresql")
def test_after_a_reboot_nothing_is_trusted(full: Stored, room: Path) -> None:
    target = room / "back"
    full.killed_at_work(target, least=3)
    mark = json.loads((target / MARKER).read_bytes())
    (target / MARKER).write_text(json.dumps({**mark, "boot_id": "the one before"}), encoding="utf-8")
    for path in target.rglob("*"):
        if path.is_file() and path.name not in {MARKER, RECORD}:
            path.write_bytes(b"")  # as a file system shows what had not reached the disk
    done = full.command.ok(*full.recover(target)).document
    assert (done["proof"], done["found_bytes"]) == ("L3", 0)
    assert not list(target.glob(".bb_ops*"))


@pytest.mark.requires("postgresql")
def test_a_disk_that_is_too_small_or_full_in_the_middle_is_one_line_and_what_was_done_is_kept(
    full: Stored, room: Path
) -> None:
    """Into the root of a file system of its own, where we may mount one; elsewhere under a limit on a file's size."""
    target = room / "back"
    target.mkdir()
    needed_bytes = full.command.ok(*full.recover(target), "--dry-run").document["restore_bytes"]
    if not _mount(target, needed_bytes // 2):
        full.command.limited(_small_files_only).run(*full.recover(target)).expect(2)
        full.command.ok(*full.recover(target))
        return
    try:
        assert "MiB free" in full.command.run(*full.recover(target)).expect(2).complaint
        assert list(target.iterdir()) == []
        _resize(target, needed_bytes * 5 // 4)
        with full.command.start(*full.recover(target)) as running:
            _wait_for_parts(running, target, 3, "")
            os.kill(running.pid, signal.SIGSTOP)
            _resize(target, _used_bytes(target) + (1 << 20))
            os.kill(running.pid, signal.SIGCONT)
            complaint = running.finish().expect(2).complaint
        assert f"cannot write below {target}" in complaint
        assert "MiB free" in full.command.run(*full.recover(target)).expect(2).complaint
        _resize(target, needed_bytes * 5 // 4)
        done = full.command.ok(*full.recover(target)).document
        assert (done["proof"], done["found_bytes"] > 0) == ("L3", True)
        assert target.is_mount()
    finally:
        subprocess.run(["/bin/umount", target], check=True)


def _taken(build: Build, module_room: Path, increments: int) -> Stored:
    room = module_room / build.name
    room.mkdir()
    with running_cluster(build, room / "cluster", settings={"summarize_wal": "on"} if increments else {}) as source:
        _fill(source)
        command = bb_ops(room, build, source.url).having(BB_OPS_PART_SIZE_MIB="1", BB_OPS_REPLICA=None)
        ids = [command.ok("backup", "full", "--json").document["id"]]
        for number in range(increments):
            source.execute(f"UPDATE t{number} SET m = md5(m) WHERE id % 40 = 0")
            ids.append(command.ok("backup", "incremental", "--blocks-only", "--json").document["id"])
        return Stored(command, room / "repository", tuple(ids), foreign.read_rows(source.connect))


def _fill(source: Cluster) -> None:
    location = source.spaces / "beside"
    location.mkdir()
    hand_over(location)
    source.execute(f"CREATE TABLESPACE beside LOCATION '{location}'")
    for number in range(TABLES):
        source.execute(f"CREATE TABLE t{number} AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, {ROWS}) g")
    source.execute("ALTER TABLE t0 SET TABLESPACE beside")


def _remove(target: Path) -> None:
    for path in (target, target.with_name(f"{target.name}.tablespaces")):
        shutil.rmtree(path, ignore_errors=True)


def _wait_for_parts(running: Running, target: Path, least: int, awaited: str) -> None:
    wait_until(
        lambda: (len(_finished(target)) >= least and (target / awaited).exists()) or not running.alive,
        "it does not begin",
    )


def _finished(target: Path) -> dict[str, list[str]]:
    """Return what the record says."""
    found = {}
    with suppress(FileNotFoundError):
        for line in (target / RECORD).read_bytes().split(b"\n"):
            with suppress(ValueError):
                entry = json.loads(line)
                found[entry["key"]] = entry["made"]
    return found


def _objects(stored: Stored) -> dict[str, Path]:
    """Return the stored objects by the names that the record has for them."""
    return {
        f"{path.parent.name}/{hashlib.sha256(path.read_bytes()).hexdigest()}": path
        for path in objects_below(stored.repository)
    }


@contextmanager
def _spoilt(paths: list[Path]) -> Iterator[None]:
    for path in paths:
        _flip(path, path.stat().st_size // 2)
    try:
        yield
    finally:
        for path in paths:
            _flip(path, path.stat().st_size // 2)


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 1]))


def _mount(directory: Path, size_bytes: int) -> bool:
    if os.geteuid() != 0:
        return False
    words: list[str | Path] = ["/bin/mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "bb_ops-test", directory]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def _resize(directory: Path, size_bytes: int) -> None:
    subprocess.run(["/bin/mount", "-o", f"remount,size={size_bytes}", directory], check=True)


def _used_bytes(directory: Path) -> int:
    facts = os.statvfs(directory)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def _small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
