"""What a recovery to a moment does, and what it will cost. Pure: the facts were read before."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime

from bb_ops.errors import IntegrityError, RepositoryMissing, UsageError
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.recovery.moment.branch import Leg
from bb_ops.recovery.moment.choice import NO_BACKUP, Choice, Rejected
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.recovery.restore import needed_bytes
from bb_ops.repository.ids import BackupId


class RecoveryPlan(Value):
    """What a recovery would do, or why it is refused; nothing has been changed.

    Attributes:
        target: As it can be typed.
        chain: What is restored and joined, the full first; empty where it is refused.
        legs: The way of the replay: timelines, in order.
        stops_at: The position that is sure to lie behind the target, where known.
        recovered_to_at: The instant whose state the copy will show, where it can be told before.
        segments: How many WAL segments are fetched at most.
        wal_bytes: Of WAL that is replayed, at most.
        download_bytes: Of the backups, as stored.
        restore_bytes: Room that the copy takes, without WAL.
        predicted_s: From measured rates; None where none was measured.
        prediction: What the figure rests on, or what is missing for one.
        predicted_loss_s: Seconds of the past that will not be in the copy; None where not known.
        others: Why other backups do not serve, nearest first.
        refusals: Why it cannot be, with the nearest possible targets; empty where it can.
        plan_hash: Of everything that is decided here; not of what was only estimated.
        replaces: The data directory that the copy is to take the place of; None where it stays beside.
    """

    schema_id: str = "bb-ops/recovery-plan/2"
    target: str
    cluster: str
    system_id: str
    region: str | None
    repository_id: str | None
    backup_id: BackupId | None
    chain: tuple[BackupId, ...]
    timeline: int | None
    legs: tuple[Leg, ...]
    stops_at: Lsn | None
    recovered_to_at: AwareDatetime | None
    into: Path | None
    segments: int
    wal_bytes: int
    download_bytes: int
    restore_bytes: int
    predicted_s: float | None
    prediction: str
    predicted_loss_s: float | None
    others: tuple[Rejected, ...]
    refusals: tuple[str, ...]
    plan_hash: str
    replaces: Path | None = None


@dataclass(frozen=True)
class Rates:
    """What was measured before.

    Attributes:
        restore_bytes_per_s: From the first byte read to a server that answers.
        replay_bytes_per_s: Of WAL.
        said: On how many measurements they rest.
    """

    restore_bytes_per_s: float | None
    replay_bytes_per_s: float | None
    said: str


NO_RATES = Rates(None, None, "")
"""Where nothing was measured."""


def finish_plan(  # noqa: PLR0913 - one fact each
    target: RecoveryTarget,
    cluster: str,
    choice: Choice,
    *,
    stops_at: Lsn | None,
    at: datetime | None,
    into: Path | None,
    rates: Rates,
    now: datetime,
) -> RecoveryPlan:
    """Put the plan together. Pure.

    Args:
        target: What was asked for.
        cluster: Whose.
        choice: From ``choose``.
        stops_at: A position that surely lies behind the target; None replays to the end.
        at: The instant that the copy will show, where known.
        into: Where the copy goes; None where that is not yet said.
        rates: What was measured before.
        now: For the loss.
    """
    best = choice.best
    commit = best.commit if best else None
    legs: tuple[Leg, ...] = ()
    if best is not None and target.kind != TargetKind.IMMEDIATE:
        legs = best.branch.until(stops_at) if stops_at is not None else best.branch.legs
    wal_bytes = sum(leg.to_lsn - leg.from_lsn for leg in legs)
    size = best.facts.wal.segment_bytes if best is not None else None
    restore_bytes = needed_bytes(best.entry.chain) if best is not None else 0
    predicted_s, prediction = _predict(restore_bytes, wal_bytes, rates)
    plan = RecoveryPlan(
        target=str(target),
        cluster=cluster,
        system_id=commit.system_id if commit else "",
        region=best.facts.region if best else None,
        repository_id=best.facts.repository_id if best else None,
        backup_id=commit.id if commit else None,
        chain=tuple(one.id for one in best.entry.chain) if best else (),
        timeline=legs[-1].timeline if legs else (commit.timeline if commit else None),
        legs=legs,
        stops_at=stops_at,
        recovered_to_at=at,
        into=into,
        segments=-(-wal_bytes // size) if size else 0,
        wal_bytes=wal_bytes,
        download_bytes=sum(one.stored_bytes for one in best.entry.chain) if best else 0,
        restore_bytes=restore_bytes,
        predicted_s=predicted_s if best else None,
        prediction=prediction,
        predicted_loss_s=round((now - at).total_seconds(), 3) if at is not None else None,
        others=choice.others,
        refusals=choice.refusals,
        plan_hash="",
    )
    return plan.model_copy(update={"plan_hash": hash_of(plan)})


def hash_of(plan: RecoveryPlan) -> str:
    """Return the hash of what a plan decides: the same one has the same hash while the archive grows on."""
    decided = {
        "target": plan.target,
        "cluster": plan.cluster,
        "system_id": plan.system_id,
        "repository_id": plan.repository_id,
        "chain": plan.chain,
        "way": [[leg.timeline, str(leg.from_lsn)] for leg in plan.legs],
        "into": str(plan.into),
        "refused": bool(plan.refusals),
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


def refuse_impossible(plan: RecoveryPlan) -> None:
    """Refuse a plan that leads nowhere.

    Raises:
        IntegrityError: the nearest backup is damaged.
        RepositoryMissing: there is no backup.
        UsageError: no backup leads to the target; the message names the nearest possible ones.
    """
    if not plan.refusals:
        return
    text = "; ".join(plan.refusals)
    if text.startswith(NO_BACKUP):
        raise RepositoryMissing(text)
    if all("is damaged" in one.reason for one in plan.others):
        raise IntegrityError(text)
    raise UsageError(text)


def _predict(restore_bytes: int, wal_bytes: int, rates: Rates) -> tuple[float | None, str]:
    if rates.restore_bytes_per_s is None:
        return None, "no restore has been measured yet: `bb-ops validate latest` measures one"
    if wal_bytes and rates.replay_bytes_per_s is None:
        return None, "no replay of WAL has been measured yet: `bb-ops drill` measures one"
    seconds = restore_bytes / rates.restore_bytes_per_s + wal_bytes / (rates.replay_bytes_per_s or 1.0)
    return round(seconds, 1), rates.said
