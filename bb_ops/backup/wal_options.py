"""How WAL is streamed, and the name of the slot that keeps it."""

from dataclasses import dataclass
from pathlib import Path

from bb_ops.repository.repository import Repository


@dataclass(frozen=True)
class WalOptions:
    """How to stream.

    Attributes:
        partial_interval_s: How often the unfinished segment is stored: the most that a lost server costs, about.
        retained_limit_bytes: Above this the server is said to keep too much for us.
        compression_level: zstd level.
        scratch: Where segments above 64 MiB are collected; the system's temporary directory when None.
        second: A second region that must hold all WAL too before the server may forget it; None leaves that to `sync`.
    """

    partial_interval_s: float
    retained_limit_bytes: int
    compression_level: int
    scratch: Path | None
    second: Repository | None


def slot_name(cluster: str) -> str:
    """Return the name of the permanent slot of a cluster (PostgreSQL allows letters, digits and underscores)."""
    return "bb_ops_" + "".join(letter if letter.isalnum() else "_" for letter in cluster)[:50]
