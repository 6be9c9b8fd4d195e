"""What the copies are worth: the monthly disaster-recovery drill, and whether we are ready now."""

import dagster as dg

from bb_ops.bootstrap import denial, recorded
from bb_ops.clock import SystemClock
from bb_ops.defs.backup import full_backup_replica
from bb_ops.defs.incremental import incremental_backup_replica
from bb_ops.defs.metadata import Metadata
from bb_ops.defs.partitions import MONTHLY_SLOTS
from bb_ops.defs.resources import OperationsResource, failures
from bb_ops.defs.wal_metadata import check_results
from bb_ops.findings import Finding, Severity
from bb_ops.recovery.readiness import Case, Readiness, read_readiness
from bb_ops.repository.drills import DrillReport
from bb_ops.repository.reports import Level
from bb_ops.validation.drill import examine_drill, hold_drill, require_open_month

_MV = dg.MetadataValue
_OWNERS = ["team:operations"]
_DRILL_HOUR = 6
"""After the month has opened at 02:00 UTC, when the first day's backup has been copied."""
_READINESS_MINUTE = 20
_NEWEST = [
    dg.AssetDep(replica, partition_mapping=dg.LastPartitionMapping())
    for replica in (full_backup_replica, incremental_backup_replica)
]
"""Drawn only: what the other region holds when the run begins is what counts, and nobody waits for a copy."""


def _check(name: str, description: str, *, blocking: bool) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name,
        asset="disaster_recovery_drill",
        blocking=blocking,
        partitions_def=MONTHLY_SLOTS,
        description=description,
    )


