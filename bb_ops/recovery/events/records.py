"""What single records of WAL say that matters to events. Pure."""

import re
from typing import NamedTuple

from bb_ops.postgres.wal_dump import Record, RelationFile, first_block, parse_path

FIRST_NORMAL_OID = 16384
"""Lower numbers belong to the system catalogs (transam.h)."""
_SHARED_TABLESPACE = 1664
_NO_LOSS = 0x08 | 0x10
"""Flags of a row that is taken back by its own insertion, or moves to another partition (heapam_xlog.h)."""
_CREATE = re.compile(r"CREATE (\S+)")
_LOCK = re.compile(r"xid \d+ db (\d+) rel (\d+)")
_OFFSET = re.compile(r"off:? (\d+)")
_FLAGS = re.compile(r"flags:? 0x([0-9A-Fa-f]+)")
_DATABASE = re.compile(r"\d+/(\d+)")
_RUNNING = re.compile(r"RUNNING_XACTS nextXid (\d+) .*?oldestRunningXid (\d+)")
_RESTORE_POINT = "RESTORE_POINT "


class DeletedRow(NamedTuple):
    """One row that was deleted."""

    file: RelationFile
    block: int
    offset: int

    @property
    def shared(self) -> bool:
        """Whether it was one of a catalog that all databases share."""
        return self.file.tablespace == _SHARED_TABLESPACE


def created_file(record: Record) -> RelationFile | None:
    """Return the file that a record makes."""
    found = _CREATE.match(record.text) if record.manager == "Storage" else None
    return parse_path(found[1]) if found is not None else None


def locked_relation(record: Record) -> tuple[int, int] | None:
    """Return the relation (database, oid) that is locked against everybody from here on."""
    if record.manager != "Standby" or not record.text.startswith("LOCK"):
        return None
    found = _LOCK.search(record.text)
    return (int(found[1]), int(found[2])) if found is not None else None


def imaged_file(record: Record) -> RelationFile | None:
    """Return the file of which a whole page is written anew, as the build of an index does."""
    if record.manager != "XLOG" or not record.text.startswith("FPI "):
        return None
    block = first_block(record)
    return block[0] if block is not None else None


def deleted_row(record: Record) -> DeletedRow | None:
    """Return the row that a record deletes for good."""
    if record.manager != "Heap" or not record.text.startswith("DELETE"):
        return None
    block, flags, offset = first_block(record), _FLAGS.search(record.text), _OFFSET.search(record.text)
    if block is None or offset is None or (flags is not None and int(flags[1], 16) & _NO_LOSS):
        return None
    return DeletedRow(block[0], block[1], int(offset[1]))


def marked_database(record: Record) -> tuple[RelationFile, int, int] | None:
    """Return the shared row that is changed in place: so DROP DATABASE marks its database before all else."""
    if record.manager != "Heap" or not record.text.startswith("INPLACE"):
        return None
    block, offset = first_block(record), _OFFSET.search(record.text)
    if block is None or offset is None or block[0].tablespace != _SHARED_TABLESPACE:
        return None
    return block[0], block[1], int(offset[1])


def removed_database(record: Record) -> int | None:
    """Return the database (oid) whose files are removed from a tablespace: it was dropped, or moved."""
    if record.manager != "Database" or not record.text.startswith("DROP"):
        return None
    found = _DATABASE.search(record.text)
    return int(found[1]) if found is not None else None


class Running(NamedTuple):
    """Which transactions may be running: those from ``oldest`` up to, but without, ``following``."""

    oldest: int
    following: int


def running(record: Record) -> Running | None:
    """Return which transactions may be running, where a record says so."""
    found = _RUNNING.match(record.text) if record.manager == "Standby" else None
    return Running(int(found[2]), int(found[1])) if found is not None else None


def restore_point(record: Record) -> str | None:
    """Return the name of the restore point that a record is."""
    if record.manager != "XLOG" or not record.text.startswith(_RESTORE_POINT):
        return None
    return record.text.removeprefix(_RESTORE_POINT)
