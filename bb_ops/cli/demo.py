"""``bb-ops demo``: the embedded world. Everything it shows is labelled as a demonstration."""

import sys
from pathlib import Path

import click

import bb_ops
from bb_ops import process
from bb_ops.cli.output import emit, human_bytes, json_option
from bb_ops.demo import tour, world
from bb_ops.demo.data import SCALES
from bb_ops.repository.catalog import CatalogEntry, read_catalog
from bb_ops.settings import environment_with, read_settings

_FINDINGS = 4
_TABLE_INDENT = "  "


def _default_directory() -> Path:
    return world.choose_directory(Path(bb_ops.__file__ or ".").resolve().parent.parent)


_directory_option = click.option(
    "--directory", type=click.Path(path_type=Path), help="The demo's own folder.  [default: .demo in the checkout]"
)


@click.group("demo", invoke_without_command=True)
@click.option("--size", type=click.Choice(list(SCALES)), default="small", show_default=True, help="How much data.")
@click.option("--rate", default=5.0, show_default=True, help="Bookings that arrive every second.")
@_directory_option
@json_option
@click.pass_context
def command(context: click.Context, *, size: str, rate: float, directory: Path | None, as_json: bool) -> int | None:
    """Start the embedded world and Dagster, back it up, copy it, prove both copies, and say where to look.

    A real PostgreSQL, two object stores that stand for two regions, and a booking application that writes all the
    time: for trying only, in one folder. It keeps running until `bb-ops demo stop`.
    """
    if context.invoked_subcommand is not None:
        return None
    where = directory or _default_directory()
    done = tour.take(where, size=size, rate_per_s=rate, say=_say, tick=lambda _status: None)
    entries, increment = _measured(done)
    if as_json:
        emit(done.model_dump(mode="json"))
    else:
        _print(done, entries, increment)
    return 0 if all(check.passed for check in done.checks) else _FINDINGS


@command.command("stop")
@_directory_option
def stop(*, directory: Path | None) -> None:
    """Stop everything that the demo started; its data stay, and `bb-ops demo` starts it again."""
    world.down(directory or _default_directory(), _say)


@command.command("status")
@_directory_option
@json_option
def status(*, directory: Path | None, as_json: bool) -> int:
    """Ask every server of the demo how it is; exit 4 where one does not answer."""
    shown = world.status(directory or _default_directory())
    if as_json:
        emit(
            {
                "schema_id": "bb-ops/demo-status/1",
                "label": "demo",
                "healthy": shown.healthy,
                "components": [component.model_dump(mode="json") for component in shown.components],
            }
        )
    else:
        for component in shown.components:
            state = "answers" if component.answers else "DOES NOT ANSWER"
            click.echo(f"{component.name:20} port {component.port:<6} pid {component.pid or '-':<8} {state}")
    return 0 if shown.healthy else _FINDINGS


@command.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_directory_option
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def run(*, directory: Path | None, words: tuple[str, ...]) -> None:
    """Run a bb-ops command on the demo, for instance: bb-ops demo run backup list."""
    settings = (directory or _default_directory()) / "demo.env"
    if not settings.is_file():
        raise click.UsageError(f"there is no demo world in {settings.parent}: start one with bb-ops demo")
    process.replace([sys.executable, "-m", "bb_ops.cli.main", *words], environment_with(settings))


def _say(line: str) -> None:
    click.echo(f"demo: {line}", err=True)


def _measured(done: tour.Tour) -> tuple[list[tuple[str, CatalogEntry]], CatalogEntry]:
    """Read what exists and what is proven from the repositories, not from anybody's word: the full, and the newest."""
    from bb_ops.bootstrap import operations  # noqa: PLC0415 - the demo's help needs none of it

    ops = operations(read_settings(environment_with(done.settings_file)))
    catalogs = [(repository.region, read_catalog(repository)) for repository in ops.repositories]
    fulls = [(region, catalog.find_slot(done.partition)) for region, catalog in catalogs]
    return fulls, catalogs[0][1].find("latest")


def _print(done: tour.Tour, entries: list[tuple[str, CatalogEntry]], increment: CatalogEntry) -> None:
    commit = entries[0][1].commit
    rate = human_bytes(commit.size_bytes / commit.duration_s)
    click.echo("\nDEMO (nothing of this is production)")
    click.echo(f"{_TABLE_INDENT}slot {done.partition}, hour {done.hour}, materialized: {', '.join(done.materialized)}")
    click.echo(f"{_TABLE_INDENT}backup {commit.id}")
    click.echo(
        f"{_TABLE_INDENT}{human_bytes(commit.size_bytes)} in {commit.duration_s} s ({rate}/s), stored as "
        f"{human_bytes(commit.stored_bytes)}, encryption {commit.encryption}"
    )
    for region, entry in entries:
        level = entry.proven_level
        proof = entry.proofs[-1]
        click.echo(
            f"{_TABLE_INDENT}{region}: proven {level.name if level is not None else 'NOT MEASURED'}, restored and "
            f"answering in {proof.restore_s} s, {proof.rows_compared} rows of {proof.tables_compared} tables compared"
        )
    newest = increment.physical
    click.echo(
        f"{_TABLE_INDENT}{newest.kind} {newest.id} on {newest.parent_id}: {human_bytes(newest.size_bytes)} in "
        f"{newest.duration_s} s, stored as {human_bytes(newest.stored_bytes)}"
    )
    for check in done.checks:
        mark = "passed" if check.passed else "NOT PASSED"
        click.echo(f"{_TABLE_INDENT}check {check.asset}.{check.check}: {mark}: {check.description}")
    click.echo(f"\n{_TABLE_INDENT}Dagster UI   {done.ui_url}")
    click.echo(f"{_TABLE_INDENT}lineage      {done.ui_url}/assets/full_backup?view=lineage&lineageScope=downstream")
    click.echo(f"{_TABLE_INDENT}booking API  {done.api_url}/health")
    click.echo(f"{_TABLE_INDENT}commands     .venv/bin/bb-ops demo run backup list")
    click.echo(f"{_TABLE_INDENT}stop it      make demo-stop")
