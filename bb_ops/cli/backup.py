"""``bb-ops backup``: take backups and see what exists."""

from typing import Any

import click

from bb_ops.backup.full import plan_full_backup, take_full_backup
from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.describe import describe, report
from bb_ops.cli.dumps import logical, schema
from bb_ops.cli.incremental import incremental
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar, table
from bb_ops.errors import RepositoryMissing, ServerUnusable
from bb_ops.recovery.combine import combine, plan_combine
from bb_ops.repository.catalog import Catalog, CatalogEntry, read_catalog
from bb_ops.repository.ids import daily_slot
from bb_ops.repository.overview import read_overview
from bb_ops.repository.status import RegionStatus, region_status

_FINDINGS = 4
_DAMAGED = 5


@click.group("backup")
def command() -> None:
    """Take backups and see what exists."""


for added in (incremental, logical, schema):
    command.add_command(added)


@command.command("full")
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
        document = plan.model_dump(mode="json")
        emit(document) if as_json else table(
            ("fact", "value"), [(name, str(value)) for name, value in document.items()]
        )
        return ServerUnusable.exit_code if plan.refusals else 0
    with progress_bar() as progress:
        commit = take_full_backup(ops.database, ops.repository, options, ops.clock, progress)
    report(commit, as_json=as_json)
    return 0


@command.command("combine")
@click.argument("backup_id", metavar="ID|latest")
@click.option("--dry-run", is_flag=True, help="Show what would be combined.")
@json_option
def combine_(*, backup_id: str, dry_run: bool, as_json: bool) -> int:
    """Make a full backup out of an increment and its chain, without asking the server for a byte."""
    ops = operations()
    entry, options = read_catalog(ops.repository).find(backup_id), ops.combine_options()
    if dry_run:
        document = plan_combine(ops.repository, entry, options).model_dump(mode="json")
        emit(document) if as_json else table(
            ("fact", "value"), [(name, str(value)) for name, value in document.items()]
        )
        return 0
    with progress_bar() as progress:
        commit = combine(ops.repository, entry, options, ops.clock, progress)
    report(commit, as_json=as_json)
    return 0


@command.command("list")
@json_option
def list_(*, as_json: bool) -> int:
    """List the backups of every region, with what is proven of each."""
    catalogs = _catalogs(operations())
    rows: dict[str, dict[str, Any]] = {}
    for catalog in catalogs:
        for entry in catalog.entries:
            row = rows.setdefault(entry.commit.id, {**describe(entry.commit), "proofs": {}})
            row["proofs"][catalog.region] = _level(entry)
    backups = sorted(rows.values(), key=lambda row: str(row["started_at"]))
    damaged = [str(error) for catalog in catalogs for error in catalog.damaged]
    damaged += [problem for catalog in catalogs for entry in catalog.entries for problem in entry.problems]
    if as_json:
        emit({"schema_id": "bb-ops/backup-list/1", "backups": backups, "damaged": damaged})
    else:
        _print_list(backups, [catalog.region for catalog in catalogs], damaged)
    return _DAMAGED if damaged else 0


@command.command("show")
@click.argument("backup_id", metavar="ID|latest")
@json_option
def show(*, backup_id: str, as_json: bool) -> int:
    """Show everything that is known of one backup, region by region."""
    found = [
        (catalog.region, catalog.find(backup_id)) for catalog in _catalogs(operations()) if _has(catalog, backup_id)
    ]
    if not found:
        raise RepositoryMissing(f"no region holds backup {backup_id}: see `bb-ops backup list`")
    commit = found[0][1].commit
    document: dict[str, object] = {
        "schema_id": "bb-ops/backup-show/1",
        **describe(commit),
        "commit": commit.model_dump(mode="json"),
        "regions": {
            region: {
                "level": _level(entry),
                "problems": list(entry.problems),
                "proofs": [proof.model_dump(mode="json") for proof in entry.proofs],
            }
            for region, entry in found
        },
    }
    if as_json:
        emit(document)
    else:
        table(
            ("fact", "value"),
            [(name, str(value)) for name, value in commit.model_dump(mode="json", exclude={"objects"}).items()],
        )
        for region, entry in found:
            click.echo(f"\n{region}: proven {_level(entry) or 'not measured'}")
            for step in entry.proofs[-1].steps if entry.proofs else ():
                click.echo(f"  {step.level} {step.outcome:14} {step.evidence}")
            for problem in entry.problems:
                click.echo(f"  DAMAGED {problem}")
    return _DAMAGED if any(entry.problems for _, entry in found) else 0


