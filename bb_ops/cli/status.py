"""``bb-ops backup status``: one screen that says what can be restored. Imports little: it must answer at once."""

from collections.abc import Sequence
from datetime import datetime

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, human_duration, json_option
from bb_ops.errors import RepositoryMissing
from bb_ops.repository.ids import daily_slot
from bb_ops.repository.overview import read_overview
from bb_ops.repository.status import RegionStatus, region_status

_FINDINGS = 4
_MOST_LINES = 5


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
            _print_region(region, now)
    return 0 if healthy else _FINDINGS


def _print_region(region: RegionStatus, now: datetime) -> None:
    click.echo(f"\n{region.name}: {'ok' if region.healthy else 'NEEDS ATTENTION'}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in region.kinds.items())
    _line("backups", f"{region.backups} ({kinds})" if kinds else "none")
    for chain in region.chains[-1:]:
        _line("newest chain", f"{chain.full_id} and {chain.increments} increments up to {_at(chain.newest_at)}")
    windows = [
        f"any second from {_at(one.from_at)} to {_at(one.to_at)}" if one.from_at < one.to_at else _at(one.from_at)
        for one in region.windows
    ]
    _lines("restorable to", windows[::-1] or ["nothing"])
    _line("lag", "not measured" if region.lag_s is None else f"{human_duration(region.lag_s)} behind the clock")
    last = region.last_proven_at
    proven = "never" if last is None else f"{_at(last)}, {human_duration((now - last).total_seconds())} ago"
    _line("last proven", f"{proven} ({region.last_proven_level})" if last else proven)
    _lines("GAP", region.open_gaps)
    _lines("former gap", [gap for gap in region.gaps if gap not in region.open_gaps])
    _lines("MISSING SLOT", region.missing_slots)
    _lines("PROBLEM", region.problems)


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def _line(name: str, value: str) -> None:
    click.echo(f"  {name:14} {value}")


def _lines(name: str, values: Sequence[str]) -> None:
    """Print the first ones: a screen is no log, and ``--json`` has them all."""
    for value in values[:_MOST_LINES]:
        _line(name, value)
    if len(values) > _MOST_LINES:
        _line("", f"and {len(values) - _MOST_LINES} more: see --json")
