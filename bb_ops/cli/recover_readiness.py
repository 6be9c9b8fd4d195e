"""``bb-ops recover readiness``: if a region died now, what is lost, how long does it take, proven when?"""

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, human_duration, json_option
from bb_ops.findings import Outcome
from bb_ops.recovery.readiness import SERVER, Case, read_readiness

_EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 4, Outcome.NOT_MEASURED: 13}


@click.command("readiness")
@json_option
def readiness(*, as_json: bool) -> int:
    """Say for each region, and for the server, what would follow if it died now; by what the others hold alone.

    Exit 0 when nothing stands against a recovery, 4 when something does, 13 when a region could not be looked at.
    """
    ops = operations()
    found = read_readiness(ops.repositories, ops.clock)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        for case in found.cases:
            _print(case)
        for finding in found.wrong:
            click.echo(f"{finding.outcome.upper():12} {finding.check_id:14} {finding.message}")
            click.echo(f"{'':12} mend it: {finding.remedy}")
    return _EXIT_CODES[found.outcome]


def _print(case: Case) -> None:
    name = "the server" if case.dead == SERVER else f"region {case.dead}"
    click.echo(f"if {name} died now: {case.outcome}; left: {', '.join(case.survivors) or 'nothing'}")
    until = f", all since {case.until_at:%Y-%m-%d %H:%M:%S} UTC" if case.until_at is not None else ""
    click.echo(f"  lost     {_span(case.lost_s)}{until}")
    click.echo(f"  takes    {_span(case.takes_s)}" + (f" ({case.prediction})" if case.prediction else ""))
    proven = f"{case.proven_at:%Y-%m-%d %H:%M} UTC, {case.proven_level}" if case.proven_at is not None else "never"
    click.echo(f"  proven   {proven}")
    if case.drilled_at is not None:
        rto = f", RTO {_span(case.drill_rto_s)}, RPO {_span(case.drill_rpo_s)}"
        click.echo(f"  drilled  {case.drilled_at:%Y-%m-%d %H:%M} UTC, {case.drill_outcome}{rto}")


def _span(seconds: float | None) -> str:
    return human_duration(seconds) if seconds is not None else "not known"
