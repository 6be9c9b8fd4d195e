"""``bb-ops recover plan`` and ``recover point-in-time``: what a recovery to a moment would cost, and the recovery."""

from collections.abc import Callable
from pathlib import Path

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import emit, human_bytes, human_duration, json_option, progress_bar
from bb_ops.cli.recover_authority import Authority, authority_options
from bb_ops.cli.recover_full import DEFAULT_PORT, exit_code_of, print_recovery
from bb_ops.cli.recover_replace import Replacement, called, plan_replacement, recover_and_replace, refuse_start
from bb_ops.errors import BbOpsError, UsageError
from bb_ops.recovery.full import RecoverOptions
from bb_ops.recovery.moment.plan import RecoveryPlan
from bb_ops.recovery.moment.planning import plan_recovery, require_job
from bb_ops.recovery.moment.point_in_time import Job, check_job, recover_point
from bb_ops.recovery.moment.recovery_target import TargetKind, parse_target
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.reports import Level

_LEVELS = [Level.L4.name, Level.L5.name]
_SHOWN_OTHERS = 5


def target_options(function: Callable[..., object]) -> Callable[..., object]:
    """Give a command the options that say which moment, and from where."""
    for option in (
        click.option("--backup", metavar="ID", help="Begin with this backup; else the nearest before the target."),
        click.option("--region", help="Take everything from this region; else the one that serves best."),
        click.option("--timeline", type=click.IntRange(1), help="Follow this timeline; else the newest possible."),
        click.option(
            "--inclusive/--exclusive",
            "inclusive",
            default=None,
            help="Whether the commit at that time, the transaction, or the record that starts at that position is in."
            "  [default: a time and a transaction are in, a record is not]",
        ),
    ):
        function = option(function)
    return function


@click.command("plan")
@click.argument("target", default="latest", metavar="[TARGET]")
@target_options
@click.option("--into", type=click.Path(path_type=Path), help="Where the copy would go; the hash binds it.")
@click.option("--replace", type=click.Path(path_type=Path), help="The data directory to be replaced; bound likewise.")
@click.option("--other-system", is_flag=True, help="Also where that holds another system.")
@json_option
def plan(  # noqa: PLR0913 - one option each
    *,
    target: str,
    backup: str | None,
    region: str | None,
    timeline: int | None,
    inclusive: bool | None,
    into: Path | None,
    replace: Path | None,
    other_system: bool,
    as_json: bool,
) -> int:
    """Show how to get to TARGET: the backup, the WAL, the time it takes, what is lost, or why it cannot be.

    TARGET is latest, immediate, a time with its zone ("2026-11-24 03:07:12+00"), lsn:X/Y, xid:N or name:RESTORE-POINT.

    Exit 0 when it is possible, 2 when it is refused, 10 without any backup.
    """
    ops = operations()
    if replace is not None:
        wanted = parse_target(target, inclusive=inclusive, timeline=timeline)
        replacement = Replacement(wanted, backup, region, into, replace, Level.L5, other_system, "")
        found, job = plan_replacement(ops, replacement)
    else:
        found, job = planned(ops, target, backup, region, timeline, inclusive=inclusive, into=into)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        print_plan(found)
    try:
        require_job(found, job)
    except BbOpsError as error:
        click.echo(f"bb-ops: {error}", err=True)  # the one document is the plan itself
        return error.exit_code
    return 0


