"""What exists: read from a listing and the signed commits alone; no index that could be wrong or lost."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from bb_ops.errors import BbOpsError, IntegrityError, KeyRejected, RepositoryMissing, UsageError
from bb_ops.findings import Outcome
from bb_ops.repository import layout
from bb_ops.repository.ids import BackupKind, SlotKey, is_backup_id, is_physical_id
from bb_ops.repository.manifest import BackupCommit, Commit, PhysicalCommit
from bb_ops.repository.reports import Level, Proof
from bb_ops.repository.repository import Repository


@dataclass(frozen=True)
class CatalogEntry:
    """One committed backup in one repository.

    Attributes:
        problems: What the listing shows to be wrong: objects missing or of another size, of it or of its chain.
        proofs: What was measured on it, oldest first.
        ancestors: What an increment builds on, the full first, its parent last; what is missing is a problem.
    """

    commit: Commit
    problems: tuple[str, ...]
    proofs: tuple[Proof, ...]
    ancestors: tuple[PhysicalCommit, ...] = ()

    @property
    def commits(self) -> tuple[Commit, ...]:
        """Everything that it needs, in order, its own commit last; a dump needs nothing else."""
        return (*self.ancestors, self.commit)

    @property
    def chain(self) -> tuple[PhysicalCommit, ...]:
        """Everything that a restore needs, in the order in which it is applied.

        Raises:
            UsageError: it is a dump.
        """
        return (*self.ancestors, self.physical)

    @property
    def physical(self) -> PhysicalCommit:
        """Its commit, where it is a physical backup.

        Raises:
            UsageError: it is a dump, which has no data directory and no write-ahead log.
        """
        if isinstance(self.commit, PhysicalCommit):
            return self.commit
        raise UsageError(f"{self.commit.id} is a {self.commit.kind} backup: this needs a physical one")

    @property
    def proven_level(self) -> Level | None:
        """The highest level that still holds: later failures void earlier successes; None where none was measured."""
        level: Level | None = None
        for proof in self.proofs:
            reached = None if proof.level is None else Level[proof.level]
            if proof.outcome == Outcome.FAIL or level is None:
                level = reached
            elif reached is not None:
                level = max(level, reached)
        return None if self.problems else level

    @property
    def failed(self) -> bool:
        """Whether the newest measurement failed, or the listing shows damage."""
        return bool(self.problems) or bool(self.proofs and self.proofs[-1].outcome == Outcome.FAIL)


@dataclass(frozen=True)
class Leftover:
    """Objects of a backup that was never committed."""

    system_id: str
    backup_id: str
    keys: tuple[str, ...]
    size_bytes: int


@dataclass
class Catalog:
    """Everything of one cluster in one repository.

    Attributes:
        entries: Committed backups, oldest first by position.
        damaged: Commits and proofs that are damaged or forged, each with its one-line reason.
        leftovers: What dead or running backups left uncommitted.
    """

    region: str
    entries: list[CatalogEntry] = field(default_factory=list)
    damaged: list[BbOpsError] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    repository_id: str = ""

    def find(self, backup_id: str) -> CatalogEntry:
        """Return a backup by its id, or the newest physical one, full or increment, for ``latest``.

        Raises:
            RepositoryMissing: there is no such backup.
            IntegrityError, KeyRejected: its commit is damaged or forged.
        """
        if backup_id == "latest":
            newest = self.physical[-1].commit.id if self.physical else ""
            for error in self.damaged:
                damaged_id = layout.backup_id_of(str(error))
                if damaged_id is not None and damaged_id > newest and is_physical_id(damaged_id):
                    raise error  # it may be the newest: an older one must not stand in for it unasked
            if self.physical:
                return self.physical[-1]  # full or increment; a damaged one is refused later, never passed over
            raise RepositoryMissing(f"{self.region} holds no physical backup yet: take one with `bb-ops backup full`")
        if not is_backup_id(backup_id):
            raise UsageError(f"{backup_id!r} is no backup id: see `bb-ops backup list`, or say latest")
        for entry in self.entries:
            if entry.commit.id == backup_id:
                return entry
        for error in self.damaged:
            if f"/{backup_id}/" in str(error):
                raise error
        raise RepositoryMissing(f"{self.region} holds no backup {backup_id}: see `bb-ops backup list`")

    def dependants(self, backup_id: str) -> tuple[CatalogEntry, ...]:
        """Return the increments that cannot be restored without a backup, in the order of their positions."""
        return tuple(entry for entry in self.entries if any(one.id == backup_id for one in entry.ancestors))

    @property
    def chains(self) -> tuple[tuple[CatalogEntry, ...], ...]:
        """Every full with the increments on it, in the order of their positions; increments without their full last."""
        rooted: dict[str, list[CatalogEntry]] = defaultdict(list)
        lost: list[CatalogEntry] = []
        for entry in sorted(self.physical, key=lambda one: one.physical.depth > 0):  # stable: the fulls first
            root = entry.chain[0]
            (rooted[root.id] if root.kind == BackupKind.FULL else lost).append(entry)
        return tuple(tuple(chain) for chain in (*rooted.values(), lost) if chain)

    def newest_whole(self) -> CatalogEntry | None:
        """Return the newest physical backup of which nothing is known to be missing."""
        return next((entry for entry in reversed(self.physical) if not entry.problems), None)

    @property
    def physical(self) -> list[CatalogEntry]:
        """The backups of data directories, fulls and increments, oldest first."""
        return [entry for entry in self.entries if isinstance(entry.commit, PhysicalCommit)]

    def of_kind(self, kind: BackupKind) -> list[CatalogEntry]:
        """Return the backups of one kind, oldest first."""
        return [entry for entry in self.entries if entry.commit.kind == kind]

    def find_slot(self, slot: SlotKey, kind: BackupKind = BackupKind.FULL) -> CatalogEntry:
        """Return the newest backup of a kind that represents a slot.

        Raises:
            RepositoryMissing: none does.
        """
        for entry in reversed(self.of_kind(kind)):
            if entry.commit.slot == slot:
                return entry
        raise RepositoryMissing(f"{self.region} holds no backup of slot {slot}")


def read_catalog(repository: Repository, system_id: str | None = None) -> Catalog:
    """Read everything of a repository's cluster, or of one of its systems.

    Raises:
        RepositoryMissing: there is no repository.
    """
    repository_id = repository.open().repository_id
    catalog = Catalog(repository.region, repository_id=repository_id)
    for system in repository.system_ids():
        if system_id in {None, system}:
            _read_system(repository, system, catalog)
    return linked(catalog)


def linked(catalog: Catalog) -> Catalog:
    """Order the entries and give every increment its ancestors; what is missing below it is its problem. Pure."""
    catalog.entries.sort(key=lambda entry: (entry.commit.started_at, entry.commit.position, entry.commit.stopped_at))
    found = links([_Member.of(entry) for entry in catalog.entries], catalog.damaged, catalog.region)
    done = {entry.commit.id: entry for entry in catalog.entries}
    for entry in sorted(catalog.physical, key=lambda one: one.physical.depth):  # a parent before its children
        commit = entry.physical
        if commit.parent_id is not None:
            link = found[commit.id]
            done[commit.id] = replace(
                entry,
                problems=entry.problems if link.problem is None else (*entry.problems, link.problem),
                ancestors=done[commit.parent_id].chain if link.joined else (),
            )
    catalog.entries = [done[entry.commit.id] for entry in catalog.entries]
    return catalog


class Link(NamedTuple):
    """How an increment stands on its parent: whether it joins it, and what is wrong there or further below."""

    joined: bool
    problem: str | None


class Member(Protocol):
    """What is asked of a backup to link it: see ``BackupCommit`` and ``CatalogEntry``."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def system_id(self) -> str: ...  # noqa: D102
    @property
    def parent_id(self) -> str | None: ...  # noqa: D102
    @property
    def depth(self) -> int: ...  # noqa: D102
    @property
    def is_physical(self) -> bool: ...  # noqa: D102
    @property
    def problems(self) -> tuple[str, ...]: ...  # noqa: D102


