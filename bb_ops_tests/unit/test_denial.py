"""What a process is given to which a region is dead: what names the other one, and nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.clock import SystemClock
from bb_ops.errors import KeyRejected, NotMeasured, RepositoryMissing, SettingsError
from bb_ops.repository.keys import make_keys
from bb_ops.settings import read_settings
from bb_ops.validation.denial import OFFLINE_KEY, deny, trespassers

SECRET = "kanarienvogel"
OF_A = {
    "DATABASE_URL": f"postgresql://app:{SECRET}@db/x",
    "BB_OPS_REPOSITORY": f"s3://{SECRET}/x",
    "AWS_DEFAULT_REGION": f"{SECRET}-1",
    "BB_OPS_S3_ENDPOINT_URL": f"http://{SECRET}",
    "BB_OPS_S3_ACCESS_KEY_ID": SECRET,
    "BB_OPS_S3_SECRET_ACCESS_KEY": SECRET,
    "BB_OPS_AGE_IDENTITY_FILE": f"/{SECRET}/working",
    "BB_OPS_AGE_RECIPIENTS_FILE": f"/{SECRET}/recipients",
}
OF_B = {
    "BB_OPS_REPLICA": "s3://copies/bb_ops",
    "AWS_BACKUP_REGION": "eu-west-1",
    "BB_OPS_REPLICA_S3_ENDPOINT_URL": "http://127.0.0.1:1",
    "BB_OPS_REPLICA_S3_ACCESS_KEY_ID": "key",
    "BB_OPS_REPLICA_S3_SECRET_ACCESS_KEY": "secret",
    "BB_OPS_CLUSTER": "shop",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working and an offline key."""
    directory = tmp_path_factory.mktemp("keys") / "keys"
    make_keys(directory, SystemClock().now())
    return directory


def test_nothing_of_the_dead_region_is_handed_on(keys: Path) -> None:
    left = deny({**OF_A, **OF_B}, None, keys / "offline.agekey")
    assert (left.dead, left.region) == (f"{SECRET}-1", "eu-west-1")
    assert SECRET not in "".join([*left.environment, *left.environment.values()])
    settings = read_settings(left.environment)
    assert settings.repository is not None
    assert (settings.repository.url, settings.repository.aws_region) == ("s3://copies/bb_ops", "eu-west-1")
    assert (settings.repository.access_key_id, settings.cluster) == ("key", "shop")
    assert (settings.replica, settings.database) == (None, None)
    assert settings.identity_file == keys / "offline.agekey"
    assert trespassers(frozenset(left.environment)) == []


def test_the_first_region_can_be_the_one_that_lives(keys: Path) -> None:
    places = {"BB_OPS_REPOSITORY": "file:///a", "BB_OPS_REPLICA": "file:///b", OFFLINE_KEY: f"{keys}/offline.agekey"}
    left = deny(places, "primary", None)
    assert (left.dead, left.environment["BB_OPS_REPOSITORY"]) == ("replica", "file:///a")
    assert "file:///b" not in left.environment.values()


@given(st.dictionaries(st.from_regex(r"\A(BB_OPS|AWS|PG|DAGSTER)_[A-Z0-9_]{1,30}\Z"), st.just(SECRET)))
def test_a_setting_that_nobody_knows_is_not_handed_on(environment: dict[str, str]) -> None:
    left = deny({**environment, **OF_B}, None, None, needs_key=False)
    told = {name for name, value in left.environment.items() if value == SECRET}
    assert told <= {"BB_OPS_ENCRYPTION", "BB_OPS_PG_BINDIR", "BB_OPS_SERVER_USER", "AWS_CA_BUNDLE"}, "they are shared"


def test_the_sdk_s_own_credentials_are_handed_on_only_where_the_region_has_no_others(keys: Path) -> None:
    own = {"AWS_ACCESS_KEY_ID": "chain", **OF_B}
    assert "AWS_ACCESS_KEY_ID" not in deny(own, None, keys / "offline.agekey").environment
    without = {name: value for name, value in own.items() if "S3_" not in name}
    assert deny(without, None, keys / "offline.agekey").environment["AWS_ACCESS_KEY_ID"] == "chain"


def test_credentials_that_open_both_regions_are_named(keys: Path) -> None:
    left = deny({**OF_B, "BB_OPS_S3_ACCESS_KEY_ID": "key"}, None, keys / "offline.agekey")
    assert left.shared == ("BB_OPS_S3_ACCESS_KEY_ID",)


def test_what_a_drill_cannot_do_without_is_said_before_it_begins(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryMissing, match="BB_OPS_REPLICA"):
        deny(OF_A, None, keys / "offline.agekey")
    with pytest.raises(SettingsError, match="no region"):
        deny(OF_B, "mars", keys / "offline.agekey")
    with pytest.raises(NotMeasured, match=OFFLINE_KEY):
        deny(OF_B, None, None)
    (tmp_path / "empty").touch()
    with pytest.raises(NotMeasured, match="cannot be read"):
        deny(OF_B, None, tmp_path / "empty")
    working = {**OF_B, "BB_OPS_AGE_IDENTITY_FILE": str(keys / "working.agekey")}
    with pytest.raises(KeyRejected, match="working key"):
        deny(working, None, keys / "working.agekey")
