"""Partitions, in UTC. A slot names the moment when a backup is due; it is open until the next one."""

import dagster as dg

from bb_ops.repository.ids import SLOT_TIME

FIRST_SLOT = "2026-11-01"
"""The first daily slot. Changing it while backfills run confuses them (dagster-io/dagster, PR 32256)."""
FIRST_WEEK = "2026-11-02"
"""The Monday of the first weekly slot."""

DAILY_SLOTS = dg.DailyPartitionsDefinition(
    FIRST_SLOT, hour_offset=SLOT_TIME.hour, minute_offset=SLOT_TIME.minute, timezone="UTC", end_offset=1
)

WEEKLY_SLOTS = dg.WeeklyPartitionsDefinition(
    FIRST_WEEK,
    day_offset=1,
    hour_offset=SLOT_TIME.hour,
    minute_offset=SLOT_TIME.minute,
    timezone="UTC",
    end_offset=1,
)
"""Weeks, each named after its Monday."""
