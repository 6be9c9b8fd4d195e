"""``bb-ops recover switch`` and ``recover release``, and what every command that replaces a cluster shares."""

import sys
from pathlib import Path

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import emit, json_option
from bb_ops.cli.recover_authority import Authority, authority_options, back_up, newest
from bb_ops.cli.recover_serve import serve_copy
from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError, PartlyDone, TargetRefused, UsageError
from bb_ops.postgres.data_directory import port_of
from bb_ops.recovery.full import Recovery
from bb_ops.recovery.switch.decision import (
    Switched,
    SwitchFacts,
    SwitchPlan,
    begin,
    pending_switch,
    plan_switch,
    read_switch_facts,
    refuse,
    switched,
)
from bb_ops.recovery.switch.exchange import carry_out
from bb_ops.recovery.switch.journal import Journal, Step, journal_of_old
from bb_ops.recovery.switch.release import refusals, release
from bb_ops.repository.catalog import read_catalog


@click.command("switch")
@click.argument("copy", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--replace", type=click.Path(path_type=Path), help="The live data directory to be replaced.")
@click.option("--serve", is_flag=True, help="Replace nothing: open the copy as the new primary where it lies.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where --serve serves it.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="The addresses that --serve listens on.")
@authority_options
@click.option("--dry-run", is_flag=True, help="Show what would be done, and the plan's hash.")
@json_option
def switch(  # noqa: PLR0913 - one option each
    *,
    copy: Path,
    replace: Path | None,
    serve: bool,
    port: int | None,
    listen: str,
    yes: bool,
    plan_hash: str | None,
    other_system: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Let the proven copy in DIR take the place of a live data directory on this host, and back it up at once.

    With --serve it becomes the new primary where it lies, as on another host, with its own configuration.

    Only a copy that `bb-ops recover point-in-time` made and proved there is taken. The live server is stopped, its
    directory kept beside under another name until `bb-ops recover release`, and the copy started as it was. Killed at
    any point, the same command goes on; where the copy does not start, everything is put back.

    Exit 0 when the new cluster runs and is backed up, 3 when it runs but the backup is missing, 2 when it is refused.
    """
    if serve == (replace is not None) or serve != (port is not None):
        raise UsageError("give either --replace PGDATA, or --serve and --port N")
    ops, authority = operations(), Authority(yes, plan_hash)
    where = f"--serve --port {port}" if replace is None else f"--replace {replace}"
    command = f"bb-ops recover switch {copy} {where}"
    if replace is None or port is not None:
        if not dry_run:
            authority.require(command)
        return serve_copy(ops, copy, port or 0, listen, authority, dry_run=dry_run, as_json=as_json)
    if not dry_run:
        authority.require(command)
        pending = pending_switch(replace, copy, plan_hash)
        if pending is not None:
            return finish(ops, pending, authority, as_json=as_json)
    facts = read_switch_facts(copy, replace, ops.settings.pg_bindirs, newest(ops))
    return switch_now(ops, facts, authority, None, other_system=other_system, dry_run=dry_run, as_json=as_json)


def switch_now(  # noqa: PLR0913 - one fact each
    ops: Operations,
    facts: SwitchFacts,
    authority: Authority,
    done: Recovery | None,
    *,
    plan_hash: str | None = None,
    other_system: bool,
    dry_run: bool = False,
    as_json: bool,
) -> int:
    """Show what a switch would do, let it be confirmed, do it, and back up what runs then."""
    plan = plan_switch(facts, other_system=other_system, plan_hash=plan_hash)
    if dry_run and as_json:
        emit(plan.model_dump(mode="json"))  # the one document, with its refusals
        return TargetRefused.exit_code if plan.refusals else 0
    if not as_json:
        print_switch(plan)
    refuse(plan.refusals)
    if dry_run:
        return 0
    authority.match(plan.plan_hash)
    authority.confirm(plan.cluster, f"replace {plan.replace}")
    facts = read_switch_facts(plan.copy_path, plan.replace, ops.settings.pg_bindirs)  # a person may have taken hours
    journal = begin(facts, plan_switch(facts, other_system=other_system, plan_hash=plan_hash))
    authority.match(journal.plan_hash)
    return finish(ops, journal, authority, done, as_json=as_json)


def finish(
    ops: Operations, journal: Journal, authority: Authority, done: Recovery | None = None, *, as_json: bool
) -> int:
    """Do all that is left of a switch that was confirmed."""
    watch = Stopwatch()
    if journal.steps and not journal.did(Step.BACKED_UP):
        authority.match(journal.plan_hash)
        authority.confirm(journal.proven.cluster, f"go on replacing {journal.replace}")
    journal = carry_out(journal, ops.clock, ops.settings.pg_bindirs)
    missing = None
    if not journal.did(Step.BACKED_UP):
        try:
            backup_id = back_up(ops, ops.database, journal.proven, journal.replace)
            journal = journal.model_copy(update={"backup_id": backup_id})
            journal = journal.with_step(Step.BACKED_UP, backup_id, ops.clock)
        except BbOpsError as error:
            missing = error
    said = switched(journal, done, port_of(journal.replace), watch.elapsed_s)
    if as_json:
        emit(said.model_dump(mode="json"))
    else:
        print_switched(said)
    if missing is not None:
        click.echo(
            f"bb-ops: the switch is done, but there is no backup of the new timeline: {missing}: repeat the same "
            "command, or run `bb-ops backup full`",
            err=True,
        )
        return PartlyDone.exit_code
    return 0


def print_switch(plan: SwitchPlan) -> None:
    """Print for a person what a switch will do."""
    lost = "an unknown number of" if plan.lost_transactions is None else f"about {plan.lost_transactions}"
    running = "is running and will be stopped" if plan.live_running else "is not running"
    click.echo(f"replaces {plan.replace}, whose server {running}")
    click.echo(f"by       {plan.copy_path}, proven {plan.level}: {plan.target} from {plan.backup_id}")
    click.echo(f"shows    {plan.copy_at:%Y-%m-%d %H:%M:%S} UTC; the live server is at {plan.live_at:%Y-%m-%d %H:%M:%S}")
    click.echo(f"loses    {lost} transactions since then; they stay in the old data directory")
    click.echo(f"keeps    the old data directory as {plan.old}")
    for note in plan.notes:
        click.echo(f"note     {note}")
    click.echo(f"plan     {plan.plan_hash}")


def print_switched(done: Switched) -> None:
    """Print for a person what a switch did."""
    click.echo(f"{done.data_directory} shows {done.recovered_to_at:%Y-%m-%d %H:%M:%S} UTC on timeline {done.timeline}")
    for step in done.steps:
        click.echo(f"  {step.at:%H:%M:%S} {step.step}: {step.evidence}")
    click.echo(
        "a running `bb-ops wal stream` follows by itself; elsewhere start it again; `bb-ops sync` copies the backup"
    )
    click.echo(f"the old data stays until `bb-ops recover release {done.old_directory}`")


@click.command("release")
@click.argument("old", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Remove it without asking.")
@json_option
def release_(*, old: Path, yes: bool, as_json: bool) -> int:
    """Remove the old data directory DIR (PGDATA.bb_ops-old-…) that a switch has kept.

    Only what a switch's journal names is ever removed, never a mount point, never where a server runs, and not before
    the new timeline is backed up. Killed at any point, the same command goes on.
    """
    ops = operations()
    if not yes and not sys.stdin.isatty():
        raise UsageError("there is no terminal to confirm on: give --yes")
    journal = journal_of_old(Path(old).absolute())
    refuse(refusals(journal, backed_up=journal.did(Step.BACKED_UP) or _is_backed_up(ops, journal)))
    Authority(yes, None).confirm(journal.proven.cluster, f"remove {journal.old} for ever")
    done = release(journal, ops.clock)
    if as_json:
        emit(done.model_dump(mode="json"))
    else:
        click.echo(f"{done.old} was removed; what was done is kept in {done.journal}")
        for place in done.left:
            click.echo(f"a tablespace of the old cluster is left in {place}: remove it yourself")
    return 0


def _is_backed_up(ops: Operations, journal: Journal) -> bool:
    proven = journal.proven
    return any(
        entry.physical.timeline >= proven.timeline and not entry.problems
        for entry in read_catalog(ops.repository, proven.system_id).physical
    )
