"""The drill: region A is dead for real; everything comes back from region B with the offline key, or it is said why."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops, command_line, descendants
from bb_ops_tests.support.postgres import Build, Cluster, wait_until
from bb_ops_tests.support.wal import wait_until_archived

pytestmark = [pytest.mark.timeout(240), pytest.mark.requires("age", "zstd")]
ROWS = 2000


@dataclass(frozen=True)
class Dead:
    """What is left of a region that is gone.

    Attributes:
        command: With settings of region A that are garbage, and no server.
        replica: Region B.
        names: Of the WAL segments that region B holds, in order.
    """

    command: BbOps
    replica: Path
    keys: Path
    names: tuple[str, ...]


@pytest.fixture(scope="module")
def dead(wheel_18: Build, module_room: Path) -> Dead:
    """A server whose backup and WAL were copied, and then it died with its region."""
    server = Cluster(wheel_18, module_room / "cluster").create("--wal-segsize=1").start()
    try:
        command = bb_ops(module_room, server.build, server.url).having(BB_OPS_WAL_PARTIAL_INTERVAL_S="1")
        server.execute(
            "CREATE TABLE story AS SELECT g AS id, repeat('x', 500) AS filler FROM generate_series(1, 2000) g"
        )
        with command.start("wal", "stream") as running:
            command.ok("backup", "full")
            server.execute("INSERT INTO story SELECT g, repeat('y', 900) FROM generate_series(2001, 4000) g")
            server.execute("SELECT pg_switch_wal();; INSERT INTO story VALUES (5000, '');; SELECT pg_switch_wal()")
            wait_until_archived(command)
            running.kill()
        command.ok("sync", "incremental")
    finally:
        server.stop()
    shutil.rmtree(module_room / "repository")
    shutil.rmtree(module_room / "cluster")
    keys = module_room / "keys"
    left = command.having(
        DATABASE_URL="nonsense://",
        BB_OPS_REPOSITORY="ftp://garbage",
        BB_OPS_S3_ENDPOINT_URL="nowhere",
        BB_OPS_AGE_RECIPIENTS_FILE="/gone",
        BB_OPS_OFFLINE_IDENTITY_FILE=keys / "offline.agekey",
    )
    names = sorted(
        path.name.removesuffix(".zst.age") for path in (module_room / "replica").glob("main/*/wal/*/*/*.age")
    )
    return Dead(left, module_room / "replica", keys, tuple(names))


@pytest.fixture
def other(dead: Dead, room: Path) -> Dead:
    """Another copy of region B, to be damaged."""
    shutil.copytree(dead.replica, room / "replica", ignore=shutil.ignore_patterns("drills", "evidence"))
    return Dead(dead.command.having(BB_OPS_REPLICA=f"file://{room}/replica"), room / "replica", dead.keys, dead.names)


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    """Return the steps' outcomes."""
    return {step["name"]: step["outcome"] for step in document["steps"]}


def test_everything_comes_back_from_region_b_alone_and_is_recorded_there(dead: Dead) -> None:
    told = dead.command.having(BB_OPS_AGE_IDENTITY_FILE=dead.keys / "working.agekey")
    document = told.ok("drill", "--json").document
    assert set(outcomes(document).values()) == {"pass"}
    assert (document["outcome"], document["level"], document["recorded"]) == ("pass", "L7", True)
    assert document["rows_compared"] == ROWS
    assert document["compared_s"] > 0, "it was compared while it stood still, and went on from there"
    assert 0 < document["rto_s"] <= document["proven_s"]
    assert document["rpo_s"] > 0
    assert document["last_transaction_at"] is not None
    assert not {"DATABASE_URL", "BB_OPS_REPLICA", "BB_OPS_SIGNING_KEY_FILE"} & set(document["given"])
    alone = told.having(
        DATABASE_URL=None,
        BB_OPS_REPOSITORY=f"file://{dead.replica}",
        BB_OPS_REPLICA=None,
        BB_OPS_S3_ENDPOINT_URL=None,
        BB_OPS_AGE_RECIPIENTS_FILE=None,
    )
    [backup] = alone.ok("backup", "list", "--json").document["backups"]
    assert backup["proofs"] == {"primary": "L7"}
    [past] = dead.command.ok("drill", "--history", "--json").document["drills"]
    assert past == document
    assert list(dead.command.directory.glob("bb_ops-*")) == [], "nothing of it stays on the host"


