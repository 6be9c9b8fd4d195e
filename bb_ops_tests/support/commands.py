"""The ``bb-ops`` command, run for real: the console script beside the interpreter, with an explicit environment."""

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from bb_ops_tests.support.postgres import Build, die_with_us, wait_until

BB_OPS = Path(sys.executable).with_name("bb-ops")
_POLL_S = 0.02


@dataclass(frozen=True)
class Answer:
    """What a finished command left.

    Attributes:
        peak_memory_bytes: The most memory that it held at once (VmHWM, proc(5)).
    """

    returncode: int
    stdout: str
    stderr: str
    duration_s: float
    peak_memory_bytes: int

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found

    @property
    def complaint(self) -> str:
        """What it said on standard error, which is exactly one line."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, f"expected one line on stderr, got: {self.stderr!r}"
        return lines[0]

    def expect(self, returncode: int) -> "Answer":
        """Prove how it ended; return itself."""
        assert self.returncode == returncode, f"exit {self.returncode}\n{self.stdout}\n{self.stderr}"
        return self


class Running:
    """A command under way. As a context manager it does not outlive the block."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        """Watch its memory."""
        self._child = child
        self._started = time.monotonic()
        self._peak_memory_bytes = 0
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._child.pid

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        if self._child.returncode is None:
            self.kill()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def kill(self) -> bool:
        """Kill it with SIGKILL and wait for its end; return whether it was still at work."""
        self._child.send_signal(signal.SIGKILL)
        self._child.communicate()
        self._watcher.join()
        return self._child.returncode == -signal.SIGKILL

    def finish(self, timeout_s: float = 240.0) -> Answer:
        """Wait for its end."""
        stdout, stderr = self._child.communicate(timeout=timeout_s)
        self._watcher.join()
        duration_s = time.monotonic() - self._started
        code = self._child.returncode
        return Answer(code, stdout.decode(), stderr.decode(), duration_s, self._peak_memory_bytes)

    def _watch(self) -> None:
        status = Path(f"/proc/{self._child.pid}/status")
        while self._child.returncode is None:
            try:
                facts = status.read_text(encoding="ascii", errors="replace")
            except OSError:
                return
            peak = next((line for line in facts.splitlines() if line.startswith("VmHWM:")), None)
            if peak is None:  # it has ended and waits to be reaped
                return
            self._peak_memory_bytes = max(self._peak_memory_bytes, int(peak.split()[1]) * 1024)
            time.sleep(_POLL_S)


@dataclass(frozen=True)
class BbOps:
    """The command with its environment, which is all that it sees."""

    environment: Mapping[str, str]
    directory: Path
    limits: Callable[[], None] | None = field(default=None, compare=False)

    def having(self, **settings: str | Path | None) -> "BbOps":
        """Return the command with other settings; None takes one away."""
        merged = {**self.environment, **{name: str(value) for name, value in settings.items() if value is not None}}
        kept = {name: value for name, value in merged.items() if settings.get(name, "") is not None}
        return replace(self, environment=kept)

    def limited(self, set_limits: Callable[[], None]) -> "BbOps":
        """Return the command under resource limits that ``set_limits`` sets in the child."""
        return replace(self, limits=set_limits)

    def start(self, *arguments: str | Path) -> Running:
        """Start it."""
        die = die_with_us(signal.SIGKILL)

        def prepare() -> None:
            die()
            if self.limits is not None:
                self.limits()

        return Running(
            subprocess.Popen(
                [BB_OPS, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.directory,
                env=dict(self.environment),
                preexec_fn=prepare,  # noqa: PLW1509 - system calls only, no lock taken
            )
        )

    def run(self, *arguments: str | Path, timeout_s: float = 240.0) -> Answer:
        """Run it to its end."""
        with self.start(*arguments) as running:
            return running.finish(timeout_s)

    def ok(self, *arguments: str | Path, timeout_s: float = 240.0) -> Answer:
        """Run it to its end, which must be exit 0."""
        return self.run(*arguments, timeout_s=timeout_s).expect(0)


def bb_ops(room: Path, build: Build, database_url: str) -> BbOps:
    """Return the command with fresh keys and two empty repositories in ``room``, for a server of ``build``."""
    scratch = room / "tmp"
    scratch.mkdir()
    scratch.chmod(0o755)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(scratch),
        "HOME": str(scratch),
        "DATABASE_URL": database_url,
        "BB_OPS_REPOSITORY": f"file://{room}/repository",
        "BB_OPS_REPLICA": f"file://{room}/replica",
    }
    if build.copied:
        environment["BB_OPS_PG_BINDIR"] = str(build.bindir)
    command = BbOps(environment, scratch)
    command.ok("keys", "init", room / "keys")
    return command.having(**settings_of(room / "keys" / "bb-ops.env"))


def settings_of(env_file: Path) -> dict[str, str]:
    """Read a file of settings as a shell would."""
    words = shlex.split(env_file.read_text(encoding="utf-8"), comments=True)
    return dict(word.split("=", 1) for word in words)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and theirs."""
    try:
        texts = [task.read_text(encoding="ascii") for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended while we looked
        return []
    children = [int(word) for text in texts for word in text.split()]
    return children + [below for child in children for below in descendants(child)]


def command_line(pid: int) -> bytes:
    """Return what everybody on the host can read of a process's arguments."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def backups_of(command: BbOps) -> list[dict[str, Any]]:
    """Return what ``backup list`` shows; an absent repository holds none."""
    answer = command.run("backup", "list", "--json")
    if answer.returncode == 10:
        return []
    found: list[dict[str, Any]] = answer.expect(0).document["backups"]
    return found


def objects_below(repository: Path) -> list[Path]:
    """Return the files of backups in a repository directory, locks, pages and unfinished writes left out."""
    found = (path for path in repository.glob("*/*/base/*/*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if path.name != "RECOVERY.md")


def wait_for_work(repository: Path) -> None:
    """Wait until a backup has begun to write into a repository directory."""
    wait_until(lambda: any(repository.glob("*/*/base/*/*")), f"no backup began in {repository}")


def environment_of(pid: int) -> bytes:
    """Return a process's environment, which its own account can read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
