"""Programs that are left before their end."""

import threading

import pytest

from bb_ops import process


class Left(Exception):
    """Somebody leaves the block."""


@pytest.mark.parametrize("use", [process.reading, process.feeding])
def test_nobody_reads_from_a_program_that_was_left(use: object) -> None:
    """A descriptor that is closed under its reader may belong to another file by the next read."""
    for _ in range(20):
        with pytest.raises(Left), use(["/bin/sh", "-c", "while :; do echo x; echo y >&2; done"], timeout_s=60):  # type: ignore[operator]
            raise Left
        assert [thread for thread in threading.enumerate() if thread.name == "collect"] == []
