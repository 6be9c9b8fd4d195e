"""A backup in words and in fields that others rely on."""

from typing import Any

from bb_ops.cli.output import human_bytes
from bb_ops.repository.manifest import BackupCommit


def summary(commit: BackupCommit) -> str:
    """Return one line for a person."""
    rate = human_bytes(commit.size_bytes / commit.duration_s)
    return (
        f"{commit.id}: {human_bytes(commit.size_bytes)} in {commit.duration_s} s ({rate}/s), stored as "
        f"{human_bytes(commit.stored_bytes)}, encryption {commit.encryption}; not proven yet: bb-ops validate latest"
    )


def describe(commit: BackupCommit) -> dict[str, Any]:
    """Return the fields of a backup that others rely on."""
    return {
        "id": commit.id,
        "kind": str(commit.kind),
        "engine": commit.engine,
        "slot": commit.slot,
        "reconstructed": commit.reconstructed,
        "started_at": commit.started_at.isoformat(),
        "stopped_at": commit.stopped_at.isoformat(),
        "as_of": commit.as_of.isoformat(),
        "size_bytes": commit.size_bytes,
        "stored_bytes": commit.stored_bytes,
        "duration_s": commit.duration_s,
        "encryption": commit.encryption,
        "server_version": commit.server_version,
        "system_id": commit.system_id,
        "parent_id": commit.parent_id,
        "depth": commit.depth,
        "fallback_reason": commit.fallback_reason,
        "combined_from": list(commit.combined_from),
    }
