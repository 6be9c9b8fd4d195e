"""Replay archived WAL in a restored directory, up to a target and no further, and leave a cluster on its own timeline.

The server has no network, no archiving and answers nobody before recovery has ended. Killed, it goes on where it was.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import psycopg

from bb_ops.clock import Stopwatch, sleep
from bb_ops.dsn import Dsn
from bb_ops.errors import IntegrityError, NotMeasured, ProgramFailed, ServerUnusable
from bb_ops.files import create_exclusive
from bb_ops.postgres.connection import connect
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.scratch import RunningServer, throw_away_server
from bb_ops.postgres.timelines import parse_history
from bb_ops.progress import Progress
from bb_ops.recovery.moment.branch import Leg
from bb_ops.recovery.moment.choice import Candidate, said
from bb_ops.recovery.moment.feed import RESTORE_COMMAND, WalFeed
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.recovery.target import Target
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
_TIMEOUT_S = 7 * 24 * 3600.0
_POLL_S = 0.05
_PATIENCE_S = 10.0
_STATE = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END"
_SIGNAL = "recovery.signal"
_LOG = "bb_ops.log"
_BEGUN = ".bb_ops-replay"
_LAST = re.compile(r"last completed transaction was at log time (\S+ \S+)$", re.MULTILINE)
_STILL_DYING = ("pre-existing shared memory block", "lock file")
"""What a server says while the children of one that was killed a moment ago have not noticed it yet."""
_DEATH_TIMEOUT_S = 60.0
_PAUSE_S = 0.5
_TOO_SHORT = "recovery ended before configured recovery target was reached"


@dataclass(frozen=True)
class Replay:
    """What is to be replayed.

    Attributes:
        repository: The region whose archive is used.
        best: The backup, and what the region holds.
        legs: The way, from the plan.
        target: Where to stop.
    """

    repository: Repository
    best: Candidate
    legs: tuple[Leg, ...]
    target: RecoveryTarget


@dataclass(frozen=True)
class Replayed:
    """A server that reached the target and accepts connections on a private socket.

    Attributes:
        timeline: Its new one.
        ended_at_lsn: Where it left the old one.
        reason: Why it ended there, as PostgreSQL's history file says.
        last_transaction_at: When the last transaction in it committed; None where none was replayed.
        replay_s: Seconds from the start of recovery to the first answer.
        wal_bytes: Of archived WAL between the backup's end and the end of recovery.
    """

    server: RunningServer
    timeline: int
    ended_at_lsn: Lsn
    reason: str
    last_transaction_at: datetime | None
    replay_s: float
    wal_bytes: int

    @property
    def evidence(self) -> str:
        """Say it in one line."""
        last = (
            f"; the last transaction in it is of {said(self.last_transaction_at)}" if self.last_transaction_at else ""
        )
        return (
            f"recovery ended at {self.ended_at_lsn} ({self.reason}), new timeline {self.timeline}{last}; ready "
            f"{self.replay_s} s after the start"
        )


@contextmanager
def replayed(replay: Replay, target: Target, programs: Programs, progress: Progress) -> Iterator[Replayed]:
    """Run recovery to its target and keep the server running for the block.

    Raises:
        IntegrityError: archived WAL is damaged or gone, or ends before the target.
        KeyRejected: our identities do not open it.
        ProgramFailed: the server did not start; the message carries the end of its log.
    """
    watch = Stopwatch()
    facts = {"backup_id": replay.best.commit.id, "target": str(replay.target)}
    _LOGGER.info("replay starts", extra=facts)
    _prepare(target)
    with WalFeed(replay.repository, replay.best.facts.wal, replay.legs, target, progress) as feed, ExitStack() as stack:

        def start(*, bounded: bool) -> RunningServer:
            settings, superuser = _settings(replay, bounded=bounded), replay.best.commit.superuser
            while True:
                server = throw_away_server(programs, target.directory, superuser, target.owner, _TIMEOUT_S, settings)
                try:
                    return stack.enter_context(server)
                except ProgramFailed as error:
                    if not any(sign in str(error) for sign in _STILL_DYING) or watch.elapsed_s > _DEATH_TIMEOUT_S:
                        raise
                sleep(_PAUSE_S)

        try:
            running = start(bounded=True)
        except ProgramFailed as error:
            if feed.errors:
                raise feed.errors[0] from error
            if _TOO_SHORT not in str(error):
                raise
            if not _is_beyond_doubt(replay):
                short = f"{replay.repository.store.url}: the WAL ends before {replay.target} was reached"
                raise IntegrityError(short) from error
            # Nothing behind the target is archived, so that the server could not see it pass: the end is the target.
            running = start(bounded=False)
        done = _look(replay, target.directory, running, watch)
        _LOGGER.info("replay ends", extra={**facts, "duration_s": done.replay_s, "size_bytes": done.wal_bytes})
        yield done


def forget_replay(directory: Path) -> None:
    """Remove what only a replay that is under way needs."""
    (directory / _BEGUN).unlink(missing_ok=True)


def _is_beyond_doubt(replay: Replay) -> bool:
    """Say whether the archived WAL covers the target although nothing in it lies behind."""
    if replay.target.kind == TargetKind.TIME:
        return replay.best.until_at >= replay.target.at
    if replay.target.kind == TargetKind.LSN:
        return replay.best.branch.end.lsn >= replay.target.lsn
    return False


def _settings(replay: Replay, *, bounded: bool) -> dict[str, str]:
    target, commit = replay.target, replay.best.commit
    timeline = replay.legs[-1].timeline if replay.legs else commit.timeline
    settings = {
        "hot_standby": "off",  # nobody reads before the end; also no limit of the source's needs to be met
        "restore_command": RESTORE_COMMAND,
        "recovery_target_timeline": "current" if timeline == commit.timeline else str(timeline),
        "recovery_target_action": "promote",
    }
    if target.kind == TargetKind.IMMEDIATE:
        settings["recovery_target"] = "immediate"
    elif target.kind != TargetKind.LATEST and bounded:
        value = f"{target.at:%Y-%m-%d %H:%M:%S.%f}+00" if target.kind == TargetKind.TIME else target.value
        settings[f"recovery_target_{target.kind}"] = value
        settings["recovery_target_inclusive"] = "on" if target.inclusive else "off"
    return settings


def _prepare(target: Target) -> None:
    """Ask for recovery, once: the server removes its signal file at the end, also in a run that was killed later."""
    signal, begun = target.directory / _SIGNAL, target.directory / _BEGUN
    if begun.exists():
        return
    for path in (signal, begun):
        if not path.exists():
            create_exclusive(path, b"")
            target.chown(path)


def _new_history(directory: Path) -> int:
    """Return the newest timeline that has a history file in pg_wal; 0 where none has."""
    names = [path.name for path in (directory / "pg_wal").glob("*.history")]
    return max((int(name[:8], 16) for name in names), default=0)


def _look(replay: Replay, directory: Path, server: RunningServer, watch: Stopwatch) -> Replayed:
    timeline = _new_history(directory)
    content = (directory / "pg_wal" / f"{timeline:08X}.history").read_bytes()
    history = parse_history(timeline, content)
    last_line = content.decode("utf-8", "replace").strip().splitlines()[-1]
    reason = last_line.split("\t", 2)[-1].strip()
    log = (directory / _LOG).read_text(encoding="utf-8", errors="replace")
    stamps = _LAST.findall(log)
    left = history.ancestors[-1].until
    return Replayed(
        server=server,
        timeline=timeline,
        ended_at_lsn=left,
        reason=reason,
        last_transaction_at=datetime.fromisoformat(stamps[-1]) if stamps else None,
        replay_s=watch.elapsed_s,
        wal_bytes=max(0, left - replay.best.commit.wal_end_lsn),
    )


@contextmanager
def paused_at_anchor(
    replay: Replay, target: Target, programs: Programs, progress: Progress
) -> Iterator[RunningServer | None]:
    """Run recovery up to where the backup's own WAL ends, and keep the server there, read-only, for the block.

    It is the position that the fingerprints of its source belong to. The same copy is then replayed to its end by
    ``replayed``: a server that paused at a target may be shut down, given a later one, and started again (PostgreSQL
    manual, 20.5.6, recovery_target_action).

    Yields:
        The server; None where no WAL lies behind that position, so that the end of the replay shows the same rows.

    Raises:
        IntegrityError, KeyRejected: archived WAL is damaged, gone, or does not open with our identities.
        NotMeasured: the server passed the position without pausing; the copy can go no further, and a new one can.
        ProgramFailed: the server did not start; the message carries the end of its log.
    """
    commit = replay.best.commit
    if replay.best.branch.end.lsn <= commit.wal_end_lsn:
        yield None
        return
    anchor = RecoveryTarget(kind=TargetKind.LSN, value=str(commit.wal_end_lsn), inclusive=False)
    settings = {
        **_settings(replace(replay, target=anchor), bounded=True),
        "hot_standby": "on",
        "recovery_target_action": "pause",
    }
    _prepare(target)
    with WalFeed(replay.repository, replay.best.facts.wal, replay.legs, target, progress) as feed, ExitStack() as stack:
        try:
            server = stack.enter_context(
                throw_away_server(programs, target.directory, commit.superuser, target.owner, _TIMEOUT_S, settings)
            )
            paused = _wait_for_pause(server.dsn, target.directory / _LOG)
        except ProgramFailed as error:
            if feed.errors:
                raise feed.errors[0] from error
            if _TOO_SHORT not in str(error):
                raise
            paused = False
        yield server if paused else None


def _wait_for_pause(dsn: Dsn, log: Path) -> bool:
    """Wait until the server pauses; False where its WAL ended before."""
    silent = Stopwatch()
    while silent.elapsed_s < _PATIENCE_S:
        try:
            with connect(dsn) as connection:
                recovering, paused = connection.execute(_STATE).fetchone() or (True, False)
        except (ServerUnusable, psycopg.Error):
            if _TOO_SHORT in log.read_text(encoding="utf-8", errors="replace"):
                return False
        else:
            silent = Stopwatch()
            if not recovering:
                raise NotMeasured("the copy could not be stopped where its source was counted: run the drill again")
            if paused:
                return True
        sleep(_POLL_S)
    raise ProgramFailed(f"the restored server ended on its way to the position where its source was counted: {log}")
