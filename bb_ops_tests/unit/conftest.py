"""Keys and small repositories on real files."""

from pathlib import Path

import pytest

from bb_ops.repository.repository import Repository
from bb_ops_tests.unit.builders import SettableClock, key_files, new_repository


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of keys for the session."""
    directory = tmp_path_factory.mktemp("keys") / "ours"
    key_files(directory)
    return directory


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of somebody else."""
    directory = tmp_path_factory.mktemp("keys") / "theirs"
    key_files(directory)
    return directory


@pytest.fixture
def clock() -> SettableClock:
    """A clock at noon."""
    return SettableClock()


@pytest.fixture
def repository(tmp_path: Path, keys: Path, clock: SettableClock) -> Repository:
    """An empty repository in a directory."""
    return new_repository(tmp_path, keys=keys, clock=clock)
