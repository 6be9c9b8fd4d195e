"""Measures how long `backup status` takes over a large local repository: 10,000 backups and 1,000,000 WAL segments.

    .venv/bin/python benchmarks/catalog.py [--backups N] [--segments N] [--unsealed] [--json FILE]

The repository is made of our own signed records and, since status never opens them, of empty objects for the bytes:
an hourly backup each (a full a day, increments on it), a proof of every full, the segments sealed in hourly spans or,
with --unsealed, each with a receipt of its own. Measured are the first status, which reads everything, and the
following ones. Exit code 0 when it was measured, whatever came out; 1 when the answers differ, which they must not.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bb_ops.findings import Outcome
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository import layout, wal
from bb_ops.repository.ids import BackupKind, daily_slot
from bb_ops.repository.keys import make_keys
from bb_ops.repository.manifest import ObjectRole, PhysicalCommit, StoredObject
from bb_ops.repository.reports import Level, Proof
from bb_ops.repository.repository import KeyFiles, Repository
from bb_ops.repository.signing import sign_document
from bb_ops.storage.local import LocalStore

MOST_S = 0.5
_SYSTEM = "7430000000000000001"
_SEGMENT_BYTES = 16 << 20
_BEGAN = datetime(2025, 10, 1, 2, tzinfo=UTC)
_HOURS_A_DAY = 24
_HASH = "0" * 64
_BB_OPS = Path(sys.executable).with_name("bb-ops")


class _At:
    def now(self) -> datetime:
        return _BEGAN


def main() -> int:
    """Make the repository, measure, compare the answers."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="bb_ops-bench-", dir=options.directory))
    try:
        make_keys(folder / "keys", _BEGAN)
        repository = _repository(folder)
        watch = time.monotonic()
        _make_backups(repository, options.backups, options.segments)
        _make_wal(repository, options.segments, options.backups, sealed=not options.unsealed)
        print(f"made {options.backups} backups and {options.segments} segments in {time.monotonic() - watch:.0f} s")
        time.sleep(3)  # what has just changed is not trusted to an index
        first_s, first = _status(folder)
        later = [_status(folder) for _ in range(options.rounds)]
        anew_s, anew = _status(folder, "--anew")
    finally:
        shutil.rmtree(folder)
    durations = [duration for duration, _ in later]
    report = {
        "schema_id": "bb-ops/bench-catalog/1",
        "backups": options.backups,
        "segments": options.segments,
        "sealed": not options.unsealed,
        "load": os.getloadavg()[0],
        "first_s": first_s,
        "anew_s": anew_s,
        "later_s": {"median": statistics.median(durations), "lowest": min(durations), "highest": max(durations)},
    }
    median = statistics.median(durations)
    print(f"first status {first_s:.2f} s; without an index {anew_s:.2f} s")
    print(f"following ones {median:.3f} s ({min(durations):.3f}-{max(durations):.3f})")
    print(f"target: at most {MOST_S} s: {'met' if median <= MOST_S else 'MISSED'}; load {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if any(answer != anew for answer in (first, *(answer for _, answer in later))):
        print("bench: the answers differ", file=sys.stderr)
        return 1
    return 0


def _repository(folder: Path) -> Repository:
    keys = folder / "keys"
    files = KeyFiles(
        encryption="age",
        recipients=keys / "recipients.txt",
        identity=None,
        signing=keys / "signing.key",
        signing_public=keys / "signing.pub",
    )
    repository = Repository(LocalStore(folder / "repository"), "primary", "main", files, _At())
    repository.initialise()
    return repository


def _put(repository: Repository, key: str, data: bytes) -> None:
    """Write a file without making it durable, which a million times would take hours."""
    path = Path(repository.store.url.removeprefix("file://")) / key
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(data)


def _make_backups(repository: Repository, count: int, segments: int) -> None:
    parent: PhysicalCommit | None = None
    names = ("base.0000.tar.zst.age", "wal.0000.tar.zst.age", "backup_manifest.zst.age", "fingerprints.json.zst.age")
    roles = (ObjectRole.ARCHIVE, ObjectRole.ARCHIVE, ObjectRole.MANIFEST, ObjectRole.FINGERPRINTS)
    objects = tuple(
        StoredObject(name=name, role=role, size_bytes=0, raw_size_bytes=1, sha256=_HASH)
        for name, role in zip(names, roles, strict=True)
    )
    for number in range(count):
        at = _BEGAN + timedelta(hours=number)
        kind = BackupKind.FULL if number % _HOURS_A_DAY == 0 else BackupKind.INCREMENTAL
        if kind == BackupKind.FULL:
            parent = None
        position = Lsn(number * segments // count * _SEGMENT_BYTES + 256)
        commit = PhysicalCommit(
            id=f"{at:%Y%m%dT%H%M%SZ}-{kind}-{number:08x}",
            kind=kind,
            engine="native",
            cluster="main",
            system_id=_SYSTEM,
            server_version="18.1",
            server_major=18,
            superuser="postgres",
            timeline=1,
            start_lsn=position,
            end_lsn=position,
            wal_end_lsn=position,
            wal_segment_bytes=_SEGMENT_BYTES,
            slot=daily_slot(at),
            started_at=at,
            stopped_at=at,
            as_of=at,
            duration_s=1.0,
            encryption="age",
            recipients=("age1working", "age1offline"),
            compression="zstd",
            data_checksums=True,
            objects=objects,
            bb_ops_version="0",
            parent_id=parent.id if parent else None,
            depth=parent.depth + 1 if parent else 0,
        )
        for entry in objects:
            _put(repository, repository.object_key(commit, entry), b"")
        key = layout.commit_key("main", _SYSTEM, commit.id)
        _put(repository, key, sign_document(commit.model_dump(mode="json"), repository.signing_key))
        if kind == BackupKind.FULL:
            _put_proof(repository, commit)
        parent = commit


def _put_proof(repository: Repository, commit: PhysicalCommit) -> None:
    proof = Proof(
        id="proof",
        backup_id=commit.id,
        repository_id=repository.open().repository_id,
        region="primary",
        level=Level.L6.name,
        outcome=Outcome.PASS,
        steps=(),
        started_at=commit.started_at,
        duration_s=1.0,
        restore_s=1.0,
        restored_bytes=1,
        tables_compared=1,
        rows_compared=1,
        anchor_lsn=None,
        host="bench",
        bb_ops_version="0",
    )
    key = layout.proof_key("main", _SYSTEM, commit.id, proof.id)
    _put(repository, key, sign_document(proof.model_dump(mode="json"), repository.signing_key))


def _make_wal(repository: Repository, count: int, hours: int, *, sealed: bool) -> None:
    for hour in range(hours):
        first, end = hour * count // hours, (hour + 1) * count // hours
        at = _BEGAN + timedelta(hours=hour)
        start, stop = Lsn(first * _SEGMENT_BYTES), Lsn(end * _SEGMENT_BYTES)
        names = wal.segments_of(1, start, stop, _SEGMENT_BYTES)
        for name in names:
            _put(repository, wal.file_key("main", _SYSTEM, 1, f"{name}.zst.age"), b"")
            if not sealed:
                _put_record(repository, _receipt(name, at))
        if sealed and names:
            _put_record(repository, _span(names, start, stop, at))


def _put_record(repository: Repository, record: wal.WalRecord) -> None:
    _put(repository, record.key, sign_document(record.model_dump(mode="json"), repository.signing_key))


def _receipt(name: str, at: datetime) -> wal.Receipt:
    return wal.Receipt(
        cluster="main",
        system_id=_SYSTEM,
        timeline=1,
        name=name,
        suffix=".zst.age",
        size_bytes=0,
        raw_size_bytes=_SEGMENT_BYTES,
        sha256=_HASH,
        raw_sha256=_HASH,
        at=at,
    )


def _span(names: list[str], start: Lsn, stop: Lsn, at: datetime) -> wal.Span:
    return wal.Span(
        cluster="main",
        system_id=_SYSTEM,
        timeline=1,
        id=f"{at:%Y%m%dT%H%M%SZ}-wal",
        engine="native",
        slot=f"{at:%Y-%m-%dT%H}",
        server_version="18.1",
        from_lsn=start,
        to_lsn=stop,
        segment_bytes=_SEGMENT_BYTES,
        from_at=at,
        to_at=at + timedelta(hours=1),
        continues=None,
        segments=tuple(
            wal.SpanSegment(
                name=name, suffix=".zst.age", size_bytes=0, sha256=_HASH, raw_sha256=_HASH, at=at + timedelta(hours=1)
            )
            for name in names
        ),
        started_at=at,
        stopped_at=at,
        duration_s=1.0,
        bb_ops_version="0",
    )


def _status(folder: Path, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Return how long the command took, and its answer without what grows with the clock."""
    environment = {
        "PATH": os.environ["PATH"],
        "BB_OPS_REPOSITORY": f"file://{folder}/repository",
        "BB_OPS_SIGNING_PUBLIC_KEY_FILE": str(folder / "keys" / "signing.pub"),
        "BB_OPS_CACHE_DIRECTORY": str(folder / "cache"),
    }
    watch = time.monotonic()
    command = [_BB_OPS, "backup", "status", "--json", *arguments]
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        capture_output=True,
        check=False,
    )
    duration_s = time.monotonic() - watch
    answer: dict[str, Any] = json.loads(done.stdout)
    if "regions" not in answer:
        raise SystemExit(f"bench: {answer} {done.stderr.decode()}")
    for region in answer["regions"]:
        del region["lag_s"]
    return duration_s, answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backups", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--unsealed", action="store_true", help="every segment with a receipt of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where the repository is made; 5 GB of small files")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
