"""Write a recovered table as a dump that pg_restore reads: whole or not at all, and never over a file."""

import os
from collections.abc import Sequence
from pathlib import Path

from bb_ops.errors import IntegrityError, TargetRefused
from bb_ops.files import fsync_directory, is_partial, partial_path
from bb_ops.postgres import dump
from bb_ops.postgres.dump import Client
from bb_ops.postgres.table import Relation
from bb_ops.progress import Progress

_PIECE_BYTES = 1 << 20


def check_file(file: Path) -> None:
    """Prove that a file can be made there and overwrites nothing.

    Raises:
        TargetRefused: it exists, or its folder does not or cannot be written to.
    """
    if file.exists() or file.is_symlink():
        raise TargetRefused(f"{file} exists, and nothing is ever overwritten: choose another name")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise TargetRefused(f"{file.parent} is no folder that can be written to: choose another one")


def dump_table(  # noqa: PLR0913 - one fact each
    client: Client, dbname: str, tables: Sequence[Relation], rows: int, file: Path, progress: Progress
) -> int:
    """Dump tables with all that belongs to them into a new file of mode 0600; return its size in bytes.

    Killed, it leaves an unfinished file beside, which the next dump to that name removes.

    Args:
        client: The server, which nobody writes to.
        dbname: The database.
        tables: What is dumped.
        rows: How many they hold.
        file: Is made; its name appears when the dump is on disk and pg_restore read all rows back from it.
        progress: Told about bytes.

    Raises:
        TargetRefused: it exists now, or the disk is full.
        ProgramFailed: pg_dump failed.
        IntegrityError: the dump does not hold every row.
    """
    for path in file.parent.iterdir():
        if is_partial(path, file.name):
            path.unlink(missing_ok=True)
    temporary = partial_path(file)
    try:
        size_bytes = _write(client, dbname, tables, temporary, progress)
        progress("check", 0, None)
        _check(client, tables, rows, temporary)
        os.link(temporary, file)
    except FileExistsError:
        raise TargetRefused(f"{file} was made meanwhile: choose another name") from None
    except OSError as error:
        raise TargetRefused(f"{file}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(file.parent)
    return size_bytes


def _write(client: Client, dbname: str, tables: Sequence[Relation], file: Path, progress: Progress) -> int:
    size_bytes = 0
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with (
        os.fdopen(descriptor, "wb") as handle,
        dump.dump_tables(client, dbname, [str(table) for table in tables]) as pieces,
    ):
        for piece in pieces:
            handle.write(piece)
            size_bytes += len(piece)
            progress("dump", size_bytes, None)
        handle.flush()
        os.fsync(handle.fileno())
    return size_bytes


def _check(client: Client, tables: Sequence[Relation], rows: int, file: Path) -> None:
    with dump.listing(client.programs) as fed, file.open("rb") as handle:
        while piece := handle.read(_PIECE_BYTES):
            fed.write(piece)
    listed = dump.dumped_tables(dump.entries(fed.stdout))
    lacking = [str(table) for table in tables if table.holds_rows and table.oid not in listed]
    if lacking:
        raise IntegrityError(f"the dump lacks the rows of {', '.join(lacking)}: nothing was kept")
    found = dump.dumped_rows(client.programs, file)
    if found != rows:
        raise IntegrityError(f"the dump holds {found} rows, the copy {rows}: nothing was kept")
