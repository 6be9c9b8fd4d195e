"""``bb-ops validate --every-shape``: prove every shape of chain that exists, not only the latest backup."""

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, progress_bar
from bb_ops.findings import Outcome
from bb_ops.repository.reports import Level
from bb_ops.validation.shapes import ShapesReport, prove_shapes

_NOT_MEASURED = 13
_BAD_STATE = 4


def validate_every_shape(level: Level, *, as_json: bool) -> int:
    """Prove, print, and return the exit code: that of the first failure, else 13 where anything was not measured."""
    ops = operations()
    with progress_bar() as progress:
        report, error = prove_shapes(ops.repositories, ops.restore_test_options(level), ops.clock, progress)
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        _print(report)
    if report.outcome == Outcome.PASS:
        return 0
    click.echo(f"bb-ops: {error or 'not every shape could be proven: see above'}", err=True)
    if error is not None:
        return error.exit_code
    return _NOT_MEASURED if report.outcome == Outcome.NOT_MEASURED else _BAD_STATE


def _print(report: ShapesReport) -> None:
    for one in report.proofs:
        proof, shapes = one.proof, ", ".join(one.shapes)
        reached = f"proven {proof.level or 'nothing'}, {proof.outcome}, in {proof.duration_s} s"
        click.echo(f"{shapes}: {proof.backup_id} in {proof.region}: {reached}")
        for step in proof.steps:
            if step.outcome in {Outcome.FAIL, Outcome.NOT_MEASURED}:
                click.echo(f"  {step.level} {step.outcome:14} {step.duration_s:8.2f} s  {step.evidence}")
    for absent in report.absent:
        click.echo(f"{absent.shape}: not there: {absent.reason}")
    for line in report.damaged:
        click.echo(f"damaged: {line}")
