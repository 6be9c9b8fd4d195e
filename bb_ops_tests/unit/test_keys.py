"""The set of keys: made once, private, and whole or refused."""

import re
from pathlib import Path

import pyrage
import pytest

from bb_ops.errors import BbOpsError, KeyRejected, SettingsError, UsageError
from bb_ops.repository.keys import (
    check_keys,
    key_settings,
    make_keys,
    read_identities,
    read_recipients,
    settings_lines,
)
from bb_ops.settings import read_settings
from bb_ops_tests.unit.builders import NOON

FILES = ["bb-ops.env", "offline.agekey", "recipients.txt", "signing.key", "signing.pub", "working.agekey"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", NOON)
    return tmp_path / "keys"


def test_everything_is_private(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == FILES
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_what_was_made_passes_its_check(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys", NOON)
    assert check_keys(tmp_path / "keys") == made


def test_no_secret_is_part_of_the_answer(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys", NOON)
    for name in ("working.agekey", "offline.agekey"):
        secret = re.search(r"AGE-SECRET-KEY-1\w+", (tmp_path / "keys" / name).read_text(encoding="utf-8"))
        assert secret is not None
        assert secret[0] not in made.model_dump_json()


def test_the_settings_that_come_with_them_work(directory: Path) -> None:
    settings = read_settings(key_settings(directory))
    assert settings.recipients_file == directory / "recipients.txt"
    assert settings.identity_file == directory / "working.agekey"
    assert settings.signing_key_file == directory / "signing.key"
    assert settings.signing_public_key_file == directory / "signing.pub"


def test_settings_lines_survive_a_shell() -> None:
    (line, *_) = settings_lines(Path("/a b/$c")).splitlines()
    assert line == "BB_OPS_AGE_RECIPIENTS_FILE='/a b/$c/recipients.txt'"


@pytest.mark.parametrize("name", ["signing.key", "anything", ".hidden"])
def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old", encoding="utf-8")
    with pytest.raises(UsageError, match="not an empty directory"):
        make_keys(tmp_path, NOON)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(name, "old")]


def test_keys_are_never_made_twice(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(UsageError):
        make_keys(directory, NOON)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError):
            make_keys(target, NOON)


@pytest.mark.parametrize("name", ["working.agekey", "offline.agekey", "signing.key", "signing.pub", "recipients.txt"])
def test_a_missing_file_is_found(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(BbOpsError, match=re.escape(name)):
        check_keys(directory)


@pytest.mark.parametrize("name", ["working.agekey", "offline.agekey", "signing.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_that_others_can_reach_is_found(directory: Path, name: str, mode: int) -> None:
    (directory / name).chmod(mode)
    with pytest.raises(KeyRejected, match="chmod 600"):
        check_keys(directory)


@pytest.mark.parametrize("name", ["working.agekey", "offline.agekey", "signing.key", "signing.pub", "recipients.txt"])
def test_a_file_of_another_set_is_found(directory: Path, other_keys: Path, name: str) -> None:
    (directory / name).write_bytes((other_keys / name).read_bytes())
    with pytest.raises(KeyRejected):
        check_keys(directory)


def test_one_key_in_both_places_is_found(directory: Path) -> None:
    (directory / "offline.agekey").write_bytes((directory / "working.agekey").read_bytes())
    with pytest.raises(KeyRejected):
        check_keys(directory)


class TestRecipients:
    def test_two_different_keys_are_needed(self, directory: Path, tmp_path: Path) -> None:
        (first, second) = (str(key) for key in read_recipients(directory / "recipients.txt"))
        for text in ("", first, f"{first}\n{first}\n", f"# {second}\n{first}"):
            (tmp_path / "r").write_text(text, encoding="utf-8")
            with pytest.raises(SettingsError, match="two are needed"):
                read_recipients(tmp_path / "r")
        (tmp_path / "r").write_text(f"\n# both\n  {first}  \r\n{second}", encoding="utf-8")
        assert [str(key) for key in read_recipients(tmp_path / "r")] == [first, second]

    def test_a_line_that_is_no_key_is_refused_without_being_repeated(self, directory: Path, tmp_path: Path) -> None:
        """The likeliest wrong line is the secret key."""
        secret = str(pyrage.x25519.Identity.generate())
        public = (directory / "recipients.txt").read_text(encoding="utf-8")
        for line in (secret, "age1short", "ssh-ed25519 AAAA", public.splitlines()[1][:-1]):
            (tmp_path / "r").write_text(f"{public}{line}\n", encoding="utf-8")
            with pytest.raises(SettingsError, match="key 3 is no age public key") as refused:
                read_recipients(tmp_path / "r")
            assert line not in str(refused.value)

    @pytest.mark.parametrize("content", [b"\xff\xfe", None])
    def test_a_file_that_cannot_be_read_is_a_setting_to_mend(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "r").write_bytes(content)
        with pytest.raises(SettingsError, match="BB_OPS_AGE_RECIPIENTS_FILE"):
            read_recipients(tmp_path / "r")


class TestIdentities:
    def test_several_may_stand_in_one_file(self, directory: Path, tmp_path: Path) -> None:
        both = (directory / "working.agekey").read_text(encoding="utf-8") + (directory / "offline.agekey").read_text(
            encoding="utf-8"
        )
        (tmp_path / "both").write_text(both, encoding="utf-8")
        assert len(read_identities(tmp_path / "both")) == 2

    @pytest.mark.parametrize("text", ["", "# only a comment\n", "AGE-SECRET-KEY-1SHORT", "age1public"])
    def test_what_is_no_secret_key_is_rejected_without_being_repeated(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "i").write_text(text, encoding="utf-8")
        with pytest.raises(KeyRejected) as rejected:
            read_identities(tmp_path / "i")
        assert rejected.value.exit_code == 12
        assert "SHORT" not in str(rejected.value)
