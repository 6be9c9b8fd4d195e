"""What was destroyed, and when: records of WAL in, events out. Pure.

WAL names files and object numbers, no statements. What tells one from another was measured on PostgreSQL 15, 17 and 18:

- A commit lists the files that go with it, and the statistics (oid) of every relation that was *dropped*. A truncated
  or rewritten table keeps its oid: it is not among those.
- A new relation's first file bears its oid, which the transaction has locked; a file that takes another's place
  (TRUNCATE, REINDEX) has a number of its own. An index is written anew at once (full-page images), a truncated table
  and its TOAST table are not.
- A rewrite (VACUUM FULL, CLUSTER, most ALTER TABLE … TYPE, REFRESH MATERIALIZED VIEW) makes a table that it drops
  again.
- A table has a row type; an index, a sequence and a TOAST table have none (since 14). So a commit that drops files,
  but no type, dropped no table. A temporary table has no file in WAL.

What cannot be told apart:

- of tables whose name is not known, which of several files is the table, where one transaction drops several;
- a table that is not known and dropped by a transaction that also rewrites another one (it counts as rewritten);
- DROP INDEX beside CREATE TABLE in one transaction, where the names are not known (a drop is shown);
- two tables without TOAST that are truncated after one another in one transaction and not known (one is shown);
- what a transaction did before the first record that was read: rows that it deleted there are not counted;
- an unlogged table's rows, which no physical backup holds, and a TOAST table's that is not known: they count as others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from bb_ops.postgres import wal_dump
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.wal_dump import Record, RelationFile, TransactionEnd, Wanted
from bb_ops.recovery.events import records as event_records

RECORDS: Wanted = {
    "Transaction": (),
    "Storage": ("CREATE",),
    "Database": ("DROP",),
    "Standby": (),
    "XLOG": ("FPI ",),
    "Heap": ("DELETE", "INPLACE"),
}
"""The records that are needed."""
_TYPE_CACHE = {15: 80, 16: 80, 17: 80, 18: 82}
"""TYPEOID among the system catalog caches (syscache.h); 16 lies between two that agree and was not measured."""
_ENTRIES_PER_TABLE = 2
"""A table's row type, and the array of it."""
_OF_DATABASE, _OF_RELATION = 1, 2
_UNSEEN = "its beginning was not read: a truncated table or a rebuilt index"
_ONE_OF = "name not known: one or more of these files are tables, the others their indexes and TOAST tables"


class Kind(StrEnum):
    """What happened."""

    DROP = "drop"
    TRUNCATE = "truncate"
    DELETE = "delete"
    DROP_DATABASE = "drop-database"
    REWRITE = "rewrite"
    """Not a loss: the table's rows moved to another file."""


@dataclass(frozen=True)
class Named:
    """Whose file it is.

    Attributes:
        toast: The file is its TOAST table's.
    """

    database: str
    table: str
    oid: int | None
    toast: bool = False


class Names(Protocol):
    """Who knows names."""

    def find(self, file: RelationFile, before: Lsn) -> Named | None:
        """Return whose file it was before a position; None where that is not known."""

    def dropped(self, database: int, oid: int, before: Lsn) -> Named | None:
        """Return which table bore an oid before a position; None where that is not known."""

    def move(self, new: RelationFile, old: RelationFile) -> None:
        """Take note that a file took another's place."""


@dataclass(frozen=True)
class Touched:
    """One table that an event is about.

    Attributes:
        file: None where its oid alone says that it was dropped, and not which file was its own.
        rows: Where rows were deleted.
    """

    file: RelationFile | None
    named: Named | None
    rows: int | None = None


@dataclass(frozen=True)
class Change:
    """What one transaction did.

    Attributes:
        lsn: Where its commit record begins, which is what recovery_target_lsn is compared with.
        before: The record before which recovery must stop so that it has not happened: the commit record, except for a
            dropped database, which is marked, and whose files go, before that.
        database: Of a dropped database, its oid.
        note: What is not certain.
    """

    kind: Kind
    xid: int
    at: datetime
    lsn: Lsn
    end_lsn: Lsn
    before: Lsn
    touched: tuple[Touched, ...] = ()
    database: int | None = None
    note: str | None = None