def test_a_segment_that_is_missing_in_region_b_fails_the_drill_and_is_named(other: Dead) -> None:
    first, last = other.names[0], other.names[-1]
    for name in (first, last):
        [path] = other.replica.glob(f"main/*/wal/*/*/{name}.zst.age")
        path.unlink()
    answer = other.command.run("drill", "--json").expect(5)
    assert outcomes(answer.document)["archive"] == "fail"
    assert f"{first}.zst.age is missing" in answer.complaint
    assert f"{last}.zst.age is missing" in answer.complaint
    steps = outcomes(answer.document)
    assert (steps["L6"], steps["L7"]) == ("pass", "not_measured"), "what is left is brought back all the same"


def test_a_killed_drill_leaves_no_process_and_no_report(other: Dead) -> None:
    scratch = other.command.directory
    with other.command.start("drill") as running:
        wait_until(lambda: any(scratch.glob("bb_ops-restore-*/data/PG_VERSION")), "nothing was restored")
        started = descendants(running.pid)
        running.kill()
    wait_until(lambda: not any(command_line(pid) for pid in started), "a process of the drill lives on")
    assert started
    assert not list(other.replica.glob("main/drills/*"))


def test_a_flipped_bit_in_region_b_fails_the_drill(other: Dead) -> None:
    part = max(other.replica.glob("main/*/base/*/base.*"), key=lambda path: path.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    answer = other.command.run("drill", "--json").expect(5)
    assert outcomes(answer.document)["L1"] == "fail"
    assert part.name in answer.complaint
    assert (answer.document["rto_s"], answer.document["rpo_s"]) == (None, None)


def test_what_cannot_be_measured_never_passes(other: Dead, room: Path) -> None:
    without = other.command.having(BB_OPS_OFFLINE_IDENTITY_FILE=None)
    assert "offline key is not at hand" in without.run("drill").expect(13).complaint
    gone = other.command.run("drill", "--offline-key", room / "gone").expect(13)
    assert "offline key cannot be read" in gone.complaint
    assert "set BB_OPS_REPLICA" in other.command.having(BB_OPS_REPLICA=None).run("drill").expect(10).complaint
    empty = other.command.having(BB_OPS_REPLICA=f"file://{room}/empty").run("drill", "--json").expect(10)
    assert (empty.document["outcome"], empty.document["recorded"]) == ("fail", False)
    away = other.command.having(
        BB_OPS_REPLICA="s3://away/x",
        BB_OPS_REPLICA_S3_ENDPOINT_URL="http://127.0.0.1:1",
        BB_OPS_REPLICA_S3_ACCESS_KEY_ID="a",
        BB_OPS_REPLICA_S3_SECRET_ACCESS_KEY="kanarienvogel",
    )
    answer = away.run("drill", "--json").expect(13)
    assert outcomes(answer.document)["catalog"] == "not_measured"
    assert "kanarienvogel" not in answer.stdout + answer.stderr
    poor = room / "bin"
    poor.mkdir()
    for program in ("sh", "mv", "cp", "rm", "sleep", "zstd"):
        (poor / program).symlink_to(shutil.which(program) or "")
    unsigned = other.command.having(
        PATH=poor, BB_OPS_SIGNING_KEY_FILE=None, BB_OPS_AGE_IDENTITY_FILE=other.keys / "working.agekey"
    )
    answer = unsigned.run("drill", "--json").expect(13)
    assert outcomes(answer.document)["stock_tools"] == "not_measured"
    assert (answer.document["outcome"], answer.document["level"]) == ("not_measured", "L6")
    assert "apt-get install age zstd" in answer.stderr
    assert "recorded nowhere" in answer.stderr
    assert not list(other.replica.glob("main/drills/*"))


def test_the_working_key_is_no_offline_key(other: Dead) -> None:
    working = other.keys / "working.agekey"
    told = other.command.having(BB_OPS_AGE_IDENTITY_FILE=working)
    assert "the working key" in told.run("drill", "--offline-key", working).expect(12).complaint
