"""Stores of every kind, and short words for what tests do with them."""

import random
import secrets
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore
from bb_ops_tests.support.s3 import S3Server

MIB = 1 << 20
_MOST_NOISE_BYTES = 50 * MIB
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A store, and how another process opens the same one."""

    kind: str
    store: ObjectStore
    expression: str
    environment: dict[str, str]


def local_place(room: Path) -> Place:
    """Make an empty directory store below ``room``."""
    root = room / f"store-{secrets.token_hex(4)}"
    root.mkdir()
    return Place(
        "local",
        LocalStore(root),
        f"from bb_ops.storage.local import LocalStore\nstore = LocalStore(Path({str(root)!r}))",
        {},
    )


def s3_place(server: S3Server, bucket: str) -> Place:
    """Return an empty part of a bucket."""
    prefix = f"some/prefix-{secrets.token_hex(4)}"
    return Place(
        "s3",
        server.store(bucket, prefix),
        "from bb_ops.storage.s3 import S3Store\n"
        f"store = S3Store({bucket!r}, {prefix!r}, endpoint_url={server.endpoint_url!r})",
        {"AWS_ACCESS_KEY_ID": server.access_key_id, "AWS_SECRET_ACCESS_KEY": server.secret_access_key},
    )


def noise(size_bytes: int) -> bytes:
    """Return bytes that no compressor makes smaller, the same for each size."""
    return _noise()[:size_bytes]


@cache
def _noise() -> bytes:
    return random.Random(1).randbytes(_MOST_NOISE_BYTES)


def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    """Return what a listing shows."""
    return [info.key for info in store.objects(prefix)]


def read_all(store: ObjectStore, key: str, start: int = 0, length: int | None = None) -> bytes | None:
    """Read a stream to its end; None where there is no object."""
    reader = store.reader(key, start, length)
    if reader is None:
        return None
    try:
        return b"".join(iter(lambda: reader.read(1 << 18), b""))
    finally:
        reader.close()


def write_all(store: ObjectStore, key: str, data: bytes) -> None:
    """Write an object in pieces of a mebibyte."""
    with store.writer(key) as writer:
        for start in range(0, len(data), MIB):
            writer.write(data[start : start + MIB])


def run_python(script: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a few lines in a process of their own, with a whole environment."""
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=False,
        text=True,
        env={"PATH": "/usr/bin:/bin", **(environment or {})},
        cwd=CHECKOUT,
        timeout=60,
    )