@dg.asset(
    partitions_def=MONTHLY_SLOTS,
    deps=_NEWEST,
    group_name="recovery",
    kinds={"postgres", "s3"},
    owners=_OWNERS,
    code_version="1",
    pool="restore_test",
    check_specs=[
        _check("restored_from_region_b", "All came back from it alone, with the offline key (L7).", blocking=True),
        _check("rpo", "No more than two hours of commits would have been lost.", blocking=False),
        _check("rto", "How long it took until a server answered was measured.", blocking=False),
        _check("stock_tools", "age and zstd alone open a part and a WAL segment.", blocking=False),
    ],
)
def disaster_recovery_drill(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The first region is declared dead, and everything is brought back from the second one with the offline key.

    In a process that is given nothing of the first region; what was seen is recorded in the second. A month that was
    missed stays missing. Without the offline key nothing is measured, and the run fails. The same by hand:
    `bb-ops drill`; past drills: `bb-ops drill --history`.
    """
    with failures():
        require_open_month(context.partition_key, SystemClock().now())
        left = denial(None, None)
        seen, _ = hold_drill(left, SystemClock())
        report = recorded(left, seen)
        return dg.MaterializeResult(
            metadata=_drill_metadata(report),
            data_version=dg.DataVersion(report.id),
            tags={"bb_ops/backup_id": report.backup_id} if report.backup_id else {},
            check_results=check_results(examine_drill(report), "disaster_recovery_drill"),
        )


@dg.asset(
    deps=_NEWEST,
    group_name="recovery",
    kinds={"s3"},
    owners=_OWNERS,
    code_version="1",
    check_specs=[
        dg.AssetCheckSpec(
            "ready", asset="recovery_readiness", description="Nothing stands against a recovery from any disaster."
        )
    ],
)
def recovery_readiness(operations: OperationsResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """If a region or the server died now: what is lost, how long would it take, and what was that proven by?

    Read from those that would be left alone. The same by hand: `bb-ops recover readiness`.
    """
    ops = operations.open()
    with failures():
        found = read_readiness(ops.repositories, ops.clock)
        return dg.MaterializeResult(
            metadata=_readiness_metadata(found), check_results=check_results([_ready(found)], "recovery_readiness")
        )


def _drill_metadata(report: DrillReport) -> Metadata:
    """Describe a drill; what was not measured is not there, so that no plot shows a zero for it."""
    rows = [
        dg.TableRecord(
            {
                "step": step.name,
                "outcome": step.outcome.value,
                "at": f"{step.started_at:%Y-%m-%d %H:%M:%S}",
                "seconds": step.duration_s,
                "evidence": step.evidence,
            }
        )
        for step in report.steps
    ]
    numbers = {
        "rpo_s": report.rpo_s,
        "rto_s": report.rto_s,
        "proven_s": report.proven_s,
        "restore_s": report.restore_s,
        "replay_s": report.replay_s,
    }
    return {
        "drill_id": _MV.text(report.id),
        "source_backup_id": _MV.text(report.backup_id or "none"),
        "region": _MV.text(report.region),
        "outcome": _MV.text(report.outcome.value),
        "proof_level": _MV.int(-1 if report.level is None else Level[report.level].value),
        "rows_compared": _MV.int(report.rows_compared),
        "declared_at": _MV.timestamp(report.declared_at),
        "recorded": _MV.bool(report.recorded),
        "steps": _MV.table(rows),
        "command": _MV.text("bb-ops drill"),
        **{name: _MV.float(value) for name, value in numbers.items() if value is not None},
    }


def _readiness_metadata(found: Readiness) -> Metadata:
    rows = [
        dg.TableRecord(
            {
                "check": finding.check_id,
                "dead": finding.resource,
                "outcome": finding.outcome.value,
                "message": finding.message,
                "remedy": finding.remedy,
            }
        )
        for finding in found.findings
    ]
    plots = {name: value for case in found.cases for name, value in _numbers(case).items() if value is not None}
    return {
        "findings": _MV.table(rows),
        "outcome": _MV.text(found.outcome.value),
        "against": _MV.int(len(found.wrong)),
        "command": _MV.text("bb-ops recover readiness"),
        **{name: _MV.float(value) for name, value in plots.items()},
    }


def _numbers(case: Case) -> dict[str, float | None]:
    return {
        f"lost_s_without_{case.dead}": case.lost_s,
        f"takes_s_without_{case.dead}": case.takes_s,
        f"rto_s_without_{case.dead}": case.drill_rto_s,
        f"rpo_s_without_{case.dead}": case.drill_rpo_s,
    }


def _ready(found: Readiness) -> Finding:
    return Finding(
        check_id="ready",
        outcome=found.outcome,
        severity=max((one.severity for one in found.wrong), key=list(Severity).index, default=Severity.INFO),
        resource="recovery",
        message="; ".join(finding.message for finding in found.wrong) or "nothing stands against a recovery",
    )


disaster_recovery_drill_job = dg.define_asset_job(
    "disaster_recovery_drill_job",
    selection=dg.AssetSelection.assets(disaster_recovery_drill),
    description="Declare the first region dead and bring everything back from the second.",
)

recovery_readiness_job = dg.define_asset_job(
    "recovery_readiness_job",
    selection=dg.AssetSelection.assets(recovery_readiness),
    description="Look at what each region could do without the other.",
)


@dg.schedule(
    job=disaster_recovery_drill_job,
    cron_schedule=f"0 {_DRILL_HOUR} 1 * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def disaster_recovery_drill_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Hold the drill of the month on its first day."""
    key = f"{context.scheduled_execution_time:%Y-%m}-01"
    return dg.RunRequest(run_key=key, partition_key=key)


recovery_readiness_schedule = dg.ScheduleDefinition(
    name="recovery_readiness_schedule",
    job=recovery_readiness_job,
    cron_schedule=f"{_READINESS_MINUTE} * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Look every hour, after the copy of the hour that is over.",
)

ASSETS = [disaster_recovery_drill, recovery_readiness]
JOBS = [disaster_recovery_drill_job, recovery_readiness_job]
SCHEDULES = [disaster_recovery_drill_schedule, recovery_readiness_schedule]
