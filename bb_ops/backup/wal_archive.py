"""The archive of WAL as a whole, in every region: how far it reaches, its holes, and what is done about them."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime

from bb_ops.backup.wal_options import WalOptions
from bb_ops.backup.wal_status import WalStatus, wal_status
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError
from bb_ops.findings import Finding, Outcome, Severity, Value
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.overview import read_overview
from bb_ops.repository.repository import Repository
from bb_ops.repository.windows import Window, read_windows

LAG_WARN_S = 60.0
"""The streamer stores what is new every 2 s: a minute behind, the store or the network is too slow."""
LAG_ERROR_S = 600.0
"""Ten minutes behind, the archive no longer follows the server."""
_PAUSE = timedelta(minutes=15)
_LONGEST_PAUSE = timedelta(hours=6)


class RegionArchive(Value):
    """What one region holds.

    Attributes:
        newest_backup: The newest sound physical backup; None where there is none.
        timeline: That of the newest archived WAL, up to ``archived_to_lsn``; None where nothing is archived.
        problem: Why it could not be read, or what record of WAL in it is damaged.
    """

    name: str
    backups: int = 0
    newest_backup: str | None = None
    windows: tuple[Window, ...] = ()
    gaps: tuple[str, ...] = ()
    open_gaps: tuple[str, ...] = ()
    timeline: int | None = None
    archived_to_lsn: str | None = None
    problem: str | None = None

    @property
    def restorable_to(self) -> datetime | None:
        """The newest instant that can be restored."""
        return self.windows[-1].to_at if self.windows else None


class ArchiveReport(Value):
    """The archive as it is seen from the server and in every region, the first one first."""

    schema_id: str = "bb-ops/wal-archive/1"
    seen_at: AwareDatetime
    status: WalStatus
    regions: tuple[RegionArchive, ...]


def read_archive(
    dsn: Dsn, repositories: list[Repository], options: WalOptions, cache: Path | None, at: datetime
) -> ArchiveReport:
    """Look at the server and at every region; what does not answer is not measured, and raises nothing."""
    return ArchiveReport(
        seen_at=at,
        status=wal_status(dsn, repositories[0], options),
        regions=tuple(read_region(repository, cache, at) for repository in repositories),
    )


def read_region(repository: Repository, cache: Path | None, at: datetime) -> RegionArchive:
    """Look at one region, at the system of its newest sound physical backup."""
    try:
        overview = read_overview(repository, cache, at)
        sound = [one for one in overview.backups if one.is_physical and not one.failed]
        if not sound:
            return RegionArchive(name=repository.region)
        newest = sound[-1]
        ours = [one for one in sound if one.system_id == newest.system_id]
        # Former systems, as before a major upgrade: their holes can not be closed any more.
        found = overview.archived if len(ours) == len(sound) else read_windows(repository, ours)[0]
        timeline, archived_to = _archived_to(repository, newest.system_id)
    except BbOpsError as error:
        return RegionArchive(name=repository.region, problem=str(error))
    wal_of_it = wal.wal_prefix(repository.cluster, newest.system_id)
    damaged = [str(error) for error in overview.damaged if wal_of_it in str(error)]
    return RegionArchive(
        name=repository.region,
        backups=len(ours),
        newest_backup=newest.id,
        windows=found.windows,
        gaps=found.gaps,
        open_gaps=found.open_gaps,
        timeline=timeline,
        archived_to_lsn=archived_to,
        problem="; ".join(damaged) or None,
    )


def continuity(report: ArchiveReport) -> Finding:
    """Judge whether every region can be restored up to its newest WAL. Pure."""
    holes = [f"{region.name}: {gap}" for region in report.regions for gap in region.open_gaps]
    unread = [f"{region.name}: not measured: {region.problem}" for region in report.regions if region.problem]
    if holes:
        said = f"{'; '.join([*holes, *unread])}: a new full backup must close that"
        return _finding("continuity", said, Outcome.FAIL, Severity.CRITICAL)
    if unread:
        return _finding("continuity", "; ".join(unread), Outcome.NOT_MEASURED, Severity.HIGH)
    first = report.regions[0]
    if not first.backups:
        said = f"not measured: {first.name} holds no sound backup that WAL could continue"
        return _finding("continuity", said, Outcome.NOT_MEASURED, Severity.HIGH)
    until = [f"{one.name} up to {one.restorable_to:%Y-%m-%d %H:%M:%S} UTC" for one in report.regions if one.windows]
    return _finding("continuity", f"no hole behind the newest backup: {', '.join(until)}", Outcome.PASS, Severity.INFO)


def lag(report: ArchiveReport) -> Finding:
    """Judge whether the archive follows the server. Pure."""
    status = report.status
    if status.slot_active is None:
        said = f"not measured: {'; '.join(status.problems) or 'the server does not answer'}"
        return _finding("lag", said, Outcome.NOT_MEASURED, Severity.MEDIUM)
    if not status.slot_active:
        said = f"nobody streams WAL from slot {status.slot}: start `bb-ops wal stream`"
        return _finding("lag", said, Outcome.FAIL, Severity.HIGH)
    if status.lag_s is None:
        said = f"not measured: {'; '.join(status.problems) or 'nothing is archived yet'}"
        return _finding("lag", said, Outcome.NOT_MEASURED, Severity.MEDIUM)
    said = f"everything committed longer than {status.lag_s:.1f} s ago is archived"
    if status.lag_s > LAG_ERROR_S:
        return _finding("lag", f"{said}; more than {LAG_ERROR_S:.0f} s is far too long", Outcome.FAIL, Severity.HIGH)
    if status.lag_s > LAG_WARN_S:
        return _finding("lag", f"{said}; more than {LAG_WARN_S:.0f} s is too long", Outcome.FAIL, Severity.MEDIUM)
    return _finding("lag", said, Outcome.PASS, Severity.INFO)


@dataclass(frozen=True)
class Request:
    """A full backup that was asked for because of a gap.

    Attributes:
        behind: The newest backup when it was asked for. A gap is open as long as no newer one exists, so that this
            names it, however it grows.
        attempt: How many were asked for behind the same backup.
        at: When.
    """

    behind: str
    attempt: int
    at: str

    @property
    def key(self) -> str:
        """The run's key: the same request is never made twice."""
        return f"wal-gap-{self.behind}-{self.attempt}"

    def to_text(self) -> str:
        """Return it as a sensor's cursor."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str | None) -> "Request | None":
        """Read a sensor's cursor; None where it holds none."""
        return cls(**json.loads(text)) if text else None