@dataclass
class Seen:
    """What was seen of a transaction before its end.

    Attributes:
        created: Files, in order.
        locked: Relations (database, oid) that it locked against everybody.
        imaged: Files that were written as full pages, as indexes are when they are built.
        deleted: Rows, by file.
        databases: Databases whose files it removed.
        before: Where the first of that began.
    """

    created: dict[RelationFile, None] = field(default_factory=dict)
    locked: set[tuple[int, int]] = field(default_factory=set)
    imaged: set[RelationFile] = field(default_factory=set)
    deleted: Counter[RelationFile] = field(default_factory=Counter)
    databases: list[int] = field(default_factory=list)
    before: Lsn | None = None

    def add(self, other: "Seen") -> None:
        """Take what a subtransaction did."""
        self.created |= other.created
        self.locked |= other.locked
        self.imaged |= other.imaged
        self.deleted += other.deleted
        self.databases += other.databases
        self.before = other.before if self.before is None else self.before


class EventFinder:
    """Follows the records in their order; memory is bounded by the transactions that are open at once."""

    def __init__(self, major: int, segment_bytes: int, names: Names, rows: int) -> None:
        """Begin.

        Args:
            major: Of the PostgreSQL that wrote the WAL; one of ``wal_dump.MAJORS``.
            segment_bytes: Size of a WAL segment.
            names: Who knows names.
            rows: From how many deleted rows of one table on it is an event.
        """
        self._type_cache = _TYPE_CACHE[major]
        self._segment_bytes = segment_bytes
        self._names = names
        self._rows = rows
        self._open: dict[int, Seen] = {}
        self._marked: dict[tuple[RelationFile, int, int], Lsn] = {}
        self._indexes: set[RelationFile] = set()
        self.first_at: datetime | None = None
        """When the first transaction ended that was seen."""
        self.last_at: datetime | None = None
        """When the last one did."""

    def feed(self, record: Record) -> list[Change]:
        """Take the next record; return what its transaction did where it is a commit."""
        ended = wal_dump.parse_end(record)
        if ended is not None:
            self.first_at, self.last_at = self.first_at or ended.at, ended.at
            seen = self._open.pop(ended.xid, Seen())
            for xid in ended.subtransactions:
                seen.add(self._open.pop(xid, Seen()))
            return self._decide(record, ended, seen) if ended.committed else []
        running = event_records.running(record)
        if running is not None:  # who is not running any more has ended before this record
            for xid in [xid for xid in self._open if wal_dump.precedes(xid, running.oldest)]:
                del self._open[xid]
        else:
            self._note(record)
        return []

    def _note(self, record: Record) -> None:
        """Keep what matters of a record that ends no transaction."""
        marked = event_records.marked_database(record)
        if marked is not None:
            self._marked[marked] = record.lsn
            return
        created, lock = event_records.created_file(record), event_records.locked_relation(record)
        imaged, deleted = event_records.imaged_file(record), event_records.deleted_row(record)
        removed = event_records.removed_database(record)
        if (created, lock, imaged, deleted, removed) == (None,) * 5 or record.xid == 0:
            return
        seen = self._open.setdefault(record.xid, Seen())
        if created is not None:
            seen.created[created] = None
        if lock is not None:
            seen.locked.add(lock)
        if imaged is not None and imaged in seen.created:
            seen.imaged.add(imaged)
        if deleted is not None and not deleted.shared and deleted.file.number >= event_records.FIRST_NORMAL_OID:
            seen.deleted[deleted.file] += 1
        if deleted is not None and deleted.shared and seen.before is None:
            seen.before = self._marked.pop((deleted.file, deleted.block, deleted.offset), record.lsn)
        if removed is not None:
            seen.databases.append(removed)
            seen.before = seen.before or record.lsn

    def _decide(self, record: Record, ended: TransactionEnd, seen: Seen) -> list[Change]:
        end_lsn = wal_dump.end_of(record, self._segment_bytes)

        def change(
            kind: Kind, touched: Iterable[Touched] = (), *, database: int | None = None, note: str | None = None
        ) -> Change:
            before = seen.before if database is not None and seen.before is not None else record.lsn
            return Change(kind, ended.xid, ended.at, record.lsn, end_lsn, before, tuple(touched), database, note)

        found = [change(kind, touched, note=note) for kind, touched, note in self._files(record.lsn, ended, seen)]
        gone = {entry.database for entry in ended.dropped if entry.kind == _OF_DATABASE}
        found += [change(Kind.DROP_DATABASE, database=oid) for oid in dict.fromkeys(seen.databases) if oid in gone]
        rows = self._deleted(record.lsn, ended, seen)
        return found + ([change(Kind.DELETE, rows)] if rows else [])

    def _deleted(self, lsn: Lsn, ended: TransactionEnd, seen: Seen) -> list[Touched]:
        """Return the tables that lost many rows, the most first; not those whose file was made or went as a whole."""
        found = []
        for file, rows in seen.deleted.most_common():
            if rows >= self._rows and file not in ended.files and file not in seen.created:
                named = self._names.find(file, lsn)
                if named is None or not named.toast:
                    found.append(Touched(file, named, rows))
        return found

    def _files(self, lsn: Lsn, ended: TransactionEnd, seen: Seen) -> list[tuple[Kind, tuple[Touched, ...], str | None]]:
        """Decide what became of the files that went with a transaction."""
        new = [file for file in seen.created if (file.database, file.number) in seen.locked]
        dropped = {(entry.database, entry.oid) for entry in ended.dropped if entry.kind == _OF_RELATION}
        transient = [file for file in new if (file.database, file.number) in dropped]
        old = [file for file in ended.files if file not in seen.created]
        before = dropped - {(file.database, file.number) for file in new}
        known = {file: named for file in old if (named := self._names.find(file, lsn)) is not None}
        rest = [file for file in old if file not in known and file not in self._indexes]
        tables = {file: named for file, named in known.items() if not named.toast}
        gone = [file for file, named in tables.items() if named.oid is None or (file.database, named.oid) in before]
        kept = [file for file in tables if file not in gone]
        found: list[tuple[Kind, list[RelationFile], str | None]] = []
        by_oid: list[Named] = []
        if transient:
            if len(tables) == 1 and len({file.database for file in transient}) == 1:
                self._names.move(transient[0], next(iter(tables)))
            found = [(Kind.DROP, gone, None), (Kind.REWRITE, kept or rest[:1], None)]
        elif before:
            by_oid = self._by_oid(before, lsn, {known[file].oid for file in gone}) if old else []
            unknown, note = self._dropped(ended, new, len(gone) + len(by_oid), rest)
            found = [(Kind.DROP, gone + unknown, note), (Kind.TRUNCATE, kept, None)]
        elif old:
            found = self._replaced(old, seen, tables, rest)
        if not transient:
            self._indexes |= {file for file in seen.created if file in seen.imaged}
        told = [(kind, [Touched(file, known.get(file)) for file in files], note) for kind, files, note in found]
        if by_oid:
            told[0][1].extend(Touched(None, named) for named in by_oid)
        return [(kind, tuple(touched), note) for kind, touched, note in told if touched]

    def _by_oid(self, before: set[tuple[int, int]], lsn: Lsn, told: set[int | None]) -> list[Named]:
        """Return the dropped tables whose names are known, but not the files that they had by then."""
        found = (self._names.dropped(database, oid, lsn) for database, oid in sorted(before) if oid not in told)
        return [named for named in found if named is not None]

    def _dropped(
        self, ended: TransactionEnd, new: Sequence[RelationFile], known: int, rest: list[RelationFile]
    ) -> tuple[list[RelationFile], str | None]:
        """Return which unknown files were dropped tables, as far as can be told; a table is listed before its own."""
        types = ended.caches.get(self._type_cache, 0) // _ENTRIES_PER_TABLE
        wanted = types - known
        if wanted <= 0 or not rest or (known and new):
            return [], None
        if not new and wanted == 1:
            return rest[:1], None
        return rest, _ONE_OF if new or wanted < len(rest) else None

    def _replaced(
        self, old: Sequence[RelationFile], seen: Seen, tables: dict[RelationFile, Named], rest: list[RelationFile]
    ) -> list[tuple[Kind, list[RelationFile], str | None]]:
        """Decide where nothing was dropped: tables were truncated, or moved, or indexes were built anew."""
        made = [file for file in seen.created if (file.database, file.number) not in seen.locked]
        if len(made) != len(old):
            unseen = not made and not tables
            return [(Kind.TRUNCATE, list(tables) or (rest[:1] if unseen else rest), _UNSEEN if not tables else None)]
        truncated: list[RelationFile] = []
        moved: list[RelationFile] = []
        empty: list[bool] = []
        for was, now in zip(reversed(old), made, strict=True):  # a commit lists them in the reverse order
            self._names.move(now, was)
            empty.append(now not in seen.imaged and now.tablespace == was.tablespace)
            if was in tables:
                (truncated if empty[-1] else moved).append(was)
            elif was in rest and empty[-1] and not (len(empty) > 1 and empty[-2]):  # else it is a table's TOAST table
                truncated.append(was)
        return [(Kind.TRUNCATE, truncated, None), (Kind.REWRITE, moved, None)]
