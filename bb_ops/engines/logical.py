"""Logical backups: PostgreSQL's own dump programs, each database in one snapshot that also its rows are counted in.

Our session holds a repeatable-read snapshot and exports it; pg_dump works in that very snapshot and so do the counts,
so that they belong together exactly, however busy the server is. The custom format is chosen because it is the one
that is complete in one stream: the directory format, which several processes can write, needs all of the dump on local
disk first. A dump is checked against the snapshot's own list of tables before it counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.engines.parts import PartWriter
from bb_ops.errors import BackupFailed
from bb_ops.postgres import dump
from bb_ops.postgres.connection import redact
from bb_ops.postgres.databases import Database, Snapshot, held_snapshot
from bb_ops.postgres.dump import Client
from bb_ops.postgres.fingerprint import Contents, Fingerprints, TableFingerprint, count_in_snapshot
from bb_ops.postgres.lsn import Lsn
from bb_ops.process import Fed
from bb_ops.progress import Progress
from bb_ops.repository import layout
from bb_ops.repository.manifest import ObjectRole, StoredDatabase

_MOST_NAMED = 5


@dataclass(frozen=True)
class _Counted:
    tables: list[TableFingerprint]
    skipped: list[str]


class LogicalEngine:
    """Dumps the databases of any server that ordinary connections reach, managed ones too."""

    name = "logical"

    def __init__(self, dsn: Dsn, client: Client, suffix: str, progress: Progress) -> None:
        """Name the server and the programs; ``suffix`` is what sealed names end with."""
        self._dsn = dsn
        self._client = client
        self._suffix = suffix
        self._progress = progress
        self._dumped_bytes = 0

    def full(self, parts: PartWriter, databases: tuple[Database, ...], budget_s: float) -> tuple[StoredDatabase, ...]:
        """Dump databases with their rows, one after the other, and the globals, into ``parts``.

        Args:
            parts: Where they go; the caller closes or discards it.
            databases: Which ones.
            budget_s: Seconds that counting rows may take in all; 0 counts nothing.

        Raises:
            BackupFailed: the connection broke off, or a dump lacks rows of a table that its snapshot has.
            ProgramFailed: a dump program could not read everything.
        """
        watch, stored = Stopwatch(), []
        counted = _Counted([], [])
        for database in databases:
            with self._snapshot(database) as snapshot:
                stored.append(self._dump(parts, database, snapshot))
                if budget_s > 0:
                    tables, skipped = self._count(database, snapshot, budget_s - watch.elapsed_s)
                    counted.tables.extend(tables)
                    counted.skipped.extend(skipped)
        self._globals(parts, databases)
        if budget_s > 0:
            fingerprints = Fingerprints(
                anchor_lsn=min(entry.anchor_lsn for entry in stored),
                exact=True,
                tables=tuple(counted.tables),
                skipped=tuple(counted.skipped),
                duration_s=watch.elapsed_s,
            )
            name = layout.fingerprints_name(self._suffix)
            parts.add(name, ObjectRole.FINGERPRINTS, fingerprints.model_dump_json().encode())
        return tuple(stored)

    def schema(self, parts: PartWriter, databases: tuple[Database, ...]) -> tuple[StoredDatabase, ...]:
        """Dump the definitions of databases as scripts, and the globals, into ``parts``.

        Raises:
            BackupFailed: the connection broke off.
            ProgramFailed: a dump program could not read everything.
        """
        stored = []
        for database in databases:
            with self._snapshot(database) as snapshot:
                name = layout.dump_name(database.oid, "schema", self._suffix)
                with dump.dump_schema(self._client, database.name, snapshot.name) as pieces:
                    parts.add_stream(name, ObjectRole.SCHEMA, pieces)
                stored.append(self._stored(database, snapshot, name, None))
        self._globals(parts, databases)
        return tuple(stored)

    @contextmanager
    def _snapshot(self, database: Database) -> Iterator[Snapshot]:
        try:
            with held_snapshot(self._dsn, database.name) as snapshot:
                yield snapshot
        except psycopg.Error as error:
            said = redact(self._dsn, str(error))
            raise BackupFailed(f"PostgreSQL at {self._dsn}: database {database.name}: broke off: {said}") from None

    def _dump(self, parts: PartWriter, database: Database, snapshot: Snapshot) -> StoredDatabase:
        name = layout.dump_name(database.oid, "dump", self._suffix)
        with (
            dump.listing(self._client.programs) as listed,
            dump.dump_database(self._client, database.name, snapshot.name) as pieces,
        ):
            parts.add_stream(name, ObjectRole.DUMP, self._shown_to(listed, pieces))
        refuse_smaller(database.name, snapshot.tables(), listed.stdout)
        contents = layout.dump_name(database.oid, "contents", self._suffix)
        parts.add(contents, ObjectRole.CONTENTS, "\n".join(dump.entries(listed.stdout)).encode())
        return self._stored(database, snapshot, name, contents)

    def _shown_to(self, listed: Fed, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            listed.write(piece)
            self._dumped_bytes += len(piece)
            self._progress("dump", self._dumped_bytes, None)
            yield piece

    def _stored(self, database: Database, snapshot: Snapshot, name: str, contents: str | None) -> StoredDatabase:
        return StoredDatabase(
            name=database.name,
            oid=database.oid,
            dump=name,
            contents=contents,
            size_bytes=database.size_bytes,
            snapshot=snapshot.name,
            anchor_lsn=Lsn(snapshot.anchor_lsn),
            as_of=snapshot.taken_at,
        )

    def _count(
        self, database: Database, snapshot: Snapshot, budget_s: float
    ) -> tuple[list[TableFingerprint], list[str]]:
        self._progress("fingerprints", 0, None)
        return count_in_snapshot(snapshot.connection, database.name, Contents.DUMP, budget_s)

    def _globals(self, parts: PartWriter, databases: tuple[Database, ...]) -> None:
        with dump.dump_globals(self._client, databases[0].name) as pieces:
            parts.add_stream(layout.globals_name(self._suffix), ObjectRole.GLOBALS, pieces)


def refuse_smaller(dbname: str, tables: dict[int, str], contents: bytes) -> None:
    """Compare a dump's table of contents with the tables of its snapshot: both from the source, by different ways.

    Raises:
        BackupFailed: the dump holds no rows of a table; also an empty table has its entry.
    """
    there = dump.dumped_tables(dump.entries(contents))
    missing = sorted(name for oid, name in tables.items() if oid not in there)
    if missing:
        shown = ", ".join(missing[:_MOST_NAMED])
        raise BackupFailed(
            f"the dump of database {dbname} holds no rows of {len(missing)} of its tables ({shown}): a smaller "
            "dump is no backup, nothing was committed"
        )
