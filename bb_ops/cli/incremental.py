"""``bb-ops backup incremental``: seal the write-ahead log up to now."""

import resource
from typing import Any

import click

from bb_ops.backup.incremental import Incremental, plan_incremental, take_incremental
from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, human_bytes, json_option, table
from bb_ops.errors import ServerUnusable


@click.command("incremental")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@json_option
def incremental(*, dry_run: bool, as_json: bool) -> int:
    """Seal the write-ahead log up to now: durable, joined to what came before, signed.

    Streams what is missing where no `bb-ops wal stream` runs. Exit 4 where WAL is missing; the gap is recorded.
    """
    ops = operations()
    if dry_run:
        plan = plan_incremental(ops.database, ops.repository, ops.clock)
        document = plan.model_dump(mode="json")
        emit(document) if as_json else table(
            ("fact", "value"), [(name, str(value)) for name, value in document.items()]
        )
        return ServerUnusable.exit_code if plan.refusals else 0
    done, error = take_incremental(ops.database, ops.repository, ops.wal_options, ops.clock)
    if as_json:
        emit(_describe(done))
    else:
        for span in done.spans:
            size = human_bytes(span.size_bytes)
            click.echo(
                f"{span.id}: {len(span.segments)} segments ({size}) of timeline {span.timeline} from {span.from_lsn} "
                f"to {span.to_lsn}, stored as {human_bytes(span.stored_bytes)}, continues {span.continues or 'nothing'}"
            )
        if not done.spans:
            click.echo("nothing to seal: no segment is whole since the last span")
    if error is not None:
        click.echo(f"bb-ops: {error}", err=True)
        return error.exit_code
    return 0


def _describe(done: Incremental) -> dict[str, Any]:
    last = done.spans[-1] if done.spans else None
    spans = [
        {**span.model_dump(mode="json", exclude={"segments"}), "segments": len(span.segments)} for span in done.spans
    ]
    return {
        "schema_id": "bb-ops/backup/1",
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
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "spans": spans,
        "gaps": [str(gap) for gap in done.gaps],
    }
