"""Where a session of streaming begins."""

from dataclasses import dataclass

from bb_ops.errors import BackupFailed
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository.wal import Position


@dataclass(frozen=True)
class Start:
    """Where a session begins.

    Attributes:
        position: What was archived on this timeline before; None where nothing was.
        durable: Up to where nothing needs to be stored again.
    """

    timeline: int
    start: Lsn
    position: Position | None
    durable: Lsn


class NothingToCompare(BackupFailed):
    """The server no longer has the archived segment before the one that comes next; that one it may well have."""
