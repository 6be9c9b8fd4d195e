"""Read the facts, decide, and hand over the job: what ``recover plan`` prints is what is executed."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from bb_ops.clock import Clock
from bb_ops.errors import UsageError
from bb_ops.recovery.moment.choice import choose
from bb_ops.recovery.moment.facts import Locate, Region, measured_rates, read_regions, stop_of
from bb_ops.recovery.moment.plan import NO_RATES, RecoveryPlan, finish_plan, refuse_impossible
from bb_ops.recovery.moment.point_in_time import Job
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.repository import Repository


def plan_recovery(  # noqa: PLR0913 - one fact each
    repositories: Sequence[Repository],
    target: RecoveryTarget,
    clock: Clock,
    *,
    into: Path | None = None,
    backup_id: str | None = None,
    locate: Locate | None = None,
) -> tuple[RecoveryPlan, Job | None]:
    """Decide how to get to a target; changes nothing.

    Args:
        repositories: The regions, the preferred one first.
        target: The moment.
        clock: For what lies in the future, and for the loss.
        into: Where the copy goes; part of what the hash binds.
        backup_id: Begin with this backup; None takes the nearest.
        locate: Finds transactions and restore points; needed for these targets alone.

    Returns:
        The plan, and the job to be executed; None where the plan says why it is refused.

    Raises:
        BbOpsError: no region could be looked at.
    """
    regions = read_regions(repositories, backup_id=backup_id, locate=locate)
    return plan_from(regions, repositories[0].cluster, target, clock.now(), into=into, backup_id=backup_id)


def plan_from(  # noqa: PLR0913 - one fact each
    regions: Sequence[Region],
    cluster: str,
    target: RecoveryTarget,
    now: datetime,
    *,
    into: Path | None = None,
    backup_id: str | None = None,
) -> tuple[RecoveryPlan, Job | None]:
    """Decide by what was read of the regions already; see ``plan_recovery``."""
    target = _top_level(target, regions)
    choice = choose(target, [region.facts for region in regions], now, backup_id)
    best = choice.best
    repository = next((one.repository for one in regions if best is not None and one.facts is best.facts), None)
    looked_at = [one.repository for one in regions if one.repository is not None]
    stops_at, at = stop_of(repository, best, target) if best is not None and repository is not None else (None, None)
    rates = NO_RATES
    if best is not None:
        rates = measured_rates(looked_at, _entries(regions), best.commit.system_id)
    plan = finish_plan(
        target,
        cluster,
        choice,
        stops_at=stops_at,
        at=at,
        into=into.absolute() if into is not None else None,
        rates=rates,
        now=now,
    )
    return plan, Job(repository, best, plan, target) if best is not None and repository is not None else None


def require_job(plan: RecoveryPlan, job: Job | None, wanted_hash: str | None = None) -> Job:
    """Return the job of a plan that may be executed.

    Raises:
        UsageError: it is refused, or it is not the plan that was confirmed.
        IntegrityError, RepositoryMissing: see ``refuse_impossible``.
    """
    refuse_impossible(plan)
    if job is None:
        raise UsageError(f"there is no way to {plan.target}")
    if wanted_hash is not None and wanted_hash != plan.plan_hash:
        raise UsageError(
            f"the plan has changed: it is {plan.plan_hash} now, and {wanted_hash} was confirmed: look at it again with "
            "`bb-ops recover plan`"
        )
    return job


def _top_level(target: RecoveryTarget, regions: Sequence[Region]) -> RecoveryTarget:
    """Replace a subtransaction by the transaction that it is part of: that is what commits."""
    found = {one.xid for region in regions for one in region.facts.located if one.xid is not None}
    if target.kind != TargetKind.XID or len(found) != 1:
        return target
    return target.model_copy(update={"value": str(found.pop())})


def _entries(regions: Sequence[Region]) -> list[CatalogEntry]:
    return [entry for region in regions for entry in region.facts.entries]
