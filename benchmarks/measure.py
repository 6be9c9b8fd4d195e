"""Runs one program and says what it cost: time, processor time on both sides, memory."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 1800.0


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

    def identity(self) -> dict[str, object]:
        """Return what makes ``subprocess`` run as the account."""
        return {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}


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
    return _measure(command, None)[1]


def measure(command: Command, server_pid: int | None) -> tuple[Cost, str]:
    """Run a program and measure it; ``server_pid`` is the postmaster's. Returns its standard output too."""
    return _measure(command, server_pid)


def _measure(command: Command, server_pid: int | None) -> tuple[Cost, str]:
    before = _tree_cpu_s(server_pid)
    started = time.monotonic()
    child = _start(command)
    peak = _PeakMemory(child.pid)
    expiry = threading.Timer(_TIMEOUT_S, _kill, (child.pid,))
    expiry.start()
    complaints: list[bytes] = []
    reader = threading.Thread(target=lambda: complaints.append(child.stderr.read()))
    reader.start()
    try:
        output = child.stdout.read()
        reader.join()
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        _kill(child.pid)
        raise
    finally:
        wall_s = time.monotonic() - started
        expiry.cancel()
        peak.stop()
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    child.stderr.close()
    if child.returncode != 0:
        said = complaints[0].decode(errors="replace").strip() or output.decode(errors="replace").strip()
        raise Failed(f"{Path(command.argv[0]).name} ended with code {child.returncode}: {said[-800:]}")
    cost = Cost(wall_s, usage.ru_utime + usage.ru_stime, _tree_cpu_s(server_pid) - before, peak.peak_bytes)
    return cost, output.decode()


def _start(command: Command) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [os.fspath(word) for word in command.argv],
            env=dict(command.environment),
            cwd=command.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **(command.account.identity() if command.account else {}),  # type: ignore[arg-type]
        )
    except OSError as error:
        raise Failed(f"cannot start {command.argv[0]}: {error.strerror}") from error


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

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
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
                self.peak_bytes = max(self.peak_bytes, _high_water_bytes(pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for path in _paths(Path(f"/proc/{pid}/task")):
        for child in _text(path / "children").split():
            yield from _tree(int(child))


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
