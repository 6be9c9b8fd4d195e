"""Copies backups to another repository: every object re-read and re-hashed where it arrived, the commit last."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from bb_ops.clock import Stopwatch
from bb_ops.cross_region.plan import CopyPlan, plan_copy
from bb_ops.cross_region.wal import CopiedWal, copy_wal, count_missing
from bb_ops.errors import AlreadyExists, BbOpsError, IntegrityError, KeyRejected, RepositoryMissing
from bb_ops.findings import Value
from bb_ops.progress import Progress
from bb_ops.repository import layout
from bb_ops.repository.catalog import Catalog, read_catalog
from bb_ops.repository.ids import BackupId, SlotKey
from bb_ops.repository.manifest import BackupCommit, Commit, PhysicalCommit, StoredObject
from bb_ops.repository.repository import Repository
from bb_ops.storage.sealed import verify_stored

_LOGGER = logging.getLogger(__name__)
_THREADS = 4
LOCK_NAME = "sync"


class CopiedBackup(Value):
    """One backup that now is, or already was, in the destination, and whose every byte was hashed there.

    Attributes:
        copied_bytes: Bytes sent; 0 where the destination had it already.
        verified_bytes: Bytes read back from the destination and compared with the signed hashes.
    """

    schema_id: str = "bb-ops/copied-backup/1"
    id: BackupId
    region: str
    copied_bytes: int
    verified_bytes: int
    objects: int
    duration_s: float


class SyncReport(Value):
    """What a synchronisation did.

    Attributes:
        wal: Archived WAL, system by system.
        failed: What could not be copied or differs, each with its reason.
    """

    schema_id: str = "bb-ops/sync/1"
    source: str
    destination: str
    copied: tuple[CopiedBackup, ...]
    verified: tuple[CopiedBackup, ...]
    wal: tuple[CopiedWal, ...] = ()
    failed: tuple[str, ...]
    duration_s: float


def plan_sync(source: Repository, destination: Repository, *, verify_all: bool) -> CopyPlan:
    """Look at both repositories and decide; changes nothing."""
    plan = _plan(read_catalog(source), destination, verify_all=verify_all)
    files, raw_bytes = count_missing(source, destination)
    return plan.model_copy(update={"wal_files": files, "wal_raw_bytes": raw_bytes})


def sync(
    source: Repository, destination: Repository, progress: Progress, *, verify_all: bool
) -> tuple[SyncReport, BbOpsError | None]:
    """Copy what the destination lacks; with ``verify_all`` also re-read all that it has. Never deletes.

    Safe to repeat and to kill: what arrived whole is not sent again.

    Returns:
        The report, and the first error, for the exit code; None where everything succeeded.

    Raises:
        RepositoryMissing: the source, or the destination's bucket, does not exist.
        Locked: another copy into the destination runs.
    """
    watch = Stopwatch()
    catalog = read_catalog(source)
    destination.initialise()
    copied: list[CopiedBackup] = []
    verified: list[CopiedBackup] = []
    failed: list[str] = []
    first_error: BbOpsError | None = None
    with destination.lock(LOCK_NAME, f"sync from {source.region}"):
        plan = _plan(catalog, destination, verify_all=verify_all)
        failed += plan.refused
        if plan.refused:
            first_error = catalog.damaged[0] if catalog.damaged else IntegrityError(plan.refused[0])
        there = read_catalog(destination)
        failed += [str(error) for error in there.damaged]
        first_error = first_error or next(iter(there.damaged), None)
        for backup_id in (*plan.to_copy, *plan.to_verify):
            try:
                if backup_id in plan.to_copy:
                    copied.append(copy_backup(source, destination, catalog.find(backup_id).commit, progress))
                else:
                    verified.append(verify_copy(destination, there.find(backup_id).commit, progress))
            except (IntegrityError, KeyRejected, AlreadyExists) as error:
                failed.append(f"{backup_id}: {error}")
                first_error = first_error or error
        copied_wal, wal_error = copy_wal(source, destination, progress, verify_all=verify_all)
        failed += [line for entry in copied_wal for line in entry.failed]
        first_error = first_error or wal_error
    report = SyncReport(
        source=source.region,
        destination=destination.region,
        copied=tuple(copied),
        verified=tuple(verified),
        wal=tuple(copied_wal),
        failed=tuple(failed),
        duration_s=watch.elapsed_s,
    )
    return report, first_error


def copy_slot(
    source: Repository, destination: Repository, slot: SlotKey, progress: Progress
) -> tuple[CopiedBackup, BackupCommit]:
    """Copy the newest backup of a daily slot; what is there already is only re-hashed.

    Raises:
        RepositoryMissing: the source holds no backup of this slot.
        IntegrityError: bytes differ from the signed hashes; the message names the object.
        Locked: another copy into the destination runs.
    """
    commit = read_catalog(source).find_slot(slot).commit
    destination.initialise()
    with destination.lock(LOCK_NAME, f"copy of {commit.id}"):
        return copy_backup(source, destination, commit, progress), commit


def copy_backup(source: Repository, destination: Repository, commit: Commit, progress: Progress) -> CopiedBackup:
    """Copy one backup and re-hash it where it arrived; its page is written anew, its commit, byte for byte, last.

    Raises:
        IntegrityError: the destination lacks what an increment builds on or holds other bytes, or the source's bytes
            differ from the signed hashes.
    """
    watch = Stopwatch()
    parent = commit.parent_id if isinstance(commit, PhysicalCommit) else None
    if parent is not None and destination.read_commit(commit.system_id, parent) is None:
        raise IntegrityError(f"it builds on {parent}, which is not in {destination.region}: nothing was copied")
    _LOGGER.info("copy starts", extra={"backup_id": commit.id, "region": destination.region})
    sent = _each(commit, progress, "copy", lambda entry: _copy_object(source, destination, commit, entry))
    key = layout.commit_key(commit.cluster, commit.system_id, commit.id)
    data = source.store.read(key)
    if data is None or source.parse_commit(data, key) != commit:
        raise IntegrityError(f"{source.store.url}/{key} changed while its backup was copied")
    destination.write_page(commit)
    try:
        destination.store.create(key, data)
    except AlreadyExists:
        if destination.store.read(key) != data:
            raise IntegrityError(f"{destination.store.url}/{key} differs from the source's commit") from None
    _LOGGER.info("copy ends", extra={"backup_id": commit.id, "size_bytes": sent, "duration_s": watch.elapsed_s})
    return _copied(commit, destination, sent, watch)


def verify_copy(destination: Repository, commit: BackupCommit, progress: Progress) -> CopiedBackup:
    """Read every object of a copy and compare it with the signed hashes.

    Raises:
        IntegrityError: one is missing or differs; the message names it.
    """
    watch = Stopwatch()

    def verify(entry: StoredObject) -> int:
        verify_stored(destination.store, destination.expected(commit, entry))
        return 0

    _each(commit, progress, "verify", verify)
    return _copied(commit, destination, 0, watch)


def _plan(catalog: Catalog, destination: Repository, *, verify_all: bool) -> CopyPlan:
    try:
        there = read_catalog(destination)
    except RepositoryMissing:
        destination.store.check()
        there = Catalog(destination.region)
    return plan_copy(catalog, there, verify_all=verify_all)


def _each(commit: BackupCommit, progress: Progress, stage: str, action: Callable[[StoredObject], int]) -> int:
    """Do something with every object of a backup, several at a time; return the sum of the results."""
    done = total = 0
    threads = min(_THREADS, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads, thread_name_prefix=stage) as pool:
        waiting = {pool.submit(action, entry): entry for entry in commit.objects}
        try:
            for finished in as_completed(waiting):
                total += finished.result()
                done += waiting[finished].size_bytes
                progress(stage, done, commit.stored_bytes)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return total


def _copy_object(source: Repository, destination: Repository, commit: BackupCommit, entry: StoredObject) -> int:
    expected = source.expected(commit, entry)
    there = destination.store.stat(expected.key)
    if there is not None:
        try:
            verify_stored(destination.store, expected)
        except IntegrityError:
            destination.store.delete(expected.key)  # of a backup that is not committed there, so nobody relies on it
        else:
            return 0
    with destination.store.writer(expected.key) as writer:
        verify_stored(source.store, expected, writer.write)
    verify_stored(destination.store, expected)
    return entry.size_bytes


def _copied(commit: BackupCommit, destination: Repository, sent: int, watch: Stopwatch) -> CopiedBackup:
    return CopiedBackup(
        id=commit.id,
        region=destination.region,
        copied_bytes=sent,
        verified_bytes=commit.stored_bytes,
        objects=len(commit.objects),
        duration_s=watch.elapsed_s,
    )
