"""WAL summaries, from which a server of PostgreSQL 17 or later knows which blocks changed (manual, 28.4 and 19.5.7)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import psycopg

from bb_ops.dsn import Dsn
from bb_ops.postgres.connection import connect, unusable
from bb_ops.postgres.lsn import Lsn

OLDEST_VERSION = 170000
"""Block increments came with PostgreSQL 17."""
_SUMMARIES = "SELECT tli::int, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()"
_SUMMARIZER = "SELECT summarized_lsn::text FROM pg_get_wal_summarizer_state()"


@dataclass(frozen=True)
class Summary:
    """The blocks changed by the WAL from ``start`` up to ``end``."""

    timeline: int
    start: Lsn
    end: Lsn


@dataclass(frozen=True)
class SummaryFacts:
    """What a server can say about changed blocks.

    Attributes:
        enabled: Whether ``summarize_wal`` is on.
        summaries: What is on its disk.
        summarized_to: Up to where it has read its WAL; what comes behind is still to be summarized.
    """

    enabled: bool
    summaries: tuple[Summary, ...] = ()
    summarized_to: Lsn = field(default_factory=lambda: Lsn(0))

    def hole_behind(self, timeline: int, position: Lsn) -> Lsn | None:
        """Return the first position at or behind ``position`` whose summary is gone; None where there is no such.

        WAL that was not summarized yet is no hole: the server waits for it.
        """
        reached = position
        for entry in sorted(self._of(timeline), key=lambda one: (one.start, one.end)):
            if entry.start <= reached < entry.end:
                reached = entry.end
        return reached if reached < self.summarized_to else None

    def _of(self, timeline: int) -> Iterable[Summary]:
        return (entry for entry in self.summaries if entry.timeline == timeline)


def summarizes(dsn: Dsn) -> bool | None:
    """Say whether ``summarize_wal`` is on; None where the server's version has no such setting.

    Raises:
        ServerUnusable: it cannot be reached or refuses us.
    """
    with connect(dsn) as connection:
        try:
            row = connection.execute("SELECT current_setting('summarize_wal', true)").fetchone()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    return None if row is None or row[0] is None else row[0] == "on"


def read_summaries(dsn: Dsn, version_num: int) -> SummaryFacts:
    """Ask a server which of its WAL is summarized.

    Raises:
        ServerUnusable: it cannot be reached or refuses us.
    """
    if version_num < OLDEST_VERSION:
        return SummaryFacts(enabled=False)
    with connect(dsn) as connection:
        try:
            row = connection.execute("SELECT current_setting('summarize_wal') = 'on'").fetchone()
            found = [
                Summary(int(str(timeline)), Lsn.parse(str(start)), Lsn.parse(str(end)))
                for timeline, start, end in connection.execute(_SUMMARIES)
            ]
            state = connection.execute(_SUMMARIZER).fetchone()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    return SummaryFacts(
        enabled=bool(row and row[0]),
        summaries=tuple(found),
        summarized_to=Lsn.parse(str(state[0])) if state and state[0] else Lsn(0),
    )
