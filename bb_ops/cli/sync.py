"""``bb-ops sync``: copy backups to the other region."""

import click

from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, human_bytes, json_option, progress_bar
from bb_ops.cross_region.transfer import plan_sync, sync


@click.group("sync")
def command() -> None:
    """Copy backups to the other region; every copy is re-read and re-hashed where it arrived."""


@command.command("incremental")
@click.option("--dry-run", is_flag=True, help="Show what would be copied.")
@json_option
def incremental(*, dry_run: bool, as_json: bool) -> int:
    """Copy what the other region lacks."""
    return _sync(verify_all=False, dry_run=dry_run, as_json=as_json)


@command.command("full")
@click.option("--dry-run", is_flag=True, help="Show what would be copied and verified.")
@json_option
def full(*, dry_run: bool, as_json: bool) -> int:
    """Copy what the other region lacks, and re-read and re-hash everything that it has."""
    return _sync(verify_all=True, dry_run=dry_run, as_json=as_json)


def _sync(*, verify_all: bool, dry_run: bool, as_json: bool) -> int:
    ops = operations()
    if dry_run:
        plan = plan_sync(ops.repository, ops.replica, verify_all=verify_all)
        if as_json:
            emit(plan.model_dump(mode="json"))
        else:
            size = human_bytes(plan.copy_bytes)
            log = f"{plan.wal_files} files of WAL ({human_bytes(plan.wal_raw_bytes)} uncompressed)"
            click.echo(f"would copy {len(plan.to_copy)} backups ({size}) and {log}, and verify {len(plan.to_verify)}")
        return 0
    with progress_bar() as progress:
        report, error = sync(ops.repository, ops.replica, progress, verify_all=verify_all)
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        for entry in report.copied:
            size = human_bytes(entry.copied_bytes)
            click.echo(f"{entry.id}: {size} copied to {entry.region} and re-hashed there in {entry.duration_s} s")
        for wal in report.wal:
            click.echo(f"WAL: {wal.copied} files ({human_bytes(wal.copied_bytes)}) copied and re-hashed there")
        click.echo(f"{len(report.copied)} copied, {len(report.verified)} verified, {len(report.failed)} failed")
    for line in report.failed:
        click.echo(f"bb-ops: {line}", err=True)
    return 0 if error is None else error.exit_code
