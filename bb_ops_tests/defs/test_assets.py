"""The assets on a real server: materialized, refused, and failing as they must."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from bb_ops.clock import SystemClock
from bb_ops.defs import backup, dumps
from bb_ops.defs.resources import OperationsResource
from bb_ops.repository.ids import daily_slot, weekly_slot
from bb_ops_tests.support.commands import BbOps, backups_of, bb_ops, objects_below
from bb_ops_tests.support.postgres import Build, Cluster, running_cluster

MADE = ("full_backup", "full_backup_replica", "full_backup_restore_test")


@pytest.fixture(scope="module")
def server(wheel_18: Build, module_room: Path) -> Iterator[Cluster]:
    """A small server with a few rows."""
    with running_cluster(wheel_18, module_room / "cluster") as cluster:
        cluster.execute("CREATE TABLE visits AS SELECT g AS id, md5(g::text) AS who FROM generate_series(1, 5000) g")
        yield cluster


@pytest.fixture
def command(server: Cluster, room: Path, monkeypatch: pytest.MonkeyPatch) -> BbOps:
    """The command and, in this process, its environment, which the assets read as they would in a run."""
    made = bb_ops(room, server.build, server.url)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def materialize(slot: str, *assets: str, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """Materialize a slot of some assets; those upstream are taken as they are."""
    return dg.materialize(
        [*backup.ASSETS, *dumps.ASSETS],
        selection=list(assets),
        partition_key=slot,
        instance=instance,
        resources={"operations": OperationsResource()},
        raise_on_error=False,
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Return the checks' answers by name."""
    return {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Return what the failed step said."""
    error = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    return error.user_failure_data.description or "" if error.user_failure_data else ""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance that lives as long as the test."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def open_slot() -> str:
    """Return the slot that is open now."""
    return daily_slot(SystemClock().now())


def test_the_open_slot_is_backed_up_copied_and_proven(command: BbOps, instance: dg.DagsterInstance) -> None:
    result = materialize(
        open_slot(), "full_backup", "full_backup_replica", "full_backup_restore_test", instance=instance
    )
    assert result.success
    assert all(checks(result).values())
    assert len(checks(result)) == 8
    [backup] = backups_of(command)
    assert backup["proofs"] == {"primary": "L6", "replica": "L6"}
    made = [result.asset_materializations_for_node(name)[0].metadata for name in MADE]
    assert [metadata.get("backup_id", metadata.get("source_backup_id")) for metadata in made] == [
        dg.MetadataValue.text(backup["id"])
    ] * 3
    metadata = made[0]
    assert metadata["size_bytes"].value == backup["size_bytes"]
    assert metadata["slot"].value == backup["slot"] == open_slot()


def test_a_closed_slot_is_refused_and_stays_missing(command: BbOps, instance: dg.DagsterInstance) -> None:
    closed = daily_slot(datetime.now(UTC) - timedelta(days=2))
    result = materialize(closed, "full_backup", instance=instance)
    assert not result.success
    assert f"slot {closed} is not open" in failure(result)
    assert instance.get_materialized_partitions(dg.AssetKey("full_backup")) == set()
    assert backups_of(command) == []


def test_a_copy_of_a_slot_without_backup_fails_with_one_line(command: BbOps, instance: dg.DagsterInstance) -> None:
    command.ok("backup", "full")
    yesterday = daily_slot(datetime.now(UTC) - timedelta(days=1))
    result = materialize(yesterday, "full_backup_replica", instance=instance)
    assert not result.success
    assert failure(result) == f"primary holds no backup of slot {yesterday}"


def test_a_damaged_copy_fails_the_restore_test_and_its_run(
    command: BbOps, room: Path, instance: dg.DagsterInstance
) -> None:
    command.ok("backup", "full")
    command.ok("sync", "incremental")
    part = next(path for path in objects_below(room / "replica") if path.name.startswith("base."))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    result = materialize(open_slot(), "full_backup_restore_test", instance=instance)
    assert not result.success
    assert checks(result) == {"restores": False, "structure_sound": False, "rows_equal": False}
    [backup] = backups_of(command)
    assert backup["proofs"] == {"primary": "L6", "replica": "L0"}


@pytest.mark.parametrize("asset", ["logical_backup", "schema_backup"])
def test_the_open_slot_is_dumped_and_checked(asset: str, command: BbOps, instance: dg.DagsterInstance) -> None:
    slot = open_slot() if asset == "logical_backup" else weekly_slot(SystemClock().now())
    result = materialize(slot, asset, instance=instance)
    assert result.success
    assert checks(result) == {"committed": True, "complete": True, "encrypted": True, "on_time": True}
    [taken] = backups_of(command)
    assert (f"{taken['kind']}_backup", taken["slot"]) == (asset, slot)
    [made] = result.asset_materializations_for_node(asset)
    assert made.metadata["backup_id"] == dg.MetadataValue.text(taken["id"])


def test_a_dump_of_a_closed_week_is_refused(command: BbOps, instance: dg.DagsterInstance) -> None:
    closed = weekly_slot(datetime.now(UTC) - timedelta(days=7))
    result = materialize(closed, "schema_backup", instance=instance)
    assert f"slot {closed} is not open" in failure(result)
    assert backups_of(command) == []
