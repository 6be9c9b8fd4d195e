"""``bb-ops backup incremental``: seal the write-ahead log up to now, and take the blocks that changed."""

from typing import Any

import click

from bb_ops.backup.hour import Hour, take_hour
from bb_ops.backup.hour_checks import examine_hour
from bb_ops.backup.interval import Interval, IntervalOptions, IntervalPlan, plan_interval, take_interval
from bb_ops.backup.wal_span import Incremental
from bb_ops.bootstrap import operations
from bb_ops.cli.describe import describe, summary
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar, table
from bb_ops.errors import FindingsPresent, ServerUnusable, UsageError
from bb_ops.findings import Finding, Outcome
from bb_ops.process import peak_memory_bytes


@click.command("incremental")
@click.option("--wal-only", is_flag=True, help="Seal the write-ahead log, take no blocks.")
@click.option("--blocks-only", is_flag=True, help="Take the changed blocks, seal nothing.")
@click.option("--hour", help="Represent this past hour, in UTC, as 2026-11-24-13:00; from the archive where it is old.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@json_option
def incremental(*, wal_only: bool, blocks_only: bool, hour: str | None, dry_run: bool, as_json: bool) -> int:
    """Seal the write-ahead log up to now (how far), then take the blocks changed since the newest backup (how fast).

    Blocks need PostgreSQL 17 and summarize_wal; else the log alone is sealed. Where no increment can build on what is
    there, a full backup is taken and the reason is said. Exit 4 where WAL is missing: the gap is recorded. Exit 3 where
    the log was sealed and no backup could be taken. Safe to kill and to repeat.
    """
    if wal_only and blocks_only:
        raise UsageError("--wal-only and --blocks-only exclude one another")
    ops = operations()
    if hour is not None:
        if wal_only or blocks_only or dry_run:
            raise UsageError("--hour goes with --json alone")
        with progress_bar() as progress:
            past = take_hour(ops.database, ops.repository, ops.interval_options, hour, ops.clock, progress)
        return _show_hour(past, examine_hour(ops.repository, past), as_json=as_json)
    options = IntervalOptions(
        wal=None if blocks_only else ops.wal_options, blocks=None if wal_only else ops.incremental_backup_options()
    )
    if dry_run:
        plan = plan_interval(ops.database, ops.repository, options, ops.clock)
        _show_plan(plan, as_json=as_json)
        return ServerUnusable.exit_code if plan.refusals else 0
    with progress_bar() as progress:
        done = take_interval(ops.database, ops.repository, options, ops.clock, progress)
    if as_json:
        emit(_describe(done))
    else:
        _print(done)
    if done.backup is not None and done.backup.fallback_reason is not None:
        click.echo(f"bb-ops: a FULL backup was taken instead of an increment: {done.backup.fallback_reason}", err=True)
    for error in done.errors:
        click.echo(f"bb-ops: {error}", err=True)
    return done.errors[0].exit_code if done.errors else 0


def _show_hour(hour: Hour, findings: tuple[Finding, ...], *, as_json: bool) -> int:
    if as_json:
        emit(
            {
                **(describe(hour.backup) if hour.backup is not None else {}),
                "schema_id": "bb-ops/hour/1",
                "hour": hour.key,
                "origin": hour.origin.value,
                "chain_id": hour.chain.commit.id,
                "wal": hour.wal.model_dump(mode="json") if hour.wal is not None else None,
                "coverage": hour.coverage.model_dump(mode="json"),
                "findings": [finding.model_dump(mode="json") for finding in findings],
            }
        )
    else:
        for finding in findings:
            click.echo(f"{finding.outcome:14} {finding.check_id}: {finding.message}")
    bad = [finding for finding in findings if finding.outcome not in {Outcome.PASS, Outcome.NOT_APPLICABLE}]
    return FindingsPresent.exit_code if bad else 0


def _show_plan(plan: IntervalPlan, *, as_json: bool) -> None:
    span = plan.span.model_dump(mode="json") if plan.span else None
    backup = plan.backup.model_dump(mode="json") if plan.backup else None
    if as_json:
        first = {**(backup or span or {}), "schema_id": "bb-ops/incremental-plan/1", "refusals": list(plan.refusals)}
        emit({**first, "span": span, "backup": backup, "skipped_reason": plan.skipped})
        return
    facts = [
        (f"{name}: {fact}", value)
        for name, each in (("span", span), ("backup", backup))
        if each
        for fact, value in each.items()
    ]
    table(("fact", "value"), [(name, str(value)) for name, value in facts])
    if plan.skipped is not None:
        click.echo(f"no block increment: {plan.skipped}")


def _print(done: Interval) -> None:
    for span in done.span.spans if done.span else ():
        size = human_bytes(span.size_bytes)
        click.echo(
            f"{span.id}: {len(span.segments)} segments ({size}) of timeline {span.timeline} from {span.from_lsn} "
            f"to {span.to_lsn}, stored as {human_bytes(span.stored_bytes)}, continues {span.continues or 'nothing'}"
        )
    if done.span is not None and not done.span.spans:
        click.echo("nothing to seal: no segment is whole since the last span")
    if done.backup is not None:
        click.echo(summary(done.backup))
    if done.skipped is not None:
        click.echo(f"no block increment, only the log: {done.skipped}")


def _describe(done: Interval) -> dict[str, Any]:
    """Return both documents, and at the top level the backup's fields, or the span's where no backup was taken."""
    span = _describe_span(done.span) if done.span is not None else None
    backup = describe(done.backup) if done.backup is not None else None
    return {
        **(backup or span or {}),
        "schema_id": "bb-ops/backup/1",
        "peak_memory_bytes": peak_memory_bytes(),
        "span": span,
        "backup": backup,
        "skipped_reason": done.skipped,
        "errors": [str(error) for error in done.errors],
    }


def _describe_span(done: Incremental) -> dict[str, Any]:
    last = done.spans[-1] if done.spans else None
    spans = [
        {**span.model_dump(mode="json", exclude={"segments"}), "segments": len(span.segments)} for span in done.spans
    ]
    return {
        "id": last.id if last else None,
        "kind": "wal",
        "engine": last.engine if last else None,
        "slot": last.slot if last else None,
        "timeline": last.timeline if last else None,
        "from_lsn": str(last.from_lsn) if last else None,
        "to_lsn": str(last.to_lsn) if last else None,
        "from_at": last.from_at.isoformat() if last and last.from_at else None,
        "to_at": last.to_at.isoformat() if last and last.to_at else None,
        "size_bytes": sum(span.size_bytes for span in done.spans),
        "stored_bytes": sum(span.stored_bytes for span in done.spans),
        "duration_s": last.duration_s if last else None,
        "spans": spans,
        "gaps": [str(gap) for gap in done.gaps],
    }