@dataclass(frozen=True)
class GapDecision:
    """What to do about open gaps: ask for a full backup where ``request`` is set; ``reason`` says why, or why not."""

    request: Request | None
    reason: str


def decide_gap(region: RegionArchive, last: Request | None, *, unfinished: bool, now: datetime) -> GapDecision:
    """Ask for a new full backup where nothing later can be restored: once, and again only if that did not help. Pure.

    Args:
        region: The first region.
        last: What was asked for last.
        unfinished: Whether that run still waits or works.
        now: The pause between attempts grows from a quarter of an hour to six hours.
    """
    if not region.open_gaps or region.newest_backup is None:
        unread = f"{region.name} could not be read: {region.problem}"
        return GapDecision(None, unread if region.problem else f"{region.name} has no open gap")
    gap = "; ".join(region.open_gaps)
    attempt = 1
    if last is not None and last.behind == region.newest_backup:
        attempt = last.attempt + 1
        again_at = datetime.fromisoformat(last.at) + min(_PAUSE * 2 ** (last.attempt - 1), _LONGEST_PAUSE)
        if unfinished:
            return GapDecision(None, f"{last.key} has not ended yet: {gap}")
        if now < again_at:
            return GapDecision(None, f"{last.key} did not close it, next attempt at {again_at:%H:%M:%S} UTC: {gap}")
    return GapDecision(Request(region.newest_backup, attempt, now.isoformat()), gap)


def _archived_to(repository: Repository, system_id: str) -> tuple[int | None, str | None]:
    """Return the newest timeline and where its WAL ends: by the streamer's word or, in a copy, by the newest span."""
    position = wal_reader.newest_position(repository, system_id)
    if position is not None:
        return position.timeline, str(position.lsn)
    for timeline in reversed(wal_reader.timelines(repository, system_id)):
        ends = [span.end for span in wal_reader.read_spans(repository, system_id, timeline).spans]
        if ends:
            return timeline, str(max(ends))
    return None, None


def _finding(check_id: str, message: str, outcome: Outcome, severity: Severity) -> Finding:
    return Finding(check_id=check_id, outcome=outcome, severity=severity, resource="wal_archive", message=message)
