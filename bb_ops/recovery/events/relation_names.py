"""Names of tables for the files that WAL speaks of: from what backups recorded, and from the server where it runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bb_ops.dsn import Dsn
from bb_ops.errors import IntegrityError, KeyRejected, ServerUnusable
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.relation_files import TableFiles, read_table_files
from bb_ops.postgres.wal_dump import RelationFile, parse_path
from bb_ops.recovery.events.finder import Named
from bb_ops.recovery.restore import read_fingerprints
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository

_MOST_TRIED = 4
"""How many backups are asked, the newest first, where fingerprints are missing or name no files."""
_MOST_MOVES = 1000

Known = dict[RelationFile, Named]


@dataclass
class RelationNames:
    """Knows whose file it was; never guesses.

    Attributes:
        backups: In the order of their positions.
        live: What the running server says.
    """

    repository: Repository
    backups: Sequence[PhysicalCommit]
    live: Known = field(default_factory=dict)
    _recorded: dict[str, Known] = field(default_factory=dict)
    _moves: dict[RelationFile, RelationFile] = field(default_factory=dict)
    _followed: dict[RelationFile, RelationFile] = field(default_factory=dict)

    def find(self, file: RelationFile, before: Lsn) -> Named | None:
        """Ask the newest backup before a position, then the server; also for the file whose place this one took."""
        recorded = self._before(before)
        for _ in range(_MOST_MOVES):
            named = recorded.get(file) or self.live.get(file)
            if named is not None or file not in self._moves:
                return named
            file = self._moves[file]
        return None

    def later(self, file: RelationFile) -> Named | None:
        """Ask the server for the file that took this one's place in the end, after all WAL was read."""
        for _ in range(_MOST_MOVES):
            if file not in self._followed:
                return None
            file = self._followed[file]
            if file in self.live:
                return self.live[file]
        return None

    def dropped(self, database: int, oid: int, before: Lsn) -> Named | None:
        """Return which table bore an oid, by the newest backup before a position."""
        wanted = (database, oid)
        return next(
            (
                named
                for file, named in self._before(before).items()
                if (file.database, named.oid) == wanted and not named.toast
            ),
            None,
        )

    def move(self, new: RelationFile, old: RelationFile) -> None:
        """Take note that a file took another's place."""
        if new != old:
            self._moves[new] = old
            self._followed[old] = new

    def database(self, oid: int, before: Lsn) -> str | None:
        """Return a database's name; None where no table of it is known."""
        for known in (self._before(before), self.live):
            for file, named in known.items():
                if file.database == oid:
                    return named.database
        return None

    def _before(self, lsn: Lsn) -> Known:
        earlier = [one for one in self.backups if one.wal_end_lsn <= lsn]
        for commit in earlier[: -_MOST_TRIED - 1 : -1]:
            known = self._of(commit)
            if known:
                return known
        return {}

    def _of(self, commit: PhysicalCommit) -> Known:
        if commit.id not in self._recorded:
            try:
                fingerprints = read_fingerprints(self.repository, commit)
            except (IntegrityError, KeyRejected):  # another backup may be readable; what none names is not known
                fingerprints = None
            self._recorded[commit.id] = by_file(
                TableFiles(one.database, one.table, one.oid, one.file, one.toast_file)
                for one in (fingerprints.tables if fingerprints is not None else ())
                if one.oid is not None and one.file is not None
            )
        return self._recorded[commit.id]


def by_file(tables: Iterable[TableFiles]) -> Known:
    """Sort tables by their files. Pure."""
    found: Known = {}
    for one in tables:
        for path, toast in ((one.file, False), (one.toast_file, True)):
            file = parse_path(path) if path is not None else None
            if file is not None:
                found[file] = Named(one.database, one.table, one.oid, toast)
    return found


def names_of(server: Dsn | None, system_id: str) -> Known:
    """Return what a running server says; nothing where there is none, or it is not reachable, or another system."""
    if server is None:
        return {}
    try:
        return by_file(read_table_files(server, system_id))
    except ServerUnusable:
        return {}
