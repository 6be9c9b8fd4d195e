"""``bb-ops drill``: the disaster-recovery exercise, measured."""

from pathlib import Path

import click

from bb_ops.bootstrap import denial, recorded, survivor
from bb_ops.cli.output import emit, human_duration, json_option, progress_bar, table
from bb_ops.clock import SystemClock
from bb_ops.errors import BbOpsError, UsageError
from bb_ops.repository.drills import DrillHistory, DrillReport, drill_trend, read_drills
from bb_ops.repository.reports import Level
from bb_ops.settings import process_environment


@click.command("drill")
@click.option("--region", help="The region that lives; the other one is declared dead.  [default: the second]")
@click.option(
    "--offline-key",
    type=click.Path(path_type=Path),
    help="The offline key's file.  [default: BB_OPS_OFFLINE_IDENTITY_FILE]",
)
@click.option("--history", is_flag=True, help="List past drills instead.")
@click.option("--declared", hidden=True, help="What the process that recovers is told.")
@json_option
def command(*, region: str | None, offline_key: Path | None, history: bool, declared: str | None, as_json: bool) -> int:
    """Declare a region dead, bring everything back from the other one with the offline key, and measure it.

    A process that is given nothing of the dead region restores into a throw-away directory, replays to the end, and
    climbs the proof ladder; then `age` and `zstd` alone open a part. It is recorded beside the backups, where a
    signing key is set. Nothing that exists is touched.

    Exit 0 when every step passed, 5 or 4 when one failed, 13 when one could not be measured, 10 without another region.
    """
    if declared is not None:
        return _exercise(declared)
    if history:
        return _history(region, as_json=as_json)
    from bb_ops.validation.drill import hold_drill  # noqa: PLC0415 - the history needs none of it

    left = denial(region, offline_key)
    if not as_json:
        click.echo(f"{left.dead} is declared dead; everything is brought back from {left.region}", err=True)
    report, code = hold_drill(left, SystemClock())
    unrecorded = "" if left.signing else "BB_OPS_SIGNING_KEY_FILE is not set, so the drill is recorded nowhere"
    try:
        report = recorded(left, report)
    except BbOpsError as error:  # what was measured is told all the same
        unrecorded, code = f"the drill is recorded nowhere: {error}", code or error.exit_code
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        _print(report)
    for line in (report.reason, unrecorded):
        if line:
            click.echo(f"bb-ops: {line}", err=True)
    return code


def _exercise(declared: str) -> int:
    """Recover, in a process that was given nothing else."""
    from bb_ops.validation.denial import Declaration  # noqa: PLC0415 - as above
    from bb_ops.validation.drill import exit_code_of  # noqa: PLC0415
    from bb_ops.validation.exercise import Surroundings, run_exercise  # noqa: PLC0415

    declaration = Declaration.model_validate_json(declared)
    environment = process_environment()
    ops = survivor(environment, declaration.region)
    if ops.settings.identity_file is None:
        raise UsageError("this is the part of `bb-ops drill` that it starts itself: run it without --declared")
    around = Surroundings(frozenset(environment), ops.settings.identity_file)
    options = ops.restore_test_options(Level.L7)
    with progress_bar() as progress:
        report, error = run_exercise(ops.repository, declaration, around, options, ops.clock, progress)
    emit(report.model_dump(mode="json"))
    return exit_code_of(report, error)


def _history(region: str | None, *, as_json: bool) -> int:
    left = denial(region, None, needs_key=False)
    repository = survivor(left.environment, left.region).repository
    drills = tuple(read_drills(repository))
    found = DrillHistory(region=left.region, drills=drills, trend=drill_trend(drills))
    if as_json:
        emit(found.model_dump(mode="json"))
        return 0
    rows = [
        (
            f"{one.declared_at:%Y-%m-%d %H:%M}",
            one.outcome,
            one.level or "none",
            _span(one.rpo_s),
            _span(one.rto_s),
            one.id,
        )
        for one in drills
    ]
    table(("declared (UTC)", "outcome", "level", "RPO", "RTO", "drill"), rows)
    if found.trend.rto_change_s is not None:
        click.echo(f"RTO {found.trend.rto_change_s:+.1f} s against the median of {found.trend.drills} earlier drills")
    return 0


def _span(seconds: float | None) -> str:
    return human_duration(seconds) if seconds is not None else "not measured"


def _print(report: DrillReport) -> None:
    for step in report.steps:
        at = f"{step.started_at:%H:%M:%S}"
        click.echo(f"{at}  {step.name:12} {step.outcome:13} {step.duration_s:8.2f} s  {step.evidence}")
    until = f", up to {report.recovered_until_at:%Y-%m-%d %H:%M:%S} UTC" if report.recovered_until_at else ""
    click.echo(f"RPO {_span(report.rpo_s)}{until}")
    click.echo(f"RTO {_span(report.rto_s)} to a server that answers; proven after {_span(report.proven_s)}")
    kept = f"recorded as {report.id} in {report.region}" if report.recorded else "recorded nowhere"
    click.echo(f"drill {report.outcome}, proven {report.level or 'nothing'}; {kept}")
