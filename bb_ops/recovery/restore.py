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
from bb_ops.recovery.target import Target, prepare_target
from bb_ops.repository.ids import BackupId
from bb_ops.repository.manifest import BackupCommit, ObjectRole, PhysicalCommit, StoredObject
from bb_ops.repository.repository import Repository
from bb_ops.storage.sealed import share_interpreter

_LOGGER = logging.getLogger(__name__)
_MOST_THREADS = 8
_WAL_PARTS = "wal."


@dataclass(frozen=True)
class Restored:
    """A data directory that was restored and whose every byte was verified.

    Attributes:
        restored_bytes: Raw bytes written.
        fingerprints: What was recorded at the source; None where nothing was.
        duration_s: Seconds from the first byte read to a complete directory.
        chain: What was combined, the full first; one backup for a full.
    """

    target: Target
    restored_bytes: int
    fingerprints: Fingerprints | None
    duration_s: float
    chain: tuple[BackupId, ...]


def restore(
    repository: Repository, commit: PhysicalCommit, target: Target, progress: Progress, *, durable: bool
) -> Restored:
    """Restore a full backup into a checked target.

    A crash leaves a directory without a control file, which no server starts; the same call then begins anew.

    Args:
        repository: Where the backup is.
        commit: Which one.
        target: From ``check_target``.
        progress: Told about raw bytes.
        durable: Force everything to disk before the control file appears; a throw-away copy need not.

    Raises:
        IntegrityError: an object is missing or damaged; the message names it.
        KeyRejected: our identities do not open it.
    """
    watch = Stopwatch()
    _LOGGER.info("restore starts", extra={"backup_id": commit.id, "region": repository.region})
    prepare_target(target, commit.id)
    done = extract_backup(repository, commit, target, lambda now: progress("restore", now, commit.size_bytes))
    complete_target(target, durable=durable)
    _LOGGER.info("restore ends", extra={"backup_id": commit.id, "duration_s": watch.elapsed_s, "size_bytes": done})
    return Restored(target, done, read_fingerprints(repository, commit), watch.elapsed_s, (commit.id,))


def extract_backup(
    repository: Repository,
    commit: PhysicalCommit,
    target: Target,
    tell: Callable[[int], None],
    *,
    with_wal: bool = True,
) -> int:
    """Extract the files of one backup and its manifest into a prepared target; return the raw bytes read.

    The control file bears another name until the caller says that all is complete.

    Args:
        repository: Where the backup is.
        commit: Which one.
        target: An empty directory of the server's account.
        tell: Told the raw bytes done.
        with_wal: Extract the WAL too; what a chain's last backup replays needs no other's.
    """
    for space in commit.tablespaces:
        make_tablespace(target, space.oid)
    archives = [
        entry for entry in commit.with_role(ObjectRole.ARCHIVE) if with_wal or not entry.name.startswith(_WAL_PARTS)
    ]
    without = None if with_wal else "pg_wal"
    done = 0
    share_interpreter()
    threads = min(_MOST_THREADS, max(2, os.cpu_count() or 1))
    with ThreadPoolExecutor(threads, thread_name_prefix="restore") as pool:
        largest_first = sorted(archives, key=lambda entry: entry.raw_size_bytes, reverse=True)
        waiting = [pool.submit(_extract, repository, commit, entry, target, without) for entry in largest_first]
        try:
            for finished in as_completed(waiting):
                done += finished.result()
                tell(done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    (target.directory / "backup_manifest").write_bytes(_read(repository, commit, ObjectRole.MANIFEST))
    target.chown(target.directory / "backup_manifest")
    return done


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
    path.write_text("".join(lines), encoding="utf-8")
    restored.target.chown(path)


def keep_from_archiving(restored: Restored) -> None:
    """Turn archiving off in the restored configuration, so that a copy never writes into the source's archive.

    Done after the manifest was checked. ``ALTER SYSTEM RESET archive_mode`` turns it on again.
    """
    path = restored.target.directory / "postgresql.auto.conf"
    with path.open("a", encoding="utf-8") as handle:
        handle.write("# bb_ops: a restored copy must not write into the archive of the server that it came from.\n")
        handle.write("archive_mode = 'off'\n")
    path.chmod(0o600)
    restored.target.chown(path)


def needed_bytes(chain: Sequence[PhysicalCommit]) -> int:
    """Return how much room a restore takes: a chain lies beside its result until that is complete."""
    parts = sum(commit.size_bytes for commit in chain)
    return parts if len(chain) == 1 else parts + (chain[-1].cluster_bytes or parts)


def _extract(
    repository: Repository, commit: PhysicalCommit, entry: StoredObject, target: Target, without: str | None
) -> int:
    root = target.directory if entry.tablespace_oid is None else target.tablespaces / str(entry.tablespace_oid)
    where = f"{repository.store.url}/{repository.object_key(commit, entry)}"
    try:
        with Extractor(target, root, without) as extractor:
            return repository.open_object(commit, entry, extractor)
    except IntegrityError as error:
        raise error if where in str(error) else IntegrityError(f"{where}: {error}") from error


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
        _sync_file_system(target.directory)
        if target.tablespaces.exists():
            _sync_file_system(target.tablespaces)
    partial.rename(target.directory / CONTROL_FILE)
    fsync_directory(partial.parent)


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
