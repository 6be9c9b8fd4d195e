"""A server that is only read, big enough and compressed slowly enough that a backup can be caught at its work."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, running_cluster

TABLES = 12
ROWS = 30_000


@pytest.fixture(scope="session")
def source(wheel_18: Build, session_room: Path) -> Iterator[Cluster]:
    """About 60 MiB in many files."""
    with running_cluster(wheel_18, session_room / "source") as cluster:
        for number in range(TABLES):
            cluster.execute(
                f"CREATE TABLE t{number} AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, {ROWS}) g"
            )
        yield cluster


@pytest.fixture
def command(source: Cluster, room: Path) -> BbOps:
    """``bb-ops`` with keys and repositories of its own."""
    return bb_ops(room, source.build, source.url)


@pytest.fixture
def slow(command: BbOps) -> BbOps:
    """The same, but a backup takes seconds and has about fifty parts."""
    return command.having(BB_OPS_PART_SIZE_MIB="1", BB_OPS_COMPRESSION_LEVEL="15", BB_OPS_COMPRESSION_THREADS="1")