def links(members: Iterable[Member], damaged: Iterable[BbOpsError], region: str) -> dict[str, Link]:
    """Return for every increment how it stands on its parent. Pure."""
    known = {one.id: one for one in members}
    problems = {one.id: one.problems[0] for one in known.values() if one.problems}
    found: dict[str, Link] = {}
    for one in sorted((one for one in known.values() if one.parent_id is not None), key=lambda one: one.depth):
        parent = known.get(one.parent_id or "")
        if parent is None:
            broken = next((error for error in damaged if f"/{one.parent_id}/" in str(error)), None)
            reason = f"cannot be read: {broken}" if broken else f"is missing in {region}"
            link = Link(joined=False, problem=f"{one.id}: its parent {one.parent_id} {reason}")
        elif not parent.is_physical or (parent.depth + 1, parent.system_id) != (one.depth, one.system_id):
            wrong = f"{one.id}: its parent {one.parent_id} is not the backup that it was taken against"
            link = Link(joined=False, problem=wrong)
        else:
            below = problems.get(parent.id)
            link = Link(joined=True, problem=f"{one.id} needs {parent.id}: {below}" if below else None)
        if link.problem is not None:
            problems.setdefault(one.id, link.problem)
        found[one.id] = link
    return found


class _Member(NamedTuple):
    id: str
    system_id: str
    parent_id: str | None
    depth: int
    is_physical: bool
    problems: tuple[str, ...]

    @classmethod
    def of(cls, entry: CatalogEntry) -> "_Member":
        commit = entry.commit
        parent_id, depth = (commit.parent_id, commit.depth) if isinstance(commit, PhysicalCommit) else (None, 0)
        physical = isinstance(commit, PhysicalCommit)
        return cls(commit.id, commit.system_id, parent_id, depth, physical, entry.problems)


