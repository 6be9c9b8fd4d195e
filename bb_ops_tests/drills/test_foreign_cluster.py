"""A cluster that bb_ops did not make comes back whole: backed up, copied, proven, restored, compared by our own SQL.

BB_OPS_TEST_BIG=1 adds a table of 2 GiB.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bb_ops_tests.support import foreign
from bb_ops_tests.support.commands import Answer, BbOps, backups_of, bb_ops
from bb_ops_tests.support.postgres import (
    Build,
    Cluster,
    connection_to,
    die_with_us,
    free_port,
    running_cluster,
    stop_server_in,
)

BIG = os.environ.get("BB_OPS_TEST_BIG") == "1"
MOST_MEMORY_BYTES = 300_000_000
pytestmark = pytest.mark.timeout(1800 if BIG else 300)


@dataclass(frozen=True)
class Restored:
    """A server on a restored directory."""

    data: Path
    port: int
    document: dict[str, Any]

    def connect(self, dbname: str) -> AbstractContextManager[psycopg.Connection[tuple[Any, ...]]]:
        """Open a connection of the superuser."""
        return connection_to(self.data, self.port, dbname)


@dataclass(frozen=True)
class Drill:
    """One cluster's way through everything, done once and looked at by every test."""

    source: Cluster
    command: BbOps
    tablespace_oid: int
    before: foreign.Rows
    dump_before: str
    backup: Answer
    proofs: dict[str, Answer]
    restored: Restored


@pytest.fixture(scope="module")
def drill(build: Build, module_room: Path) -> Iterator[Drill]:
    """Do the whole exercise with one PostgreSQL version."""
    room = module_room / build.name
    room.mkdir()
    with running_cluster(build, room / "cluster", settings={"max_prepared_transactions": "7"}) as source:
        oid = foreign.furnish(source)
        if BIG:
            foreign.furnish_big(source)
        command = bb_ops(room, build, source.url_of(foreign.ODD_DATABASE))
        before = foreign.read_rows(source.connect)
        dump_before = foreign.dump_digest(source, source.directory, source.port)
        backup = command.ok("backup", "full", "--json", timeout_s=900)
        command.ok("sync", "incremental")
        proofs = {
            region: command.run("validate", "latest", "--region", region, "--json", timeout_s=900)
            for region in ("primary", "replica")
        }
        target, port = room / "back", free_port()
        recover = ("recover", "full", "latest", "--into", target, "--start", "--port", str(port), "--json")
        try:
            recovered = command.ok(*recover, timeout_s=900)
            restored = Restored(target, port, recovered.document)
            yield Drill(source, command, oid, before, dump_before, backup, proofs, restored)
        finally:
            stop_server_in(target)


def test_the_backup_process_stays_small(drill: Drill) -> None:
    assert 0 < drill.backup.peak_memory_bytes < MOST_MEMORY_BYTES
    reported = drill.backup.document["peak_memory_bytes"]
    assert abs(reported - drill.backup.peak_memory_bytes) < 32 << 20


@pytest.mark.parametrize("region", ["primary", "replica"])
def test_both_regions_are_proven_to_hold_equal_rows(drill: Drill, region: str) -> None:
    proof = drill.proofs[region].expect(0).document
    assert (proof["level"], proof["outcome"], proof["region"]) == ("L6", "pass", region)
    tables = sum(1 for name in drill.before if name[2] != "orders")  # the parent of partitions has no rows
    large_objects = 1
    assert proof["tables_compared"] == tables + large_objects
    assert backups_of(drill.command)[0]["proofs"][region] == "L6"


def test_the_restored_server_holds_the_same_rows(drill: Drill) -> None:
    after = foreign.read_rows(drill.restored.connect)
    assert after == drill.before
    assert len(after) == (12 if BIG else 11)
    assert sum(rows for rows, _ in after.values()) > 20_000


def test_the_restored_server_dumps_to_the_same_text(drill: Drill) -> None:
    assert foreign.dump_digest(drill.source, drill.restored.data, drill.restored.port) == drill.dump_before


def test_sequences_go_on_where_they_were(drill: Drill) -> None:
    here, there = (foreign.read_sequences(connect) for connect in (drill.source.connect, drill.restored.connect))
    assert there == here
    assert here["ticket"] == (41 + 4 * 7, True)


