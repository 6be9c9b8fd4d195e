"""Make a full backup out of a chain, from the repository alone: the server is not asked for a byte.

The chain is restored into a throw-away copy, joined by pg_combinebackup, checked, and stored like any other full. Its
positions and its instant are those of the last increment, and so are its fingerprints: it shows the very same rows.
"""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bb_ops import __version__
from bb_ops.clock import Clock, Stopwatch
from bb_ops.engines.parts import PartWriter
from bb_ops.engines.tar import BLOCK_BYTES, directory_header, file_header
from bb_ops.errors import BbOpsError, IntegrityError, UsageError
from bb_ops.findings import Value
from bb_ops.postgres.programs import Programs, find_programs
from bb_ops.progress import Progress
from bb_ops.recovery.chain import require_programs, restore_backup
from bb_ops.recovery.checks import check_contents
from bb_ops.recovery.restore import needed_bytes
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.target import OURS, Target, check_target, server_account
from bb_ops.repository import layout
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.ids import BackupId, BackupKind, new_backup_id
from bb_ops.repository.manifest import ObjectRole, PhysicalCommit
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
_MAIN_ARCHIVE = "base"
_MANIFEST = "backup_manifest"
_PIECE_BYTES = 1 << 20
LOCK_NAME = "combine"


@dataclass(frozen=True)
class CombineOptions:
    """How a chain is made into a full.

    Attributes:
        compression_level: zstd level.
        compression_threads: zstd worker threads.
        part_size_bytes: Archives are cut at the first member boundary after this many raw bytes.
        pg_bindirs: Where PostgreSQL's programs are looked for first.
        server_user: The account that runs them when we are root; None chooses one.
        scratch_directory: Where the throw-away copy goes; the system's temporary directory when None.
    """

    compression_level: int
    compression_threads: int
    part_size_bytes: int
    pg_bindirs: tuple[Path, ...]
    server_user: str | None
    scratch_directory: Path | None


class CombinePlan(Value):
    """What would be combined; nothing has been changed.

    Attributes:
        chain: The full first, the wanted increment last.
        scratch_bytes: Room that the throw-away copy takes.
    """

    schema_id: str = "bb-ops/combine-plan/1"
    backup_id: BackupId
    region: str
    chain: tuple[BackupId, ...]
    read_bytes: int
    scratch_bytes: int


def plan_combine(repository: Repository, entry: CatalogEntry, options: CombineOptions) -> CombinePlan:
    """Decide whether and what to combine; changes nothing.

    Raises:
        UsageError: the backup is a full already, or PostgreSQL's programs are missing.
        IntegrityError: something of the chain is missing.
    """
    commit = entry.physical
    if commit.kind != BackupKind.INCREMENTAL:
        raise UsageError(f"{commit.id} is a full backup: there is nothing to combine")
    if entry.problems:
        raise IntegrityError(f"{commit.id} cannot be combined in {repository.region}: {entry.problems[0]}")
    require_programs(entry.chain, lambda: _programs(commit, options))
    return CombinePlan(
        backup_id=commit.id,
        region=repository.region,
        chain=tuple(one.id for one in entry.chain),
        read_bytes=sum(one.stored_bytes for one in entry.chain),
        scratch_bytes=needed_bytes(entry.chain),
    )


