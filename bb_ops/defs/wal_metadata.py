"""What Dagster shows of hours, of the archive of WAL, and of findings."""

from collections.abc import Iterable

import dagster as dg

from bb_ops.backup.hour import Hour
from bb_ops.backup.wal_archive import ArchiveReport
from bb_ops.cross_region.hour import CopiedHour
from bb_ops.defs.metadata import Metadata
from bb_ops.findings import Finding, Outcome, Severity

_MV = dg.MetadataValue
_ERROR_FROM = {Severity.HIGH, Severity.CRITICAL}


def hour_metadata(hour: Hour, url: str) -> Metadata:
    """Describe an hour, with the chain that a restore begins at."""
    chain = hour.chain.chain
    found: Metadata = {
        "hour": _MV.text(hour.key),
        "origin": _MV.text(hour.origin.value),
        "full_id": _MV.text(chain[0].id),
        "chain_id": _MV.text(chain[-1].id),
        "depth": _MV.int(chain[-1].depth),
        "late_s": _MV.float(hour.late_s),
        "lag_s": _MV.float(hour.lag_s),
        "covered_s": _MV.float(hour.coverage.covered_s),
        "duration_s": _MV.float(hour.duration_s),
        "created_at": _MV.timestamp(hour.created_at),
        "spans": _MV.text(", ".join(hour.span_ids) or "none of its own"),
        "dagster/uri": _MV.text(url),
        "command": _MV.text("bb-ops backup incremental"),
        "stored_bytes": _MV.int(
            (hour.wal.stored_bytes if hour.wal else 0) + (hour.backup.stored_bytes if hour.backup else 0)
        ),
    }
    return {**found, **_wal(hour), **_blocks(hour)}


def _wal(hour: Hour) -> Metadata:
    if hour.wal is None:
        return {}
    found: Metadata = {
        "timeline": _MV.int(hour.wal.timeline),
        "from_lsn": _MV.text(str(hour.wal.from_lsn)),
        "to_lsn": _MV.text(str(hour.wal.to_lsn)),
        "segments": _MV.int(hour.wal.segments),
        "wal_bytes": _MV.int(hour.wal.size_bytes),
        "wal_stored_bytes": _MV.int(hour.wal.stored_bytes),
    }
    instants = {"wal_from_at": hour.wal.from_at, "wal_to_at": hour.wal.to_at}
    return {**found, **{name: _MV.timestamp(at) for name, at in instants.items() if at is not None}}


def _blocks(hour: Hour) -> Metadata:
    commit = hour.backup
    if commit is None:
        return {}
    return {
        "backup_id": _MV.text(commit.id),
        "kind": _MV.text(commit.kind.value),
        "parent_id": _MV.text(commit.parent_id or "none: a full"),
        "fallback_reason": _MV.text(commit.fallback_reason or "none"),
        "as_of": _MV.timestamp(commit.as_of),
        "size_bytes": _MV.int(commit.size_bytes),
        "backup_stored_bytes": _MV.int(commit.stored_bytes),
        "backup_duration_s": _MV.float(commit.duration_s),
    }


def hour_version(hour: Hour) -> dg.DataVersion:
    """Return what identifies an hour's bytes: its backup, else its last span, else the stretch of the archive."""
    if hour.backup is not None:
        return dg.DataVersion(hour.backup.id)
    stretch = f"{hour.wal.timeline}-{hour.wal.from_lsn}-{hour.wal.to_lsn}" if hour.wal is not None else hour.key
    return dg.DataVersion(hour.span_ids[-1] if hour.span_ids else stretch)


def hour_tags(hour: Hour) -> dict[str, str]:
    """Return by which ids an hour is found again."""
    made = {"bb_ops/backup_id": hour.backup.id} if hour.backup is not None else {}
    return {**made, "bb_ops/full_id": hour.chain.chain[0].id}


