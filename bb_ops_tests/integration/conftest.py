"""The servers that tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops_tests.support.s3 import S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server(session_room: Path) -> Iterator[S3Server]:
    """One S3 server for the session; each test makes buckets of its own."""
    with running_s3(session_room) as server:
        yield server
