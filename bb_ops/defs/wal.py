"""The continuous archive of WAL: what `bb-ops wal stream` keeps, as Dagster sees it, and what is done about a gap."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta

import dagster as dg

from bb_ops.backup.wal_archive import (
    ArchiveReport,
    Request,
    continuity,
    decide_gap,
    lag,
    read_archive,
    read_region,
)
from bb_ops.bootstrap import Operations
from bb_ops.defs.backup import full_backup_job
from bb_ops.defs.resources import OperationsResource, failures
from bb_ops.defs.wal_metadata import archive_metadata, check_evaluations, check_results
from bb_ops.findings import Finding
from bb_ops.repository.ids import daily_slot

WAL_ARCHIVE = "wal_archive"
_LOOK_EVERY_S = 60
_REPORT_EVERY = timedelta(minutes=5)

wal_archive = dg.AssetSpec(
    WAL_ARCHIVE,
    group_name="backup",
    kinds={"postgres", "s3"},
    owners=["team:operations"],
    description=(
        "The write-ahead log in the repository, so that any second can be restored. Not made by Dagster: the "
        "long-running `bb-ops wal stream` writes it, and a sensor looks at it every minute. The same by hand: "
        "`bb-ops wal status` and `bb-ops backup status`."
    ),
)

_CHECKS = [
    dg.AssetCheckSpec(
        "continuity",
        asset=WAL_ARCHIVE,
        description="No hole behind the newest backup, in any region; else it is named.",
    ),
    dg.AssetCheckSpec("lag", asset=WAL_ARCHIVE, description="Somebody streams, and less than a minute is missing."),
]


@dg.multi_asset_check(name="wal_archive_checks", specs=_CHECKS)
def wal_archive_checks(
    context: dg.AssetCheckExecutionContext, operations: OperationsResource
) -> Iterator[dg.AssetCheckResult]:
    """Look at the server and at every region now. The same by hand: `bb-ops wal status` and `bb-ops backup status`."""
    ops = operations.open()
    with failures():
        report = _read(ops)
        context.op_execution_context.log_event(_observation(report))
    yield from check_results(_judge(report), WAL_ARCHIVE)


def _read(ops: Operations) -> ArchiveReport:
    return read_archive(ops.database, ops.repositories, ops.wal_options, ops.settings.cache_directory, ops.clock.now())


def _judge(report: ArchiveReport) -> tuple[Finding, ...]:
    return continuity(report), lag(report)


def _observation(report: ArchiveReport) -> dg.AssetObservation:
    return dg.AssetObservation(WAL_ARCHIVE, metadata=archive_metadata(report))


wal_archive_job = dg.define_asset_job(
    "wal_archive_job",
    selection=dg.AssetSelection.checks(wal_archive_checks),
    description="Look at the archive of WAL now; the sensor does so every minute.",
)


@dg.sensor(minimum_interval_seconds=_LOOK_EVERY_S, default_status=dg.DefaultSensorStatus.RUNNING)
def wal_archive_sensor(
    context: dg.SensorEvaluationContext, operations: OperationsResource
) -> dg.SensorResult | dg.SkipReason:
    """Look every minute; report every five minutes, and at once when a check's answer changes. Starts no run."""
    ops = operations.open()
    with failures():
        report = _read(ops)
    findings = _judge(report)
    seen = {finding.check_id: f"{finding.outcome} {finding.severity}" for finding in findings}
    before = json.loads(context.cursor or "{}")
    if before.get("seen") == seen and report.seen_at - datetime.fromisoformat(before["at"]) < _REPORT_EVERY:
        return dg.SkipReason("; ".join(finding.message for finding in findings))
    return dg.SensorResult(
        asset_events=[_observation(report), *check_evaluations(findings, WAL_ARCHIVE)],
        cursor=json.dumps({"seen": seen, "at": report.seen_at.isoformat()}),
    )


@dg.sensor(job=full_backup_job, minimum_interval_seconds=_LOOK_EVERY_S, default_status=dg.DefaultSensorStatus.RUNNING)
def wal_gap_sensor(
    context: dg.SensorEvaluationContext, operations: OperationsResource
) -> dg.SensorResult | dg.SkipReason:
    """Ask for a full backup where WAL is missing behind the newest backup: nothing later can be restored until then.

    Once per gap, and again, with growing pauses, only if that run did not close it. A new full goes into the open slot,
    beside the one that may be there. The same by hand: `bb-ops backup full`.
    """
    ops = operations.open()
    last = Request.from_text(context.cursor)
    with failures():
        now = ops.clock.now()
        region = read_region(ops.repository, ops.settings.cache_directory, now)
        decision = decide_gap(region, last, unfinished=_unfinished(context, last), now=now)
    if decision.request is None:
        return dg.SkipReason(decision.reason)
    run = dg.RunRequest(
        run_key=decision.request.key,
        partition_key=daily_slot(now),
        tags={"bb_ops/reason": "WAL gap", "bb_ops/behind": decision.request.behind},
    )
    context.log.warning(decision.reason)
    return dg.SensorResult(run_requests=[run], cursor=decision.request.to_text())


def _unfinished(context: dg.SensorEvaluationContext, last: Request | None) -> bool:
    if last is None:
        return False
    runs = context.instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": last.key}))
    return any(not run.is_finished for run in runs)


ASSETS = [wal_archive]
CHECKS = [wal_archive_checks]
JOBS = [wal_archive_job]
SENSORS = [wal_archive_sensor, wal_gap_sensor]
