"""``bb-ops backup list`` and ``bb-ops backup show``: what exists."""

from typing import Any

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.describe import describe
from bb_ops.cli.output import emit, human_bytes, json_option, table
from bb_ops.errors import RepositoryMissing
from bb_ops.repository.catalog import Catalog, CatalogEntry, read_catalog

_DAMAGED = 5


@click.command("list")
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


@click.command("show")
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
