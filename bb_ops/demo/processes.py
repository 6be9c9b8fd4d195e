"""The demo's long-running processes: started to outlive us, found again, and stopped without ever hitting another.

A process is known by pid *and* start time, so a recycled pid is never signalled. One whose start we could not record
any more (we were killed in between) is found by words of its command line that only it can have.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bb_ops import clock, process
from bb_ops.clock import Stopwatch
from bb_ops.errors import ProgramFailed
from bb_ops.findings import Value
from bb_ops.process import Account

_POLL_S = 0.05
_KILL_TIMEOUT_S = 10.0
_TAIL_BYTES = 600


class Process(Value):
    """One process for ever: a pid and when it started, in clock ticks since boot."""

    name: str
    pid: int
    start_ticks: int


def launch(  # noqa: PLR0913 - each is a separate property of the child
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    run_as: Account | None = None,
) -> Process:
    """Start a program that outlives us, with both outputs appended to ``log`` (0600).

    Raises:
        ProgramFailed: it cannot be started or ended at once.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        child = process.start(
            argv, env=env, cwd=cwd, run_as=run_as, stdout=descriptor, stderr=process.WITH_STDOUT, outlive=True
        )
    finally:
        os.close(descriptor)
    child.returncode = 0  # we let it go on purpose: keeps Popen from warning about it and from reaping it
    ticks = process.start_ticks(child.pid)
    if ticks is None:
        raise ProgramFailed(f"{name} ended at once; {log} ends: {tail(log)}")
    return Process(name=name, pid=child.pid, start_ticks=ticks)


def is_running(known: Process) -> bool:
    """Tell whether this very process still runs."""
    _reap(known.pid)
    return process.start_ticks(known.pid) == known.start_ticks


def find(name: str, words: Sequence[str], run_as: Account | None, *, containing: str = "") -> Process | None:
    """Find the oldest process of the account whose command line has all ``words``, and one ``containing`` a text.

    The oldest, because a server's children can bear its command line for a moment after the fork.
    """
    uid = os.geteuid() if run_as is None else run_as.uid
    matches = []
    for directory in _process_directories():
        try:
            argv = (directory / "cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
            if directory.stat().st_uid == uid and set(words) <= set(argv) and containing in "\0".join(argv):
                matches.append((process.start_ticks(int(directory.name)), int(directory.name)))
        except OSError:
            continue  # it ended while we looked
    living = sorted((ticks, pid) for ticks, pid in matches if ticks is not None)
    return Process(name=name, pid=living[0][1], start_ticks=living[0][0]) if living else None


def works_inside(directory: Path, program: str) -> bool:
    """Tell whether a process of ``program`` has ``directory`` as its working directory (all of PostgreSQL's do)."""
    for entry in _process_directories():
        try:
            if (entry / "cwd").readlink() == directory and (entry / "comm").read_text().strip() == program:
                return True
        except OSError:
            continue  # it ended, or it belongs to another account and so is not ours
    return False


def wait_until(what: str, ready: Callable[[], bool], *, alive: Callable[[], bool], timeout_s: float, log: Path) -> None:
    """Wait until a server answers.

    Raises:
        ProgramFailed: it ended, or does not answer in time; the message carries the end of its log.
    """
    watch = Stopwatch()
    while not ready():
        if not alive():
            raise ProgramFailed(f"{what} ended while starting; {log} ends: {tail(log)}")
        if watch.elapsed_s > timeout_s:
            raise ProgramFailed(f"{what} does not answer after {timeout_s:g} s; {log} ends: {tail(log)}")
        clock.sleep(_POLL_S)


def ask(known: Process, number: signal.Signals) -> None:
    """Send a signal to a process if it still runs; never to another that got its pid."""
    if is_running(known):
        with suppress(ProcessLookupError):  # it ended in between
            os.kill(known.pid, number)


def wait_ended(known: Process, *, insist: signal.Signals, timeout_s: float) -> None:
    """Wait until a process that was asked to end has ended, and insist when it has not within ``timeout_s``.

    Raises:
        ProgramFailed: it is still there after that.
    """
    for patience_s in (timeout_s, _KILL_TIMEOUT_S):
        watch = Stopwatch()
        while is_running(known):
            if watch.elapsed_s > patience_s:
                ask(known, insist)
                break
            clock.sleep(_POLL_S)
    if is_running(known):
        raise ProgramFailed(f"{known.name} (pid {known.pid}) does not end, not even by {insist.name}")


def tail(log: Path) -> str:
    """Return the end of a log, for an error message; empty when there is none."""
    try:
        with log.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - _TAIL_BYTES))
            return handle.read().decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


def _process_directories() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # not our child: another command started it
        os.waitpid(pid, os.WNOHANG)
