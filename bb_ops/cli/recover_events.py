"""``bb-ops recover events``: find the moment before which to stop."""

from datetime import UTC, datetime

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar
from bb_ops.errors import UsageError
from bb_ops.recovery.events.finder import Kind
from bb_ops.recovery.events.search import LOSSES, Event, EventList, EventQuery, EventRelation, find_events
from bb_ops.repository.catalog import read_catalog

_NOT_MEASURED = 13
DEFAULT_ROWS = 1000


@click.command("events")
@click.option("--since", metavar="TIME", help="From this instant on, with its zone. [default: the last 24 hours]")
@click.option("--until", metavar="TIME", help="Up to this instant. [default: all that is archived]")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([one.value for one in Kind]),
    help="Only these; may be repeated.",
)
@click.option("--rows", default=DEFAULT_ROWS, show_default=True, type=click.IntRange(1), help="Least deleted rows.")
@click.option("--database", metavar="NAME", help="Only of this database, and of those whose name is not known.")
@click.option("--limit", type=click.IntRange(1), help="Only the newest of them.")
@click.option("--region", help="Read this region's repository.")
@json_option
def events(  # noqa: PLR0913 - one option each
    *,
    since: str | None,
    until: str | None,
    kinds: tuple[str, ...],
    rows: int,
    database: str | None,
    limit: int | None,
    region: str | None,
    as_json: bool,
) -> int:
    """List when tables were dropped or truncated, databases dropped and many rows deleted, by the archived WAL.

    Each with the command that restores to just before it. Rewrites (VACUUM FULL and the like) lose nothing and are
    listed only with --kind rewrite.

    Exit 0 when all WAL of that time was read, 13 when some was not: then the list says which.
    """
    ops = operations()
    repository = ops.region(region)
    query = EventQuery(
        since=_instant(since),
        until=_instant(until),
        kinds=frozenset(Kind(one) for one in kinds) or LOSSES,
        rows=rows,
        database=database,
        limit=limit,
        server=ops.settings.database,
        pg_bindirs=ops.settings.pg_bindirs,
        scratch=ops.settings.scratch_directory,
    )
    catalog = read_catalog(repository)
    with progress_bar() as progress:
        found = find_events(repository, catalog, query, progress)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        _show(found)
    return _NOT_MEASURED if found.not_looked_at else 0


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.strip().removesuffix(" UTC") + ("+00:00" if text.endswith(" UTC") else ""))
    except ValueError as error:
        raise UsageError(f"{text!r} is no instant: write it as 2026-11-24T22:39:17Z") from error
    if found.tzinfo is None:
        raise UsageError(f"{text!r} has no zone: end it with Z for UTC, or with an offset such as +01:00")
    return found.astimezone(UTC)


def _show(found: EventList) -> None:
    for one in found.events:
        _show_event(one)
    for reason in found.not_looked_at:
        click.echo(f"NOT LOOKED AT {reason}")
    since = f"{found.since:%Y-%m-%d %H:%M:%S} UTC" if found.since is not None else "the archive's beginning"
    left_out = f", {found.left_out} older ones left out" if found.left_out else ""
    click.echo(
        f"{len(found.events)} events since {since}{left_out}; read {human_bytes(found.wal_bytes)} of WAL, "
        f"{found.from_lsn} to {found.to_lsn} on timeline {found.timeline}, in {found.duration_s} s"
    )


def _show_event(one: Event) -> None:
    what = ", ".join(_name(relation) for relation in one.relations)
    click.echo(f"{one.at:%Y-%m-%d %H:%M:%S.%f} UTC  {one.kind:13}  {what}")
    if one.note is not None:
        click.echo(f"    not certain: {one.note}")
    click.echo(f"    xid {one.xid}, commit record {one.lsn} to {one.end_lsn}, timeline {one.timeline}")
    other = "" if one.just_before == one.just_before_lsn else f"   (or '{one.just_before_lsn}')"
    click.echo(f"    just before it: {one.command}{other}")


def _name(relation: EventRelation) -> str:
    rows = f" ({relation.rows} rows)" if relation.rows is not None else ""
    if relation.table is not None:
        return f"{relation.database}/{relation.table}{rows}"
    if relation.file is None or "/" not in relation.file:
        return f"database {relation.database or f'{relation.file} (name not known)'}"
    database = f" in database {relation.database}" if relation.database is not None else ""
    return f"{relation.file}{database} (name not known){rows}"
