"""One named hour of WAL: taken live when it is just over, sealed from the archive later, or refused.

An hour is named by its beginning, as Dagster names hourly partitions. In the hour that follows it is taken live: the
WAL is sealed up to now, and the blocks that changed are taken. After that nothing of now may bear its name: what the
archive holds of it is looked at, and where that has a hole, the hour stays missing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from bb_ops.backup.interval import Interval, IntervalOptions, take_interval
from bb_ops.clock import Clock, Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import RepositoryMissing, UsageError
from bb_ops.progress import Progress
from bb_ops.repository import windows
from bb_ops.repository.catalog import CatalogEntry, read_catalog
from bb_ops.repository.coverage import ArchivedWal, Coverage, Lineage, locate, read_coverage, read_lineage
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository

_FORM = "%Y-%m-%d-%H:%M"
_HOUR = timedelta(hours=1)


class HourOrigin(StrEnum):
    """Where an hour's WAL comes from."""

    LIVE = "live"
    ARCHIVE = "archive"


@dataclass(frozen=True)
class Hour:
    """What represents an hour.

    Attributes:
        key: Its name.
        taken: What was taken; None where it was sealed from the archive.
        wal: Live, what was sealed now; from the archive, the segments that hold the hour. None where that is nothing.
        coverage: What of the hour can be restored now.
        holes: Where some of it lies before the first backup, the holes since then.
        chain: The backup that was taken or, where none was, that a restore to the hour's end begins at.
        ended_at: When the hour was over.
    """

    key: str
    origin: HourOrigin
    taken: Interval | None
    wal: ArchivedWal | None
    coverage: Coverage
    holes: tuple[str, ...]
    chain: CatalogEntry
    span_ids: tuple[str, ...]
    ended_at: datetime
    created_at: datetime
    duration_s: float

    @property
    def backup(self) -> PhysicalCommit | None:
        """The increment that was taken, or the full that took its place."""
        return self.taken.backup if self.taken is not None else None

    @property
    def gaps(self) -> tuple[str, ...]:
        """Holes that were found while sealing."""
        return tuple(str(gap) for gap in self.taken.span.gaps) if self.taken and self.taken.span else ()

    @property
    def late_s(self) -> float:
        """Seconds from the end of the hour until it was represented."""
        return (self.created_at - self.ended_at).total_seconds()

    @property
    def lag_s(self) -> float:
        """Seconds between what could be restored and now, when it was represented."""
        newest = self.wal.to_at if self.wal is not None and self.wal.to_at is not None else self.chain.commit.as_of
        return max(0.0, (self.created_at - max(newest, self.chain.commit.as_of)).total_seconds())


def hour_window(key: str) -> tuple[datetime, datetime]:
    """Return when an hour begins and when it is over.

    Raises:
        UsageError: that is no name of an hour.
    """
    try:
        begins = datetime.strptime(key, _FORM).replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"{key!r} names no hour: say it in UTC, as 2026-11-24-13:00") from None
    if begins.minute:
        raise UsageError(f"{key!r} names no hour: it does not begin on the hour")
    return begins, begins + _HOUR


def newest_hour(at: datetime) -> str:
    """Return the hour that was over last: the only one that can be taken live."""
    return (at.astimezone(UTC) - _HOUR).replace(minute=0, second=0, microsecond=0).strftime(_FORM)


def seconds_left(at: datetime) -> float:
    """Return how long the newest hour can still be taken live."""
    return (hour_window(newest_hour(at))[1] + _HOUR - at).total_seconds()


def take_hour(  # noqa: PLR0913 - one fact each
    dsn: Dsn, repository: Repository, options: IntervalOptions, key: str, clock: Clock, progress: Progress
) -> Hour:
    """Represent an hour: live in the hour that follows it, from the archive later. Safe to repeat and to kill.

    Raises:
        UsageError: it is not over yet.
        RepositoryMissing: it is long over, and the archive does not cover it; the message names what is missing.
        IntegrityError: an archived segment of it is gone or has another size.
        ServerUnusable, Locked: see ``take_interval``.
    """
    begins, ends = hour_window(key)
    watch, now = Stopwatch(), clock.now()
    if now < ends:
        raise UsageError(f"hour {key} is not over before {ends:%H:%M} UTC: there is nothing whole to seal yet")
    taken = take_interval(dsn, repository, options, clock, progress) if now < ends + _HOUR else None
    if taken is None:
        progress("looking for the hour in the archive", 0, None)
    catalog = read_catalog(repository)
    lineage = read_lineage(repository, catalog)
    if lineage is None or not lineage.backups:
        raise RepositoryMissing(f"{repository.region} holds no sound backup that WAL could continue")
    coverage = read_coverage(repository, lineage, begins, ends)
    if taken is None and not coverage.whole:
        raise RepositoryMissing(f"hour {key} is not in the archive of {repository.region}: {_lacking(coverage)}")
    backup = taken.backup if taken is not None else None
    base = lineage.before(ends) or lineage.backups[0]
    return Hour(
        key=key,
        origin=HourOrigin.LIVE if taken is not None else HourOrigin.ARCHIVE,
        taken=taken,
        wal=_sealed(taken) if taken is not None else locate(repository, lineage, begins, ends),
        coverage=coverage,
        holes=_holes(lineage) if coverage.begins_at is not None else (),
        chain=catalog.find(backup.id if backup is not None else base.id),
        span_ids=tuple(span.id for span in taken.span.spans) if taken is not None and taken.span is not None else (),
        ended_at=ends,
        created_at=clock.now(),
        duration_s=watch.elapsed_s,
    )


def _holes(lineage: Lineage) -> tuple[str, ...]:
    starts = [windows.start_of(commit) for commit in lineage.backups[:1]]
    return tuple(str(hole) for hole in windows.holes(lineage.facts, starts))


def _lacking(coverage: Coverage) -> str:
    if coverage.begins_at is not None:
        return f"the oldest backup shows {coverage.begins_at:%Y-%m-%d %H:%M:%S} UTC, and nothing reaches back before it"
    return coverage.missing[0]


def _sealed(taken: Interval) -> ArchivedWal | None:
    spans = taken.span.spans if taken.span is not None else ()
    if not spans:
        return None
    first, last = spans[0], spans[-1]
    return ArchivedWal(
        timeline=last.timeline,
        from_lsn=first.from_lsn,
        to_lsn=last.to_lsn,
        from_at=first.from_at,
        to_at=last.to_at,
        segments=sum(len(span.segments) for span in spans),
        size_bytes=sum(span.size_bytes for span in spans),
        stored_bytes=sum(span.stored_bytes for span in spans),
    )
