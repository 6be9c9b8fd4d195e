"""``bb-ops validate``: prove that a backup comes back."""

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import emit, json_option, progress_bar
from bb_ops.cli.validate_shapes import validate_every_shape
from bb_ops.errors import BbOpsError
from bb_ops.findings import Outcome
from bb_ops.progress import Progress
from bb_ops.repository.reports import Level, Proof
from bb_ops.validation.foreign_test import ForeignProof, run_foreign_test
from bb_ops.validation.prove import climb, prove
from bb_ops.validation.restore_test import RestoreTestOptions

_NOT_MEASURED = 13
_BAD_STATE = 4
_LEVELS = [level.name for level in Level if level <= Level.L6]


@click.command("validate")
@click.argument("backup", metavar="ID|latest|PATH|URL", required=False)
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

    A path or an s3:// address names a repository, one backup in it, or what others made; see `recover full`. Of those
    nothing is recorded, unless the repository is one of the two that are set.

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
    options = ops.restore_test_options(wanted)
    with progress_bar() as progress:
        proof, error = _climb(ops, backup, region, options, progress)
    if as_json:
        emit(proof.model_dump(mode="json"))
    else:
        _print(proof)
    if proof.outcome == Outcome.PASS:
        return 0
    click.echo(f"bb-ops: {_reason(proof, error)}", err=True)
    if error is not None:
        return error.exit_code
    return _NOT_MEASURED if proof.outcome == Outcome.NOT_MEASURED else _BAD_STATE


def _climb(
    ops: Operations, backup: str, region: str | None, options: RestoreTestOptions, progress: Progress
) -> tuple[Proof | ForeignProof, BbOpsError | None]:
    ours = ops.find(backup, region)
    if ours is None:
        foreign = run_foreign_test(ops.place(backup), options, ops.clock, progress)
        return foreign.proof, foreign.error
    measure = prove if ours.configured else climb
    result = measure(ours.repository, ours.entry, options, ops.clock, progress)
    return result.proof, result.error


def _print(proof: Proof | ForeignProof) -> None:
    name = f"{proof.backup_id} in {proof.region}" if isinstance(proof, Proof) else f"{proof.source} ({proof.form})"
    click.echo(f"{name}: proven {proof.level or 'nothing'}, {proof.outcome}, in {proof.duration_s} s")
    for step in proof.steps:
        click.echo(f"  {step.level} {step.outcome:14} {step.duration_s:8.2f} s  {step.evidence}")
    for one in proof.invariants if isinstance(proof, Proof) else ():
        said = f"{one.severity} invariant {one.name}: {one.evidence}"
        click.echo(f"     {one.outcome:14} {one.duration_s:8.2f} s  {said}")


def _reason(proof: Proof | ForeignProof, error: BbOpsError | None) -> str:
    if error is not None:
        return str(error)
    step = next(step for step in proof.steps if step.outcome not in {Outcome.PASS, Outcome.NOT_APPLICABLE})
    return f"{step.level} {step.outcome}: {step.evidence}"
