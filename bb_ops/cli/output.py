"""What people and programs read: one JSON document or plain tables on standard output, everything else on stderr."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from bb_ops.clock import utc_fields
from bb_ops.progress import Progress

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_KIB = 1024


class LogFormatter(logging.Formatter):
    """A line of text for a terminal, a line of JSON for everything else."""

    def __init__(self, *, for_people: bool) -> None:
        """Choose the form."""
        super().__init__("%(message)s")
        self._for_people = for_people
        self.converter = utc_fields

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if self._for_people:
            facts = " ".join(f"{name}={value}" for name, value in extra.items())
            at = self.formatTime(record, "%H:%M:%S")
            return f"{at} {record.levelname.lower()} {record.getMessage()} {facts}".rstrip()
        line = {
            **extra,
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def json_option(function: Callable[..., object]) -> Callable[..., object]:
    """Give a command ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")(function)


def emit(document: dict[str, object]) -> None:
    """Print the command's one JSON document."""
    click.echo(json.dumps(document, indent=2, default=str))


def fail(message: str, exit_code: int, *, as_json: bool) -> int:
    """Say what is wrong in one line on standard error; with ``--json`` also as the document. Returns the exit code."""
    line = " ".join(message.split())
    click.echo(f"bb-ops: {line}", err=True)
    if as_json:
        emit({"schema_id": "bb-ops/error/1", "error": line, "exit_code": exit_code})
    return exit_code


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(document: dict[str, object], *, as_json: bool) -> None:
    """Print a document of single facts: as it is, or as a table for a person."""
    if as_json:
        emit(document)
    else:
        table(("fact", "value"), [(name, str(value)) for name, value in document.items()])


def human_bytes(size_bytes: float) -> str:
    """Return a size as people read it, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < _KIB:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _KIB
    return f"{size_bytes:.1f} TiB"


def human_duration(duration_s: float) -> str:
    """Return a duration as people say it, in its two largest units."""
    seconds = round(duration_s)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on a terminal; elsewhere nothing, so that logs stay readable."""
    if not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    from rich import progress  # noqa: PLC0415 - a tenth of a second that only a terminal pays
    from rich.console import Console  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description:>12}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, progress.TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show
