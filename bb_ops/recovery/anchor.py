"""Stop a restored copy at the exact position that its backup's fingerprints belong to, look at it, and let it go on.

The copy of a drill is compared with its source and then replayed to the end, and is restored only once for both. A
server that paused at a recovery target may be shut down, given a later one and started again (PostgreSQL manual,
20.5.6, recovery_target_action).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg

from bb_ops.clock import Stopwatch, sleep
from bb_ops.dsn import Dsn
from bb_ops.errors import NotMeasured, ProgramFailed, ServerUnusable
from bb_ops.postgres.connection import connect
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.scratch import RunningServer, throw_away_server
from bb_ops.progress import Progress
from bb_ops.recovery.feed import WalFeed
from bb_ops.recovery.recovery_target import RecoveryTarget, TargetKind
from bb_ops.recovery.replay import LOG, TOO_SHORT, Replay, prepare_replay, recovery_settings
from bb_ops.recovery.target import Target

_TIMEOUT_S = 24 * 3600.0
_POLL_S = 0.05
_PATIENCE_S = 10.0
_STATE = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END"


@contextmanager
def paused_at_anchor(
    replay: Replay, target: Target, programs: Programs, progress: Progress
) -> Iterator[RunningServer | None]:
    """Run recovery up to where the backup's own WAL ends, and keep the server there, read-only, for the block.

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
        **recovery_settings(replace(replay, target=anchor), bounded=True),
        "hot_standby": "on",
        "recovery_target_action": "pause",
    }
    prepare_replay(target)
    with WalFeed(replay.repository, replay.best.facts.wal, replay.legs, target, progress) as feed, ExitStack() as stack:
        try:
            server = stack.enter_context(
                throw_away_server(programs, target.directory, commit.superuser, target.owner, _TIMEOUT_S, settings)
            )
            paused = _wait(server.dsn, target.directory / LOG)
        except ProgramFailed as error:
            if feed.errors:
                raise feed.errors[0] from error
            if TOO_SHORT not in str(error):
                raise
            paused = False
        yield server if paused else None


def _wait(dsn: Dsn, log: Path) -> bool:
    """Wait until the server pauses; False where its WAL ended before."""
    silent = Stopwatch()
    while silent.elapsed_s < _PATIENCE_S:
        try:
            with connect(dsn) as connection:
                recovering, paused = connection.execute(_STATE).fetchone() or (True, False)
        except (ServerUnusable, psycopg.Error):
            if TOO_SHORT in log.read_text(encoding="utf-8", errors="replace"):
                return False
        else:
            silent = Stopwatch()
            if not recovering:
                raise NotMeasured("the copy could not be stopped where its source was counted: run the drill again")
            if paused:
                return True
        sleep(_POLL_S)
    raise ProgramFailed(f"the restored server ended on its way to the position where its source was counted: {log}")
