"""Decides what an increment builds on, or why a full must be taken instead. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from bb_ops.backup.physical import SourceFacts
from bb_ops.engines.native import NAME
from bb_ops.postgres import wal_summaries
from bb_ops.postgres.wal_summaries import SummaryFacts
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.manifest import PhysicalCommit


@dataclass(frozen=True)
class Choice:
    """What an increment builds on.

    Attributes:
        parent: None where a full must be taken.
        reason: Then why, in words for an operator; None where there is a parent.
    """

    parent: PhysicalCommit | None
    reason: str | None


def choose_parent(
    entries: Iterable[CatalogEntry], facts: SourceFacts, summaries: SummaryFacts, most_increments: int
) -> Choice:
    """Choose the newest whole backup of this system and timeline, unless the server or the chain forbids it.

    Args:
        entries: The catalog's, oldest first.
        facts: The server as it is now.
        summaries: What it can say of changed blocks.
        most_increments: How many increments a chain may have.
    """
    server, identity = facts.server, facts.identity
    if server.version_num < wal_summaries.OLDEST_VERSION:
        return _full(f"PostgreSQL {server.version} has no block increments; 17 and later have")
    if not summaries.enabled:
        return _full("summarize_wal is off: run ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf()")
    mine = [one for one in entries if one.commit.system_id == identity.system_id and one.commit.engine == NAME]
    whole = [one.physical for one in mine if not one.problems]
    if not whole:
        broken = f"; {mine[-1].problems[0]}" if mine else ""
        return _full(f"there is no whole backup of system {identity.system_id} to build on{broken}")
    usable = [commit for commit in whole if commit.timeline == identity.timeline]
    if not usable:
        return _full(f"there is no backup on timeline {identity.timeline} yet; the newest is on {whole[-1].timeline}")
    parent = usable[-1]
    reason = _obstacle(parent, facts, summaries, most_increments)
    return Choice(parent, None) if reason is None else _full(reason)


def _obstacle(parent: PhysicalCommit, facts: SourceFacts, summaries: SummaryFacts, most_increments: int) -> str | None:
    if parent.server_major != facts.server.major:
        return f"{parent.id} is of PostgreSQL {parent.server_major}, the server is {facts.server.major}"
    if parent.data_checksums != facts.server.data_checksums:
        state = "on" if facts.server.data_checksums else "off"
        return f"page checksums were turned {state} since {parent.id}: its pages and new ones do not fit together"
    if parent.depth >= most_increments:
        return f"the chain up to {parent.id} has {parent.depth} increments, as many as BB_OPS_INCREMENTAL_DEPTH allows"
    if parent.end_lsn > facts.identity.position:
        return f"{parent.id} ends at {parent.end_lsn}, behind the server's {facts.identity.position}: it was set back"
    hole = summaries.hole_behind(parent.timeline, parent.start_lsn)
    if hole is not None:
        return f"the WAL summaries from {hole} on are gone (wal_summary_keep_time), {parent.id} needs them"
    return None


def _full(reason: str) -> Choice:
    return Choice(None, reason)
