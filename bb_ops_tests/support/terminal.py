"""A command on a real terminal: what a person sees, and what is typed."""

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time
from pathlib import Path
from typing import Self

from bb_ops_tests.support.commands import BB_OPS, BbOps

_NOTICED_S = 3.0
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command that runs on a pseudo-terminal; it does not outlive the block."""

    def __init__(self, command: BbOps, *arguments: str | Path) -> None:
        """Start it in a session of its own, with the terminal as its controlling one."""
        self._master, slave = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._child = subprocess.Popen(
            [BB_OPS, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=command.directory,
            env={**command.environment, "TERM": "dumb"},
            preexec_fn=take_terminal,  # noqa: PLW1509 - two system calls, no lock taken
        )
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        os.close(self._master)

    def expect(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until a text is seen that was not seen before; forget all up to there."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} was not seen in {self.seen!r}"
            assert self._read() or text in self.seen, f"it ended without {text!r}: {self.seen!r}"
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl-C; once more where it came in the instant before a read began, which then has not noticed it."""
        for _ in range(2):
            os.write(self._master, b"\x03")
            deadline = time.monotonic() + _NOTICED_S
            while time.monotonic() < deadline:
                if not self._read() or self._child.poll() is not None:
                    return

    def finish(self, timeout_s: float = 60.0) -> int:
        """Read to its end; return how it ended."""
        deadline = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < deadline, self.seen
        return self._child.wait(timeout_s)

    def _read(self) -> bool:
        """Read what there is; return whether more may come."""
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed (pty(7): EIO)
            return False
        self.seen += _COLOURS.sub("", data.decode("utf-8", "replace"))
        return bool(data)
