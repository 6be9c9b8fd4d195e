"""What exists: read from a listing and the signed commits alone; no index that could be wrong or lost."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from bb_ops.errors import BbOpsError, IntegrityError, KeyRejected, RepositoryMissing, UsageError
from bb_ops.findings import Outcome
from bb_ops.repository import layout
from bb_ops.repository.ids import BackupKind, SlotKey, is_backup_id, is_physical_id
from bb_ops.repository.manifest import BackupCommit, Commit, PhysicalCommit
from bb_ops.repository.reports import Level, Proof
from bb_ops.repository.repository import Repository
from bb_ops.storage.base import ObjectInfo


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
    known = {entry.commit.id: entry for entry in catalog.entries}
    done = dict(known)
    for entry in sorted(catalog.physical, key=lambda one: one.physical.depth):  # a parent before its children
        commit = entry.physical
        if commit.parent_id is not None:
            entry = _on_parent(entry, done.get(commit.parent_id), catalog)  # noqa: PLW2901
        done[commit.id] = entry
    catalog.entries = [done[entry.commit.id] for entry in catalog.entries]
    return catalog


def _on_parent(entry: CatalogEntry, parent: CatalogEntry | None, catalog: Catalog) -> CatalogEntry:
    commit = entry.physical
    if parent is None:
        damaged = next((error for error in catalog.damaged if f"/{commit.parent_id}/" in str(error)), None)
        reason = f"cannot be read: {damaged}" if damaged else f"is missing in {catalog.region}"
        return replace(entry, problems=(*entry.problems, f"{commit.id}: its parent {commit.parent_id} {reason}"))
    fits = isinstance(parent.commit, PhysicalCommit) and parent.commit.depth + 1 == commit.depth
    if not fits or parent.commit.system_id != commit.system_id:
        wrong = f"{commit.id}: its parent {commit.parent_id} is not the backup that it was taken against"
        return replace(entry, problems=(*entry.problems, wrong))
    inherited = (f"{commit.id} needs {commit.parent_id}: {parent.problems[0]}",) if parent.problems else ()
    return replace(entry, problems=(*entry.problems, *inherited), ancestors=parent.chain)


def _read_system(repository: Repository, system_id: str, catalog: Catalog) -> None:
    backups: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in repository.store.objects(layout.base_prefix(repository.cluster, system_id)):
        backup_id = layout.backup_id_of(info.key)
        if backup_id is not None:
            backups[backup_id].append(info)
    proofs = _read_proofs(repository, system_id, catalog)
    for backup_id, infos in backups.items():
        if not any(info.key == layout.commit_key(repository.cluster, system_id, backup_id) for info in infos):
            keys = tuple(info.key for info in infos)
            catalog.leftovers.append(Leftover(system_id, backup_id, keys, sum(info.size_bytes for info in infos)))
            continue
        try:
            commit = repository.read_commit(system_id, backup_id)
        except (IntegrityError, KeyRejected) as error:
            catalog.damaged.append(error)
            continue
        if commit is not None:
            problems = tuple(_compare_listing(repository, commit, infos))
            catalog.entries.append(CatalogEntry(commit, problems, tuple(proofs.get(backup_id, ()))))


def _compare_listing(repository: Repository, commit: BackupCommit, infos: list[ObjectInfo]) -> list[str]:
    sizes = {info.key: info.size_bytes for info in infos}
    found = []
    for entry in commit.objects:
        key = repository.object_key(commit, entry)
        if key not in sizes:
            found.append(f"{repository.store.url}/{key} is missing")
        elif sizes[key] != entry.size_bytes:
            found.append(f"{repository.store.url}/{key} has {sizes[key]} bytes instead of {entry.size_bytes}")
    return found


def _read_proofs(repository: Repository, system_id: str, catalog: Catalog) -> dict[str, list[Proof]]:
    found: dict[str, list[Proof]] = defaultdict(list)
    for info in list(repository.store.objects(layout.evidence_prefix(repository.cluster, system_id))):
        data = repository.store.read(info.key)
        if data is None:
            continue
        try:
            proof = repository.parse_proof(data, info.key)
        except (IntegrityError, KeyRejected) as error:
            catalog.damaged.append(error)
            continue
        key = layout.proof_key(repository.cluster, system_id, proof.backup_id, proof.id)
        if (info.key, proof.repository_id) == (key, catalog.repository_id):
            found[proof.backup_id].append(proof)
    for proofs in found.values():
        proofs.sort(key=lambda proof: proof.started_at)
    return found
