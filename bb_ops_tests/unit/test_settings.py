"""Settings: read once, all faults at once, and never a value in a message."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from bb_ops.errors import SettingsError
from bb_ops.settings import Settings, read_settings

CANARY = "kanarienvogel"
CHECKOUT = Path(__file__).parents[2]
FILES = {"BB_OPS_REPOSITORY": "file:///backups/a", "BB_OPS_REPLICA": "file:///backups/b"}


def refused(environment: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as error:
        read_settings(environment)
    assert error.value.exit_code == 2
    return str(error.value)


class TestDefaults:
    def test_nothing_set_is_no_fault(self) -> None:
        settings = read_settings({})
        assert (settings.database, settings.repository, settings.replica) == (None, None, None)
        assert settings.encryption == "age"
        assert settings.cluster == "main"

    def test_blank_is_unset(self) -> None:
        assert read_settings(
            {"DATABASE_URL": " ", "BB_OPS_REPOSITORY": "", "BB_OPS_ENCRYPTION": " \n"}
        ) == read_settings({})

    def test_encryption_is_off_only_by_its_very_word(self) -> None:
        assert read_settings({"BB_OPS_ENCRYPTION": "none"}).encryption == "none"
        for value in ("off", "false", "0", "None", "plain"):
            assert "BB_OPS_ENCRYPTION" in refused({"BB_OPS_ENCRYPTION": value})

    def test_a_budget_of_zero_turns_fingerprints_off(self) -> None:
        assert read_settings({"BB_OPS_FINGERPRINT_BUDGET_S": "0"}).fingerprint_budget_s == 0
        assert read_settings({}).fingerprint_budget_s == 120

    def test_part_sizes_are_given_in_mebibytes(self) -> None:
        assert read_settings({"BB_OPS_PART_SIZE_MIB": "3"}).part_size_bytes == 3 << 20


class TestFaults:
    EVERYTHING_WRONG: ClassVar = {
        "DATABASE_URL": f"mysql://app:{CANARY}@db/x",
        "BB_OPS_CLUSTER": f"../{CANARY}",
        "BB_OPS_REPOSITORY": f"ftp://{CANARY}/x",
        "BB_OPS_REPLICA": f"file://{CANARY}",
        "BB_OPS_ENCRYPTION": CANARY,
        "BB_OPS_AGE_RECIPIENTS_FILE": f"/{CANARY}/1",
        "BB_OPS_AGE_IDENTITY_FILE": f"/{CANARY}/2",
        "BB_OPS_SIGNING_KEY_FILE": f"/{CANARY}/3",
        "BB_OPS_SIGNING_PUBLIC_KEY_FILE": f"/{CANARY}/4",
        "BB_OPS_COMPRESSION_LEVEL": f"{CANARY}",
        "BB_OPS_COMPRESSION_THREADS": "-1",
        "BB_OPS_PART_SIZE_MIB": "1e3",
        "BB_OPS_FINGERPRINT_BUDGET_S": "a minute",
        "BB_OPS_SCRATCH_DIRECTORY": f"/{CANARY}/5",
    }

    def test_all_are_reported_at_once_and_none_with_its_value(self) -> None:
        said = refused(self.EVERYTHING_WRONG)
        assert {name for name in self.EVERYTHING_WRONG if f"{name}:" in said} == set(self.EVERYTHING_WRONG)
        assert CANARY not in said
        assert "\n" not in said

    def test_no_value_hides_in_the_chain_of_causes(self) -> None:
        with pytest.raises(SettingsError) as error:
            read_settings(self.EVERYTHING_WRONG)
        assert error.value.__cause__ is None
        assert CANARY not in repr(error.value.args)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BB_OPS_COMPRESSION_LEVEL", "0"),
            ("BB_OPS_COMPRESSION_LEVEL", "20"),
            ("BB_OPS_COMPRESSION_THREADS", "65"),
            ("BB_OPS_COMPRESSION_THREADS", "²"),
            ("BB_OPS_PART_SIZE_MIB", "0"),
            ("BB_OPS_FINGERPRINT_BUDGET_S", "86401"),
            ("BB_OPS_FINGERPRINT_BUDGET_S", "1.5"),
        ],
    )
    def test_numbers_outside_their_range(self, name: str, value: str) -> None:
        assert f"{name}: give a whole number" in refused({name: value})

    @pytest.mark.parametrize(
        "url",
        [
            "s3://",
            "s3://B/x",
            "s3://ab",
            "s3://bucket_x/y",
            "https://bucket/x",
            "bucket/x",
            "/backups",
            "file://backups",
            "file:backups",
            "file:///",
            "file:////",
            "s3://bucket/a/../b",
            "s3://bucket/a//b",
        ],
    )
    def test_what_is_no_repository(self, url: str) -> None:
        assert "BB_OPS_REPOSITORY:" in refused({"BB_OPS_REPOSITORY": url})

    @pytest.mark.parametrize(
        "url", ["ftp://x", "localhost:9000", f"http://user:{CANARY}@host", "http://", "https://a b"]
    )
    def test_what_is_no_endpoint(self, url: str) -> None:
        said = refused({"BB_OPS_REPOSITORY": "s3://bucket/x", "BB_OPS_S3_ENDPOINT_URL": url})
        assert "BB_OPS_S3_ENDPOINT_URL:" in said
        assert CANARY not in said

    @pytest.mark.parametrize("role", ["BB_OPS_S3", "BB_OPS_REPLICA_S3"])
    @pytest.mark.parametrize("given", ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY"])
    def test_half_of_a_pair_of_keys(self, role: str, given: str) -> None:
        repositories = {"BB_OPS_REPOSITORY": "s3://one", "BB_OPS_REPLICA": "s3://two"}
        said = refused({**repositories, f"{role}_{given}": CANARY})
        assert f"{role}_ACCESS_KEY_ID and {role}_SECRET_ACCESS_KEY belong together" in said
        assert CANARY not in said


class TestSecrets:
    def test_no_printed_form_holds_one(self) -> None:
        settings = read_settings(
            {
                "DATABASE_URL": f"postgresql://app:{CANARY}-1@db/x",
                "BB_OPS_REPOSITORY": "s3://bucket/x",
                "BB_OPS_S3_ACCESS_KEY_ID": "public",
                "BB_OPS_S3_SECRET_ACCESS_KEY": f"{CANARY}-2",
            }
        )
        assert settings.database is not None
        assert settings.database.password == f"{CANARY}-1"
        assert settings.repository is not None
        assert settings.repository.secret_access_key is not None
        assert settings.repository.secret_access_key.get_secret_value() == f"{CANARY}-2"
        assert CANARY not in f"{settings!r} {settings} {settings.repository}"

    def test_they_can_come_from_files(self, tmp_path: Path) -> None:
        (tmp_path / "url").write_text("postgresql://app:from-file@db/x\n", encoding="utf-8")
        (tmp_path / "key").write_text("key-from-file\n", encoding="utf-8")
        settings = read_settings(
            {
                "DATABASE_URL_FILE": str(tmp_path / "url"),
                "BB_OPS_REPOSITORY": "s3://bucket/x",
                "BB_OPS_S3_ACCESS_KEY_ID": "public",
                "BB_OPS_S3_SECRET_ACCESS_KEY_FILE": str(tmp_path / "key"),
            }
        )
        assert settings.database is not None
        assert settings.database.password == "from-file"
        assert settings.repository is not None
        assert settings.repository.secret_access_key is not None
        assert settings.repository.secret_access_key.get_secret_value() == "key-from-file"

    def test_a_file_and_a_value_at_once_are_a_fault(self, tmp_path: Path) -> None:
        (tmp_path / "url").write_text(f"postgresql://app:{CANARY}@db/x", encoding="utf-8")
        said = refused({"DATABASE_URL_FILE": str(tmp_path / "url"), "DATABASE_URL": f"postgresql://{CANARY}@db/x"})
        assert "DATABASE_URL and DATABASE_URL_FILE are both set" in said
        assert CANARY not in said

    def test_a_file_that_cannot_be_read_is_a_fault(self, tmp_path: Path) -> None:
        (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
        for path in (tmp_path / CANARY, tmp_path, tmp_path / "binary"):
            said = refused({"DATABASE_URL_FILE": str(path)})
            assert "DATABASE_URL_FILE names a file that cannot be read" in said
            assert CANARY not in said


class TestTwoPlaces:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("file:///backups", "file:///backups"),
            ("file:///backups", "file:///backups/"),
            ("file:///backups", "file:////backups"),
            ("file:///backups", "file:///backups/."),
            ("file:///backups", "file:///backups/../backups"),
            ("s3://bucket/x", "s3://bucket/x"),
            ("s3://bucket/x", "s3://bucket/x/"),
            ("s3://bucket/x", "s3://bucket//x"),
            ("s3://bucket", "s3://bucket/"),
        ],
    )
    def test_one_place_for_both_is_a_fault(self, first: str, second: str) -> None:
        assert "are the same place" in refused({"BB_OPS_REPOSITORY": first, "BB_OPS_REPLICA": second})

    def test_a_link_to_the_first_is_the_same_place(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        (tmp_path / "link-to-parent").symlink_to(tmp_path)
        for other in ("link", "link/", "link-to-parent/real"):
            said = refused(
                {"BB_OPS_REPOSITORY": f"file://{tmp_path}/real", "BB_OPS_REPLICA": f"file://{tmp_path}/{other}"}
            )
            assert "are the same place" in said

    def test_one_endpoint_written_in_two_ways_is_one(self) -> None:
        said = refused(
            {
                "BB_OPS_REPOSITORY": "s3://bucket/x",
                "BB_OPS_S3_ENDPOINT_URL": "http://store:9000",
                "BB_OPS_REPLICA": "s3://bucket/x",
                "BB_OPS_REPLICA_S3_ENDPOINT_URL": "http://STORE:9000/",
            }
        )
        assert "are the same place" in said

    def test_one_bucket_name_at_two_servers_is_two_places(self) -> None:
        settings = read_settings(
            {
                "BB_OPS_REPOSITORY": "s3://bucket/x",
                "BB_OPS_S3_ENDPOINT_URL": "http://store-a:9000",
                "BB_OPS_REPLICA": "s3://bucket/x",
                "BB_OPS_REPLICA_S3_ENDPOINT_URL": "http://store-b:9000",
            }
        )
        assert regions(settings) == ("primary", "replica")

    def test_two_prefixes_of_one_bucket_are_two_places(self) -> None:
        assert regions(read_settings({"BB_OPS_REPOSITORY": "s3://bucket/a", "BB_OPS_REPLICA": "s3://bucket/b"}))

    def test_two_repositories_never_bear_one_name(self) -> None:
        settings = read_settings(
            {
                "BB_OPS_REPOSITORY": "s3://one",
                "AWS_DEFAULT_REGION": "eu-central-1",
                "BB_OPS_REPLICA": "s3://two",
                "AWS_BACKUP_REGION": "eu-central-1",
            }
        )
        assert regions(settings) == ("eu-central-1", "replica")


def regions(settings: Settings) -> tuple[str, str]:
    assert settings.repository is not None
    assert settings.replica is not None
    return settings.repository.region, settings.replica.region


class TestPredecessorsNames:
    def test_buckets_and_regions_alone_are_enough(self) -> None:
        settings = read_settings(
            {
                "DATABASE_URL": "postgresql://app@db/booking",
                "AWS_S3_BACKUP_BUCKET": "backups",
                "AWS_S3_CROSS_REGION_BUCKET": "backups-dr",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_BACKUP_REGION": "us-west-2",
            }
        )
        assert settings.repository is not None
        assert settings.replica is not None
        assert (settings.repository.url, settings.repository.aws_region) == ("s3://backups/bb_ops", "us-east-1")
        assert (settings.replica.url, settings.replica.aws_region) == ("s3://backups-dr/bb_ops", "us-west-2")
        assert regions(settings) == ("us-east-1", "us-west-2")

    def test_a_named_repository_wins_over_a_bucket(self) -> None:
        settings = read_settings({**FILES, "AWS_S3_BACKUP_BUCKET": "backups", "AWS_DEFAULT_REGION": "us-east-1"})
        assert settings.repository is not None
        assert settings.repository.url == "file:///backups/a"
        assert settings.repository.region == "primary"


class TestEnvFiles:
    def test_the_process_environment_wins_over_both_files(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("BB_OPS_CLUSTER=from-env\nBB_OPS_PART_SIZE_MIB=1\n", encoding="utf-8")
        (tmp_path / ".env.monitoring").write_text(
            "BB_OPS_PART_SIZE_MIB=2\nBB_OPS_COMPRESSION_LEVEL=4\n", encoding="utf-8"
        )
        said = read_elsewhere(
            tmp_path,
            "(s.cluster, s.part_size_bytes >> 20, s.compression_level)",
            {"BB_OPS_COMPRESSION_LEVEL": "7"},
        )
        assert said == "('from-env', 2, 7)"

    def test_what_they_hold_is_taken_as_it_stands(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text(
            "export DATABASE_URL='postgresql://app:a$OTHER#b@db/x'\n# BB_OPS_CLUSTER=no\n", encoding="utf-8"
        )
        said = read_elsewhere(tmp_path, "(s.database.password, s.cluster)", {"OTHER": "expanded"})
        assert said == "('a$OTHER#b', 'main')"

    def test_their_absence_is_no_fault(self, tmp_path: Path) -> None:
        assert read_elsewhere(tmp_path, "s == read_settings({})") == "True"

    def test_a_given_environment_is_everything(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("BB_OPS_CLUSTER=from-file\n", encoding="utf-8")
        assert read_settings({}, directory=tmp_path).cluster == "main"


def read_elsewhere(directory: Path, expression: str, environment: dict[str, str] | None = None) -> str:
    """Read settings in a process of their own, in a folder and with an environment of their own."""
    script = f"from bb_ops.settings import read_settings; s = read_settings(); print({expression})"
    answer = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        check=True,
        cwd=directory,
        env={"PYTHONPATH": str(CHECKOUT), **(environment or {})},
        text=True,
    )
    return answer.stdout.strip()
