"""Dumps by PostgreSQL's own programs: rows and definitions daily, definitions weekly."""

import dagster as dg

from bb_ops.backup.logical import take_logical_backup
from bb_ops.backup.schema import take_schema_backup
from bb_ops.defs.metadata import dump_metadata
from bb_ops.defs.partitions import DAILY_SLOTS, WEEKLY_SLOTS
from bb_ops.defs.resources import LoggedProgress, OperationsResource, failures
from bb_ops.defs.stored import stored_checks
from bb_ops.repository.ids import SLOT_TIME
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.repository import Repository

_OWNERS = ["team:operations"]
_LOGICAL_MINUTE = SLOT_TIME.minute + 30
_SCHEMA_MINUTE = SLOT_TIME.minute + 45
"""After the full backup has begun, and within the hour in which a slot counts as punctual."""
_MONDAY = 1


def _checks(asset: str, partitions: dg.PartitionsDefinition) -> list[dg.AssetCheckSpec]:
    described = {
        "committed": "The signed commit and every object are in the repository.",
        "encrypted": "The stored bytes are encrypted to two keys or more.",
        "complete": "No database of the server was left out.",
        "on_time": "It began within an hour after its slot opened.",
    }
    return [
        dg.AssetCheckSpec(
            name, asset=asset, blocking=name == "committed", partitions_def=partitions, description=description
        )
        for name, description in described.items()
    ]


@dg.asset(
    partitions_def=DAILY_SLOTS,
    group_name="backup",
    kinds={"postgres"},
    owners=_OWNERS,
    code_version="1",
    pool="logical_backup",
    check_specs=_checks("logical_backup", DAILY_SLOTS),
)
def logical_backup(context: dg.AssetExecutionContext, operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every database with its rows, dumped by pg_dump in one snapshot each, and the roles without passwords.

    For restores of single databases, elsewhere, or into a newer major version. It shows one instant and cannot be
    carried forward by WAL. The same by hand: `bb-ops backup logical`.
    """
    ops = operations.open()
    with failures():
        commit = take_logical_backup(
            ops.database,
            ops.repository,
            ops.dump_options(slot=context.partition_key),
            ops.clock,
            LoggedProgress(context.log.info),
        )
        return _result(ops.repository, commit)


@dg.asset(
    partitions_def=WEEKLY_SLOTS,
    group_name="backup",
    kinds={"postgres"},
    owners=_OWNERS,
    code_version="1",
    pool="schema_backup",
    check_specs=_checks("schema_backup", WEEKLY_SLOTS),
)
def schema_backup(context: dg.AssetExecutionContext, operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The definitions of every database as plain scripts, and the roles without passwords; no rows.

    A slot is a week and bears the day of its Monday. The same by hand: `bb-ops backup schema`.
    """
    ops = operations.open()
    with failures():
        commit = take_schema_backup(
            ops.database,
            ops.repository,
            ops.dump_options(slot=context.partition_key),
            ops.clock,
            LoggedProgress(context.log.info),
        )
        return _result(ops.repository, commit)


def _result(repository: Repository, commit: LogicalCommit) -> dg.MaterializeResult:  # type: ignore[type-arg]
    return dg.MaterializeResult(
        metadata=dump_metadata(commit, repository.store.url),
        data_version=dg.DataVersion(commit.id),
        tags={"bb_ops/backup_id": commit.id},
        check_results=stored_checks(repository, commit, _complete(commit)),
    )


def _complete(commit: LogicalCommit) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name="complete",
        passed=not commit.left_out,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(commit.left_out) or f"all {len(commit.databases)} databases",
    )


logical_backup_job = dg.define_asset_job(
    "logical_backup_job",
    selection=dg.AssetSelection.assets(logical_backup),
    description="Dump every database with its rows.",
)

schema_backup_job = dg.define_asset_job(
    "schema_backup_job",
    selection=dg.AssetSelection.assets(schema_backup),
    description="Dump the definitions of every database.",
)


@dg.schedule(
    job=logical_backup_job,
    cron_schedule=f"{_LOGICAL_MINUTE} {SLOT_TIME.hour} * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def logical_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Dump every day at 02:30 UTC, into the slot that opened at 02:00."""
    key = f"{context.scheduled_execution_time:%Y-%m-%d}"
    return dg.RunRequest(run_key=key, partition_key=key)


@dg.schedule(
    job=schema_backup_job,
    cron_schedule=f"{_SCHEMA_MINUTE} {SLOT_TIME.hour} * * {_MONDAY}",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def schema_backup_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Dump the definitions every Monday at 02:45 UTC, into the slot of the week that opened at 02:00."""
    key = f"{context.scheduled_execution_time:%Y-%m-%d}"
    return dg.RunRequest(run_key=key, partition_key=key)


ASSETS = [logical_backup, schema_backup]
JOBS = [logical_backup_job, schema_backup_job]
SCHEDULES = [logical_backup_schedule, schema_backup_schedule]
