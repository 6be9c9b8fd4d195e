"""``bb-ops backup full`` and ``bb-ops backup combine``."""

import click

from bb_ops.backup.full import plan_full_backup, take_full_backup
from bb_ops.bootstrap import operations
from bb_ops.cli.describe import report
from bb_ops.cli.output import json_option, progress_bar, show
from bb_ops.errors import ServerUnusable
from bb_ops.recovery.combine import combine, plan_combine
from bb_ops.repository.catalog import read_catalog


@click.command("full")
@click.option("--slot", help="Refuse unless this daily slot (YYYY-MM-DD, opens 02:00 UTC) is the open one.")
@click.option("--new-lineage", is_flag=True, help="Accept a new system identifier, as after a major upgrade.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@json_option
def full(*, slot: str | None, new_lineage: bool, dry_run: bool, as_json: bool) -> int:
    """Take a full physical backup now: streamed, compressed, encrypted, signed.

    Safe to kill: until its last step there is no backup, and the same command can be run again.
    """
    ops = operations()
    options = ops.full_backup_options(slot=slot, new_lineage=new_lineage)
    if dry_run:
        plan = plan_full_backup(ops.database, ops.repository, options, ops.clock)
        show(plan.model_dump(mode="json"), as_json=as_json)
        return ServerUnusable.exit_code if plan.refusals else 0
    with progress_bar() as progress:
        commit = take_full_backup(ops.database, ops.repository, options, ops.clock, progress)
    report(commit, as_json=as_json)
    return 0


@click.command("combine")
@click.argument("backup_id", metavar="ID|latest")
@click.option("--dry-run", is_flag=True, help="Show what would be combined.")
@json_option
def combine_(*, backup_id: str, dry_run: bool, as_json: bool) -> int:
    """Make a full backup out of an increment and its chain, without asking the server for a byte."""
    ops = operations()
    entry, options = read_catalog(ops.repository).find(backup_id), ops.combine_options()
    if dry_run:
        show(plan_combine(ops.repository, entry, options).model_dump(mode="json"), as_json=as_json)
        return 0
    with progress_bar() as progress:
        commit = combine(ops.repository, entry, options, ops.clock, progress)
    report(commit, as_json=as_json)
    return 0
