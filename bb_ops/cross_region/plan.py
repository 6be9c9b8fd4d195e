"""Decides what to copy. Pure."""

from bb_ops.findings import Value
from bb_ops.repository.catalog import Catalog
from bb_ops.repository.ids import BackupId


class CopyPlan(Value):
    """What a copy would do.

    Attributes:
        to_copy: Backups that the destination lacks, oldest first.
        to_verify: Backups that it has and whose bytes are to be read again; only when everything is re-verified.
        copy_bytes: Stored bytes of ``to_copy``.
        refused: Backups that cannot be copied as they are, each with the reason.
    """

    schema_id: str = "bb-ops/copy-plan/1"
    source: str
    destination: str
    to_copy: tuple[BackupId, ...]
    to_verify: tuple[BackupId, ...]
    copy_bytes: int
    refused: tuple[str, ...]


def plan_copy(source: Catalog, destination: Catalog | None, *, verify_all: bool) -> CopyPlan:
    """Compare two catalogs; ``destination`` is None where no repository exists yet. Deletions are never copied."""
    there = {entry.commit.id for entry in destination.entries} if destination else set()
    missing = [entry for entry in source.entries if entry.commit.id not in there]
    whole = [entry for entry in missing if not entry.problems]
    return CopyPlan(
        source=source.region,
        destination=destination.region if destination else "",
        to_copy=tuple(entry.commit.id for entry in whole),
        to_verify=tuple(entry.commit.id for entry in destination.entries) if destination and verify_all else (),
        copy_bytes=sum(entry.commit.stored_bytes for entry in whole),
        refused=(
            *(f"{entry.commit.id}: {problem}" for entry in missing for problem in entry.problems),
            *(str(error) for error in source.damaged),
        ),
    )
