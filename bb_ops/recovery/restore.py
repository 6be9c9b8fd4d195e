"""Restore a backup into an empty directory: several parts at once, each verified, the control file last."""

import ctypes
import io
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from bb_ops.clock import Stopwatch
from bb_ops.errors import IntegrityError, TargetRefused
from bb_ops.files import fsync_directory
from bb_ops.postgres.fingerprint import Fingerprints
from bb_ops.progress import Progress
from bb_ops.recovery.extract import CONTROL_FILE, CONTROL_PARTIAL, Extractor
from bb_ops.recovery.finished_parts import FinishedParts, part_key
from bb_ops.recovery.target import Target, prepare_target, writing_below
from bb_ops.repository.ids import BackupId
from bb_ops.repository.manifest import BackupCommit, ObjectRole, PhysicalCommit, StoredObject
from bb_ops.repository.repository import Repository
from bb_ops.storage.sealed import share_interpreter

_LOGGER = logging.getLogger(__name__)
_MOST_THREADS = 8
_WAL_PARTS = "wal."
NO_ARCHIVING = b"""\
# bb_ops: a restored copy must not write into the archive of the server that it came from.
archive_mode = 'off'
"""
"""Ends the configuration of every restored copy, until a switch makes it the cluster."""


@dataclass(frozen=True)
class Restored:
    """A data directory that was restored and whose every byte was verified.

    Attributes:
        restored_bytes: Raw bytes written.
        fingerprints: What was recorded at the source; None where nothing was.
        duration_s: Seconds from the first byte read to a complete directory.
        chain: What was combined, the full first; one backup for a full.
        found_bytes: Raw bytes that an interrupted restore had written already.
    """

    target: Target
    restored_bytes: int
    fingerprints: Fingerprints | None
    duration_s: float
    chain: tuple[BackupId, ...]
    found_bytes: int = 0


def restore(  # noqa: PLR0913 - each is a separate fact
    repository: Repository,
    commit: PhysicalCommit,
    target: Target,
    progress: Progress,
    *,
    durable: bool,
    plan: str | None = None,
) -> Restored:
    """Restore a full backup into a checked target.

    A crash leaves a directory without a control file, which no server starts; the same call then goes on behind the
    parts that were finished.

    Args:
        repository: Where the backup is.
        commit: Which one.
        target: From ``check_target``.
        progress: Told about raw bytes.
        durable: Force everything to disk before the control file appears; a throw-away copy need not.
        plan: What else is wanted, as an opaque hash; another one's interrupted restore is not continued.

    Raises:
        IntegrityError: an object is missing or damaged; the message names it.
        KeyRejected: our identities do not open it.
    """
    watch = Stopwatch()
    _LOGGER.info("restore starts", extra={"backup_id": commit.id, "region": repository.region})
    parts = begin_restore(target, commit.id, plan, durable=durable)
    found = finished_bytes(parts, commit)
    done = extract_backup(repository, commit, target, parts, lambda now: progress("restore", now, commit.size_bytes))
    complete_target(target, durable=durable)
    _LOGGER.info("restore ends", extra={"backup_id": commit.id, "duration_s": watch.elapsed_s, "size_bytes": done})
    return Restored(target, done, read_fingerprints(repository, commit), watch.elapsed_s, (commit.id,), found)


def begin_restore(target: Target, backup_id: BackupId, plan: str | None, *, durable: bool) -> FinishedParts:
    """Prepare a target; return which parts an interrupted restore had finished, and where to record the others.

    The control file loses its name again: until everything is complete once more, no server starts.
    """
    if not prepare_target(target, backup_id, plan) and not durable:
        return FinishedParts(None)
    control = target.directory / CONTROL_FILE
    if control.exists():
        control.rename(target.directory / CONTROL_PARTIAL)
    return FinishedParts(target.directory)


def finished_bytes(parts: FinishedParts, commit: PhysicalCommit) -> int:
    """Return the raw bytes of a backup's archives that an interrupted restore had finished, and log them."""
    found = [entry for entry in commit.with_role(ObjectRole.ARCHIVE) if part_key(commit, entry) in parts]
    found_bytes = sum(entry.raw_size_bytes for entry in found)
    if found:
        extra = {"backup_id": commit.id, "found_parts": len(found), "found_bytes": found_bytes}
        _LOGGER.info("restore goes on where it was interrupted", extra=extra)
    return found_bytes


