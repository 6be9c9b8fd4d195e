"""``bb-ops backup logical`` and ``bb-ops backup schema``: dumps made by PostgreSQL's own programs."""

from collections.abc import Callable

import click

from bb_ops.backup.logical import DumpOptions, DumpPlan, plan_logical_backup, take_logical_backup
from bb_ops.backup.schema import plan_schema_backup, take_schema_backup
from bb_ops.bootstrap import operations
from bb_ops.cli.describe import report
from bb_ops.cli.output import json_option, progress_bar, show
from bb_ops.clock import Clock
from bb_ops.dsn import Dsn
from bb_ops.errors import ServerUnusable
from bb_ops.progress import Progress
from bb_ops.repository.manifest import LogicalCommit
from bb_ops.repository.repository import Repository

_database_option = click.option(
    "--database", "databases", multiple=True, help="Only this one; may be given again.  [default: every database]"
)
_lineage_option = click.option("--new-lineage", is_flag=True, help="Accept a new system identifier.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done.")


@click.command("logical")
@_database_option
@_lineage_option
@_dry_run_option
@json_option
def logical(*, databases: tuple[str, ...], new_lineage: bool, dry_run: bool, as_json: bool) -> int:
    """Dump every database with its rows, and the roles without passwords, with PostgreSQL's own programs.

    For restores of single databases, elsewhere, or into a newer major version. It cannot be carried forward by WAL: it
    shows one instant and no other.
    """
    return _dump(plan_logical_backup, take_logical_backup, databases, new_lineage, dry_run, as_json=as_json)


@click.command("schema")
@_database_option
@_lineage_option
@_dry_run_option
@json_option
def schema(*, databases: tuple[str, ...], new_lineage: bool, dry_run: bool, as_json: bool) -> int:
    """Dump the definitions of every database as plain scripts, and the roles without passwords; no rows."""
    return _dump(plan_schema_backup, take_schema_backup, databases, new_lineage, dry_run, as_json=as_json)


def _dump(  # noqa: PLR0913 - one fact each
    plan: Callable[[Dsn, Repository, DumpOptions, Clock], DumpPlan],
    take: Callable[[Dsn, Repository, DumpOptions, Clock, Progress], LogicalCommit],
    databases: tuple[str, ...],
    new_lineage: bool,  # noqa: FBT001 - passed on as it came
    dry_run: bool,  # noqa: FBT001 - likewise
    *,
    as_json: bool,
) -> int:
    ops = operations()
    options = ops.dump_options(databases=databases, new_lineage=new_lineage)
    if dry_run:
        planned = plan(ops.database, ops.repository, options, ops.clock)
        show(planned.model_dump(mode="json"), as_json=as_json)
        return ServerUnusable.exit_code if planned.refusals else 0
    with progress_bar() as progress:
        commit = take(ops.database, ops.repository, options, ops.clock, progress)
    report(commit, as_json=as_json)
    return 0
