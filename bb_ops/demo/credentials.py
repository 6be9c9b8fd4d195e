"""The demo's passwords and keys: random, made once, kept in one 0600 file, never on a command line."""

import json
import secrets
from pathlib import Path

from pydantic import SecretStr

from bb_ops import files
from bb_ops.findings import Value

_SECRET_BYTES = 24
FILE_NAME = "credentials.json"


class AccessKey(Value):
    """What signs requests to one region."""

    access_key_id: str
    secret_access_key: SecretStr


class Credentials(Value):
    """Everything secret in the demo world."""

    admin: SecretStr
    app: SecretStr
    readonly: SecretStr
    backup: SecretStr
    object_encryption: SecretStr
    regions: dict[str, AccessKey]


def ensure(directory: Path, regions: tuple[str, ...]) -> Credentials:
    """Return the world's credentials, making them at the first call.

    The file stays until the world is deleted; a crash leaves all of it or none.
    """
    path = directory / FILE_NAME
    if not path.exists():
        made = {name: _secret() for name in ("admin", "app", "readonly", "backup", "object_encryption")}
        keys = {
            name: {"access_key_id": f"demo{secrets.token_hex(8)}", "secret_access_key": _secret()} for name in regions
        }
        files.write_atomic(path, json.dumps({**made, "regions": keys}, indent=2).encode())
    return load(directory)


def load(directory: Path) -> Credentials:
    """Read the world's credentials."""
    return Credentials.model_validate_json((directory / FILE_NAME).read_bytes())


def _secret() -> str:
    return secrets.token_hex(_SECRET_BYTES)  # hexadecimal needs no quoting in URLs, SQL or env files
