"""What Dagster shows of a domain's results: metadata that plots over time, and check results."""

import dagster as dg

from bb_ops.cross_region.transfer import CopiedBackup
from bb_ops.findings import Outcome
from bb_ops.repository.ids import slot_window
from bb_ops.repository.manifest import BackupCommit, LogicalCommit, PhysicalCommit
from bb_ops.repository.reports import Level, Proof

_MV = dg.MetadataValue
Metadata = dict[str, dg.MetadataValue]


def backup_metadata(commit: PhysicalCommit, url: str) -> Metadata:
    """Describe a physical backup."""
    return {
        **_common(commit, url),
        "timeline": _MV.int(commit.timeline),
        "start_lsn": _MV.text(str(commit.start_lsn)),
        "end_lsn": _MV.text(str(commit.end_lsn)),
        "wal_end_lsn": _MV.text(str(commit.wal_end_lsn)),
        "command": _MV.text("bb-ops backup full"),
    }


def dump_metadata(commit: LogicalCommit, url: str) -> Metadata:
    """Describe a logical or schema backup."""
    rows = [
        dg.TableRecord(
            {
                "database": database.name,
                "size_bytes": database.size_bytes,
                "raw_bytes": commit.named(database.dump).raw_size_bytes,
                "stored_bytes": commit.named(database.dump).size_bytes,
                "anchor_lsn": str(database.anchor_lsn),
            }
        )
        for database in commit.databases
    ]
    return {
        **_common(commit, url),
        "client_version": _MV.text(commit.client_version),
        "anchor_lsn": _MV.text(str(commit.position)),
        "databases": _MV.table(rows),
        "command": _MV.text(f"bb-ops backup {commit.kind}"),
    }


def _common(commit: BackupCommit, url: str) -> Metadata:
    return {
        "backup_id": _MV.text(commit.id),
        "slot": _MV.text(commit.slot),
        "as_of": _MV.timestamp(commit.as_of),
        "created_at": _MV.timestamp(commit.stopped_at),
        "late_s": _MV.float(commit.late_s(slot_window(commit.slot)[0])),
        "reconstructed": _MV.bool(commit.reconstructed),
        "size_bytes": _MV.int(commit.size_bytes),
        "stored_bytes": _MV.int(commit.stored_bytes),
        "compression_ratio": _MV.float(round(commit.size_bytes / max(commit.stored_bytes, 1), 3)),
        "duration_s": _MV.float(commit.duration_s),
        "rate_bytes_per_s": _MV.float(round(commit.size_bytes / max(commit.duration_s, 0.001), 1)),
        "encryption": _MV.text(commit.encryption),
        "server_version": _MV.text(commit.server_version),
        "system_id": _MV.text(commit.system_id),
        "dagster/uri": _MV.text(url),
        "objects": _MV.table(
            [
                dg.TableRecord(
                    {"name": entry.name, "stored_bytes": entry.size_bytes, "raw_bytes": entry.raw_size_bytes}
                )
                for entry in commit.objects
            ]
        ),
    }


def copy_metadata(copied: CopiedBackup, source_region: str, url: str) -> Metadata:
    """Describe a copy, with the backup that it was made from."""
    return {
        "source_backup_id": _MV.text(copied.id),
        "source_region": _MV.text(source_region),
        "region": _MV.text(copied.region),
        "copied_bytes": _MV.int(copied.copied_bytes),
        "verified_bytes": _MV.int(copied.verified_bytes),
        "objects": _MV.int(copied.objects),
        "duration_s": _MV.float(copied.duration_s),
        "dagster/uri": _MV.text(url),
        "command": _MV.text("bb-ops sync incremental"),
    }


def proof_metadata(proofs: list[Proof]) -> Metadata:
    """Describe what restore tests of one backup showed, region by region; the plots show the slowest and the least."""
    rows = [
        dg.TableRecord(
            {
                "region": proof.region,
                "level": step.level,
                "outcome": step.outcome.value,
                "seconds": step.duration_s,
                "evidence": step.evidence,
            }
        )
        for proof in proofs
        for step in proof.steps
    ]
    restores = [proof.restore_s for proof in proofs if proof.restore_s is not None]
    found: Metadata = {
        "source_backup_id": _MV.text(proofs[0].backup_id),
        "proof_level": _MV.int(min(-1 if proof.level is None else Level[proof.level].value for proof in proofs)),
        "rows_compared": _MV.int(min(proof.rows_compared for proof in proofs)),
        "tables_compared": _MV.int(min(proof.tables_compared for proof in proofs)),
        "duration_s": _MV.float(sum(proof.duration_s for proof in proofs)),
        "steps": _MV.table(rows),
        "command": _MV.text("bb-ops validate latest"),
    }
    if restores:
        found["rto_s"] = _MV.float(max(restores))
    for proof in proofs:
        found[f"proof_level_{proof.region}"] = _MV.text(proof.level or "nothing")
    return found


def level_check(name: str, asset: str, proofs: list[Proof], level: Level, partition: str) -> dg.AssetCheckResult:
    """Turn one rung of the ladder, in every region, into a check: what was not measured does not pass."""
    steps = [(proof.region, step) for proof in proofs for step in proof.steps if step.level == level.name]
    failed = any(step.outcome == Outcome.FAIL for _, step in steps)
    passed = bool(steps) and all(step.outcome == Outcome.PASS for _, step in steps)
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if failed or level < Level.L6 else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{region}: {step.outcome}: {step.evidence}" for region, step in steps) or "not measured",
        metadata={"partition": _MV.text(partition)},
    )
