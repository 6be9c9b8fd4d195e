"""What an hour leaves: a sealed WAL span (how far one can restore), and a block increment where possible (how fast)."""

from dataclasses import dataclass

from bb_ops.backup import physical
from bb_ops.backup.incremental import (
    IncrementalBackupOptions,
    IncrementalBackupPlan,
    plan_incremental_backup,
    take_incremental_backup,
)
from bb_ops.backup.physical import SourceFacts, read_source, take_backup
from bb_ops.backup.wal_options import WalOptions
from bb_ops.backup.wal_span import Incremental, IncrementalPlan, plan_incremental, take_incremental
from bb_ops.clock import Clock
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, PartlyDone, ServerUnusable
from bb_ops.postgres.wal_summaries import OLDEST_VERSION, SummaryFacts, read_summaries
from bb_ops.progress import Progress
from bb_ops.repository.catalog import CatalogEntry, read_catalog
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository


@dataclass(frozen=True)
class IntervalOptions:
    """What to take, and how.

    Attributes:
        wal: How WAL is streamed; None seals no span.
        blocks: How increments are taken; None takes none.
    """

    wal: WalOptions | None
    blocks: IncrementalBackupOptions | None


@dataclass(frozen=True)
class Interval:
    """What was taken.

    Attributes:
        span: What sealing did; None where only blocks were asked for.
        backup: The block increment, or the full that took its place; None where none was taken.
        skipped: Why none was taken although it was asked for; None otherwise.
        errors: What is wrong although something was taken, the gravest first.
    """

    span: Incremental | None
    backup: PhysicalCommit | None
    skipped: str | None
    errors: tuple[BbOpsError, ...]


@dataclass(frozen=True)
class IntervalPlan:
    """What would be taken; the members mean the same as those of ``Interval``."""

    span: IncrementalPlan | None
    backup: IncrementalBackupPlan | None
    skipped: str | None

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why it can not be done; empty where it can."""
        found = (*(self.span.refusals if self.span else ()), *(self.backup.refusals if self.backup else ()))
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Decision:
    """What is taken beside a span: an increment where neither member is set.

    Attributes:
        first_full: Why a full is taken.
        skipped: Why nothing is.
    """

    first_full: str | None = None
    skipped: str | None = None


def decide(
    system_id: str, server_version: str, summaries: SummaryFacts | None, entries: list[CatalogEntry]
) -> Decision:
    """Decide what is taken beside a span. Pure.

    Args:
        system_id: The server's.
        server_version: For the reason.
        summaries: None before PostgreSQL 17.
        entries: The catalog's.
    """
    if summaries is not None and summaries.enabled:
        return Decision()
    lacking = (
        "summarize_wal is off" if summaries is not None else f"PostgreSQL {server_version} has no block increments"
    )
    if any(entry.commit.system_id == system_id and not entry.problems for entry in entries):
        return Decision(skipped=lacking)
    return Decision(first_full=f"there is no whole backup of system {system_id} for the WAL to start from; {lacking}")


def plan_interval(dsn: Dsn, repository: Repository, options: IntervalOptions, clock: Clock) -> IntervalPlan:
    """Look at the server and the repository, and decide; writes nothing but the repository's marker.

    Raises:
        ServerUnusable, RepositoryMissing, SettingsError: a fact could not be read.
    """
    decision = Decision()
    if options.wal is not None and options.blocks is not None:
        decision = _decide(dsn, repository, read_source(dsn, repository, clock))
    backup: IncrementalBackupPlan | None = None
    if options.blocks is not None and decision.skipped is None:
        backup = plan_incremental_backup(dsn, repository, options.blocks, clock)
        if decision.first_full is not None:
            backup = backup.model_copy(update={"fallback_reason": decision.first_full})
    span = plan_incremental(dsn, repository, clock) if options.wal is not None else None
    return IntervalPlan(span, backup, decision.skipped)


def take_interval(
    dsn: Dsn, repository: Repository, options: IntervalOptions, clock: Clock, progress: Progress
) -> Interval:
    """Seal the WAL up to now, then take a block increment where the server can. Safe to repeat and to kill.

    Where increments cannot be had, the span alone is sealed; only without any whole backup a full is taken. A sealed
    span stays, whatever becomes of the increment.

    Raises:
        ServerUnusable: the server can not be backed up like this; nothing was taken.
        BackupFailed, IntegrityError, Locked: what was to be done first failed, and nothing else was tried.
    """
    if options.wal is None:
        blocks = options.blocks
        taken = take_incremental_backup(dsn, repository, blocks, clock, progress) if blocks is not None else None
        return Interval(span=None, backup=taken, skipped=None, errors=())
    if options.blocks is not None:
        refused = physical.refusals(read_source(dsn, repository, clock), repository.cluster, new_lineage=False)
        if refused:
            raise ServerUnusable(f"PostgreSQL at {dsn}: {'; '.join(refused)}")
    span, hole = take_incremental(dsn, repository, options.wal, clock)
    errors = [] if hole is None else [hole]
    backup, skipped = None, None
    try:
        if options.blocks is not None:
            backup, skipped = _take_blocks(dsn, repository, options.blocks, clock, progress)
    except BbOpsError as error:
        errors.append(PartlyDone(f"the WAL is sealed, but no backup was taken: {error}"))
    return Interval(span, backup, skipped, tuple(errors))


def _take_blocks(
    dsn: Dsn, repository: Repository, options: IncrementalBackupOptions, clock: Clock, progress: Progress
) -> tuple[PhysicalCommit | None, str | None]:
    """Take what belongs beside a span; return it, or why nothing does."""
    facts = read_source(dsn, repository, clock)
    decision = _decide(dsn, repository, facts)
    if decision.skipped is not None:
        return None, decision.skipped
    if decision.first_full is None:
        return take_incremental_backup(dsn, repository, options, clock, progress), None
    reason = decision.first_full
    return take_backup(dsn, repository, facts, options, clock, progress, fallback_reason=reason), None


def _decide(dsn: Dsn, repository: Repository, facts: SourceFacts) -> Decision:
    server, system_id = facts.server, facts.identity.system_id
    summaries = read_summaries(dsn, server.version_num) if server.version_num >= OLDEST_VERSION else None
    return decide(system_id, server.version, summaries, read_catalog(repository, system_id).entries)
