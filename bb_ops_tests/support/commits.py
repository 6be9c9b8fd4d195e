"""Commits and catalogs for tests of decisions, which need no server."""

from datetime import UTC, datetime, timedelta
from typing import Any

from bb_ops.postgres.lsn import Lsn
from bb_ops.repository.catalog import Catalog, CatalogEntry, linked
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.overview import Overview, facts_of

BEGAN = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
SYSTEM = "7711792015409310130"


def commit(number: int, parent: PhysicalCommit | None = None, **changes: Any) -> PhysicalCommit:  # noqa: ANN401
    """Return the commit of the backup that was taken ``number`` hours after the first; an increment on ``parent``."""
    kind = BackupKind.FULL if parent is None else BackupKind.INCREMENTAL
    at = BEGAN + timedelta(hours=number)
    facts: dict[str, Any] = {
        "id": f"{at:%Y%m%dT%H%M%SZ}-{kind}-{number:08x}",
        "kind": kind,
        "engine": "native",
        "cluster": "main",
        "system_id": SYSTEM,
        "server_version": "18.6",
        "server_major": 18,
        "superuser": "postgres",
        "timeline": 1,
        "start_lsn": Lsn(number << 24),
        "end_lsn": Lsn((number << 24) + 256),
        "wal_end_lsn": Lsn((number + 1) << 24),
        "wal_segment_bytes": 1 << 24,
        "slot": f"{at:%Y-%m-%d}",
        "started_at": at,
        "stopped_at": at,
        "as_of": at,
        "duration_s": 1.0,
        "encryption": "age",
        "recipients": ("age1a", "age1b"),
        "compression": "zstd",
        "data_checksums": True,
        "objects": (),
        "bb_ops_version": "0",
        "parent_id": parent.id if parent else None,
        "depth": parent.depth + 1 if parent else 0,
    }
    return PhysicalCommit(**{**facts, **changes})


def catalog(*commits: PhysicalCommit, problems: dict[str, str] | None = None, region: str = "primary") -> Catalog:
    """Return the catalog of a repository that holds these backups, with problems by id."""
    found = problems or {}
    entries = [CatalogEntry(one, (found[one.id],) if one.id in found else (), ()) for one in commits]
    return linked(Catalog(region, entries))


def overview(held: Catalog) -> Overview:
    """Return what a catalog, linked already, means for a region's status; without archived WAL."""
    roots = {entry.commit.id: entry.chain[0].id for entry in held.physical if entry.chain[0].kind == BackupKind.FULL}
    return Overview(held.region, [facts_of(entry) for entry in held.entries], roots, held.damaged)
