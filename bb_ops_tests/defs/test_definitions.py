"""What the code location declares, and when things run by themselves."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from bb_ops.backup.hour import hour_window, newest_hour
from bb_ops.definitions import defs
from bb_ops.defs.partitions import DAILY_SLOTS, HOURS, MONTHLY_SLOTS, WEEKLY_SLOTS
from bb_ops.repository.ids import daily_slot, monthly_slot, weekly_slot

SLOT = "2026-11-20"
OLD_SLOT = "2026-11-03"
NOON = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)
REPLICA = dg.AssetKey("full_backup_replica")
TEST = dg.AssetKey("full_backup_restore_test")
INCREMENT = dg.AssetKey("incremental_backup")
DUMP_CHECKS = ("committed", "complete", "encrypted", "on_time")
DRILL_CHECKS = ("restored_from_region_b", "rpo", "rto", "stock_tools")
HOUR_CHECKS = ("block_increment", "chain_whole", "continuous", "durable")
CRONS = {
    "incremental_backup_schedule": "3 * * * *",
    "full_backup_schedule": "0 2 * * *",
    "logical_backup_schedule": "30 2 * * *",
    "schema_backup_schedule": "45 2 * * 1",
    "disaster_recovery_drill_schedule": "0 6 1 * *",
    "recovery_readiness_schedule": "20 * * * *",
}


def test_the_inventory_is_as_documented() -> None:
    repository = defs.get_repository_def()
    graph = repository.asset_graph
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == {
        "full_backup",
        "full_backup_replica",
        "full_backup_restore_test",
        "incremental_backup",
        "incremental_backup_replica",
        "logical_backup",
        "schema_backup",
        "disaster_recovery_drill",
        "recovery_readiness",
    }
    assert {key.to_user_string() for key in graph.external_asset_keys} == {"wal_archive"}
    assert {f"{key.asset_key.to_user_string()}.{key.name}" for key in graph.asset_check_keys} == {
        "full_backup.committed",
        "full_backup.encrypted",
        "full_backup.on_time",
        "full_backup.page_checksums",
        "full_backup_replica.rehashed",
        "full_backup_restore_test.restores",
        "full_backup_restore_test.rows_equal",
        "full_backup_restore_test.structure_sound",
        "wal_archive.continuity",
        "wal_archive.lag",
        "incremental_backup_replica.rehashed",
        "incremental_backup_replica.restorable_there",
        "recovery_readiness.ready",
        *(f"disaster_recovery_drill.{check}" for check in DRILL_CHECKS),
        *(f"incremental_backup.{check}" for check in HOUR_CHECKS),
        *(f"{asset}.{check}" for asset in ("logical_backup", "schema_backup") for check in DUMP_CHECKS),
    }
    for name, cron in CRONS.items():
        schedule = repository.get_schedule_def(name)
        assert (schedule.cron_schedule, schedule.execution_timezone) == (cron, "UTC")
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    for name in ("automation", "wal_archive_sensor", "wal_gap_sensor"):
        assert repository.get_sensor_def(name).default_status == dg.DefaultSensorStatus.RUNNING
    assert set(repository.job_names) == {
        "__ASSET_JOB",
        "daily_backup",
        "disaster_recovery_drill_job",
        "full_backup_job",
        "hourly_backup",
        "incremental_backup_job",
        "logical_backup_job",
        "recovery_readiness_job",
        "schema_backup_job",
        "wal_archive_job",
    }


def test_the_lineage_leads_from_dump_to_copy_to_test() -> None:
    graph = defs.get_repository_def().asset_graph
    assert graph.get(REPLICA).parent_keys == {dg.AssetKey("full_backup")}
    assert graph.get(TEST).parent_keys == {dg.AssetKey("full_backup"), REPLICA}
    assert graph.get(dg.AssetKey("incremental_backup_replica")).parent_keys == {INCREMENT}
    replicas = {REPLICA, dg.AssetKey("incremental_backup_replica")}
    for name in ("disaster_recovery_drill", "recovery_readiness"):
        assert graph.get(dg.AssetKey(name)).parent_keys == replicas
    assert graph.get(INCREMENT).parent_keys == {dg.AssetKey("full_backup"), dg.AssetKey("wal_archive")}


def test_checks_are_partitioned_like_their_assets() -> None:
    graph = defs.get_repository_def().asset_graph
    for key in graph.asset_check_keys:
        assert graph.get(key).partitions_def == graph.get(key.asset_key).partitions_def


@pytest.mark.parametrize(
    ("at", "newest"),
    [
        (datetime(2026, 11, 20, 1, 59, 59, tzinfo=UTC), "2026-11-19"),
        (datetime(2026, 11, 20, 2, 0, 0, tzinfo=UTC), "2026-11-20"),
    ],
)
def test_a_slot_exists_from_the_moment_it_is_due(at: datetime, newest: str) -> None:
    with dg.partition_loading_context(at):
        assert DAILY_SLOTS.get_last_partition_key() == newest
    assert daily_slot(at) == newest


@pytest.mark.parametrize(
    ("at", "newest"),
    [
        (datetime(2026, 11, 23, 1, 59, 59, tzinfo=UTC), "2026-11-16"),
        (datetime(2026, 11, 23, 2, 0, 0, tzinfo=UTC), "2026-11-23"),
    ],
)
def test_a_week_exists_from_its_monday_on(at: datetime, newest: str) -> None:
    with dg.partition_loading_context(at):
        assert WEEKLY_SLOTS.get_last_partition_key() == newest
    assert weekly_slot(at) == newest


@pytest.mark.parametrize(
    ("at", "newest"),
    [
        (datetime(2026, 12, 1, 1, 59, 59, tzinfo=UTC), "2026-11-01"),
        (datetime(2026, 12, 1, 2, 0, 0, tzinfo=UTC), "2026-12-01"),
    ],
)
def test_a_month_exists_from_its_first_day_on(at: datetime, newest: str) -> None:
    with dg.partition_loading_context(at):
        assert MONTHLY_SLOTS.get_last_partition_key() == newest
    assert monthly_slot(at) == newest


@pytest.mark.parametrize(
    ("at", "newest"),
    [
        (datetime(2026, 11, 20, 13, 59, 59, tzinfo=UTC), "2026-11-20-12:00"),
        (datetime(2026, 11, 20, 14, 0, 0, tzinfo=UTC), "2026-11-20-13:00"),
    ],
)
def test_an_hour_exists_once_it_is_over(at: datetime, newest: str) -> None:
    with dg.partition_loading_context(at):
        assert HOURS.get_last_partition_key() == newest
    assert newest_hour(at) == newest


def test_every_hour_belongs_to_the_slot_that_it_lies_in_and_to_no_missing_one() -> None:
    graph = defs.get_repository_def().asset_graph
    mapping = graph.get_partition_mapping(INCREMENT, dg.AssetKey("full_backup"))
    for hour in range(24 * 3):
        at = datetime(2026, 11, 3, 0, 3, tzinfo=UTC) + timedelta(hours=hour)
        with dg.partition_loading_context(at):
            key = HOURS.get_last_partition_key() or ""
            asked = HOURS.subset_with_partition_keys([key])
            found = mapping.get_upstream_mapped_partitions_result_for_partitions(asked, HOURS, DAILY_SLOTS)
            assert list(found.required_but_nonexistent_subset.get_partition_keys()) == []
            assert list(found.partitions_subset.get_partition_keys()) == [daily_slot(hour_window(key)[0])]
    assert HOURS.get_first_partition_key() == f"{DAILY_SLOTS.get_first_partition_key()}-02:00"


@pytest.mark.parametrize(
    ("schedule", "at", "slot"),
    [
        ("logical_backup_schedule", datetime(2026, 11, 20, 2, 30, tzinfo=UTC), SLOT),
        ("schema_backup_schedule", datetime(2026, 11, 23, 2, 45, tzinfo=UTC), "2026-11-23"),
        ("disaster_recovery_drill_schedule", datetime(2026, 12, 1, 6, tzinfo=UTC), "2026-12-01"),
        ("incremental_backup_schedule", datetime(2026, 11, 20, 2, 3, tzinfo=UTC), "2026-11-20-01:00"),
        ("incremental_backup_schedule", datetime(2026, 11, 20, 0, 3, tzinfo=UTC), "2026-11-19-23:00"),
    ],
)
def test_a_tick_takes_the_slot_that_has_just_opened_or_the_hour_that_is_just_over(
    schedule: str, at: datetime, slot: str
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        repository = defs.get_repository_def()
        context = dg.build_schedule_context(instance, scheduled_execution_time=at, repository_def=repository)
        request = repository.get_schedule_def(schedule).evaluate_tick(context)
    assert request.run_requests is not None
    assert [(run.partition_key, run.run_key) for run in request.run_requests] == [(slot, slot)]


def test_the_tick_of_two_o_clock_opens_the_slot_of_the_day() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        repository = defs.get_repository_def()
        context = dg.build_schedule_context(
            instance, scheduled_execution_time=datetime(2026, 11, 20, 2, tzinfo=UTC), repository_def=repository
        )
        request = repository.get_schedule_def("full_backup_schedule").evaluate_tick(context)
    assert request.run_requests is not None
    assert [(run.partition_key, run.run_key) for run in request.run_requests] == [(SLOT, SLOT)]


def test_loading_gives_no_warning_of_ours() -> None:
    checkout = Path(__file__).parents[2]
    script = (
        "import dagster as dg, warnings\n"
        "for kind in (dg.BetaWarning, dg.PreviewWarning, dg.SupersessionWarning, DeprecationWarning):\n"
        "    warnings.filterwarnings('error', category=kind, module='bb_ops')\n"
        "    warnings.filterwarnings('error', message='.*(beta|preview|superseded).*', category=kind)\n"
        "import bb_ops.definitions\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=checkout)
    assert (done.returncode, done.stderr) == (0, "")


class Automation:
    """Evaluates the automation conditions as the daemon would, tick after tick."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._cursor: Any = None
        self._at = NOON
        self.tick()

    def tick(self) -> dict[str, set[str]]:
        """Advance a minute and return what is requested, by asset."""
        self._at += timedelta(minutes=1)
        result = dg.evaluate_automation_conditions(
            defs, instance=self._instance, cursor=self._cursor, evaluation_time=self._at
        )
        self._cursor = result.cursor
        found = {key.to_user_string(): set(result.get_requested_partitions(key)) for key in (REPLICA, TEST)}
        return {asset: {str(key) for key in keys} for asset, keys in found.items() if keys}


