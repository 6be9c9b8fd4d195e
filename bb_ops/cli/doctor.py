"""``bb-ops doctor``: what is missing, misconfigured or left over, and how to mend it."""

from collections.abc import Iterator

import click

from bb_ops.backup.wal_options import slot_name
from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import emit, json_option
from bb_ops.findings import Finding, Outcome, Severity
from bb_ops.health.doctor import (
    examine_copies,
    examine_database,
    examine_keys,
    examine_repository,
    remove_leftovers,
)
from bb_ops.health.wal import examine_wal
from bb_ops.recovery.scratch_copy import abandoned_copies, sweep_scratch

_FINDINGS = 4


@click.command("doctor")
@click.option("--remove-leftovers", "remove", is_flag=True, help="Remove what dead runs left behind.")
@json_option
def command(*, remove: bool, as_json: bool) -> int:
    """Look at settings, keys, server, repositories and leftovers; exit 4 where something is wrong."""
    ops = operations()
    if remove:
        for repository in ops.repositories:
            backups, writes = remove_leftovers(repository)
            click.echo(
                f"{repository.region}: removed {backups} uncommitted backups and {writes} unfinished writes", err=True
            )
        copies = sweep_scratch(ops.settings.scratch_directory)
        click.echo(f"this host: removed {copies} copies of the data that killed restore tests left", err=True)
    findings = list(_examine(ops))
    if as_json:
        emit(
            {
                "schema_id": "bb-ops/doctor/1",
                "findings": [finding.model_dump(mode="json") for finding in findings],
                "coverage": {"checks": len(findings)},
            }
        )
    else:
        for finding in findings:
            click.echo(f"{finding.outcome.upper():12} {finding.check_id:26} {finding.resource}: {finding.message}")
            if finding.remedy:
                click.echo(f"{'':12} mend it: {finding.remedy}")
    return _FINDINGS if any(_is_wrong(finding) for finding in findings) else 0


def _is_wrong(finding: Finding) -> bool:
    """Say whether a finding needs to be mended; what is only told (severity info) need not."""
    return finding.severity != Severity.INFO and finding.outcome not in {Outcome.PASS, Outcome.NOT_APPLICABLE}


def _examine(ops: Operations) -> Iterator[Finding]:
    settings = ops.settings
    if settings.database is None:
        yield _unset("database_reachable", "DATABASE_URL")
    else:
        yield from examine_database(settings.database, settings.pg_bindirs)
    yield from examine_copies(abandoned_copies(settings.scratch_directory))
    if settings.repository is None:
        yield _unset("repository", "BB_OPS_REPOSITORY")
        return
    yield from examine_keys(ops.repository)
    for repository in ops.repositories:
        yield from examine_repository(repository)
    if settings.database is not None:
        yield from examine_wal(settings.database, slot_name(ops.repository.cluster), ops.repository)
    if settings.replica is None:
        yield _unset("replica", "BB_OPS_REPLICA")


def _unset(check_id: str, name: str) -> Finding:
    return Finding(
        check_id=check_id,
        outcome=Outcome.NOT_MEASURED,
        severity=Severity.HIGH,
        resource="settings",
        message=f"{name} is not set",
        remedy=f"set {name}",
    )
