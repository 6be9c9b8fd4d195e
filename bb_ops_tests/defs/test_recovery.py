"""The drill and readiness as assets, on a real copy of a real server."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from bb_ops.clock import SystemClock
from bb_ops.defs import recovery
from bb_ops.defs.resources import OperationsResource
from bb_ops.repository.ids import monthly_slot
from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, running_cluster

pytestmark = [pytest.mark.timeout(240), pytest.mark.requires("age", "zstd")]


@pytest.fixture
def command(wheel_18: Build, room: Path, monkeypatch: pytest.MonkeyPatch) -> BbOps:
    """The command after a backup was copied and its server ended; and, in this process, its environment."""
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute("CREATE TABLE visits AS SELECT g AS id, md5(g::text) AS who FROM generate_series(1, 500) g")
        made = bb_ops(room, wheel_18, server.url)
        made.ok("backup", "full")
        made.ok("sync", "incremental")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance that lives as long as the test."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def materialize(asset: str, partition: str | None, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """Materialize one asset; those upstream are taken as they are."""
    return dg.materialize(
        recovery.ASSETS,
        selection=[asset],
        partition_key=partition,
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


def test_the_drill_of_the_month_makes_us_ready(
    command: BbOps, room: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = monthly_slot(SystemClock().now())
    assert "the offline key is not at hand" in failure(materialize("disaster_recovery_drill", month, instance))
    monkeypatch.setenv("BB_OPS_OFFLINE_IDENTITY_FILE", str(room / "keys" / "offline.agekey"))
    before = materialize("recovery_readiness", None, instance)
    assert (before.success, checks(before)) == (True, {"ready": False})
    command.ok("validate", "latest", "--level", "L5")
    drill = materialize("disaster_recovery_drill", month, instance)
    assert checks(drill) == {"restored_from_region_b": True, "rpo": True, "rto": True, "stock_tools": True}
    [made] = drill.asset_materializations_for_node("disaster_recovery_drill")
    assert made.metadata["proof_level"] == dg.MetadataValue.int(7)
    assert all(isinstance(made.metadata[name].value, float) for name in ("rpo_s", "rto_s", "proven_s"))
    after = materialize("recovery_readiness", None, instance)
    assert checks(after) == {"ready": True}
    [seen] = after.asset_materializations_for_node("recovery_readiness")
    assert seen.metadata["against"] == dg.MetadataValue.int(0)
    assert seen.metadata["rto_s_without_primary"] == made.metadata["rto_s"]
    document = command.ok("recover", "readiness", "--json").document
    assert [(case["dead"], case["outcome"]) for case in document["cases"]] == [
        ("primary", "pass"),
        ("replica", "pass"),
        ("server", "pass"),
    ]
    gone = command.having(
        BB_OPS_REPLICA="s3://gone/x",
        BB_OPS_REPLICA_S3_ENDPOINT_URL="http://127.0.0.1:1",
        BB_OPS_REPLICA_S3_ACCESS_KEY_ID="a",
        BB_OPS_REPLICA_S3_SECRET_ACCESS_KEY="b",
    )
    gone.run("recover", "readiness").expect(13)
