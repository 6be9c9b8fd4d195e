"""What a region's status is decided from: a few facts of every backup, and what the archived WAL adds to them.

Reading is quick where an index knows what has not changed since; without one the same is read from the objects.
"""

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from bb_ops.errors import BbOpsError, IntegrityError, KeyRejected
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository import layout
from bb_ops.repository.catalog import CatalogEntry, compare_sizes, links, read_proofs
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.index import Index
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository
from bb_ops.repository.windows import Windows, read_windows
from bb_ops.storage.base import Marks, joined

_THREADS = 8


class BackupFacts(NamedTuple):
    """What counts of one backup.

    Attributes:
        position: Where it stands in the write-ahead log, for ordering.
        timeline: 0 for a dump.
        wal_end_lsn: Up to where the WAL inside it reaches.
        proven_level: The highest level that still holds by its proofs; its problems void it.
        proven_at: When the newest proof of that level ended.
        failed: Whether its newest proof failed, or it has problems.
        problems: What is wrong with its objects, and below it in its chain.
    """

    id: str
    kind: str
    system_id: str
    slot: str
    encryption: str
    started_at: datetime
    stopped_at: datetime
    as_of: datetime
    position: int
    timeline: int
    wal_end_lsn: Lsn
    parent_id: str | None
    depth: int
    proven_level: str | None
    proven_at: datetime | None
    failed: bool
    problems: tuple[str, ...]

    @property
    def is_physical(self) -> bool:
        """Whether WAL can carry it forward."""
        return self.timeline > 0


_TIMES = [BackupFacts._fields.index(name) for name in ("started_at", "stopped_at", "as_of", "proven_at")]
_PROBLEMS, _WAL_END = BackupFacts._fields.index("problems"), BackupFacts._fields.index("wal_end_lsn")


@dataclass
class Overview:
    """One region, as its status needs it.

    Attributes:
        backups: Oldest first.
        roots: The full that each chain's members begin with, by their ids; without dumps and broken chains.
        damaged: Commits, proofs and records that are damaged or forged, each with its one-line reason.
    """

    region: str
    backups: list[BackupFacts] = field(default_factory=list)
    roots: dict[str, str] = field(default_factory=dict)
    damaged: list[BbOpsError] = field(default_factory=list)
    archived: Windows = field(default_factory=Windows)


def read_overview(repository: Repository, directory: Path | None, now: datetime) -> Overview:
    """Read a region, with the index in ``directory`` where that is given.

    Raises:
        RepositoryMissing: there is no repository.
    """
    with _collection_paused():
        index = Index.of(repository, directory, now, BackupFacts._fields)
        overview = Overview(repository.region)
        repository_id = repository.open().repository_id
        found: list[BackupFacts] = []
        for system in repository.system_ids():
            for one in _Reader(repository, system, repository_id, index).read():
                found += one.facts
                overview.damaged += one.damaged
        overview.backups, overview.roots = linked(found, overview.damaged, repository.region)
        physical = [one for one in overview.backups if one.is_physical and not one.failed]
        overview.archived, damaged = read_windows(repository, physical, index)
        overview.damaged += damaged
        index.save()
        return overview


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Spare the collector, which would walk a hundred thousand new objects again and again, a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def facts_of(entry: CatalogEntry) -> BackupFacts:
    """Return what counts of a backup, before its chain is looked at."""
    commit = entry.commit
    physical = commit if isinstance(commit, PhysicalCommit) else None
    level = entry.proven_level.name if entry.proven_level is not None else None
    ends = [one.started_at + timedelta(seconds=one.duration_s) for one in entry.proofs if one.level == level]
    return BackupFacts(
        id=commit.id,
        kind=str(commit.kind),
        system_id=commit.system_id,
        slot=commit.slot,
        encryption=commit.encryption,
        started_at=commit.started_at,
        stopped_at=commit.stopped_at,
        as_of=commit.as_of,
        position=int(commit.position),
        timeline=physical.timeline if physical else 0,
        wal_end_lsn=physical.wal_end_lsn if physical else Lsn(0),
        parent_id=physical.parent_id if physical else None,
        depth=physical.depth if physical else 0,
        proven_level=level,
        proven_at=max(ends, default=None) if level is not None else None,
        failed=entry.failed,
        problems=entry.problems,
    )


def linked(
    backups: Iterable[BackupFacts], damaged: list[BbOpsError], region: str
) -> tuple[list[BackupFacts], dict[str, str]]:
    """Order backups, give increments the problems of their chains, and return also the chains' roots. Pure."""
    ordered = sorted(backups, key=lambda one: (one.started_at, one.position, one.stopped_at))
    found = links(ordered, damaged, region)
    roots = {one.id: one.id for one in ordered if one.kind == BackupKind.FULL}
    for one in sorted((one for one in ordered if one.parent_id is not None), key=lambda one: one.depth):
        if found[one.id].joined and one.parent_id in roots:
            roots[one.id] = roots[one.parent_id]
    broken = {key: link.problem for key, link in found.items() if link.problem is not None}
    return [_with_problem(one, broken[one.id]) if one.id in broken else one for one in ordered], roots


