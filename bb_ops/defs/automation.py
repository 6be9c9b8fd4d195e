"""When copies and restore tests run by themselves."""

from datetime import timedelta

import dagster as dg

_CATCH_UP_CRON = "15 * * * *"
_CATCH_UP_WINDOW = timedelta(days=7)


def after_upstream() -> dg.AutomationCondition:  # type: ignore[type-arg]
    """Run when an upstream of the same slot was made, however old the slot; try again hourly what is still missing.

    ``AutomationCondition.eager`` sees only the newest partition and asks only once, so a backfilled backup would get no
    copy and a failed copy no second try. The hourly arm is bounded to a week: without a bound it would request every
    slot since the beginning at once.
    """
    condition = dg.AutomationCondition
    made = condition.any_deps_updated().since_last_handled()
    catch_up = (
        condition.cron_tick_passed(_CATCH_UP_CRON)
        & condition.in_latest_time_window(_CATCH_UP_WINDOW)
        & condition.missing()
    )
    ready = (
        ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
    )
    return ((made | catch_up) & ready).with_label("after_upstream")


AUTOMATION_SENSOR = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Copies and tests every new backup, and tries again what failed.",
)
