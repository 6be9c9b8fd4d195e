"""``bb-ops backup status``: one screen that says what can be restored. Imports little: it must answer at once."""

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, json_option
from bb_ops.errors import RepositoryMissing
from bb_ops.repository.ids import daily_slot
from bb_ops.repository.overview import read_overview
from bb_ops.repository.status import RegionStatus, region_status

_FINDINGS = 4


@click.command("status")
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
