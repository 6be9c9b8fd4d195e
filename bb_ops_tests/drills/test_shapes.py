"""Every shape of chain that exists is proven by one command, and the worst answer is the command's."""

from pathlib import Path

import pytest

from bb_ops_tests.support.commands import bb_ops
from bb_ops_tests.support.postgres import Build, available, running_cluster, wait_until


@pytest.fixture(scope="module")
def wheel(session_room: Path) -> Build:
    return available("wheel_17", session_room)


def test_every_shape_is_proven_and_the_worst_counts(wheel: Build, room: Path) -> None:
    with running_cluster(wheel, room / "cluster", settings={"summarize_wal": "on"}) as source:
        source.execute("CREATE TABLE t AS SELECT g FROM generate_series(1, 100) g")
        command = bb_ops(room, wheel, source.url)
        full = command.ok("backup", "full", "--json").document["id"]
        increment = command.ok("backup", "incremental", "--blocks-only", "--json").document["id"]
        command.ok("sync", "incremental")
        source.stop()
        source.write(source.data / "standby.signal", "")
        source.start()
        source.execute("SELECT pg_promote()")
        wait_until(lambda: not source.value("SELECT pg_is_in_recovery()"), "it was not promoted")
        switched = command.ok("backup", "full", "--json").document["id"]
    report = command.ok("validate", "--every-shape", "--json").document
    proven = {
        (one["proof"]["region"], one["proof"]["backup_id"]): (one["shapes"], one["proof"]["level"])
        for one in report["proofs"]
    }
    assert proven == {
        ("primary", switched): (["newest", "after a timeline switch"], "L6"),
        ("primary", full): (["oldest kept"], "L6"),
        ("primary", increment): (["deepest increment"], "L6"),
        ("replica", increment): (["other region"], "L6"),
    }
    assert (report["outcome"], [one["reason"] for one in report["absent"]]) == ("pass", ["no synthetic full yet"])
    listed = command.ok("backup", "list", "--json").document["backups"]
    assert next(one["proofs"] for one in listed if one["id"] == increment) == {"primary": "L6", "replica": "L6"}
    part = next((room / "replica").glob(f"main/*/base/{full}/base.0000.*"))
    part.write_bytes(part.read_bytes()[:-1])
    answer = command.run("validate", "--every-shape", "--integrity-only").expect(5)
    assert f"other region: {increment} in replica: proven nothing, fail" in answer.stdout
    assert f"oldest kept: {full} in primary: proven L1, pass" in answer.stdout
    assert "base.0000" in answer.complaint
    assert "give neither" in command.run("validate", "latest", "--every-shape").expect(2).complaint
    assert "say which backup" in command.run("validate").expect(2).complaint
