"""The only place that starts programs: argv lists, deadlines, a whole environment, no shell.

Children die with the thread that started them (PR_SET_PDEATHSIG), so a killed run leaves no process behind.
Secrets go to a child by environment or by a 0600 file, never by argv.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, Timer
from typing import IO, NoReturn

from bb_ops.clock import Stopwatch
from bb_ops.errors import ProgramFailed, UsageError

Child = subprocess.Popen[bytes]
"""A program that was started and may still run."""
NOWHERE = subprocess.DEVNULL
WITH_STDOUT = subprocess.STDOUT
_PR_SET_PDEATHSIG = 1
_TAIL_CHARACTERS = 600
_PIECE_BYTES = 1 << 18
_MOST_COLLECTED_BYTES = 64 << 20
BASE_ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
"""What a child sees unless its caller adds to it; nothing is inherited."""


@dataclass(frozen=True)
class Account:
    """An operating-system account that a child may run as."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Completed:
    """What a finished program left."""

    returncode: int
    stdout: str
    stderr: str
    duration_s: float


def account(name: str) -> Account:
    """Look up an account by name.

    Raises:
        UsageError: there is no such account.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise UsageError(f"there is no operating-system account {name!r}: create it or name another one") from error
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


def first_account(names: Sequence[str]) -> Account:
    """Look up the first account that exists.

    Raises:
        UsageError: none does.
    """
    for entry in names[:-1]:
        try:
            return account(entry)
        except UsageError:
            continue
    return account(names[-1])


def run(  # noqa: PLR0913 - each is a separate property of the child
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    run_as: Account | None = None,
    accept: frozenset[int] = frozenset({0}),
) -> Completed:
    """Run a program to its end, with both outputs drained.

    Raises:
        ProgramFailed: it could not start, ran over ``timeout_s`` (then it and its children are killed), or ended
            with a code outside ``accept``; the message carries the end of its error output.
    """
    name = Path(argv[0]).name
    watch = Stopwatch()
    child = start(argv, env=env, cwd=cwd, run_as=run_as, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        stdout, stderr = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{name} did not finish within {timeout_s:g} s and was stopped") from error
    finally:
        if child.poll() is None:
            kill_group(child)
    done = Completed(child.returncode, _text(stdout), _text(stderr), watch.elapsed_s)
    if done.returncode not in accept:
        said = (done.stderr.strip() or done.stdout.strip())[-_TAIL_CHARACTERS:]
        raise ProgramFailed(f"{name} ended with code {done.returncode}: {said}")
    return done


def start(  # noqa: PLR0913 - each is a separate property of the child
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    run_as: Account | None = None,
    stdin: int | None = NOWHERE,
    stdout: int | None = NOWHERE,
    stderr: int | None = NOWHERE,
    outlive: bool = False,
) -> Child:
    """Start a program in a session of its own and return it running.

    Args:
        argv: The program, by absolute path where it matters which one, and its arguments.
        env: Added to BASE_ENVIRONMENT; the child sees nothing else.
        cwd: Where the child starts; the root directory when not given.
        run_as: The account to become; only root can.
        stdin: A file descriptor or a ``subprocess`` constant.
        stdout: Likewise.
        stderr: Likewise.
        outlive: Let the child live on when this process ends.

    Raises:
        ProgramFailed: the program cannot be started.
    """
    identity: dict[str, object] = {}
    if run_as is not None and os.geteuid() == 0:
        identity = {"user": run_as.uid, "group": run_as.gid, "extra_groups": []}
    home = run_as.home if run_as is not None else "/nonexistent"
    try:
        return subprocess.Popen(  # type: ignore[call-overload,misc,no-any-return]  # noqa: S603 - argv list, no shell
            [os.fspath(word) for word in argv],
            env={**BASE_ENVIRONMENT, "HOME": home, **(env or {})},
            cwd=cwd or "/",
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=None if outlive else _die_with_parent(),  # noqa: PLW1509 - one prctl call, no lock taken
            **identity,
        )
    except OSError as error:
        raise ProgramFailed(f"cannot start {argv[0]}: {error.strerror}") from error


@contextmanager
def reading(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    run_as: Account | None = None,
    stdin: int | None = NOWHERE,
) -> Iterator[Iterator[bytes]]:
    """Run a program and yield what it writes to its standard output, piece by piece, as it comes.

    The iterator ends only after the program ended well. Who leaves the block before kills the program.

    Raises:
        ProgramFailed: it could not start, ran over ``timeout_s``, or ended with a code other than 0.
    """
    child = start(argv, env=env, run_as=run_as, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with _attended(child, argv, timeout_s) as attended:
        yield attended.pieces()


@contextmanager
def feeding(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    run_as: Account | None = None,
    may_end_early: bool = False,
) -> Iterator["Fed"]:
    """Run a program that reads its standard input from us; at the end of the block it must have ended well.

    Args:
        argv: As for ``start``.
        timeout_s: After it the program is killed.
        env: As for ``start``.
        run_as: As for ``start``.
        may_end_early: The program needs not read everything; what is written after its end goes nowhere.

    Raises:
        ProgramFailed: as for ``reading``, and while writing where the program ended early.
    """
    child = start(argv, env=env, run_as=run_as, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with _attended(child, argv, timeout_s) as attended:
        fed = Fed(attended, may_end_early=may_end_early)
        yield fed
        fed.finish()


class Fed:
    """A program that is being fed.

    Attributes:
        stdout: What it wrote to its standard output; complete at the end of the block.
    """

    def __init__(self, attended: "_Attended", *, may_end_early: bool) -> None:
        """Collect its output from now on."""
        self.stdout = b""
        self._attended = attended
        self._may_end_early = may_end_early
        self._ended = False
        self._output = attended.collect(attended.child.stdout, _MOST_COLLECTED_BYTES)

    def write(self, data: bytes | memoryview, /) -> int:
        """Give it the next bytes.

        Raises:
            ProgramFailed: it ended before its input did.
        """
        if not self._ended and self._attended.child.stdin is not None:
            try:
                self._attended.child.stdin.write(data)
            except BrokenPipeError:
                self._end()
        return len(data)

    def finish(self) -> None:
        """End its input and wait for its end."""
        stdin = self._attended.child.stdin
        if not self._ended and stdin is not None:
            try:
                stdin.close()
            except BrokenPipeError:
                self._end()
        self._attended.finish()
        self.stdout = self._output.text()

    def _end(self) -> None:
        self._ended = True
        if not self._may_end_early:
            self._attended.finish()
            raise ProgramFailed(f"{self._attended.name} ended before its input did")


class _Collector:
    """Reads a pipe to its end in a thread and keeps the end of it, so that no program waits for us to read."""

    def __init__(self, pipe: IO[bytes] | None, most_bytes: int) -> None:
        self._data = bytearray()
        self._most_bytes = most_bytes
        self._thread = Thread(target=self._run, args=(pipe,), daemon=True, name="collect")
        self._thread.start()

    def text(self) -> bytes:
        self._thread.join()
        return bytes(self._data)

    def _run(self, pipe: IO[bytes] | None) -> None:
        while pipe is not None and (data := os.read(pipe.fileno(), _PIECE_BYTES)):
            self._data += data
            del self._data[: -self._most_bytes]


class _Attended:
    """A child with a deadline whose complaints are collected."""

    def __init__(self, child: Child, name: str, timeout_s: float) -> None:
        self.child = child
        self.name = name
        self._timeout_s = timeout_s
        self._overdue = False
        self._collectors: list[_Collector] = []
        self._complaints = self.collect(child.stderr, _TAIL_CHARACTERS * 4)
        self._timer = Timer(timeout_s, self._stop)
        self._timer.daemon = True
        self._timer.start()

    def collect(self, pipe: IO[bytes] | None, most_bytes: int) -> _Collector:
        """Read a pipe in the background; it is closed only when its end was read."""
        collector = _Collector(pipe, most_bytes)
        self._collectors.append(collector)
        return collector

    def pieces(self) -> Iterator[bytes]:
        """Yield standard output; ends only where the program ended well."""
        while self.child.stdout is not None and (data := os.read(self.child.stdout.fileno(), _PIECE_BYTES)):
            yield data
        self.finish()

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        code = self.child.wait()
        if self._overdue:
            raise ProgramFailed(f"{self.name} did not finish within {self._timeout_s:g} s and was stopped")
        if code != 0:
            said = _text(self._complaints.text()).strip()[-_TAIL_CHARACTERS:]
            raise ProgramFailed(f"{self.name} ended with code {code}: {said}")

    def close(self) -> None:
        """Kill what still runs, and close the pipes."""
        self._timer.cancel()
        if self.child.poll() is None:
            kill_group(self.child)
        for collector in self._collectors:
            collector.text()  # a descriptor that is closed under its reader may be another file's by then
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _stop(self) -> None:
        self._overdue = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)


@contextmanager
def _attended(child: Child, argv: Sequence[str | os.PathLike[str]], timeout_s: float) -> Iterator[_Attended]:
    attended = _Attended(child, Path(argv[0]).name, timeout_s)
    try:
        yield attended
    finally:
        attended.close()


def replace(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Become another program with a whole given environment; returns never."""
    os.execve(argv[0], list(argv), dict(env))  # noqa: S606 - no shell is wanted


def end(child: Child, ask: signal.Signals, timeout_s: float) -> None:
    """Ask a child to end, and kill it with all that it started when it has not within ``timeout_s``."""
    if child.poll() is None:
        child.send_signal(ask)
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_group(child)


def kill_group(child: Child) -> None:
    """Kill a child started by ``start`` and all that it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def peak_memory_bytes() -> int:
    """Return the most memory that this process held since it became this program (proc(5), VmHWM).

    getrusage(2) is no measure: it also counts what our parent held when it started us.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when there is no such process.

    Together with the pid it names one process for ever (proc(5), field 22 of ``stat``).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def boot_id() -> str:
    """Return what names this boot of the host (random(4)): what only the page cache holds does not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def set_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
        if os.getppid() != parent:
            os._exit(125)

    return set_signal


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
