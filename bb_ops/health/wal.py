"""Looks whether WAL is streamed where it should be, and whether the server can tell which blocks change."""

from collections.abc import Iterator

from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError
from bb_ops.findings import Finding, Outcome, Severity
from bb_ops.postgres.slots import SlotUse, read_slot
from bb_ops.postgres.wal_summaries import summarizes
from bb_ops.repository import wal
from bb_ops.repository.repository import Repository

_LOCK_NAME = "wal"
"""Held by whoever streams WAL or takes it from archive_command."""


def examine_wal(dsn: Dsn, slot: str, repository: Repository) -> Iterator[Finding]:
    """Check that somebody stores WAL, where that was ever begun, and that block increments can be taken."""
    try:
        yield _streamed(read_slot(dsn, slot), slot, repository)
    except BbOpsError as error:
        yield Finding(
            check_id="wal_streamed",
            outcome=Outcome.NOT_MEASURED,
            severity=Severity.HIGH,
            resource=repository.store.url,
            message=str(error),
            remedy="see the message",
        )
    try:
        yield _summarized(dsn, on=summarizes(dsn))
    except BbOpsError:
        return  # that the server cannot be asked is said elsewhere


def _streamed(use: SlotUse | None, slot: str, repository: Repository) -> Finding:
    outcome, message, remedy = Outcome.PASS, "", ""
    holder = repository.lock_holder(_LOCK_NAME)
    if holder is not None or (use is not None and use.active):
        message = f"WAL is stored as it is written: {holder or f'slot {slot} is in use'}"
    elif use is not None:
        kept = "lost what it kept" if use.retained_bytes is None else f"keeps {use.retained_bytes >> 20} MiB"
        outcome, message = Outcome.FAIL, f"nobody streams WAL, and the server's disk fills up: slot {slot} {kept}"
        remedy = f"start `bb-ops wal stream`; if it is not wanted any more, SELECT pg_drop_replication_slot('{slot}')"
    elif _is_archived(repository):
        outcome, message = Outcome.FAIL, "WAL was archived, and nobody stores it now: what is written today is not safe"
        remedy = "start `bb-ops wal stream`, or `bb-ops wal serve` where the server has an archive_command"
    else:
        outcome, message = Outcome.NOT_APPLICABLE, "WAL was never streamed: only backups can be restored"
    return Finding(
        check_id="wal_streamed",
        outcome=outcome,
        severity=Severity.HIGH,
        resource=repository.store.url,
        message=message,
        remedy=remedy,
    )


def _is_archived(repository: Repository) -> bool:
    systems = repository.system_ids()
    return any(repository.store.children(wal.wal_prefix(repository.cluster, system)) for system in systems)


def _summarized(dsn: Dsn, *, on: bool | None) -> Finding:
    outcomes = {True: Outcome.PASS, False: Outcome.FAIL, None: Outcome.NOT_APPLICABLE}
    messages = {
        True: "summarize_wal is on: increments of changed blocks can be taken",
        False: "summarize_wal is off: no increment of changed blocks can be taken, only full backups",
        None: "this version has no WAL summaries",
    }
    remedy = "ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf(); then take a full backup"
    return Finding(
        check_id="summarize_wal",
        outcome=outcomes[on],
        severity=Severity.INFO,
        resource=str(dsn),
        message=messages[on],
        remedy=remedy if on is False else "",
    )
