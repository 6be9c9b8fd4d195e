"""Runs one program and says what it cost: time, processor time on both sides, memory."""

import ctypes
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SAMPLE_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 1800.0
_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Failed(Exception):
    """A program of the comparison did not do its work, so there is nothing to compare."""


@dataclass(frozen=True)
class Account:
    """Whom PostgreSQL and its tools run as; numbers are None where we are that account ourselves."""

    name: str
    uid: int | None
    gid: int | None

    def give(self, path: Path) -> None:
        """Make the account the owner of ``path``."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    @property
    def groups(self) -> list[int] | None:
        """Its further groups, for ``subprocess``: none, where we become it."""
        return None if self.uid is None else []


@dataclass(frozen=True)
class Command:
    """One program call. Its environment is whole: nothing of ours is inherited."""

    argv: Sequence[str | Path]
    environment: Mapping[str, str]
    account: Account | None
    directory: Path


@dataclass(frozen=True)
class Cost:
    """What one call cost.

    Attributes:
        cpu_s: User and system time of the program and all that it started and waited for.
        server_cpu_s: What PostgreSQL's processes used meanwhile; 0 where no server was involved.
        peak_rss_bytes: Of the largest process.
    """

    wall_s: float
    cpu_s: float
    server_cpu_s: float
    peak_rss_bytes: int


def run(command: Command) -> str:
    """Run a program that is not measured; return its standard output."""
    return measure(command, None)[1]


def measure(command: Command, server_pid: int | None) -> tuple[Cost, str]:
    """Run a program and measure it; return its standard output too.

    Args:
        command: What to run.
        server_pid: The postmaster's process id, where a server works for the program.

    Raises:
        Failed: it could not start, ended with an error, or took longer than half an hour (then it is killed).
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        before = _tree_cpu_s(server_pid)
        started = time.monotonic()
        child = _start(command, output, complaints)
        peak = _PeakMemory(child.pid)
        expiry = threading.Timer(_TIMEOUT_S, _kill, (child.pid,))
        expiry.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            _kill(child.pid)
            child.wait()
            raise
        finally:
            wall_s = time.monotonic() - started
            expiry.cancel()
            peak.stop()
        child.returncode = os.waitstatus_to_exitcode(status)
        cost = Cost(wall_s, usage.ru_utime + usage.ru_stime, _tree_cpu_s(server_pid) - before, peak.peak_bytes)
        if child.returncode != 0:
            said = _content(complaints).strip() or _content(output).strip()
            raise Failed(f"{Path(command.argv[0]).name} ended with code {child.returncode}: {said[-800:]}")
        return cost, _content(output)


@contextmanager
def running(command: Command, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service while the block runs; end it with SIGTERM, and with its whole group where that does not help."""
    with log.open("ab") as output:
        child = _start(command, output, output)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            _kill(child.pid)
            child.wait()


def adopt_orphans() -> None:
    """Become the parent of daemons that our descendants leave behind (prctl(2)), so that they can be measured."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise Failed("this kernel does not let us adopt orphans")


def measure_all(names: Collection[str], work: Callable[[], None]) -> Cost:
    """Do ``work`` and measure everything below us: programs, their daemons and the server.

    Call ``adopt_orphans`` first.

    Args:
        names: The programs whose memory counts, as ``/proc/PID/comm`` has them.
        work: Returns as soon as what is measured is done.

    Returns:
        The cost; its ``cpu_s`` is everyone's, ``server_cpu_s`` is 0.
    """
    before = _tree_cpu_s(os.getpid())
    peak = _PeakMemory(os.getpid(), names)
    started = time.monotonic()
    try:
        work()
        wall_s = time.monotonic() - started
    finally:
        peak.stop()
    cost = Cost(wall_s, _tree_cpu_s(os.getpid()) - before, 0.0, peak.peak_bytes)
    _reap(names)
    return cost


def _reap(names: Collection[str]) -> None:
    """Let adopted daemons go that have ended."""
    for pid in _children(os.getpid()):
        if _name(pid) in names and _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[:1] == ["Z"]:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _start(command: Command, output: IO[bytes], complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    account = command.account
    try:
        return subprocess.Popen(
            [os.fspath(word) for word in command.argv],
            env=dict(command.environment),
            cwd=command.directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=complaints,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=account.groups if account else None,
        )
    except OSError as error:
        raise Failed(f"cannot start {command.argv[0]}: {error.strerror}") from error


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _kill(pid: int) -> None:
    """Kill a child of ours, which leads a process group of its own, and all in it."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class _PeakMemory:
    """Looks at a process and its descendants twenty times a second.

    The kernel's own high-water mark is read (VmHWM), so what lies between two looks is not lost. ``wait4`` would give
    the size of the process that forked instead, where that was the larger one.
    """

    def __init__(self, pid: int, names: Collection[str] | None = None) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._names = names
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_SAMPLE_S):
            for pid in _tree(self._pid):
                if self._names is None or _name(pid) in self._names:
                    self.peak_bytes = max(self.peak_bytes, _high_water_bytes(pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in _children(pid):
        yield from _tree(child)


def _children(pid: int) -> list[int]:
    return [int(child) for path in _paths(Path(f"/proc/{pid}/task")) for child in _text(path / "children").split()]


def _name(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/comm")).strip()


def _paths(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _high_water_bytes(pid: int) -> int:
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _tree_cpu_s(pid: int | None) -> float:
    """Sum the processor time of a live tree and of all whom its members waited for (proc(5), fields 14 to 17).

    A server process that ends is waited for by the postmaster, so the difference between two calls is complete.
    """
    if pid is None:
        return 0.0
    ticks = 0
    for member in _tree(pid):
        fields = _text(Path(f"/proc/{member}/stat")).rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS_PER_S


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