@click.command("point-in-time")
@click.argument("target")
@target_options
@click.option("--into", type=click.Path(path_type=Path), help="An empty directory, or one to be made.")
@click.option(
    "--replace", type=click.Path(path_type=Path), help="Let the copy take this data directory's place, once confirmed."
)
@click.option("--start", is_flag=True, help="Leave a server running there, with archiving off.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535), help="Its port.")
@click.option("--level", type=click.Choice(_LEVELS), default="L5", show_default=True, help="How high it is proven.")
@authority_options
@click.option("--dry-run", is_flag=True, help="Show the plan.")
@json_option
def point_in_time(  # noqa: PLR0913 - one option each
    *,
    target: str,
    backup: str | None,
    region: str | None,
    timeline: int | None,
    inclusive: bool | None,
    into: Path | None,
    replace: Path | None,
    start: bool,
    port: int,
    level: str,
    yes: bool,
    plan_hash: str | None,
    other_system: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Bring the cluster back as it was at TARGET, in an empty directory beside everything that exists.

    TARGET is latest, immediate, a time with its zone ("2026-11-24 03:07:12+00"), lsn:X/Y, xid:N or name:RESTORE-POINT.
    `bb-ops recover events` lists the moments at which something was dropped, truncated or deleted.

    With --replace PGDATA the proven copy then takes the place of that data directory on this host: the loss is shown,
    the cluster's name must be typed (or --yes --plan HASH given), the server is stopped, its directory kept beside
    until `bb-ops recover release`, the copy started in its place and backed up. Until then nothing of it is touched.

    Killed at any point, the same command goes on. Exit 0 when the copy is proven, 2 when the target or the directory is
    refused, 5 when the backup or its WAL is damaged, 4 when the copy is unsound, 3 when the new cluster runs without a
    backup of its own yet.
    """
    ops = operations()
    if replace is not None:
        refuse_start(start=start)
        wanted = parse_target(target, inclusive=inclusive, timeline=timeline)
        command = called("bb-ops", "recover", "point-in-time", target, "--replace", replace)
        replacement = Replacement(wanted, backup, region, into, replace, Level[level], other_system, command)
        authority = Authority(yes, plan_hash)
        return recover_and_replace(ops, replacement, authority, print_plan, dry_run=dry_run, as_json=as_json)
    if into is None:
        raise UsageError("--into DIR is missing: where is the copy to be made?")
    if yes or other_system:
        raise UsageError("--yes and --other-system mean nothing without --replace: a copy beside replaces nothing")
    options = RecoverOptions(into, start, port, ops.settings.pg_bindirs, ops.settings.server_user, ops.invariants)
    found, job = planned(ops, target, backup, region, timeline, inclusive=inclusive, into=into)
    job = require_job(found, job, plan_hash)
    if dry_run:
        check_job(job, options)
        if as_json:
            emit(found.model_dump(mode="json"))
        else:
            print_plan(found)
        return 0
    with progress_bar() as progress:
        done, error = recover_point(job, options, Level[level], ops.clock, progress)
    if as_json:
        emit(done.model_dump(mode="json"))
    else:
        print_recovery(done)
    if error is not None:
        raise error
    return exit_code_of(done)


def planned(  # noqa: PLR0913 - one option each
    ops: Operations,
    target: str,
    backup: str | None,
    region: str | None,
    timeline: int | None,
    *,
    inclusive: bool | None,
    into: Path | None,
) -> tuple[RecoveryPlan, Job | None]:
    """Plan what the options of ``target_options`` say."""
    wanted = parse_target(target, inclusive=inclusive, timeline=timeline)
    repositories = [ops.region(region)] if region is not None else ops.repositories
    with progress_bar() as progress:
        locate = ops.locate(wanted, progress)
        return plan_recovery(repositories, wanted, ops.clock, into=into, backup_id=backup, locate=locate)


def replace_by_backup(  # noqa: PLR0913 - one option each
    ops: Operations,
    source: str,
    region: str | None,
    into: Path | None,
    path: Path,
    authority: Authority,
    *,
    start: bool,
    other_system: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Let a backup as it is replace a cluster: a recovery to the first moment at which it is consistent.

    Raises:
        UsageError: it is a dump, or of others: another system, or one without a proven way forward.
    """
    refuse_start(start=start)
    ours = ops.find(source, region)
    if ours is None or isinstance(ours.entry.commit, LogicalCommit):
        raise UsageError(
            f"{source} is a dump, or a base backup of others, which cannot replace a data directory with what came "
            "after it: bring it back beside with --into DIR --start"
        )
    command = called("bb-ops", "recover", "full", source, "--replace", path)
    target = parse_target(TargetKind.IMMEDIATE)
    own = [repository.store.url for repository in ops.repositories]
    elsewhere = ours.repository if ours.repository.store.url not in own else None
    backup_id = ours.entry.commit.id
    wanted = Replacement(target, backup_id, region, into, path, Level.L5, other_system, command, elsewhere)
    return recover_and_replace(ops, wanted, authority, print_plan, dry_run=dry_run, as_json=as_json)


def print_plan(plan: RecoveryPlan) -> None:
    """Print a plan for a person."""
    if plan.backup_id is not None:
        at = f"{plan.recovered_to_at:%Y-%m-%d %H:%M:%S} UTC" if plan.recovered_to_at else "an instant not known before"
        click.echo(f"to {plan.target}: shows {at}")
        increments = f" and {len(plan.chain) - 1} increments" if len(plan.chain) > 1 else ""
        click.echo(f"from     {plan.backup_id}{increments} in {plan.region}, {human_bytes(plan.download_bytes)} stored")
        for leg in plan.legs:
            click.echo(f"replay   timeline {leg.timeline} from {leg.from_lsn} to {leg.to_lsn}")
        click.echo(f"WAL      {human_bytes(plan.wal_bytes)} in at most {plan.segments} segments")
        click.echo(f"room     {human_bytes(plan.restore_bytes)}" + (f" in {plan.into}" if plan.into else ""))
        took = human_duration(plan.predicted_s) if plan.predicted_s is not None else "not known"
        click.echo(f"takes    {took} ({plan.prediction})")
        lost = human_duration(plan.predicted_loss_s) if plan.predicted_loss_s is not None else "not known"
        click.echo(f"loses    what was committed in the last {lost}")
        if plan.replaces is not None:
            click.echo(f"replaces {plan.replaces}")
        click.echo(f"plan     {plan.plan_hash}")
    for other in plan.others[:_SHOWN_OTHERS]:
        click.echo(f"not      {other.backup_id or 'region'} in {other.region}: {other.reason}")
