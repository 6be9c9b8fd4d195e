"""A backup in words and in fields that others rely on."""

from typing import Any

import click

from bb_ops.cli.output import emit, human_bytes
from bb_ops.process import peak_memory_bytes
from bb_ops.repository.manifest import BackupCommit, PhysicalCommit


def report(commit: BackupCommit, *, as_json: bool) -> None:
    """Print what was taken: a line for a person, or the fields."""
    if as_json:
        emit({"schema_id": "bb-ops/backup/1", **describe(commit), "peak_memory_bytes": peak_memory_bytes()})
    else:
        click.echo(summary(commit))


def summary(commit: BackupCommit) -> str:
    """Return one line for a person."""
    rate = human_bytes(commit.size_bytes / commit.duration_s)
    return (
        f"{commit.id}: {human_bytes(commit.size_bytes)} in {commit.duration_s} s ({rate}/s), stored as "
        f"{human_bytes(commit.stored_bytes)}, encryption {commit.encryption}; "
        f"not proven yet: bb-ops validate {commit.id}"
    )


def describe(commit: BackupCommit) -> dict[str, Any]:
    """Return the fields of a backup that others rely on."""
    physical = commit if isinstance(commit, PhysicalCommit) else None
    chain = {
        "parent_id": physical.parent_id if physical else None,
        "depth": physical.depth if physical else 0,
        "fallback_reason": physical.fallback_reason if physical else None,
        "combined_from": list(physical.combined_from) if physical else [],
    }
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
        **chain,
    }