def copied_hour_metadata(copied: CopiedHour, url: str) -> Metadata:
    """Describe the copy of an hour."""
    return {
        "source_region": _MV.text(copied.sent.source),
        "region": _MV.text(copied.sent.destination),
        "copied_bytes": _MV.int(copied.sent_bytes),
        "copied_backups": _MV.int(len(copied.sent.copied)),
        "copied_wal_files": _MV.int(sum(one.copied for one in copied.sent.wal)),
        "covered_s": _MV.float(copied.there.covered_s),
        "duration_s": _MV.float(copied.sent.duration_s),
        "dagster/uri": _MV.text(url),
        "command": _MV.text("bb-ops sync incremental"),
    }


def archive_metadata(report: ArchiveReport) -> Metadata:
    """Describe the archive; what was not measured is not there, so that no plot shows a zero for it."""
    status = report.status
    rows = [
        dg.TableRecord(
            {
                "region": region.name,
                "backups": region.backups,
                "newest_backup": region.newest_backup or "",
                "timeline": region.timeline or 0,
                "archived_to_lsn": region.archived_to_lsn or "",
                "restorable_from": f"{region.windows[-1].from_at:%Y-%m-%d %H:%M:%S}" if region.windows else "",
                "restorable_to": f"{region.windows[-1].to_at:%Y-%m-%d %H:%M:%S}" if region.windows else "",
                "windows": len(region.windows),
                "gaps": "; ".join(region.gaps),
                "open_gaps": "; ".join(region.open_gaps),
                "problem": region.problem or "",
            }
        )
        for region in report.regions
    ]
    found: Metadata = {
        "regions": _MV.table(rows),
        "slot": _MV.text(status.slot),
        "problems": _MV.text("; ".join(status.problems) or "none"),
        "command": _MV.text("bb-ops wal status; bb-ops backup status"),
    }
    numbers: dict[str, float | int | None] = {
        "lag_s": status.lag_s,
        "lag_bytes": status.lag_bytes,
        "retained_bytes": status.retained_bytes,
        "timeline": status.timeline,
    }
    for region in report.regions:
        measured = region.problem is None
        numbers[f"windows_{region.name}"] = len(region.windows) if measured else None
        numbers[f"gaps_{region.name}"] = len(region.gaps) if measured else None
        numbers[f"open_gaps_{region.name}"] = len(region.open_gaps) if measured else None
        to_at = region.restorable_to
        numbers[f"behind_s_{region.name}"] = None if to_at is None else (report.seen_at - to_at).total_seconds()
    found |= {name: _number(value) for name, value in numbers.items() if value is not None}
    if status.archived_to_lsn is not None:
        found["archived_to_lsn"] = _MV.text(status.archived_to_lsn)
    return found


def check_results(findings: Iterable[Finding], asset: str) -> list[dg.AssetCheckResult]:
    """Turn findings into checks: what was not measured does not pass."""
    return [
        dg.AssetCheckResult(
            check_name=finding.check_id,
            asset_key=asset,
            passed=finding.outcome == Outcome.PASS,
            severity=check_severity(finding),
            description=finding.message,
            metadata={"outcome": _MV.text(finding.outcome.value)},
        )
        for finding in findings
    ]


def check_evaluations(findings: Iterable[Finding], asset: str) -> list[dg.AssetCheckEvaluation]:
    """Turn findings into events that no run stands behind."""
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset),
            check_name=finding.check_id,
            passed=finding.outcome == Outcome.PASS,
            severity=check_severity(finding),
            description=finding.message,
            metadata={"outcome": _MV.text(finding.outcome.value)},
        )
        for finding in findings
    ]


def check_severity(finding: Finding) -> dg.AssetCheckSeverity:
    """Return an error for what is high or critical, else a warning."""
    severe = finding.severity in _ERROR_FROM
    return dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN


def _number(value: float) -> dg.MetadataValue:
    return _MV.int(value) if isinstance(value, int) else _MV.float(value)
