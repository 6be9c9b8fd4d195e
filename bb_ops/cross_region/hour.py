"""Copies what an hour left, and asks the other region whether it can restore the hour as well."""

from datetime import datetime

from bb_ops.cross_region.transfer import SyncReport, sync
from bb_ops.errors import RepositoryMissing
from bb_ops.findings import Finding, Outcome, Severity, Value
from bb_ops.progress import Progress
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.coverage import Coverage, read_coverage, read_lineage
from bb_ops.repository.repository import Repository


class CopiedHour(Value):
    """What was sent, and what of the hour each side can restore now.

    Attributes:
        backups: Ids of the physical backups that the destination holds.
    """

    sent: SyncReport
    here: Coverage
    there: Coverage
    backups: tuple[str, ...]

    @property
    def sent_bytes(self) -> int:
        """Bytes of backups and WAL that were sent now."""
        return sum(one.copied_bytes for one in self.sent.copied) + sum(one.copied_bytes for one in self.sent.wal)


def copy_hour(
    source: Repository, destination: Repository, hour: tuple[datetime, datetime], progress: Progress
) -> CopiedHour:
    """Copy all that the destination lacks, increments and their parents, spans and segments; then look there.

    Safe to repeat and to kill. What could not be copied is in the report.

    Raises:
        RepositoryMissing: the source holds no sound backup.
        Locked: another copy into the destination runs.
    """
    sent, _ = sync(source, destination, progress, verify_all=False)
    backups = tuple(entry.commit.id for entry in read_catalog(destination).physical)
    return CopiedHour(sent=sent, here=_look(source, hour), there=_look(destination, hour), backups=backups)


def examine_copy(copied: CopiedHour, backup_id: str | None) -> tuple[Finding, ...]:
    """Judge a copy: ``rehashed`` and ``restorable_there``. Pure.

    Args:
        copied: The copy.
        backup_id: The backup that the hour left, where it left one.
    """
    wrong = list(copied.sent.failed)
    if backup_id is not None and backup_id not in copied.backups:
        wrong.append(f"{backup_id} is not in {copied.sent.destination}")
    files = sum(one.copied for one in copied.sent.wal)
    said = f"{len(copied.sent.copied)} backups and {files} files of WAL sent, each read back and hashed"
    lacking = copied.here.covered_s - copied.there.covered_s
    where = f"{copied.there.covered_s:.0f} s of the hour in {copied.sent.destination}"
    return (
        _finding("rehashed", "; ".join(wrong) or said, failed=bool(wrong)),
        _finding(
            "restorable_there",
            "; ".join([f"{where}, {lacking:.0f} s fewer than in {copied.sent.source}", *copied.there.missing])
            if lacking > 0
            else f"{where} can be restored, as in {copied.sent.source}",
            failed=lacking > 0,
        ),
    )


def _look(repository: Repository, hour: tuple[datetime, datetime]) -> Coverage:
    lineage = read_lineage(repository, read_catalog(repository))
    if lineage is None:
        raise RepositoryMissing(f"{repository.region} holds no sound backup that WAL could continue")
    return read_coverage(repository, lineage, *hour)


def _finding(check_id: str, message: str, *, failed: bool) -> Finding:
    return Finding(
        check_id=check_id,
        outcome=Outcome.FAIL if failed else Outcome.PASS,
        severity=Severity.HIGH,
        resource="incremental_backup_replica",
        message=message,
    )
