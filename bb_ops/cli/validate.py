"""``bb-ops validate``: prove that a backup comes back."""

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, json_option, progress_bar
from bb_ops.cli.validate_shapes import validate_every_shape
from bb_ops.errors import BbOpsError
from bb_ops.findings import Outcome
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.reports import Level, Proof
from bb_ops.validation.prove import prove

_NOT_MEASURED = 13
_BAD_STATE = 4
_LEVELS = [level.name for level in Level if level <= Level.L6]


@click.command("validate")
@click.argument("backup", metavar="ID|latest", required=False)
@click.option(
    "--every-shape", is_flag=True, help="Prove oldest, newest, deepest increment, after a switch, other region."
)
@click.option("--region", help="Test the copy in this region.")
@click.option("--integrity-only", is_flag=True, help="Hash, decrypt and decompress everything; restore nothing (L1).")
@click.option("--level", type=click.Choice(_LEVELS), help="Climb no higher than this.  [default: L6]")
@json_option
def command(  # noqa: PLR0913 - one option each
    *, backup: str | None, every_shape: bool, region: str | None, integrity_only: bool, level: str | None, as_json: bool
) -> int:
    """Climb the proof ladder with a backup, in a throw-away server without network; record the signed proof.

    Exit 0 when every level up to the wanted one passed, 5 when data differ, 12 when keys do not open it, 4 when the
    copy does not start or its structure is unsound, 13 when a level could not be measured.
    """
    if integrity_only and level:
        raise click.UsageError("--integrity-only is --level L1: give one of the two")
    wanted = Level.L1 if integrity_only else Level[level or "L6"]
    if every_shape and (backup or region):
        raise click.UsageError("--every-shape chooses the backups and regions itself: give neither")
    if every_shape:
        return validate_every_shape(wanted, as_json=as_json)
    if backup is None:
        raise click.UsageError("say which backup: an ID, latest, or --every-shape")
    ops = operations()
    repository = ops.region(region)
    entry = read_catalog(repository).find(backup)
    with progress_bar() as progress:
        result = prove(repository, entry, ops.restore_test_options(wanted), ops.clock, progress)
    proof = result.proof
    if as_json:
        emit(proof.model_dump(mode="json"))
    else:
        _print(proof)
    if proof.outcome == Outcome.PASS:
        return 0
    click.echo(f"bb-ops: {_reason(proof, result.error)}", err=True)
    if result.error is not None:
        return result.error.exit_code
    return _NOT_MEASURED if proof.outcome == Outcome.NOT_MEASURED else _BAD_STATE


def _print(proof: Proof) -> None:
    reached = f"proven {proof.level or 'nothing'}, {proof.outcome}, in {proof.duration_s} s"
    click.echo(f"{proof.backup_id} in {proof.region}: {reached}")
    for step in proof.steps:
        click.echo(f"  {step.level} {step.outcome:14} {step.duration_s:8.2f} s  {step.evidence}")
    for one in proof.invariants:
        said = f"{one.severity} invariant {one.name}: {one.evidence}"
        click.echo(f"     {one.outcome:14} {one.duration_s:8.2f} s  {said}")


def _reason(proof: Proof, error: BbOpsError | None) -> str:
    if error is not None:
        return str(error)
    step = next(step for step in proof.steps if step.outcome not in {Outcome.PASS, Outcome.NOT_APPLICABLE})
    return f"{step.level} {step.outcome}: {step.evidence}"