def extract_backup(  # noqa: PLR0913 - each is a separate fact
    repository: Repository,
    commit: PhysicalCommit,
    target: Target,
    parts: FinishedParts,
    tell: Callable[[int], None],
    *,
    with_wal: bool = True,
) -> int:
    """Extract the files of one backup and its manifest into a prepared target; return the raw bytes that it has.

    The control file bears another name until the caller says that all is complete.

    Args:
        repository: Where the backup is.
        commit: Which one.
        target: A directory of the server's account, which holds nothing but what finished parts made.
        parts: What is finished and need not be read; what is finished now is added.
        tell: Told the raw bytes done.
        with_wal: Extract the WAL too; what a chain's last backup replays needs no other's.
    """
    with writing_below(target.directory):
        for space in commit.tablespaces:
            make_tablespace(target, space.oid)
    archives = archives_of(commit, with_wal=with_wal)
    missing = [entry for entry in archives if part_key(commit, entry) not in parts]
    without = None if with_wal else "pg_wal"
    done = sum(entry.raw_size_bytes for entry in archives) - sum(entry.raw_size_bytes for entry in missing)
    tell(done)
    share_interpreter()
    threads = min(_MOST_THREADS, max(2, os.cpu_count() or 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="restore") as pool:
        largest_first = sorted(missing, key=lambda entry: entry.raw_size_bytes, reverse=True)
        waiting = {pool.submit(_extract, repository, commit, entry, target, without): entry for entry in largest_first}
        try:
            for finished in as_completed(waiting):
                size_bytes, made = finished.result()
                with writing_below(target.directory):
                    parts.add(part_key(commit, waiting[finished]), made)
                done += size_bytes
                tell(done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _extract_manifest(repository, commit, target, parts)
    return done


def archives_of(commit: PhysicalCommit, *, with_wal: bool) -> list[StoredObject]:
    """Return a backup's archives, on wish without those that hold nothing but WAL."""
    return [
        entry for entry in commit.with_role(ObjectRole.ARCHIVE) if with_wal or not entry.name.startswith(_WAL_PARTS)
    ]


def read_fingerprints(repository: Repository, commit: BackupCommit) -> Fingerprints | None:
    """Return what was recorded of the source's rows; None where nothing was."""
    if not commit.with_role(ObjectRole.FINGERPRINTS):
        return None
    return Fingerprints.model_validate_json(_read(repository, commit, ObjectRole.FINGERPRINTS))


def relocate_tablespaces(restored: Restored, commit: PhysicalCommit) -> None:
    """Tell the server where the tablespaces are now; it reads ``tablespace_map`` at its first start and links them.

    Done after the manifest was checked, because the map is one of the files that the manifest names.
    """
    if not commit.tablespaces:
        return
    lines = [
        f"{space.oid} {_escape(str(restored.target.tablespaces / str(space.oid)))}\n" for space in commit.tablespaces
    ]
    path = restored.target.directory / "tablespace_map"
    with writing_below(restored.target.directory):
        path.write_text("".join(lines), encoding="utf-8")
    restored.target.chown(path)


def keep_from_archiving(restored: Restored) -> None:
    """Turn archiving off in the restored configuration, so that a copy never writes into the source's archive.

    Done after the manifest was checked. ``ALTER SYSTEM RESET archive_mode`` turns it on again.
    Safe to repeat.
    """
    path = restored.target.directory / "postgresql.auto.conf"
    with writing_below(restored.target.directory), path.open("a+b") as handle:
        handle.seek(0)
        if not handle.read().endswith(NO_ARCHIVING):
            handle.write(NO_ARCHIVING)
    path.chmod(0o600)
    restored.target.chown(path)


def needed_bytes(chain: Sequence[PhysicalCommit]) -> int:
    """Return how much room a restore takes: a chain lies beside its result until that is complete."""
    parts = sum(commit.size_bytes for commit in chain)
    return parts if len(chain) == 1 else parts + (chain[-1].cluster_bytes or parts)


def _extract(
    repository: Repository, commit: PhysicalCommit, entry: StoredObject, target: Target, without: str | None
) -> tuple[int, list[str]]:
    root = target.directory if entry.tablespace_oid is None else target.tablespaces / str(entry.tablespace_oid)
    where = f"{repository.store.url}/{repository.object_key(commit, entry)}"
    try:
        with Extractor(target, root, without) as extractor:
            size_bytes = repository.open_object(commit, entry, extractor)
    except IntegrityError as error:
        raise error if where in str(error) else IntegrityError(f"{where}: {error}") from error
    return size_bytes, extractor.made


def _extract_manifest(repository: Repository, commit: PhysicalCommit, target: Target, parts: FinishedParts) -> None:
    path = target.directory / "backup_manifest"
    key = f"{commit.id}/{path.name}"
    if key in parts:
        return
    content = _read(repository, commit, ObjectRole.MANIFEST)
    with writing_below(target.directory):
        with path.open("xb") as handle:
            handle.write(content)
        target.chown(path)
        parts.add(key, [str(path)])


def _read(repository: Repository, commit: BackupCommit, role: ObjectRole) -> bytes:
    entries = commit.with_role(role)
    if len(entries) != 1:
        raise IntegrityError(f"the commit of {commit.id} names {len(entries)} objects as {role}, expected one")
    buffer = io.BytesIO()
    repository.open_object(commit, entries[0], buffer)
    return buffer.getvalue()


def make_tablespace(target: Target, oid: int) -> None:
    """Make the folder of a tablespace, and the link that leads to it."""
    folder = target.tablespaces / str(oid)
    for path in (target.tablespaces, folder, target.directory / "pg_tblspc"):
        path.mkdir(mode=0o700, exist_ok=True)
        target.chown(path)
    link = target.directory / "pg_tblspc" / str(oid)
    link.symlink_to(folder)
    target.chown(link)


def complete_target(target: Target, *, durable: bool) -> None:
    """Give the control file its name, once everything else is there and, where wanted, on disk."""
    partial = target.directory / CONTROL_PARTIAL
    if not partial.is_file():
        raise IntegrityError(f"the backup holds no {CONTROL_FILE}")
    if durable:
        make_durable(target)
    partial.rename(target.directory / CONTROL_FILE)
    fsync_directory(partial.parent)


def make_durable(target: Target) -> None:
    """Force the whole target to disk."""
    _sync_file_system(target.directory)
    if target.tablespaces.exists():
        _sync_file_system(target.tablespaces)


def _sync_file_system(directory: Path) -> None:
    """Force a whole file system to disk (syncfs(2)): one call is faster than an fsync of every file."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise TargetRefused(f"{directory}: cannot be forced to disk: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def _escape(path: str) -> str:
    r"""Escape a location as PostgreSQL's tablespace_map does: a backslash before newlines and backslashes."""
    return path.replace("\\", "\\\\").replace("\n", "\\\n")
