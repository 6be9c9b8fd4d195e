"""Hours of WAL as intervals: sealed and, where the server can, with the blocks that changed; and their copies."""

import dagster as dg

from bb_ops.backup.hour import hour_window, newest_hour, take_hour
from bb_ops.backup.hour_checks import examine_hour
from bb_ops.cross_region.hour import copy_hour, examine_copy
from bb_ops.defs.automation import after_upstream
from bb_ops.defs.backup import full_backup
from bb_ops.defs.partitions import HOURS
from bb_ops.defs.resources import LoggedProgress, OperationsResource, failures
from bb_ops.defs.wal import wal_archive, wal_archive_checks
from bb_ops.defs.wal_metadata import check_results, copied_hour_metadata, hour_metadata, hour_tags, hour_version

_OWNERS = ["team:operations"]
_MINUTE = 3
"""After the hour: what was committed before its end has long been streamed by then."""
_SLOT_OF_HOUR = dg.AssetDep(full_backup, partition_mapping=dg.TimeWindowPartitionMapping())
"""An hour belongs to the slot that it lies in. Drawn only: the parent is what the catalog holds when the run begins,
and nobody waits for a slot that is missing."""


def _check(asset: str, name: str, description: str, *, blocking: bool) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=asset, blocking=blocking, partitions_def=HOURS, description=description)


@dg.asset(
    partitions_def=HOURS,
    deps=[_SLOT_OF_HOUR, wal_archive],
    group_name="backup",
    kinds={"postgres"},
    owners=_OWNERS,
    tags={"bb_ops/engine": "native"},
    code_version="1",
    pool="incremental_backup",
    check_specs=[
        # Not blocking: an increment that was taken behind a hole closes it, and its copy must not wait.
        _check("incremental_backup", "continuous", "The WAL joins what came before, without a hole.", blocking=False),
        _check("incremental_backup", "durable", "Signed spans and their segments are stored.", blocking=True),
        _check("incremental_backup", "chain_whole", "All that the backup builds on is stored.", blocking=True),
        _check("incremental_backup", "block_increment", "Blocks were taken, where possible.", blocking=False),
    ],
)
def incremental_backup(context: dg.AssetExecutionContext, operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """An hour of write-ahead log, sealed and proven to join what came before, and the blocks that changed.

    In the hour that follows, it is taken live. Later it is sealed from the archive: no increment of now is labelled
    with an old hour, and an hour that the archive does not cover stays missing. The same by hand: `bb-ops backup
    incremental`; for a past hour, `bb-ops backup incremental --hour 2026-11-24-13:00`.
    """
    ops = operations.open()
    with failures():
        hour = take_hour(
            ops.database,
            ops.repository,
            ops.interval_options,
            context.partition_key,
            ops.clock,
            LoggedProgress(context.log.info),
        )
        return dg.MaterializeResult(
            metadata=hour_metadata(hour, ops.repository.store.url),
            data_version=hour_version(hour),
            tags=hour_tags(hour),
            check_results=check_results(examine_hour(ops.repository, hour), "incremental_backup"),
        )


@dg.asset(
    partitions_def=HOURS,
    deps=[incremental_backup],
    group_name="cross_region",
    kinds={"s3"},
    owners=_OWNERS,
    code_version="1",
    pool="cross_region",
    automation_condition=after_upstream(),
    check_specs=[
        _check("incremental_backup_replica", "rehashed", "Every byte sent was read back and hashed.", blocking=True),
        _check(
            "incremental_backup_replica", "restorable_there", "The other region restores the hour too.", blocking=True
        ),
    ],
)
def incremental_backup_replica(
    context: dg.AssetExecutionContext, operations: OperationsResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """An hour's WAL and increment in the other region, with all that they build on, re-hashed where they arrived.

    Deletions are never copied. The same by hand: `bb-ops sync incremental`.
    """
    ops = operations.open()
    key = context.partition_key
    with failures():
        copied = copy_hour(ops.repository, ops.replica, hour_window(key), LoggedProgress(context.log.info))
        source = _made(context.instance, key)
        return dg.MaterializeResult(
            metadata={**copied_hour_metadata(copied, ops.replica.store.url), **source},
            data_version=dg.DataVersion(source.get("source_backup_id", key)),
            tags={f"bb_ops/{name}": value for name, value in source.items()},
            check_results=check_results(
                examine_copy(copied, source.get("source_backup_id")), "incremental_backup_replica"
            ),
        )


def _made(instance: dg.DagsterInstance, key: str) -> dict[str, str]:
    """Return what the same hour's newest materialization left; Dagster's own pointer is that of any partition."""
    wanted = dg.AssetRecordsFilter(asset_key=incremental_backup.key, asset_partitions=[key])
    records = instance.fetch_materializations(wanted, limit=1).records
    made = records[0].asset_materialization if records else None
    tags = made.tags or {} if made is not None else {}
    return {f"source_{name}": tags[f"bb_ops/{name}"] for name in ("backup_id", "full_id") if f"bb_ops/{name}" in tags}


incremental_backup_job = dg.define_asset_job(
    "incremental_backup_job",
    selection=dg.AssetSelection.assets(incremental_backup),
    description="Seal an hour of WAL and take the blocks that changed.",
)

hourly_backup = dg.define_asset_job(
    "hourly_backup",
    selection=dg.AssetSelection.assets(incremental_backup) | dg.AssetSelection.checks(wal_archive_checks),
    description="Seal an hour, take the blocks that changed, and look at the archive of WAL.",
)


@dg.schedule(
    job=incremental_backup_job,
    cron_schedule=f"{_MINUTE} * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def incremental_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Take the hour that has just ended, whatever else is going on."""
    key = newest_hour(context.scheduled_execution_time)
    return dg.RunRequest(run_key=key, partition_key=key)


ASSETS = [incremental_backup, incremental_backup_replica]
JOBS = [incremental_backup_job, hourly_backup]
SCHEDULES = [incremental_backup_schedule]
