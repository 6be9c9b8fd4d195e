"""Keys: age recipients and identities, and the set that ``keys init`` makes."""

import shlex
from datetime import datetime
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bb_ops.errors import KeyRejected, SettingsError, UsageError
from bb_ops.files import create_exclusive, make_directory
from bb_ops.findings import Value
from bb_ops.repository.signing import key_id, load_public_key, load_signing_key

LEAST_RECIPIENTS = 2
"""A working key and an offline one: whoever loses the first can still open everything with the second."""

OFFLINE_FILE = "offline.agekey"
"""The offline key's name where it is made; it belongs somewhere else afterwards."""


class KeySet(Value):
    """What ``keys init`` made; paths and public facts only."""

    schema_id: str = "bb-ops/keys/1"
    directory: str
    working_recipient: str
    offline_recipient: str
    signing_key_id: str
    settings_file: str


def read_recipients(path: Path) -> tuple[pyrage.x25519.Recipient, ...]:
    """Read age public keys, one a line.

    Raises:
        SettingsError: a line is no age public key, or there are fewer than two different ones.
    """
    found: dict[str, pyrage.x25519.Recipient] = {}
    for number, line in enumerate(_lines(path, "BB_OPS_AGE_RECIPIENTS_FILE"), start=1):
        try:
            found[line] = pyrage.x25519.Recipient.from_str(line)
        except pyrage.RecipientError as error:
            raise SettingsError(f"{path}: key {number} is no age public key (age1…)") from error
    if len(found) < LEAST_RECIPIENTS:
        raise SettingsError(
            f"{path} names {len(found)} recipient(s), and two are needed: a working key and an offline one"
        )
    return tuple(found.values())


def read_identities(path: Path) -> tuple[pyrage.x25519.Identity, ...]:
    """Read age secret keys, one a line.

    Raises:
        KeyRejected: a line is no age secret key, or there is none.
    """
    found = []
    for number, line in enumerate(_lines(path, "BB_OPS_AGE_IDENTITY_FILE"), start=1):
        try:
            found.append(pyrage.x25519.Identity.from_str(line))
        except pyrage.IdentityError as error:
            raise KeyRejected(f"{path}: key {number} is no age secret key (AGE-SECRET-KEY-1…)") from error
    if not found:
        raise KeyRejected(f"{path} holds no age secret key")
    return tuple(found)


def make_keys(directory: Path, created_at: datetime) -> KeySet:
    """Make a working and an offline age key, a signing key, and the settings that use them.

    The settings file is written last; an interrupted call can be repeated in an empty directory.

    Raises:
        UsageError: the directory holds keys already; they are never overwritten.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not an empty directory: keys are never overwritten, name another one")
    directory = directory.absolute()
    try:
        make_directory(directory)
        working, offline = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
        signing = Ed25519PrivateKey.generate()
        stamp = f"# created: {created_at:%Y-%m-%dT%H:%M:%SZ}\n"
        for name, identity in (("working.agekey", working), (OFFLINE_FILE, offline)):
            text = f"{stamp}# public key: {identity.to_public()}\n{identity}\n"
            create_exclusive(directory / name, text.encode())
        recipients = f"# working\n{working.to_public()}\n# offline\n{offline.to_public()}\n"
        create_exclusive(directory / "recipients.txt", recipients.encode())
        create_exclusive(directory / "signing.key", _secret_pem(signing))
        create_exclusive(directory / "signing.pub", _public_pem(signing))
        create_exclusive(directory / "bb-ops.env", settings_lines(directory).encode())
    except OSError as error:
        raise UsageError(f"cannot write keys to {directory}: {error.strerror}") from error
    return KeySet(
        directory=str(directory),
        working_recipient=str(working.to_public()),
        offline_recipient=str(offline.to_public()),
        signing_key_id=key_id(signing.public_key()),
        settings_file=str(directory / "bb-ops.env"),
    )


def check_keys(directory: Path) -> KeySet:
    """Prove that a key directory is whole: every key parses, pairs match, and files are private.

    Raises:
        KeyRejected: something is missing, does not match, or is readable by others.
    """
    paths = {name: directory / name for name in ("working.agekey", OFFLINE_FILE, "signing.key")}
    for path in paths.values():
        if not path.is_file():
            raise KeyRejected(f"{path} is missing; if it is the offline key, check where it is kept")
        if path.stat().st_mode & 0o077:
            raise KeyRejected(f"{path} can be read by others: chmod 600 it")
    recipients = {str(key) for key in read_recipients(directory / "recipients.txt")}
    working, offline = (read_identities(paths[name])[0].to_public() for name in ("working.agekey", OFFLINE_FILE))
    if recipients != {str(working), str(offline)} or str(working) == str(offline):
        raise KeyRejected(f"{directory}/recipients.txt does not name exactly the working and the offline key")
    signing = load_signing_key(paths["signing.key"]).public_key()
    if key_id(signing) != key_id(load_public_key(directory / "signing.pub")):
        raise KeyRejected(f"{directory}/signing.pub is not the public half of signing.key")
    return KeySet(
        directory=str(directory.absolute()),
        working_recipient=str(working),
        offline_recipient=str(offline),
        signing_key_id=key_id(signing),
        settings_file=str(directory.absolute() / "bb-ops.env"),
    )


def settings_lines(directory: Path) -> str:
    """Return the settings that use the keys in ``directory``, for a shell or a ``.env`` file."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in key_settings(directory).items())


def key_settings(directory: Path) -> dict[str, str]:
    """Return the settings that use the keys in ``directory``, by name."""
    files = {
        "BB_OPS_AGE_RECIPIENTS_FILE": "recipients.txt",
        "BB_OPS_AGE_IDENTITY_FILE": "working.agekey",
        "BB_OPS_SIGNING_KEY_FILE": "signing.key",
        "BB_OPS_SIGNING_PUBLIC_KEY_FILE": "signing.pub",
    }
    return {name: str(directory / file) for name, file in files.items()}


def _lines(path: Path, setting: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{setting}: {path} cannot be read") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _secret_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
