"""``bb-ops recover full``: bring a backup back, beside what exists."""

from pathlib import Path

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar
from bb_ops.cli.recover_authority import Authority, authority_options
from bb_ops.errors import BbOpsError, UsageError
from bb_ops.findings import Outcome
from bb_ops.progress import Progress
from bb_ops.recovery.cluster import plan_cluster, recover_cluster
from bb_ops.recovery.foreign.recover import plan_foreign, recover_foreign
from bb_ops.recovery.full import RecoverOptions, RecoverPlan, Recovery

_NOT_MEASURED = 13
_BAD_STATE = 4
DEFAULT_PORT = 5433


@click.command("full")
@click.argument("source", metavar="ID|latest|PATH|URL")
@click.option("--into", type=click.Path(path_type=Path), help="An empty directory, or one to be made.")
@click.option(
    "--replace", type=click.Path(path_type=Path), help="Let the copy take this data directory's place, once confirmed."
)
@click.option("--region", help="Take the backup from this region's repository.")
@click.option("--database", help="Load a foreign dump of one database into this one.  [default: its own, or postgres]")
@click.option("--start", is_flag=True, help="Leave a server running there, with archiving off.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535), help="Its port.")
@authority_options
@click.option("--dry-run", is_flag=True, help="Show what would be restored.")
@json_option
def full(  # noqa: PLR0913 - one option each
    *,
    source: str,
    into: Path | None,
    replace: Path | None,
    region: str | None,
    database: str | None,
    start: bool,
    port: int,
    yes: bool,
    plan_hash: str | None,
    other_system: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Restore the backup SOURCE into an empty directory and check it against PostgreSQL's own manifest.

    SOURCE is a backup's id, `latest`, or a path or s3:// address: of a repository, of one backup in it, or of what
    others made, recognised by its content: dumps of pg_dump and pg_dumpall in every format and base backups of
    pg_basebackup, as they are or compressed by gzip or zstd. Dumps are loaded into a new cluster, after all of them
    was read and judged. A dump is a program that runs as superuser of that cluster: take it from whom you trust.

    With --replace PGDATA the copy, proven on a timeline of its own, takes the place of that data directory; see
    `bb-ops recover point-in-time`.

    Exit 0 when every check passed, 13 when one could not be made, 5 when the source is damaged or would lead out of
    the directory, 2 when it is nothing that can be restored here.
    """
    ops = operations()
    if replace is not None:
        from bb_ops.cli.recover_point import replace_by_backup  # noqa: PLC0415 - which prints as this module does

        authority = Authority(yes, plan_hash)
        return replace_by_backup(
            ops,
            source,
            region,
            into,
            replace,
            authority,
            start=start,
            other_system=other_system,
            dry_run=dry_run,
            as_json=as_json,
        )
    if into is None or yes or plan_hash or other_system:
        raise UsageError("give --into DIR for a copy beside; --yes, --plan and --other-system go with --replace")
    options = RecoverOptions(into, start, port, ops.settings.pg_bindirs, ops.settings.server_user, database=database)
    if dry_run:
        with progress_bar() as progress:
            plan = _plan(ops, source, region, options, progress)
        if as_json:
            emit(plan.model_dump(mode="json"))
        else:
            size = human_bytes(plan.restore_bytes)
            click.echo(f"would restore {_name(plan)} ({size}) into {plan.into}")
        return 0
    with progress_bar() as progress:
        done, error = _recover(ops, source, region, options, progress)
    if as_json:
        emit(done.model_dump(mode="json"))
    else:
        print_recovery(done)
    if error is not None:
        raise error
    return exit_code_of(done)


def print_recovery(done: Recovery) -> None:
    """Print for a person what a recovery did."""
    size = human_bytes(done.restored_bytes)
    click.echo(f"{_name(done)}: {size} in {done.duration_s} s into {done.data_directory}")
    if done.found_bytes:
        click.echo(f"{human_bytes(done.found_bytes)} of it an interrupted run had restored already")
    at = "an instant that it does not say"
    if done.recovered_to_at is not None:
        at = f"{done.recovered_to_at:%Y-%m-%d %H:%M:%S} UTC ({done.recovered_to_lsn})"
    click.echo(f"shows the state of {at}, proven {done.proof}")
    for step in done.steps:
        click.echo(f"  {step.level} {step.outcome:14} {step.evidence}")
    for one in done.invariants:
        click.echo(f"     {one.outcome:14} {one.severity} invariant {one.name}: {one.evidence}")
    if done.connection_string:
        click.echo(f"connect with: {done.connection_string}")


def exit_code_of(done: Recovery) -> int:
    """Return how a command ends whose recovery raised no error."""
    return {Outcome.PASS: 0, Outcome.FAIL: _BAD_STATE, Outcome.NOT_MEASURED: _NOT_MEASURED}[done.outcome]


def _plan(ops: Operations, source: str, region: str | None, options: RecoverOptions, progress: Progress) -> RecoverPlan:
    ours = ops.find(source, region)
    if ours is None:
        return plan_foreign(ops.place(source), options, ops.settings.scratch_directory, progress)
    _refuse_database(options)
    return plan_cluster(ours.repository, ours.entry, options)


def _recover(
    ops: Operations, source: str, region: str | None, options: RecoverOptions, progress: Progress
) -> tuple[Recovery, BbOpsError | None]:
    ours = ops.find(source, region)
    if ours is None:
        return recover_foreign(ops.place(source), options, ops.settings.scratch_directory, progress)
    _refuse_database(options)
    return recover_cluster(ours.repository, ours.entry, options, progress)


def _refuse_database(options: RecoverOptions) -> None:
    if options.database is not None:
        raise UsageError("--database is for dumps that others made: our backups name their databases themselves")


def _name(done: RecoverPlan | Recovery) -> str:
    return f"{done.source} ({done.form})" if done.backup_id is None else f"{done.backup_id} from {done.region}"
