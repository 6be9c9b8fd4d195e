"""Builds values and small real repositories for tests."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bb_ops.findings import Outcome
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository.drills import DrillReport, DrillStep
from bb_ops.repository.ids import BackupKind, daily_slot, monthly_slot, new_backup_id
from bb_ops.repository.keys import make_keys
from bb_ops.repository.manifest import ObjectRole, PhysicalCommit, StoredObject
from bb_ops.repository.reports import Level, Proof, Step
from bb_ops.repository.repository import KeyFiles, Repository
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore
from bb_ops.storage.sealed import seal_bytes

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SYSTEM_ID = "7430000000000000001"


@dataclass
class SettableClock:
    """A clock that shows what it is set to."""

    at: datetime = NOON

    def now(self) -> datetime:
        return self.at

    def advance(self, duration_s: float) -> None:
        self.at += timedelta(seconds=duration_s)


def key_files(directory: Path) -> KeyFiles:
    """Make a set of keys, unless it is there."""
    if not directory.exists():
        make_keys(directory, NOON)
    return KeyFiles(
        encryption="age",
        recipients=directory / "recipients.txt",
        identity=directory / "working.agekey",
        signing=directory / "signing.key",
        signing_public=directory / "signing.pub",
    )


def new_repository(
    room: Path, *, keys: Path | None = None, clock: SettableClock | None = None, name: str = "primary"
) -> Repository:
    """Make a repository in a directory."""
    repository = Repository(
        LocalStore(room / name), name, "main", key_files(keys or room / "keys"), clock or SettableClock()
    )
    repository.initialise()
    return repository


def new_commit(objects: tuple[StoredObject, ...] = (), **changes: Any) -> PhysicalCommit:  # noqa: ANN401 - any field
    started_at: datetime = changes.get("started_at", NOON)
    fields: dict[str, Any] = {
        "id": new_backup_id(BackupKind.FULL, started_at),
        "kind": BackupKind.FULL,
        "engine": "native",
        "cluster": "main",
        "system_id": SYSTEM_ID,
        "server_version": "18.1",
        "server_major": 18,
        "superuser": "postgres",
        "timeline": 1,
        "start_lsn": Lsn.parse("0/2000028"),
        "end_lsn": Lsn.parse("0/2000120"),
        "wal_end_lsn": Lsn.parse("0/3000000"),
        "wal_segment_bytes": 16 << 20,
        "slot": daily_slot(started_at),
        "started_at": started_at,
        "stopped_at": started_at + timedelta(seconds=90),
        "as_of": started_at + timedelta(seconds=80),
        "duration_s": 90.25,
        "encryption": "age",
        "recipients": ("age1working", "age1offline"),
        "compression": "zstd",
        "data_checksums": True,
        "objects": objects,
        "bb_ops_version": "0.1.0",
    }
    return PhysicalCommit(**{**fields, **changes})


def stored_backup(repository: Repository, **changes: Any) -> PhysicalCommit:  # noqa: ANN401 - any field
    """Store a small backup with real sealed objects, and commit it."""
    plain = new_commit(**changes)
    seal = repository.seal(1, 0)
    contents = {
        f"base.0000.tar{seal.suffix}": (ObjectRole.ARCHIVE, bytes(1024)),
        f"backup_manifest{seal.suffix}": (ObjectRole.MANIFEST, b"{}"),
    }
    objects = []
    for name, (role, data) in contents.items():
        key = repository.object_key(
            plain, StoredObject(name=name, role=role, size_bytes=0, raw_size_bytes=0, sha256="0" * 64)
        )
        written = seal_bytes(repository.store, key, data, seal)
        objects.append(
            StoredObject(
                name=name,
                role=role,
                size_bytes=written.size_bytes,
                raw_size_bytes=written.raw_size_bytes,
                sha256=written.sha256,
            )
        )
    commit = plain.model_copy(update={"objects": tuple(objects)})
    repository.commit(commit)
    return commit


def new_proof(
    commit: PhysicalCommit,
    level: Level | None,
    outcome: Outcome = Outcome.PASS,
    *,
    after_s: float = 0.0,
    region: str = "primary",
) -> Proof:
    """Build a proof that began ``after_s`` seconds after the backup."""
    steps = tuple(
        Step(level=each.name, outcome=Outcome.PASS, evidence="seen", duration_s=1.0)
        for each in Level
        if level is not None and each <= level
    )
    return Proof(
        id=f"proof-{after_s:g}",
        backup_id=commit.id,
        region=region,
        level=None if level is None else level.name,
        outcome=outcome,
        steps=steps,
        started_at=commit.started_at + timedelta(seconds=after_s),
        duration_s=12.5,
        restore_s=3.0,
        restored_bytes=1024,
        tables_compared=1,
        rows_compared=10,
        anchor_lsn="0/3000000",
        host="test",
        bb_ops_version="0.1.0",
    )


def new_drill(declared_at: datetime, outcome: Outcome = Outcome.PASS, **changes: Any) -> DrillReport:  # noqa: ANN401
    """Build the report of a drill whose archive step ended so."""
    passed = outcome == Outcome.PASS
    step = DrillStep(name="archive", outcome=outcome, evidence="seen", started_at=declared_at, duration_s=1.0)
    fields: dict[str, Any] = {
        "id": f"{declared_at:%Y%m%dT%H%M%SZ}-00000000",
        "region": "replica",
        "repository_id": "",
        "cluster": "main",
        "system_id": SYSTEM_ID,
        "dead": "primary",
        "slot": monthly_slot(declared_at),
        "declared_at": declared_at,
        "ended_at": declared_at + timedelta(seconds=90),
        "outcome": outcome,
        "steps": (step,),
        "given": ("PATH",),
        "identities": ("age1offline",),
        "backup_id": "20261124T020000Z-full-00000001",
        "rpo_s": 900.0,
        "recovered_until_at": declared_at - timedelta(seconds=900),
        "last_transaction_at": None,
        "rto_s": 60.0,
        "proven_s": 80.0,
        "compared_s": 5.0,
        "ladder": (),
        "level": "L7" if passed else "L6",
        "restore_s": 30.0,
        "restored_bytes": 1024,
        "replay_s": 20.0,
        "replayed_bytes": 1024,
        "tables_compared": 1,
        "rows_compared": 10,
        "anchor_lsn": "0/3000000",
        "host": "test",
        "bb_ops_version": "0.1.0",
    }
    return DrillReport(**{**fields, **changes})


def overwrite(store: ObjectStore, key: str, data: bytes) -> None:
    """Do what a store never does by itself: put other bytes in place of an object's."""
    store.delete(key)
    store.create(key, data)
