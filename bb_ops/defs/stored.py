"""Checks of a backup that was just taken, whatever its kind."""

import dagster as dg

from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.manifest import BackupCommit
from bb_ops.repository.repository import Repository
from bb_ops.repository.status import slot_punctuality


def stored_checks(repository: Repository, commit: BackupCommit, own: dg.AssetCheckResult) -> list[dg.AssetCheckResult]:
    """Look at what is stored now, not at what the backup said of itself; ``own`` is the check of its kind alone."""
    catalog = read_catalog(repository, commit.system_id)
    entry = catalog.find(commit.id)
    encrypted = entry.commit.encryption == "age" and all(item.name.endswith(".age") for item in entry.commit.objects)
    punctuality = slot_punctuality(catalog, commit.slot, commit.kind)
    warn = dg.AssetCheckSeverity.WARN
    return [
        dg.AssetCheckResult(
            check_name="committed",
            passed=not entry.problems,
            description="; ".join(entry.problems) or f"{len(entry.commit.objects)} objects and a valid signature",
        ),
        dg.AssetCheckResult(
            check_name="encrypted",
            passed=encrypted,
            severity=warn,
            description=f"{len(entry.commit.recipients)} recipients",
        ),
        own,
        dg.AssetCheckResult(
            check_name="on_time", passed=punctuality.on_time, severity=warn, description=punctuality.description
        ),
    ]