def _read_system(repository: Repository, system_id: str, catalog: Catalog) -> None:
    backups: dict[str, dict[str, int]] = defaultdict(dict)
    for info in repository.store.objects(layout.base_prefix(repository.cluster, system_id)):
        backup_id = layout.backup_id_of(info.key)
        if backup_id is not None:
            backups[backup_id][info.key] = info.size_bytes
    evidence = [info.key for info in repository.store.objects(layout.evidence_prefix(repository.cluster, system_id))]
    proofs = read_proofs(repository, system_id, evidence, catalog.repository_id, catalog.damaged)
    for backup_id, sizes in backups.items():
        if layout.commit_key(repository.cluster, system_id, backup_id) not in sizes:
            catalog.leftovers.append(Leftover(system_id, backup_id, tuple(sizes), sum(sizes.values())))
            continue
        try:
            commit = repository.read_commit(system_id, backup_id)
        except (IntegrityError, KeyRejected) as error:
            catalog.damaged.append(error)
            continue
        if commit is not None:
            problems = tuple(compare_sizes(repository, commit, sizes))
            catalog.entries.append(CatalogEntry(commit, problems, tuple(proofs.get(backup_id, ()))))


def compare_sizes(repository: Repository, commit: BackupCommit, sizes: Mapping[str, int]) -> list[str]:
    """Say which objects of a backup are missing, or have other sizes than its commit says."""
    found = []
    for entry in commit.objects:
        key = repository.object_key(commit, entry)
        if key not in sizes:
            found.append(f"{repository.store.url}/{key} is missing")
        elif sizes[key] != entry.size_bytes:
            found.append(f"{repository.store.url}/{key} has {sizes[key]} bytes instead of {entry.size_bytes}")
    return found


def read_proofs(
    repository: Repository, system_id: str, keys: Iterable[str], repository_id: str, damaged: list[BbOpsError]
) -> dict[str, list[Proof]]:
    """Read proofs by backup, oldest first; those that are damaged are added to ``damaged``."""
    found: dict[str, list[Proof]] = defaultdict(list)
    for key in keys:
        data = repository.store.read(key)
        if data is None:
            continue
        try:
            proof = repository.parse_proof(data, key)
        except (IntegrityError, KeyRejected) as error:
            damaged.append(error)
            continue
        place = layout.proof_key(repository.cluster, system_id, proof.backup_id, proof.id)
        if (key, proof.repository_id) == (place, repository_id):
            found[proof.backup_id].append(proof)
    for proofs in found.values():
        proofs.sort(key=lambda proof: proof.started_at)
    return found
