"""The servers and stores that tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops.storage.base import ObjectStore
from bb_ops_tests.support.s3 import S3Server, running_s3
from bb_ops_tests.support.stores import Place, local_place, s3_place


@pytest.fixture(scope="session")
def s3_server(session_room: Path) -> Iterator[S3Server]:
    """One S3 server for the session."""
    with running_s3(session_room) as server:
        yield server


@pytest.fixture(scope="session")
def shared_bucket(s3_server: S3Server) -> str:
    """A bucket for many stores, each with a prefix of its own: a new bucket costs the server time."""
    return s3_server.make_bucket()


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A bucket for one test."""
    return s3_server.make_bucket()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, room: Path) -> Place:
    """An empty store of each kind."""
    if request.param == "local":
        return local_place(room)
    return s3_place(request.getfixturevalue("s3_server"), request.getfixturevalue("shared_bucket"))


@pytest.fixture
def store(place: Place) -> ObjectStore:
    """An empty store of each kind."""
    return place.store
