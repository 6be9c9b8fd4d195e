"""The lock on S3: held against racing runs, and on a store that lets nobody delete."""

import json
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bb_ops.clock import SystemClock
from bb_ops.errors import BbOpsError, Locked
from bb_ops.repository.lock import lock
from bb_ops_tests.support.proxy import FaultyProxy
from bb_ops_tests.support.s3 import S3Server


def test_of_racing_runs_exactly_one_gets_it(s3_server: S3Server, shared_bucket: str) -> None:
    store = s3_server.store(shared_bucket, secrets.token_hex(4))
    runs = 8
    ready, done = threading.Barrier(runs), threading.Barrier(runs)

    def race(number: int) -> bool:
        ready.wait()
        try:
            with lock(store, "main", "full", SystemClock(), f"run {number}") as held:
                held.check()
                done.wait()
                return True
        except Locked:
            done.wait()
            return False

    with ThreadPoolExecutor(runs) as pool:
        assert sum(pool.map(race, range(runs))) == 1


def test_a_store_that_lets_nobody_delete_is_no_hindrance(s3_server: S3Server) -> None:
    """Backups belong under a policy like this; a lock that insisted on tidying up would fail every one of them."""
    bucket = s3_server.make_bucket()
    store = s3_server.store(bucket)
    store.create("probe", b"x")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:DeleteObject",
                "Resource": f"arn:aws:s3:::{bucket}/*",
            }
        ],
    }
    s3_server.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    with pytest.raises(BbOpsError):
        store.delete("probe")
    for number in range(4):
        with lock(store, "main", "full", SystemClock(), f"run {number}") as held:
            held.check()
    assert len(list(store.objects("main/locks/full/"))) == 8


def test_a_lease_whose_answer_was_lost_is_ours(s3_server: S3Server, shared_bucket: str) -> None:
    prefix = secrets.token_hex(4)
    with FaultyProxy(s3_server.port) as proxy:
        store = s3_server.store(shared_bucket, prefix, port=proxy.port)
        store.check()
        proxy.lose_answer_to = b"PUT /"
        with lock(store, "main", "full", SystemClock(), "unlucky") as held:
            assert proxy.answers_to_lose == 0
            held.check()


def test_a_server_gone_at_the_end_does_not_fail_what_was_done(s3_server: S3Server, shared_bucket: str) -> None:
    with FaultyProxy(s3_server.port) as proxy:
        store = s3_server.store(shared_bucket, secrets.token_hex(4), port=proxy.port)
        with lock(store, "main", "full", SystemClock(), "cut off") as held:
            held.check()
            proxy.break_now()
