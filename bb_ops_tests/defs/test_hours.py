"""Hours of WAL on a real server with a running streamer: taken live, sealed from the archive, refused; and gaps."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from bb_ops.backup.hour import newest_hour
from bb_ops.bootstrap import operations
from bb_ops.clock import SystemClock
from bb_ops.definitions import defs
from bb_ops.defs import backup, incremental, wal
from bb_ops.defs.resources import OperationsResource
from bb_ops.repository.ids import daily_slot
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops_tests.support.commands import BbOps, Running, backups_of, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster
from bb_ops_tests.support.wal import wait_until_archived

ALIVE = {"continuous": True, "durable": True, "chain_whole": True, "block_increment": True}
HOUR = timedelta(hours=1)
INCREMENT = dg.AssetKey("incremental_backup")
RUN_ID = "5f0a1c1e-0000-4000-8000-000000000001"
STARTED = dg.DagsterRunStatus.STARTED


@dataclass
class World:
    """A server with a streamer, a full backup that is three hours old, and Dagster in this process."""

    server: Cluster
    command: BbOps
    streamer: Running
    repository: Path
    full: str
    instance: dg.DagsterInstance

    def write(self) -> None:
        """Write some segments, and wait until they are archived."""
        self.server.execute(
            "CREATE TABLE IF NOT EXISTS bulk (t text);;"
            "INSERT INTO bulk SELECT repeat('x', 900) FROM generate_series(1, 3000);;SELECT pg_switch_wal()"
        )
        wait_until_archived(self.command)

    def stop_streamer(self) -> None:
        """Stop the streamer in an orderly way, unless it is stopped."""
        if self.streamer.alive:
            os.kill(self.streamer.pid, signal.SIGTERM)
            self.streamer.finish().expect(0)

    def segments(self) -> list[Path]:
        """Return the archived segments, oldest first."""
        found = (path for path in self.repository.rglob("*.zst.age") if "wal" in path.parts)
        return sorted((path for path in found if ".partial." not in path.name), key=lambda path: path.name)

    def run(self, job: str, partition: str | None = None, tags: dict[str, str] | None = None) -> Any:  # noqa: ANN401
        """Run a job as the daemon would, in this process."""
        made = defs.get_repository_def().get_job(job)
        return made.execute_in_process(partition_key=partition, tags=tags, instance=self.instance, raise_on_error=False)

    def copy(self, partition: str) -> Any:  # noqa: ANN401 - Dagster's own
        """Materialize the copy of an hour; what it is made of is taken as it is."""
        return dg.materialize(
            [*incremental.ASSETS, *backup.ASSETS, *wal.ASSETS],
            selection=["incremental_backup_replica"],
            partition_key=partition,
            instance=self.instance,
            resources={"operations": OperationsResource()},
            raise_on_error=False,
        )

    def tick(self, sensor: str, cursor: str | None = None) -> Any:  # noqa: ANN401 - Dagster's own
        """Evaluate a sensor once."""
        repository = defs.get_repository_def()
        context = dg.build_sensor_context(
            self.instance, cursor=cursor, repository_def=repository, resources={"operations": OperationsResource()}
        )
        return repository.get_sensor_def(sensor).evaluate_tick(context)


@pytest.fixture
def world(wheel_18: Build, room: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world of its own for each test."""
    server = Cluster(wheel_18, room / "cluster", settings={"summarize_wal": "on"}).create("--wal-segsize=1").start()
    command = bb_ops(room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    command.ok("backup", "full")
    with command.start("wal", "stream") as streamer, dg.DagsterInstance.ephemeral() as instance:
        made = World(server, command, streamer, room / "repository", aged_full(), instance)
        made.write()
        yield made
        made.stop_streamer()
    server.stop()


def aged_full() -> str:
    """Let the full backup show an instant of three hours ago, so that whole hours follow it; return its id."""
    repository = operations().repository
    [system_id] = repository.system_ids()
    [listed] = repository.store.children(f"main/{system_id}/base/")
    commit = repository.read_commit(system_id, listed)
    assert isinstance(commit, PhysicalCommit)
    key = next(info.key for info in repository.store.objects(f"main/{system_id}/base/") if "COMMIT" in info.key)
    repository.store.delete(key)
    moments = ("started_at", "stopped_at", "as_of")
    repository.commit(commit.model_copy(update={name: getattr(commit, name) - 3 * HOUR for name in moments}))
    return commit.id


def checks(result: Any) -> dict[str, bool]:  # noqa: ANN401
    return {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}


def said(result: Any) -> dict[str, str]:  # noqa: ANN401
    return {evaluation.check_name: evaluation.description for evaluation in result.get_asset_check_evaluations()}


def metadata(result: Any) -> dict[str, Any]:  # noqa: ANN401
    [event] = result.asset_materializations_for_node("incremental_backup")
    return {name: value.value for name, value in event.metadata.items()}


def failure(result: Any) -> str:  # noqa: ANN401
    assert not result.success
    error = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    return error.user_failure_data.description or ""


def hour_ago(hours: int) -> str:
    """Return the hour that was over so many hours before the newest one."""
    return newest_hour(SystemClock().now() - hours * HOUR)


def test_the_hour_that_is_just_over_is_sealed_and_its_blocks_are_taken(world: World) -> None:
    first = world.run("incremental_backup_job", hour_ago(0))
    assert first.success, failure(first)
    assert checks(first) == ALIVE
    shown = metadata(first)
    [full, increment] = backups_of(world.command)
    assert (shown["origin"], shown["kind"], shown["depth"]) == ("live", "incremental", 1)
    assert (shown["backup_id"], shown["parent_id"], shown["full_id"]) == (increment["id"], full["id"], world.full)
    assert (shown["covered_s"], shown["fallback_reason"]) == (3600.0, "none")
    assert shown["wal_bytes"] == shown["segments"] << 20 > 2 << 20
    assert 0 <= shown["lag_s"] < 60
    assert shown["stored_bytes"] == increment["stored_bytes"] + shown["wal_stored_bytes"]
    world.write()
    second = metadata(world.run("incremental_backup_job", hour_ago(0)))
    assert (second["parent_id"], second["full_id"], second["depth"]) == (increment["id"], world.full, 2)
    assert second["from_lsn"] == shown["to_lsn"]


def test_an_hour_is_copied_and_the_other_region_restores_it_too(world: World) -> None:
    made = metadata(world.run("incremental_backup_job", hour_ago(0)))
    copied = world.copy(hour_ago(0))
    assert copied.success, failure(copied)
    assert checks(copied) == {"rehashed": True, "restorable_there": True}
    [event] = copied.asset_materializations_for_node("incremental_backup_replica")
    shown = {name: value.value for name, value in event.metadata.items()}
    assert (shown["source_backup_id"], shown["source_full_id"]) == (made["backup_id"], world.full)
    assert (shown["covered_s"], shown["copied_backups"]) == (3600.0, 2)
    assert shown["copied_wal_files"] >= made["segments"]

    world.write()
    replica = world.repository.parent / "replica"
    damaged = next(path for path in world.segments() if not (replica / path.relative_to(world.repository)).exists())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    hurt = world.copy(hour_ago(0))
    assert not hurt.success
    assert checks(hurt)["rehashed"] is False
    assert damaged.name in said(hurt)["rehashed"]


def test_a_past_hour_is_sealed_from_the_archive_and_gets_no_blocks_of_now(world: World) -> None:
    result = world.run("incremental_backup_job", hour_ago(1))
    assert result.success, failure(result)
    assert checks(result) == ALIVE
    shown = metadata(result)
    assert (shown["origin"], shown["covered_s"], shown["chain_id"]) == ("archive", 3600.0, world.full)
    assert shown["segments"] >= 1
    assert "backup_id" not in shown
    assert said(result)["block_increment"].startswith("not applicable")
    assert [backup["id"] for backup in backups_of(world.command)] == [world.full]
    by_hand = world.command.ok("backup", "incremental", "--hour", hour_ago(1), "--json").document
    assert (by_hand["origin"], by_hand["wal"]["from_lsn"]) == ("archive", shown["from_lsn"])


def test_an_hour_that_the_archive_does_not_cover_fails_with_one_line_and_stays_missing(world: World) -> None:
    before = failure(world.run("incremental_backup_job", hour_ago(5)))
    assert f"hour {hour_ago(5)} is not in the archive of primary: the oldest backup shows" in before
    for segment in world.segments()[:-1]:
        segment.unlink()
    behind_a_hole = failure(world.run("incremental_backup_job", hour_ago(1)))
    assert "can be restored: WAL from " in behind_a_hole
    assert behind_a_hole.endswith(" on timeline 1 is missing")
    assert "\n" not in before + behind_a_hole
    assert world.instance.get_materialized_partitions(INCREMENT) == set()
    world.command.run("backup", "incremental", "--hour", hour_ago(1)).expect(10)


def test_a_gap_is_shown_and_closed_by_one_full_backup(world: World) -> None:
    uncopied = world.run("wal_archive_job")
    assert checks(uncopied) == {"continuity": False, "lag": True}
    assert said(uncopied)["continuity"].startswith("replica: not measured")
    world.command.ok("sync", "incremental")
    sound = world.run("wal_archive_job")
    assert checks(sound) == {"continuity": True, "lag": True}, said(sound)
    quiet = world.tick("wal_gap_sensor")
    assert (quiet.run_requests, quiet.skip_message) == ([], "primary has no open gap")
    world.write()
    world.write()
    world.segments()[-2].unlink()

    hurt = world.run("wal_archive_job")
    assert checks(hurt) == {"continuity": False, "lag": True}
    assert "primary: WAL from" in said(hurt)["continuity"]
    [observed] = world.instance.fetch_observations(dg.AssetKey("wal_archive"), limit=1).records
    assert observed.asset_observation is not None
    shown = observed.asset_observation.metadata
    assert (shown["open_gaps_primary"].value, shown["gaps_primary"].value) == (1, 1)

    asked = world.tick("wal_gap_sensor")
    [request] = asked.run_requests
    assert (request.partition_key, request.run_key) == (daily_slot(SystemClock().now()), f"wal-gap-{world.full}-1")
    tags = {**request.tags, "dagster/run_key": request.run_key}
    world.instance.add_run(dg.DagsterRun(job_name="full_backup_job", run_id=RUN_ID, tags=tags, status=STARTED))
    waiting = world.tick("wal_gap_sensor", asked.cursor)
    assert waiting.run_requests == []
    assert "has not ended yet" in waiting.skip_message
    world.instance.delete_run(RUN_ID)

    assert world.run("full_backup_job", request.partition_key, tags).success
    assert len(backups_of(world.command)) == 2
    world.write()
    closed = world.tick("wal_gap_sensor", asked.cursor)
    assert (closed.run_requests, closed.skip_message) == ([], "primary has no open gap")
    assert checks(world.run("wal_archive_job")) == {"continuity": True, "lag": True}


def test_a_stopped_streamer_fails_the_lag_check_and_a_stopped_server_measures_nothing(world: World) -> None:
    first = world.tick("wal_archive_sensor")
    assert [getattr(event, "check_name", "") for event in first.asset_events] == ["", "continuity", "lag"]
    assert world.tick("wal_archive_sensor", first.cursor).asset_events == []
    world.stop_streamer()
    stopped = world.tick("wal_archive_sensor", first.cursor).asset_events[2]
    assert (stopped.passed, stopped.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "nobody streams WAL" in stopped.description
    world.server.stop()
    unmeasured = world.tick("wal_archive_sensor", first.cursor).asset_events[2]
    assert (unmeasured.passed, unmeasured.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert unmeasured.description.startswith("not measured")
