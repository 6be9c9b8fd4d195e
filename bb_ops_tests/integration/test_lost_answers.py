"""A full backup whose commit arrives although its answer does not: the backup exists, and nothing of it is removed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops.backup.full import FullBackupOptions, take_full_backup
from bb_ops.clock import SystemClock
from bb_ops.dsn import parse_dsn
from bb_ops.errors import StoreFailed
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.repository import Repository
from bb_ops_tests.support.postgres import Build, Cluster, running_cluster
from bb_ops_tests.support.proxy import FaultyProxy
from bb_ops_tests.support.s3 import S3Server
from bb_ops_tests.unit.builders import key_files

OPTIONS = FullBackupOptions(
    compression_level=1, compression_threads=1, part_size_bytes=8 << 20, fingerprint_budget_s=5.0, max_rate_mib=None
)


@pytest.fixture(scope="module")
def cluster(wheel_18: Build, module_room: Path) -> Iterator[Cluster]:
    with running_cluster(wheel_18, module_room / "cluster") as running:
        yield running


class Through:
    """One repository, seen through a proxy and directly."""

    def __init__(self, server: S3Server, bucket: str, room: Path, proxy: FaultyProxy) -> None:
        keys = key_files(room / "keys")
        self.proxied, self.direct = (
            Repository(server.store(bucket, "main", port=port), "primary", "main", keys, SystemClock())
            for port in (proxy.port, server.port)
        )


def take(cluster: Cluster, repository: Repository) -> str:
    return take_full_backup(
        parse_dsn(cluster.url), repository, OPTIONS, SystemClock(), lambda _stage, _done, _total: None
    ).id


def test_a_lost_answer_to_the_commit_is_no_failure(
    cluster: Cluster, s3_server: S3Server, bucket: str, room: Path
) -> None:
    with FaultyProxy(s3_server.port) as proxy:
        through = Through(s3_server, bucket, room, proxy)
        proxy.lose_answer_to = b"/COMMIT.json"
        backup_id = take(cluster, through.proxied)
        assert proxy.answers_to_lose == 0
    (entry,) = read_catalog(through.direct).entries
    assert (entry.commit.id, entry.problems) == (backup_id, ())


def test_a_backup_that_cannot_know_whether_it_exists_removes_nothing(
    cluster: Cluster, s3_server: S3Server, bucket: str, room: Path
) -> None:
    """Every answer to the commit is lost, so it counts as failed; the backup is there nevertheless, and whole."""
    with FaultyProxy(s3_server.port) as proxy:
        through = Through(s3_server, bucket, room, proxy)
        proxy.lose_answer_to, proxy.answers_to_lose = b"/COMMIT.json", 100
        with pytest.raises(StoreFailed):
            take(cluster, through.proxied)
    (entry,) = read_catalog(through.direct).entries
    assert entry.problems == ()