def _with_problem(one: BackupFacts, problem: str) -> BackupFacts:
    return one._replace(problems=(*one.problems, problem), failed=True, proven_level=None, proven_at=None)


@dataclass
class _Found:
    """What the objects of one backup say: its facts, unless it is damaged or was never committed."""

    facts: list[BackupFacts] = field(default_factory=list)
    damaged: list[BbOpsError] = field(default_factory=list)


class _Reader:
    """Reads the backups of one system."""

    def __init__(self, repository: Repository, system_id: str, repository_id: str, index: Index) -> None:
        self._repository = repository
        self._store = repository.store
        self._system_id = system_id
        self._repository_id = repository_id
        self._index = index
        self._base = layout.base_prefix(repository.cluster, system_id)
        self._evidence = layout.evidence_prefix(repository.cluster, system_id)

    def read(self) -> list[_Found]:
        """Read what is known and unchanged from the index, the rest from the objects."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="catalog") as pool:
            if self._store.marks(()) is None:
                return list(pool.map(lambda one: self._parse(*one), self._listed()))
            tested = set(self._store.children(self._evidence))
            known, unknown = self._known(sorted({*self._store.children(self._base), *tested}), tested)
            return [*known, *pool.map(self._read, unknown)]

    def _listed(self) -> list[tuple[str, dict[str, int], list[str]]]:
        """List everything at once, for stores where each folder would cost a request."""
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        proofs: dict[str, list[str]] = defaultdict(list)
        for info in self._store.objects(self._base):
            sizes[info.key[len(self._base) :].partition("/")[0]][info.key] = info.size_bytes
        for info in self._store.objects(self._evidence):
            proofs[info.key[len(self._evidence) :].partition("/")[0]].append(info.key)
        return [(name, sizes.get(name, {}), proofs.get(name, [])) for name in sorted({*sizes, *proofs})]

    def _known(self, names: list[str], tested: set[str]) -> tuple[list[_Found], list[str]]:
        """Ask for the marks of everything at once: there may be a hundred thousand of them."""
        keys: list[str] = []
        rows: list[tuple[str, int, int]] = []
        unknown: list[str] = []
        for name in names:
            of = self._index.names(self._base + name)
            if of is None or (of[1] is None and name in tested):
                unknown.append(name)
            else:
                start = len(keys)
                keys += self._keys(name, *of)
                rows.append((name, start, len(keys)))
        marks = self._store.marks(keys) or Marks()
        found: list[_Found] = []
        for name, start, end in rows:
            value = self._index.find(self._base + name, marks.part(start, end))
            if value is None:
                unknown.append(name)
            elif value:
                found.append(_Found([_from_row(value)]))
        return found, unknown

    def _keys(self, name: str, objects: Iterable[str], proofs: Iterable[str] | None) -> list[str]:
        """Return what one backup's row depends on: its folder, that of its proofs if there is one, what is in them."""
        base, evidence = f"{self._base}{name}/", f"{self._evidence}{name}/"
        keys = [base, *[base + one for one in objects]]
        return keys if proofs is None else [*keys, evidence, *[evidence + one for one in proofs]]

    def _read(self, name: str) -> _Found:
        """Read one backup from its objects; marks are taken before anything that they stand for is looked at."""
        base, evidence = f"{self._base}{name}/", f"{self._evidence}{name}/"
        folders = self._store.marks([base, evidence]) or Marks()
        keys = [info.key for info in self._store.objects(base)]
        proofs = [info.key for info in self._store.objects(evidence)]
        objects, tests = self._store.marks(keys) or Marks(), self._store.marks(proofs) or Marks()
        found = self._parse(name, dict(zip(keys, objects.sizes, strict=True)), proofs)
        if not found.damaged:
            names = [[key[len(base) :] for key in keys], [key[len(evidence) :] for key in proofs] or None]
            tested = [folders.part(1, 2), tests] if proofs else []
            row = _to_row(found.facts[0]) if found.facts else []
            self._index.keep(self._base + name, names, joined([folders.part(0, 1), objects, *tested]), row)
        return found

    def _parse(self, name: str, sizes: dict[str, int], proof_keys: list[str]) -> _Found:
        found = _Found()
        proofs = read_proofs(self._repository, self._system_id, proof_keys, self._repository_id, found.damaged)
        if layout.commit_key(self._repository.cluster, self._system_id, name) not in sizes:
            return found
        try:
            commit = self._repository.read_commit(self._system_id, name)
        except (IntegrityError, KeyRejected) as error:
            found.damaged.append(error)
            return found
        if commit is not None:
            problems = tuple(compare_sizes(self._repository, commit, sizes))
            found.facts.append(facts_of(CatalogEntry(commit, problems, tuple(proofs.get(name, ())))))
        return found


def _to_row(facts: BackupFacts) -> list[object]:
    return [value.isoformat() if isinstance(value, datetime) else value for value in facts]


def _from_row(kept: list[Any]) -> BackupFacts:
    row = kept.copy()
    for column in _TIMES:
        if row[column] is not None:
            row[column] = datetime.fromisoformat(row[column])
    row[_PROBLEMS], row[_WAL_END] = tuple(row[_PROBLEMS]), Lsn(row[_WAL_END])
    return BackupFacts(*row)
