"""Throw-away copies of the data: made where the server's account can enter, swept when their makers were killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bb_ops import process
from bb_ops.errors import TargetRefused
from bb_ops.process import Account
from bb_ops.recovery.target import Target, remove_tree

_SCRATCH_PREFIX = "bb_ops-restore-"


@contextmanager
def scratch_directory(parent: Path | None, owner: Account | None) -> Iterator[Path]:
    """Make a throw-away directory that the server's account can enter, and remove it whatever happens."""
    sweep_scratch(parent)
    me = f"{os.getpid()}@{process.start_ticks(os.getpid())}"
    try:
        path = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH_PREFIX}{me}-", dir=parent))
    except OSError as error:
        raise TargetRefused(
            f"no throw-away directory in {parent or tempfile.gettempdir()}: {error.strerror}"
        ) from error
    try:
        Target(path, path, owner).chown(path)
        yield path
    finally:
        remove_tree(path)


def sweep_scratch(parent: Path | None) -> int:
    """Remove the throw-away copies of tests that were killed; return how many. Those of living tests stay."""
    copies = abandoned_copies(parent)
    for path in copies:
        shutil.rmtree(path, ignore_errors=True)  # another account's copy is that account's to remove
    return len(copies)


def abandoned_copies(parent: Path | None) -> list[Path]:
    """Return the throw-away copies of tests that were killed, in ``parent`` or the temporary directory."""
    found = []
    for path in sorted(Path(parent or tempfile.gettempdir()).glob(f"{_SCRATCH_PREFIX}*")):
        pid, _, ticks = path.name.removeprefix(_SCRATCH_PREFIX).partition("-")[0].partition("@")
        if pid.isdecimal() and ticks.isdecimal() and process.start_ticks(int(pid)) != int(ticks):
            found.append(path)
    return found
