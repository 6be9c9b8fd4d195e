"""``bb-ops recover full``: bring a backup back, beside what exists."""

from pathlib import Path

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar
from bb_ops.findings import Outcome
from bb_ops.recovery.cluster import plan_cluster, recover_cluster
from bb_ops.recovery.full import RecoverOptions, Recovery
from bb_ops.repository.catalog import read_catalog

_NOT_MEASURED = 13
_BAD_STATE = 4
DEFAULT_PORT = 5433


@click.command("full")
@click.argument("source", metavar="ID|latest")
@click.option("--into", required=True, type=click.Path(path_type=Path), help="An empty directory, or one to be made.")
@click.option("--region", help="Take the backup from this region's repository.")
@click.option("--start", is_flag=True, help="Leave a server running there, with archiving off.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535), help="Its port.")
@click.option("--dry-run", is_flag=True, help="Show what would be restored.")
@json_option
def full(  # noqa: PLR0913 - one option each
    *, source: str, into: Path, region: str | None, start: bool, port: int, dry_run: bool, as_json: bool
) -> int:
    """Restore the backup SOURCE into an empty directory and check it against PostgreSQL's own manifest.

    A logical or schema backup is loaded into a new cluster there, after every byte of it was verified.

    Exit 0 when every check passed, 13 when PostgreSQL's programs to check it are missing, 5 when it is damaged.
    """
    ops = operations()
    repository = ops.region(region)
    entry = read_catalog(repository).find(source)
    options = RecoverOptions(into, start, port, ops.settings.pg_bindirs, ops.settings.server_user)
    if dry_run:
        plan = plan_cluster(repository, entry, options)
        size = human_bytes(plan.restore_bytes)
        if as_json:
            emit(plan.model_dump(mode="json"))
        else:
            click.echo(f"would restore {plan.backup_id} from {plan.region} ({size}) into {plan.into}")
        return 0
    with progress_bar() as progress:
        done, error = recover_cluster(repository, entry, options, progress)
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
    click.echo(f"{done.backup_id} from {done.region}: {size} in {done.duration_s} s into {done.data_directory}")
    if done.found_bytes:
        click.echo(f"{human_bytes(done.found_bytes)} of it an interrupted run had restored already")
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
