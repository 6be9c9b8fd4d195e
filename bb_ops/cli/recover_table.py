"""``bb-ops recover table``: one table, or rows of it, as of a moment."""

from pathlib import Path

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar
from bb_ops.cli.recover_point import planned, target_options
from bb_ops.errors import SettingsError
from bb_ops.findings import Outcome
from bb_ops.postgres.table import parse_table_name
from bb_ops.recovery.moment.planning import require_job
from bb_ops.recovery.table.diff import TableDiff
from bb_ops.recovery.table.recover import TableOptions, TableRecovery, check_options, recover_table

_PARTLY = 3


@click.command("table")
@click.argument("name")
@click.option("--at", "target", required=True, metavar="TARGET", help="The moment; see `bb-ops recover point-in-time`.")
@target_options
@click.option("--database", metavar="DB", help="The database that holds it.  [default: that of DATABASE_URL]")
@click.option("--where", metavar="SQL", help="Bring back only the rows for which this holds; times are read in UTC.")
@click.option("--dump", type=click.Path(path_type=Path), help="Write a dump for pg_restore into this new file.")
@click.option(
    "--into-schema",
    "schema",
    metavar="SCHEMA",
    help="Make the table in this schema of the live server; the name as it is, not quoted.",
)
@click.option("--diff/--no-diff", default=True, show_default=True, help="Compare with the live table.")
@json_option
def table(  # noqa: PLR0913 - one option each
    *,
    name: str,
    target: str,
    backup: str | None,
    region: str | None,
    timeline: int | None,
    inclusive: bool | None,
    database: str | None,
    where: str | None,
    dump: Path | None,
    schema: str | None,
    diff: bool,
    as_json: bool,
) -> int:
    """Bring the table NAME back as it was at TARGET, beside the live one, which is only read and compared with.

    NAME is table or schema.table, quoted as in SQL. With --into-schema it comes with its columns, defaults, checks,
    keys, indexes and comments, in one transaction and proven before it commits; foreign keys, triggers, policies,
    privileges and sequences are left out. `bb-ops recover events` lists the moments at which something was dropped.

    Exit 0 when it is back, 2 when it is refused, 3 when it is back and could not be compared, 5 when what was loaded
    differs from the copy or the backup is damaged; nothing is kept then.
    """
    ops = operations()
    settings = ops.settings
    options = TableOptions(
        name=parse_table_name(name),
        database=database or _default_database(ops),
        live=settings.database,
        where=where,
        dump=dump,
        schema=schema,
        diff=diff,
        pg_bindirs=settings.pg_bindirs,
        server_user=settings.server_user,
        scratch_directory=settings.scratch_directory,
    )
    check_options(options)
    found, job = planned(ops, target, backup, region, timeline, inclusive=inclusive, into=None)
    with progress_bar() as progress:
        done = recover_table(require_job(found, job), options, progress)
    if as_json:
        emit(done.model_dump(mode="json"))
    else:
        _print(done)
    if done.diff is None or done.diff.outcome != Outcome.NOT_MEASURED:
        return 0
    click.echo(f"bb-ops: the table is back, and could not be compared with the live one: {done.diff.reason}", err=True)
    return _PARTLY


def _default_database(ops: Operations) -> str:
    dsn = ops.settings.database
    if dsn is None:
        raise SettingsError("DATABASE_URL is not set: it names the live server; a dump takes --database with --no-diff")
    found = dsn.parameters.get("dbname") or dsn.parameters.get("user")
    if found is None:
        raise SettingsError("DATABASE_URL names no database: give --database")
    return found


def _print(done: TableRecovery) -> None:
    at = f"{done.recovered_to_at:%Y-%m-%d %H:%M:%S} UTC"
    click.echo(f"{done.table} of {done.database} as of {at}: {done.rows} rows in {done.duration_s} s")
    click.echo(f"from      {done.backup_id} in {done.region}, proven {done.proof}")
    if done.into_schema is not None:
        click.echo(f"into      schema {done.into_schema}: number and digest of the rows are those of the copy")
        click.echo(f"left out  {', '.join(done.left_out)}")
    if done.dump is not None:
        click.echo(f"into      {done.dump} ({human_bytes(done.dump_bytes or 0)}): read it with pg_restore")
    if done.needs:
        click.echo(f"needs     the types {', '.join(done.needs)}, which the dump does not hold")
    if done.diff is not None:
        _print_diff(done.diff)


def _print_diff(diff: TableDiff) -> None:
    if diff.outcome != Outcome.PASS:
        click.echo(f"diff      {diff.outcome}: {diff.reason}")
        return
    by = f"by {', '.join(diff.key)}" if diff.key else "without a key"
    click.echo(f"diff      {by}: {diff.rows_then} rows then, {diff.rows_now} now")
    for word, count, keys in (
        ("only then", diff.only_then, diff.only_then_keys),
        ("only now", diff.only_now, diff.only_now_keys),
        ("changed", diff.changed, diff.changed_keys),
    ):
        shown = f": {', '.join(keys)}{', …' if len(keys) < (count or 0) else ''}" if keys else ""
        click.echo(f"  {word:9} {count}{shown}")
    for one in diff.columns:
        click.echo(f"  column    {one}")
