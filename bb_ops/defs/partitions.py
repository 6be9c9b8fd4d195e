"""Partitions, in UTC. A slot names the moment when a backup is due; it is open until the next one.

An interval names an hour of WAL; it exists once the hour is over.
"""

import dagster as dg

from bb_ops.repository.ids import SLOT_TIME

FIRST_SLOT = "2026-11-01"
"""The first daily slot. Changing it while backfills run confuses them (dagster-io/dagster, PR 32256)."""
FIRST_HOUR = f"{FIRST_SLOT}-{SLOT_TIME:%H:%M}"
"""The first interval begins with the first slot, so that every hour has a slot that its full belongs to."""
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

MONTHLY_SLOTS = dg.MonthlyPartitionsDefinition(
    FIRST_SLOT, hour_offset=SLOT_TIME.hour, minute_offset=SLOT_TIME.minute, timezone="UTC", end_offset=1
)
"""Months, each named after its first day."""

HOURS = dg.HourlyPartitionsDefinition(FIRST_HOUR, timezone="UTC")
"""Intervals, each named by its beginning."""
