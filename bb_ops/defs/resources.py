"""What assets are given, and how domain errors become Dagster failures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from bb_ops.bootstrap import Operations, operations
from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError

_LOG_EVERY_S = 5.0


class OperationsResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # Dagster's own generic is not for users
    """Opens the operations that the environment's settings describe, at run time and not before."""

    def open(self) -> Operations:
        """Read the settings."""
        with failures():
            return operations()


@contextmanager
def failures() -> Iterator[None]:
    """Turn a domain error into a failed step: one line, and a retry only where a retry can help."""
    try:
        yield
    except BbOpsError as error:
        raise dg.Failure(
            description=str(error), metadata={"exit_code": error.exit_code}, allow_retries=error.retryable
        ) from error


class LoggedProgress:
    """Writes progress into a run's log, every few seconds and at the end of a stage."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Log through ``log``."""
        self._log = log
        self._watch = Stopwatch()
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Take a stage, the bytes done, and the bytes in all where known."""
        if stage == self._stage and self._watch.elapsed_s < _LOG_EVERY_S and done != total:
            return
        self._stage, self._watch = stage, Stopwatch()
        share = f", {100 * done / total:.0f} %" if total else ""
        self._log(f"{stage}: {done >> 20} MiB{share}" if done else f"{stage} begins")