@command.command("status")
@click.option("--anew", is_flag=True, help="Read everything from the repositories, nothing from the cache.")
@json_option
def status(*, anew: bool, as_json: bool) -> int:
    """Say for every region what can be restored, what is proven, and what is missing; exit 4 where something is."""
    ops = operations()
    now, directory = ops.clock.now(), None if anew else ops.settings.cache_directory
    regions = []
    for repository in ops.repositories:
        try:
            regions.append(region_status(read_overview(repository, directory, now), now))
        except RepositoryMissing as error:
            regions.append(
                RegionStatus(name=repository.region, problems=(str(error),), missing_slots=(daily_slot(now),))
            )
    healthy = all(region.healthy for region in regions)
    if as_json:
        emit(
            {
                "schema_id": "bb-ops/backup-status/1",
                "cluster": ops.settings.cluster,
                "encryption": ops.settings.encryption,
                "healthy": healthy,
                "regions": [region.model_dump(mode="json") for region in regions],
            }
        )
    else:
        click.echo(
            f"cluster {ops.settings.cluster}, encryption {ops.settings.encryption}"
            + ("" if ops.settings.encryption == "age" else " (UNENCRYPTED by explicit setting)")
        )
        for region in regions:
            _print_region(region)
    return 0 if healthy else _FINDINGS


def _catalogs(ops: Operations) -> list[Catalog]:
    """Read every region; one that does not exist yet is empty, unless it is the only one."""
    found = [read_catalog(ops.repository)]
    for repository in ops.repositories[1:]:
        try:
            found.append(read_catalog(repository))
        except RepositoryMissing:
            found.append(Catalog(repository.region))
    return found


def _has(catalog: Catalog, backup_id: str) -> bool:
    try:
        catalog.find(backup_id)
    except RepositoryMissing:
        return False
    return True


def _level(entry: CatalogEntry) -> str | None:
    level = entry.proven_level
    return None if level is None else level.name


def _print_list(backups: list[dict[str, Any]], regions: list[str], damaged: list[str]) -> None:
    rows = [
        (
            row["id"],
            row["kind"],
            row["slot"],
            human_bytes(row["size_bytes"]),
            human_bytes(row["stored_bytes"]),
            *(_cell(row["proofs"], region) for region in regions),
        )
        for row in backups
    ]
    table(("ID", "KIND", "SLOT", "SIZE", "STORED", *(region.upper() for region in regions)), rows)
    for line in damaged:
        click.echo(f"DAMAGED {line}")


def _cell(proofs: dict[str, str | None], region: str) -> str:
    if region not in proofs:
        return "absent"
    return proofs[region] or "not measured"


def _print_region(region: RegionStatus) -> None:
    click.echo(f"\n{region.name}: {'ok' if region.healthy else 'NEEDS ATTENTION'}")
    click.echo(f"  backups        {region.backups}")
    for chain in region.chains[-1:]:
        click.echo(
            f"  newest chain   {chain.full_id} and {chain.increments} increments up to "
            f"{chain.newest_at:%Y-%m-%d %H:%M:%S} UTC"
        )
    for window in region.windows:
        until = "" if window.from_at == window.to_at else f" … {window.to_at:%Y-%m-%d %H:%M:%S}"
        click.echo(f"  restorable to  {window.from_at:%Y-%m-%d %H:%M:%S}{until} UTC")
    proven = (
        f"{region.last_proven_at:%Y-%m-%d %H:%M:%S} UTC ({region.last_proven_level})"
        if region.last_proven_at
        else "never"
    )
    click.echo(f"  last proven    {proven}")
    lag = (
        "not measured"
        if region.lag_s is None
        else f"{region.lag_s:.0f} s since the newest instant that can be restored"
    )
    click.echo(f"  lag            {lag}")
    for gap in region.gaps:
        click.echo(f"  {'GAP' if gap in region.open_gaps else 'former gap':14} {gap}")
    for slot in region.missing_slots:
        click.echo(f"  MISSING SLOT   {slot}")
    for problem in region.problems:
        click.echo(f"  PROBLEM        {problem}")
