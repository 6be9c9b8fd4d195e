"""The only place that reads the time."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What gives the time: the system's clock, or a fixed one in a test."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        ...


class SystemClock:
    """The operating system's clock."""

    def now(self) -> datetime:
        """Return the current instant, aware, in UTC."""
        return datetime.now(UTC)


class Stopwatch:
    """Measures a duration with a clock that never steps back."""

    def __init__(self) -> None:
        """Start measuring."""
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, to the millisecond."""
        return round(time.monotonic() - self._started, 3)


utc_fields = time.gmtime
"""Turns seconds since 1970 into UTC fields, for log lines."""


def sleep(duration_s: float) -> None:
    """Wait for ``duration_s`` seconds."""
    time.sleep(duration_s)
