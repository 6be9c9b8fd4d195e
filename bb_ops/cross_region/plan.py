"""Decides what to copy. Pure."""

from bb_ops.findings import Value
from bb_ops.repository.catalog import Catalog, CatalogEntry
from bb_ops.repository.ids import BackupId


class CopyPlan(Value):
    """What a copy would do.

    Attributes:
        to_copy: Backups that the destination lacks, oldest first, and what an increment builds on before it.
        to_verify: Backups that it has and whose bytes are to be read again; only when everything is re-verified.
        copy_bytes: Stored bytes of ``to_copy``.
        wal_files: Segments and history files of WAL that the destination lacks.
        wal_raw_bytes: Bytes of those segments before compression.
        refused: Backups that cannot be copied as they are, each with the reason.
    """

    schema_id: str = "bb-ops/copy-plan/1"
    source: str
    destination: str
    to_copy: tuple[BackupId, ...]
    to_verify: tuple[BackupId, ...]
    copy_bytes: int
    wal_files: int = 0
    wal_raw_bytes: int = 0
    refused: tuple[str, ...]


def plan_copy(source: Catalog, destination: Catalog | None, *, verify_all: bool) -> CopyPlan:
    """Compare two catalogs; ``destination`` is None where no repository exists yet. Deletions are never copied."""
    present = {entry.commit.id: entry for entry in destination.entries} if destination else {}
    missing = [entry for entry in source.entries if entry.commit.id not in present]
    broken = {entry.commit.id: problem for entry in missing if (problem := _broken_there(entry, present))}
    whole = [entry for entry in missing if not entry.problems and entry.commit.id not in broken]
    return CopyPlan(
        source=source.region,
        destination=destination.region if destination else "",
        to_copy=_parents_first(whole),
        to_verify=tuple(entry.commit.id for entry in destination.entries) if destination and verify_all else (),
        copy_bytes=sum(entry.commit.stored_bytes for entry in whole),
        refused=(
            *(f"{entry.commit.id}: {problem}" for entry in missing for problem in entry.problems),
            *(f"{backup_id}: {problem}" for backup_id, problem in broken.items()),
            *(str(error) for error in source.damaged),
        ),
    )


def _broken_there(entry: CatalogEntry, present: dict[BackupId, CatalogEntry]) -> str | None:
    """Say why the destination cannot take an increment: what it builds on is damaged there."""
    damaged = (present[one.id] for one in entry.ancestors if one.id in present and present[one.id].problems)
    return next((f"what it builds on is damaged there: {one.problems[0]}" for one in damaged), None)


def _parents_first(entries: list[CatalogEntry]) -> tuple[BackupId, ...]:
    """Keep the order, except that nothing comes before what it builds on, whatever the clocks said."""
    wanted = {entry.commit.id for entry in entries}
    ordered = dict.fromkeys(one.id for entry in entries for one in entry.commits)
    return tuple(backup_id for backup_id in ordered if backup_id in wanted)
