"""The one Dagster code location: everything merged explicitly."""

import warnings

import dagster as dg

# Partitioned checks are in preview and needed: an unpartitioned one holds one verdict for all slots, so that a bad
# backup of one day would stop the copies of all days, and a good one would clear the bad one's name.
_PREVIEW = "Specifying a partitions_def on an AssetCheckSpec"
warnings.filterwarnings("ignore", message=_PREVIEW, category=dg.PreviewWarning)

from bb_ops.defs import backup, dumps, incremental, recovery, wal  # noqa: E402 - after the filter: the warning is raised while the assets are made
from bb_ops.defs.automation import AUTOMATION_SENSOR  # noqa: E402
from bb_ops.defs.resources import OperationsResource  # noqa: E402

defs = dg.Definitions(
    assets=[*backup.ASSETS, *incremental.ASSETS, *wal.ASSETS, *dumps.ASSETS, *recovery.ASSETS],
    asset_checks=wal.CHECKS,
    jobs=[*backup.JOBS, *incremental.JOBS, *wal.JOBS, *dumps.JOBS, *recovery.JOBS],
    schedules=[*backup.SCHEDULES, *incremental.SCHEDULES, *dumps.SCHEDULES, *recovery.SCHEDULES],
    sensors=[AUTOMATION_SENSOR, *wal.SENSORS],
    resources={"operations": OperationsResource()},
    # One process a run: a killed run must not leave a step behind that writes into it later.
    executor=dg.in_process_executor,
)
