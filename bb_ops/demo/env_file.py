"""The settings file ``demo.env``, with which bb_ops works on the demo world."""

import re
from collections.abc import Mapping
from pathlib import Path

from bb_ops import files
from bb_ops.demo import postgres
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import World

INVARIANTS = Path(__file__).with_name("invariants.toml")
_PLAIN = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


def write(world: World, credentials: Credentials, extra: Mapping[str, str]) -> None:
    """Write the file (0600), readable by python-dotenv and by a shell."""
    lines = ["# bb_ops demo world: settings for a demonstration, rewritten whenever it starts."]
    lines += [f"{name}={_quoted(value)}" for name, value in {**settings(world, credentials), **extra}.items()]
    files.write_atomic(world.env_file, ("\n".join(lines) + "\n").encode())


def settings(world: World, credentials: Credentials) -> dict[str, str]:
    """Return the settings by name; some are secret."""
    primary, other = world.regions
    values = {
        "DATABASE_URL": postgres.url(world, postgres.BACKUP, credentials.backup),
        "API_BASE_URL": world.api_url,
        "AWS_DEFAULT_REGION": primary.name,
        "AWS_BACKUP_REGION": other.name,
        "BB_OPS_CLUSTER": "bookedbarber-demo",
        "BB_OPS_REPOSITORY": f"s3://{primary.bucket}/bb_ops",
        "BB_OPS_REPLICA": f"s3://{other.bucket}/bb_ops",
        "BB_OPS_PG_BINDIR": str(world.pg_bindir),
        "BB_OPS_INVARIANTS_FILE": str(INVARIANTS),
    }
    for prefix, region in (("BB_OPS_S3", primary), ("BB_OPS_REPLICA_S3", other)):
        key = credentials.regions[region.name]
        values[f"{prefix}_ENDPOINT_URL"] = region.endpoint_url
        values[f"{prefix}_ACCESS_KEY_ID"] = key.access_key_id
        values[f"{prefix}_SECRET_ACCESS_KEY"] = key.secret_access_key.get_secret_value()
    return values


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