def combine(
    repository: Repository, entry: CatalogEntry, options: CombineOptions, clock: Clock, progress: Progress
) -> PhysicalCommit:
    """Make a full backup out of an increment and its chain. It exists once this returns; the chain stays as it is.

    Safe to kill: a crash before the end leaves uncommitted objects and a throw-away copy, which `doctor` removes.

    Raises:
        UsageError: the backup is a full already, or PostgreSQL's programs are missing.
        IntegrityError: something of the chain is missing or damaged; nothing was committed.
        TargetRefused: there is no room for the throw-away copy.
        Locked: another chain of this cluster is being combined.
    """
    watch = Stopwatch()
    recipients, key = repository.recipients, repository.signing_key  # unusable keys are found before any work
    del recipients, key
    plan = plan_combine(repository, entry, options)
    last = entry.physical
    backup_id = new_backup_id(BackupKind.FULL, clock.now())
    owner = server_account(options.server_user)
    _LOGGER.info("combine starts", extra={"backup_id": backup_id, "increments": len(plan.chain) - 1})
    with (
        repository.lock(LOCK_NAME, f"backup combine {backup_id}") as held,
        scratch_directory(options.scratch_directory, owner) as scratch,
    ):
        oids = tuple(space.oid for space in last.tablespaces)
        target = check_target(scratch / "data", owner, needed_bytes(entry.chain), oids)
        restore_backup(repository, entry.chain, target, lambda: _programs(last, options), progress, durable=False)
        check_contents(_programs(last, options), target.directory, owner, plan.chain)
        seal = repository.seal(options.compression_level, options.compression_threads)
        prefix = layout.backup_prefix(repository.cluster, last.system_id, backup_id)
        parts = PartWriter(repository.store, prefix, seal, options.part_size_bytes)
        try:
            _store(parts, repository, last, target, seal.suffix, progress)
            parts.close()
            held.check()
            commit = _commit(backup_id, plan, last, parts, repository, clock, watch)
        except BaseException:
            _discard(parts, backup_id)
            raise
        repository.commit(commit)  # from here on nothing is removed: after a failure it may exist nevertheless
    _LOGGER.info("combine ends", extra={"backup_id": backup_id, "duration_s": commit.duration_s})
    return commit


def _programs(commit: PhysicalCommit, options: CombineOptions) -> Programs:
    return find_programs(commit.server_major, options.pg_bindirs)


def _store(  # noqa: PLR0913 - one fact each
    parts: PartWriter, repository: Repository, last: PhysicalCommit, target: Target, suffix: str, progress: Progress
) -> None:
    """Store a restored directory as the server would have sent it: archives, manifest, fingerprints."""
    done = 0
    for space in last.tablespaces:
        parts.begin_archive(str(space.oid), space.oid)
        done = _archive(parts, target.tablespaces / str(space.oid), done, progress)
    parts.begin_archive(_MAIN_ARCHIVE, None)
    _archive(parts, target.directory, done, progress)
    parts.end_archive()
    manifest = (target.directory / _MANIFEST).read_bytes()
    parts.add(layout.manifest_name(suffix), ObjectRole.MANIFEST, manifest)
    for entry in last.with_role(ObjectRole.FINGERPRINTS):
        buffer = io.BytesIO()
        repository.open_object(last, entry, buffer)
        parts.add(layout.fingerprints_name(suffix), ObjectRole.FINGERPRINTS, buffer.getvalue())


def _archive(parts: PartWriter, root: Path, done: int, progress: Progress) -> int:
    """Feed everything below a directory but links, our mark and the manifest; return the bytes done in all."""
    for path in _below(root):
        name, facts = str(path.relative_to(root)), path.lstat()
        if path.is_dir():
            parts.feed(memoryview(directory_header(name, int(facts.st_mtime))))
            continue
        parts.feed(memoryview(file_header(name, facts.st_size, int(facts.st_mtime))))
        with path.open("rb") as handle:
            while piece := handle.read(_PIECE_BYTES):
                parts.feed(memoryview(piece))
        parts.feed(memoryview(bytes(-facts.st_size % BLOCK_BYTES)))
        done += facts.st_size
        progress("store", done, None)
    return done


def _below(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_symlink() or path.name in {*OURS, _MANIFEST}:
            continue
        yield path
        if path.is_dir():
            yield from _below(path)


def _commit(  # noqa: PLR0913 - one fact each
    backup_id: BackupId,
    plan: CombinePlan,
    last: PhysicalCommit,
    parts: PartWriter,
    repository: Repository,
    clock: Clock,
    watch: Stopwatch,
) -> PhysicalCommit:
    facts = {name: getattr(last, name) for name in PhysicalCommit.model_fields}
    facts |= {
        "id": backup_id,
        "kind": BackupKind.FULL,
        "parent_id": None,
        "depth": 0,
        "fallback_reason": None,
        "combined_from": plan.chain,
        "stopped_at": clock.now(),
        "duration_s": watch.elapsed_s,
        "encryption": repository.encryption,
        "recipients": tuple(str(key) for key in repository.recipients),
        "objects": tuple(parts.objects),
        "bb_ops_version": __version__,
    }
    return PhysicalCommit(**facts)


def _discard(parts: PartWriter, backup_id: BackupId) -> None:
    try:
        parts.discard()
    except BbOpsError as error:
        _LOGGER.warning("uncommitted objects remain", extra={"backup_id": backup_id, "reason": str(error)})
