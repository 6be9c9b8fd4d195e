"""Full backups as daily slots: the dump, its copy in the other region, and its restore test."""

import dagster as dg

from bb_ops.backup.full import take_full_backup
from bb_ops.cross_region.transfer import copy_slot
from bb_ops.defs.automation import after_upstream
from bb_ops.defs.metadata import backup_metadata, copy_metadata, level_check, proof_metadata
from bb_ops.defs.partitions import DAILY_SLOTS
from bb_ops.defs.resources import LoggedProgress, OperationsResource, failures
from bb_ops.defs.stored import stored_checks
from bb_ops.repository.ids import SLOT_TIME
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.reports import Level
from bb_ops.validation.prove import prove_slot

_OWNERS = ["team:operations"]


def _check(asset: str, name: str, description: str, *, blocking: bool) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=asset, blocking=blocking, partitions_def=DAILY_SLOTS, description=description)


@dg.asset(
    partitions_def=DAILY_SLOTS,
    group_name="backup",
    kinds={"postgres"},
    owners=_OWNERS,
    code_version="1",
    pool="full_backup",
    check_specs=[
        _check("full_backup", "committed", "The signed commit and every object are in the repository.", blocking=True),
        _check("full_backup", "encrypted", "The stored bytes are encrypted to two keys or more.", blocking=False),
        _check("full_backup", "page_checksums", "The server checked every page that it sent.", blocking=False),
        _check("full_backup", "on_time", "It began within an hour after its slot opened.", blocking=False),
    ],
)
def full_backup(context: dg.AssetExecutionContext, operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """A physical backup of the whole server, streamed, compressed, encrypted and signed.

    A slot opens at 02:00 UTC and is open for a day. A backup of now is never labelled with another slot: a closed slot
    that was missed stays visibly missing. The same by hand: `bb-ops backup full`.
    """
    ops = operations.open()
    with failures():
        commit = take_full_backup(
            ops.database,
            ops.repository,
            ops.full_backup_options(slot=context.partition_key),
            ops.clock,
            LoggedProgress(context.log.info),
        )
        return dg.MaterializeResult(
            metadata=backup_metadata(commit, ops.repository.store.url),
            data_version=dg.DataVersion(commit.id),
            tags={"bb_ops/backup_id": commit.id},
            check_results=stored_checks(ops.repository, commit, _page_checksums(commit)),
        )


@dg.asset(
    partitions_def=DAILY_SLOTS,
    deps=[full_backup],
    group_name="cross_region",
    kinds={"s3"},
    owners=_OWNERS,
    code_version="1",
    pool="cross_region",
    automation_condition=after_upstream(),
    check_specs=[_check("full_backup_replica", "rehashed", "Every byte was read back and re-hashed.", blocking=True)],
)
def full_backup_replica(context: dg.AssetExecutionContext, operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The copy of a slot's backup in the other region, re-read and re-hashed where it arrived.

    Deletions are never copied. The same by hand: `bb-ops sync incremental`.
    """
    ops = operations.open()
    with failures():
        copied, commit = copy_slot(ops.repository, ops.replica, context.partition_key, LoggedProgress(context.log.info))
        return dg.MaterializeResult(
            metadata=copy_metadata(copied, ops.repository.region, ops.replica.store.url),
            data_version=dg.DataVersion(commit.id),
            tags={"bb_ops/backup_id": commit.id},
            check_results=[
                dg.AssetCheckResult(
                    check_name="rehashed",
                    passed=copied.verified_bytes == commit.stored_bytes,
                    description=f"{copied.verified_bytes} of {commit.stored_bytes} bytes re-hashed in {copied.region}",
                )
            ],
        )


@dg.asset(
    partitions_def=DAILY_SLOTS,
    deps=[full_backup, full_backup_replica],
    group_name="validation",
    kinds={"postgres"},
    owners=_OWNERS,
    code_version="1",
    pool="restore_test",
    automation_condition=after_upstream(),
    check_specs=[
        _check("full_backup_restore_test", "restores", "A server started on it in both regions (L4).", blocking=True),
        _check("full_backup_restore_test", "structure_sound", "Indexes, heaps, constraints (L5).", blocking=True),
        _check("full_backup_restore_test", "rows_equal", "Every table equals the source (L6).", blocking=False),
    ],
)
def full_backup_restore_test(context: dg.AssetExecutionContext, operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """A slot's backup restored from each region, in a throw-away server without network, and compared with the source.

    The proof is stored beside the backup. The same by hand: `bb-ops validate latest --region …`.
    """
    ops = operations.open()
    with failures():
        proofs = prove_slot(
            ops.repositories,
            context.partition_key,
            ops.restore_test_options(Level.L6),
            ops.clock,
            LoggedProgress(context.log.info),
        )
        key = context.partition_key
        return dg.MaterializeResult(
            metadata=proof_metadata(proofs),
            data_version=dg.DataVersion(proofs[0].backup_id),
            tags={"bb_ops/backup_id": proofs[0].backup_id},
            check_results=[
                level_check("restores", "full_backup_restore_test", proofs, Level.L4, key),
                level_check("structure_sound", "full_backup_restore_test", proofs, Level.L5, key),
                level_check("rows_equal", "full_backup_restore_test", proofs, Level.L6, key),
            ],
        )


def _page_checksums(commit: PhysicalCommit) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name="page_checksums",
        passed=commit.data_checksums,
        severity=dg.AssetCheckSeverity.WARN,
        description="checked by the server while sending" if commit.data_checksums else "not measured: they are off",
    )


daily_backup = dg.define_asset_job(
    "daily_backup",
    selection=dg.AssetSelection.assets(full_backup, full_backup_replica, full_backup_restore_test),
    description="Back up now, copy to the other region and prove both copies by restoring them.",
)

full_backup_job = dg.define_asset_job(
    "full_backup_job",
    selection=dg.AssetSelection.assets(full_backup),
    description="What the schedule runs; copies and restore tests follow by themselves.",
)


@dg.schedule(
    job=full_backup_job,
    cron_schedule=f"{SLOT_TIME.minute} {SLOT_TIME.hour} * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def full_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Open the slot of the day at 02:00 UTC, whatever else is going on."""
    key = f"{context.scheduled_execution_time:%Y-%m-%d}"
    return dg.RunRequest(run_key=key, partition_key=key)


ASSETS = [full_backup, full_backup_replica, full_backup_restore_test]
JOBS = [daily_backup, full_backup_job]
SCHEDULES = [full_backup_schedule]