def test_the_large_object_has_the_same_content(drill: Drill) -> None:
    assert foreign.read_large_object(drill.restored.connect) == foreign.LARGE_OBJECT


def test_the_unlogged_table_is_empty_and_usable(drill: Drill) -> None:
    assert drill.source.value("SELECT count(*) FROM volatile", foreign.ODD_DATABASE) == foreign.UNLOGGED_ROWS
    with drill.restored.connect(foreign.ODD_DATABASE) as connection:
        assert connection.execute("SELECT count(*) FROM volatile").fetchone() == (0,)
        connection.execute("INSERT INTO volatile VALUES (1, 'a'); DELETE FROM volatile")


def test_the_tablespace_is_beside_and_not_at_the_source(drill: Drill) -> None:
    with drill.restored.connect("postgres") as connection:
        row = connection.execute(
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'"
        ).fetchone()
    assert row is not None
    location = Path(str(row[0]))
    assert location == drill.restored.data.with_name("back.tablespaces") / str(drill.tablespace_oid)
    assert drill.restored.document["tablespaces"] == {str(drill.tablespace_oid): str(location)}
    assert any(path.is_file() for path in location.rglob("*"))


def test_the_source_is_untouched(drill: Drill) -> None:
    link = drill.source.data / "pg_tblspc" / str(drill.tablespace_oid)
    assert link.readlink() == drill.source.spaces / "fast space"
    assert foreign.read_rows(drill.source.connect) == drill.before
    assert drill.source.value("SELECT count(*) FROM pg_replication_slots") == 0
    assert drill.source.value("SELECT count(*) FROM pg_stat_replication") == 0


def test_the_restored_server_archives_nothing_and_is_no_standby(drill: Drill) -> None:
    with drill.restored.connect("postgres") as connection:
        row = connection.execute("SELECT current_setting('archive_mode'), pg_is_in_recovery()").fetchone()
    assert row == ("off", False)
    assert drill.restored.document["port"] == drill.restored.port
    assert drill.restored.document["proof"] == "L4"


def test_the_printed_address_connects(drill: Drill) -> None:
    with psycopg.connect(drill.restored.document["connection_string"]) as connection:
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
    connection.close()
    assert row == (str(drill.restored.data),)


def test_a_backup_taken_under_load_is_consistent(build: Build, room: Path) -> None:
    with running_cluster(build, room / "cluster") as source:
        source.run("pgbench", "-i", "-s", "2", "-q", "-U", "postgres", "postgres")
        command = bb_ops(room, build, source.url)
        committed_before = int(source.value("SELECT coalesce(max(delta), 0) FROM pgbench_history"))
        assert committed_before == 0
        load = _start_load(source)
        try:
            before = _wait_for_rows(source, 50)
            command.ok("backup", "full")
        finally:
            load.terminate()
            load.wait(30)
        proof = command.run("validate", "latest", "--json")
        assert (proof.returncode, proof.document["level"]) in {(13, "L5"), (0, "L6")}
        assert proof.document["outcome"] == ("pass" if proof.returncode == 0 else "not_measured")
        target, port = room / "back", free_port()
        try:
            command.ok("recover", "full", "latest", "--into", target, "--start", "--port", str(port))
            with connection_to(target, port, "postgres") as connection:
                sums = connection.execute(_TPC_B_SUMS).fetchone()
                history = connection.execute("SELECT count(*) FROM pgbench_history").fetchone()
        finally:
            stop_server_in(target)
        assert sums is not None
        assert history is not None
        assert len(set(sums)) == 1, f"the four sums of TPC-B differ: {sums}"
        assert history[0] >= before


_TPC_B_SUMS = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)
"""


def _start_load(source: Cluster) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [source.build.program("pgbench"), "-n", "-c", "4", "-T", "120", "-U", "postgres", "postgres"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=source.directory,
        env={"PATH": "/usr/bin:/bin", "PGHOST": str(source.directory), "PGPORT": str(source.port)},
        preexec_fn=die_with_us(9),  # noqa: PLW1509 - one prctl call, no lock taken
    )


def _wait_for_rows(source: Cluster, least: int) -> int:
    deadline = time.monotonic() + 30
    while (rows := int(source.value("SELECT count(*) FROM pgbench_history"))) < least:
        assert time.monotonic() < deadline, "pgbench writes nothing"
        time.sleep(0.05)
    return rows
