"""The kinds of commits: their formats, which one a document holds, and what may be asked of a catalog."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from bb_ops.errors import RepositoryMissing, UsageError
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository.catalog import Catalog, CatalogEntry
from bb_ops.repository.ids import BackupKind, daily_slot, new_backup_id, weekly_slot
from bb_ops.repository.manifest import Commit, LogicalCommit, PhysicalCommit, parse_commit
from bb_ops.repository.status import region_status
from bb_ops_tests.support.commits import overview

AT = datetime(2026, 11, 24, 3, tzinfo=UTC)
COMMON: dict[str, Any] = {
    "cluster": "main",
    "system_id": "7",
    "server_version": "18.1",
    "server_major": 18,
    "superuser": "postgres",
    "reconstructed": False,
    "duration_s": 1.0,
    "encryption": "age",
    "recipients": ["age1a", "age1b"],
    "compression": "zstd",
    "bb_ops_version": "0",
}
_OBJECT = {"size_bytes": 5, "raw_size_bytes": 9, "sha256": "0" * 64, "tablespace_oid": None}
PHYSICAL: dict[str, Any] = {
    "schema_id": "bb-ops/backup-commit/1",
    "engine": "native",
    "timeline": 1,
    "start_lsn": "0/2000028",
    "end_lsn": "0/2000158",
    "wal_end_lsn": "0/3000000",
    "wal_segment_bytes": 16 << 20,
    "data_checksums": True,
    "tablespaces": [],
    "objects": [{"name": "base.0000.tar.zst.age", "role": "archive", **_OBJECT}],
}
LOGICAL: dict[str, Any] = {
    "schema_id": "bb-ops/logical-commit/1",
    "engine": "logical",
    "client_version": "18.1",
    "client_major": 18,
    "locale": {"encoding": "UTF8", "collate": "C", "ctype": "C", "provider": "c", "locale": None},
    "databases": [
        {
            "name": "Ünï",
            "oid": 5,
            "dump": "5.dump.zst.age",
            "contents": "5.contents.zst.age",
            "size_bytes": 100,
            "snapshot": "00000003-0000001B-1",
            "anchor_lsn": "0/5000000",
            "as_of": AT.isoformat(),
        }
    ],
    "tablespaces": [],
    "left_out": [],
    "objects": [{"name": "5.dump.zst.age", "role": "dump", **_OBJECT}],
}


def is_physical(kind: BackupKind) -> bool:
    """Return what this test knows of kinds by itself."""
    return kind in {BackupKind.FULL, BackupKind.INCREMENTAL}


def document(of: BackupKind, at: datetime = AT, changes: dict[str, object] | None = None) -> dict[str, Any]:
    """Return the body of a commit."""
    return {
        **COMMON,
        **(PHYSICAL if is_physical(of) else LOGICAL),
        **({"parent_id": new_backup_id(BackupKind.FULL, at), "depth": 1} if of == BackupKind.INCREMENTAL else {}),
        "id": new_backup_id(of, at),
        "kind": of.value,
        "slot": daily_slot(at),
        **{name: at.isoformat().replace("+00:00", "Z") for name in ("started_at", "stopped_at", "as_of")},
        **(changes or {}),
    }


def commit(kind: BackupKind, at: datetime = AT) -> Commit:
    """Return a commit."""
    return parse_commit(document(kind, at))


def catalog(*commits: Commit) -> Catalog:
    """Return a catalog of backups without proofs."""
    return Catalog("primary", [CatalogEntry(entry, (), ()) for entry in commits])


@pytest.mark.parametrize("kind", list(BackupKind))
def test_a_commit_is_what_its_schema_id_says_and_keeps_its_json(kind: BackupKind) -> None:
    body = document(kind)
    parsed = parse_commit(body)
    assert isinstance(parsed, PhysicalCommit if is_physical(kind) else LogicalCommit)
    written = parsed.model_dump(mode="json")
    assert {name: written[name] for name in body if name != "databases"} == {
        name: value for name, value in body.items() if name != "databases"
    }
    assert parse_commit(written) == parsed


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_id": "bb-ops/logical-commit/2"},
        {"kind": "full"},
        {"engine": "native"},
        {"end_lsn": "0/1"},
        {"databases": []},
    ],
)
def test_a_logical_commit_that_claims_what_it_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse_commit(document(BackupKind.LOGICAL, changes=changes))


def test_a_physical_commit_of_a_logical_kind_is_refused() -> None:
    with pytest.raises(ValidationError):
        parse_commit(document(BackupKind.FULL, changes={"kind": "schema"}))


def test_a_dump_has_no_range_of_wal() -> None:
    names = set(LogicalCommit.model_fields)
    assert not {name for name in names if "lsn" in name or "wal" in name or "timeline" in name}
    assert commit(BackupKind.LOGICAL).position == Lsn.parse("0/5000000")


def test_latest_is_the_newest_physical_backup_and_never_a_dump() -> None:
    full, dump = commit(BackupKind.FULL), commit(BackupKind.LOGICAL, AT + timedelta(hours=1))
    found = catalog(full, dump)
    assert found.find("latest").commit == full
    assert found.find(dump.id).commit == dump
    with pytest.raises(RepositoryMissing, match="no physical backup"):
        catalog(dump).find("latest")


def test_a_dump_represents_no_slot_of_full_backups() -> None:
    dump = commit(BackupKind.LOGICAL)
    found = catalog(dump)
    with pytest.raises(RepositoryMissing):
        found.find_slot(dump.slot)
    assert found.find_slot(dump.slot, BackupKind.LOGICAL).commit == dump
    status = region_status(overview(found), AT + timedelta(hours=1))
    assert (status.backups, status.windows, status.missing_slots) == (1, (), (daily_slot(AT),))


def test_what_needs_a_physical_backup_refuses_a_dump() -> None:
    with pytest.raises(UsageError, match="is a logical backup: this needs a physical one"):
        _ = catalog(commit(BackupKind.LOGICAL)).entries[0].physical


@pytest.mark.parametrize(
    ("at", "slot"),
    [
        (datetime(2026, 11, 23, 1, 59, tzinfo=UTC), "2026-11-16"),
        (datetime(2026, 11, 23, 2, 0, tzinfo=UTC), "2026-11-23"),
        (datetime(2026, 11, 29, 23, 0, tzinfo=UTC), "2026-11-23"),
    ],
)
def test_a_weekly_slot_bears_its_monday(at: datetime, slot: str) -> None:
    assert weekly_slot(at) == slot
