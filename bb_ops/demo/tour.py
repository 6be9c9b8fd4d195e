"""The demo's guided tour: bring the world up, run the main jobs on it through Dagster, and say what was measured."""

import shutil
from collections.abc import Callable
from pathlib import Path

from bb_ops.backup.hour import newest_hour, seconds_left
from bb_ops.clock import SystemClock, sleep
from bb_ops.demo import dagster_ui, world
from bb_ops.demo.dagster_ui import CheckShown, RunShown
from bb_ops.demo.model import World
from bb_ops.errors import ProgramFailed
from bb_ops.findings import Value
from bb_ops.repository.ids import daily_slot
from bb_ops.repository.keys import OFFLINE_FILE, check_keys, key_settings, make_keys
from bb_ops.validation.denial import OFFLINE_KEY

_JOB = "daily_backup"
_HOURLY_JOB = "hourly_backup"
_RUN_TIMEOUT_S = 1800.0
_ENOUGH_S = 10.0
"""An hour is taken live only in the hour that follows: a run is not launched when that is all but over."""
Say = Callable[[str], None]


class Tour(Value):
    """What the tour did; every figure in its runs was measured by the assets themselves.

    Attributes:
        partition: The daily slot that was backed up.
        hour: The hour whose WAL was sealed, and behind which the increment was taken.
        checks: Every asset check of both runs, as Dagster recorded it.
    """

    schema_id: str = "bb-ops/demo/1"
    label: str = "demo"
    ui_url: str
    api_url: str
    settings_file: Path
    partition: str
    run_id: str
    hour: str
    hourly_run_id: str
    materialized: tuple[str, ...]
    checks: tuple[CheckShown, ...]


def take(directory: Path, *, size: str, rate_per_s: float, say: Say, tick: Callable[[str], None]) -> Tour:
    """Start the world and Dagster, run the main jobs for the open slot and the last hour. Safe to repeat.

    Raises:
        ProgramFailed: a server does not start, or the run fails.
        UsageError, Locked: see ``world.up``.
    """
    directory = directory.resolve()
    keys = directory / "keys"
    settings = {**key_settings(keys), OFFLINE_KEY: str(keys / OFFLINE_FILE)}
    up = world.up(directory, size=size, say=say, rate_per_s=rate_per_s, extra_settings=settings)
    _ensure_keys(keys)
    dagster_ui.prepare_home(up)
    up = world.wal_up(up, say)
    up = world.dagster_up(up, say)
    slot = daily_slot(SystemClock().now())
    say(f"running {_JOB} for slot {slot} in Dagster: full backup, copy, restore tests from both regions")
    daily = _run(up, _JOB, slot, tick)
    if seconds_left(SystemClock().now()) < _ENOUGH_S:
        sleep(_ENOUGH_S)
    hour = newest_hour(SystemClock().now())
    say(f"running {_HOURLY_JOB} for hour {hour}: WAL sealed up to now, increment on the full backup")
    hourly = _run(up, _HOURLY_JOB, hour, tick)
    return _tour(up, slot, daily, hour, hourly)


def _run(up: World, job: str, partition: str, tick: Callable[[str], None]) -> RunShown:
    run = dagster_ui.wait_for_run(up, dagster_ui.launch(up, job, partition), _RUN_TIMEOUT_S, tick)
    if run.status != "SUCCESS":
        raise ProgramFailed(f"run {run.run_id} ended with {run.status}: {run.failure or 'see the UI'} ({ui_url(up)})")
    return run


def ui_url(up: World) -> str:
    """Return where Dagster's UI answers."""
    return f"http://127.0.0.1:{up.ui_port}"


def _ensure_keys(keys: Path) -> None:
    """Make keys for the demo, once; what a killed run left half made is made anew, since nothing was encrypted yet."""
    if not (keys / "bb-ops.env").exists():
        shutil.rmtree(keys, ignore_errors=True)
        make_keys(keys, SystemClock().now())
    check_keys(keys)


def _tour(up: World, slot: str, daily: RunShown, hour: str, hourly: RunShown) -> Tour:
    return Tour(
        ui_url=ui_url(up),
        api_url=up.api_url,
        settings_file=up.env_file,
        partition=slot,
        run_id=daily.run_id,
        hour=hour,
        hourly_run_id=hourly.run_id,
        materialized=tuple(
            asset for asset, partition in (*daily.materialized, *hourly.materialized) if partition in {slot, hour}
        ),
        checks=(*daily.checks, *hourly.checks),
    )