def materialized(instance: dg.DagsterInstance, asset: str, slot: str, *, passed: bool = True) -> None:
    """Let a run record an asset as made, with its blocking check: the events that the conditions read."""
    check = {"full_backup": "committed", "full_backup_replica": "rehashed"}[asset]
    spec = dg.AssetCheckSpec(check, asset=asset, partitions_def=DAILY_SLOTS)

    @dg.asset(name=asset, partitions_def=DAILY_SLOTS, check_specs=[spec])
    def recorded() -> dg.MaterializeResult:  # type: ignore[type-arg]
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(check_name=check, passed=passed)])

    assert dg.materialize([recorded], partition_key=slot, instance=instance).success


def test_copy_and_test_follow_a_backup_of_any_slot_once() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(instance)
        assert automation.tick() == {}
        materialized(instance, "full_backup", SLOT)
        materialized(instance, "full_backup", OLD_SLOT)
        requested = automation.tick()
        assert requested["full_backup_replica"] == {SLOT, OLD_SLOT}
        for slot in (SLOT, OLD_SLOT):
            materialized(instance, "full_backup_replica", slot)
        later = automation.tick()
        assert "full_backup_replica" not in later
        assert requested.get("full_backup_restore_test", set()) | later.get("full_backup_restore_test", set()) == {
            SLOT,
            OLD_SLOT,
        }


def test_a_backup_that_is_not_committed_is_neither_copied_nor_tested_and_stops_no_other() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(instance)
        materialized(instance, "full_backup", OLD_SLOT, passed=False)
        materialized(instance, "full_backup", SLOT)
        requested = automation.tick()
        assert requested["full_backup_replica"] == {SLOT}
        assert OLD_SLOT not in requested.get("full_backup_restore_test", set())


def test_a_copy_that_failed_is_asked_for_again_within_the_hour() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        automation = Automation(instance)
        materialized(instance, "full_backup", SLOT)
        assert SLOT in automation.tick()["full_backup_replica"]
        again = [automation.tick().get("full_backup_replica", set()) for _ in range(60)]
        assert sum(SLOT in keys for keys in again) == 1
