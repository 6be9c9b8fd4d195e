"""If a region died now, or the server: what would be lost, how long would it take, and what was that proven by?

Every case is judged by what its survivors hold, read from them alone, as if the dead were dead already.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime

from bb_ops.clock import Clock
from bb_ops.errors import BbOpsError, RepositoryMissing
from bb_ops.findings import Finding, Outcome, Severity, Value, worst
from bb_ops.recovery.moment.choice import said
from bb_ops.recovery.moment.facts import Region, read_regions
from bb_ops.recovery.moment.plan import RecoveryPlan
from bb_ops.recovery.moment.planning import plan_from
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, TargetKind
from bb_ops.repository import windows
from bb_ops.repository.drills import DrillReport, read_drills
from bb_ops.repository.overview import facts_of
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import Repository
from bb_ops.repository.status import PROVEN

SERVER = "server"
"""What is dead in the case in which every region lives."""
MOST_LOST_S = 2 * 3600.0
"""Hours are copied when they are over: an hour, and one to arrive."""
PROVEN_WITHIN = timedelta(days=7)
DRILLED_WITHIN = timedelta(days=35)
"""Drills are monthly, and begin a little later or earlier."""
_LATEST = RecoveryTarget(kind=TargetKind.LATEST)


@dataclass(frozen=True)
class CaseFacts:
    """What survives a disaster.

    Attributes:
        dead: A region's name, or ``SERVER``.
        survivors: The regions that live.
        absent: Why there is nothing in them; None where there is.
        unreadable: Why they could not be looked at; None where they were.
        plan: The latest possible recovery from them.
        open_gaps: WAL that is missing behind their backups.
        proven: When, and up to which level, a backup in them was last proven to be restorable.
        drills: Past drills in which the same region was declared dead, oldest first; None where none is asked for.
    """

    dead: str
    survivors: tuple[str, ...]
    absent: str | None = None
    unreadable: str | None = None
    plan: RecoveryPlan | None = None
    open_gaps: tuple[str, ...] = ()
    proven: tuple[datetime, str] | None = None
    drills: tuple[DrillReport, ...] | None = None


class Case(Value):
    """One disaster, and what would follow.

    Attributes:
        dead: A region's name, or ``server``.
        lost_s: Seconds of commits that would be lost; None where it was not measured.
        until_at: The instant up to which surely nothing would be.
        takes_s: Predicted from measured rates, else what the newest passed drill took; None where neither is known.
        drilled_at: Of the newest drill, however it ended.
    """

    dead: str
    survivors: tuple[str, ...]
    outcome: Outcome
    lost_s: float | None
    until_at: AwareDatetime | None
    takes_s: float | None
    prediction: str
    proven_at: AwareDatetime | None
    proven_level: str | None
    drilled_at: AwareDatetime | None
    drill_outcome: Outcome | None
    drill_rto_s: float | None
    drill_rpo_s: float | None


class Readiness(Value):
    """How ready we are, now."""

    schema_id: Literal["bb-ops/readiness/1"] = "bb-ops/readiness/1"
    seen_at: AwareDatetime
    outcome: Outcome
    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]
    coverage: dict[str, int]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What stands against it, failures first."""
        found = [one for one in self.findings if one.outcome in {Outcome.FAIL, Outcome.NOT_MEASURED}]
        return tuple(sorted(found, key=lambda one: one.outcome != Outcome.FAIL))


def read_readiness(repositories: Sequence[Repository], clock: Clock) -> Readiness:
    """Look at every region, and judge what each could do without the others. Changes nothing.

    Args:
        repositories: The first one, and the second where there is one.
        clock: For now.
    """
    now = clock.now()
    read = [_read(repository) for repository in repositories]
    names = [repository.region for repository in repositories]
    cases = []
    for number, name in enumerate(names):
        living = [one for other, one in enumerate(read) if other != number]
        # The working key dies with the first region: only there the offline key must have been drilled.
        drills = _drills(repositories[1:]) if number == 0 else None
        cases.append(_facts(name, living, now, drills))
    cases.append(_facts(SERVER, read, now, None))
    return judge(cases, now)


def judge(cases: Sequence[CaseFacts], now: datetime) -> Readiness:
    """Decide what stands against every case. Pure."""
    judged = [(facts, tuple(_findings(facts, now))) for facts in cases]
    findings = tuple(finding for _, found in judged for finding in found)
    return Readiness(
        seen_at=now,
        outcome=worst(finding.outcome for finding in findings),
        cases=tuple(_case(facts, worst(finding.outcome for finding in found)) for facts, found in judged),
        findings=findings,
        coverage={"checks": len(findings), "cases": len(judged)},
    )


@dataclass(frozen=True)
class _Read:
    """What was read of one region; the reason where it was not."""

    repository: Repository
    region: Region | None
    error: BbOpsError | None


def _read(repository: Repository) -> _Read:
    try:
        [region] = read_regions([repository])
    except BbOpsError as error:
        return _Read(repository, None, error)
    return _Read(repository, region, None)


def _drills(repositories: Sequence[Repository]) -> tuple[DrillReport, ...] | BbOpsError:
    try:
        found = [report for repository in repositories for report in read_drills(repository)]
    except BbOpsError as error:
        return error
    return tuple(sorted(found, key=lambda report: report.declared_at))


def _facts(
    dead: str, living: Sequence[_Read], now: datetime, drills: tuple[DrillReport, ...] | BbOpsError | None
) -> CaseFacts:
    names = tuple(one.repository.region for one in living)
    regions = [one.region for one in living if one.region is not None]
    errors = [one.error for one in living if one.error is not None]
    known = [one for one in regions if one.facts.unreadable is None]
    if not known:
        reasons = [str(error) for error in errors] + [str(one.facts.unreadable) for one in regions]
        absent = bool(errors) and all(isinstance(error, RepositoryMissing) for error in errors) and not regions
        said_ = "; ".join(reasons) or None
        return CaseFacts(dead, names, absent=said_ if absent else None, unreadable=None if absent else said_)
    if isinstance(drills, BbOpsError):
        return CaseFacts(dead, names, unreadable=str(drills))
    plan, _ = plan_from(known, living[0].repository.cluster, _LATEST, now)
    return CaseFacts(
        dead=dead,
        survivors=tuple(one.facts.region for one in known),  # one that cannot be looked at is left to nobody
        plan=plan,
        open_gaps=tuple(gap for one in known for gap in _open_gaps(one)),
        proven=max((proof for one in known for proof in _proven(one)), default=None),
        drills=tuple(one for one in drills if one.dead == dead) if drills is not None else None,
    )


def _open_gaps(region: Region) -> tuple[str, ...]:
    sound = [entry.physical for entry in region.facts.entries if not entry.failed]
    return windows.recovery_windows(sound, region.facts.wal, {}).open_gaps


def _proven(region: Region) -> Iterator[tuple[datetime, str]]:
    for entry in region.facts.entries:
        one = facts_of(entry)
        if one.failed or one.proven_at is None or one.proven_level is None:
            continue
        if Level[one.proven_level] >= PROVEN:
            yield one.proven_at, one.proven_level


def _case(facts: CaseFacts, outcome: Outcome) -> Case:
    plan, drills = facts.plan, facts.drills or ()
    newest = drills[-1] if drills else None
    passed = next((one for one in reversed(drills) if one.outcome == Outcome.PASS), None)
    takes_s, prediction = (plan.predicted_s, plan.prediction) if plan is not None else (None, "")
    if takes_s is None and passed is not None and passed.rto_s is not None:
        takes_s, prediction = passed.rto_s, f"what the drill of {passed.declared_at:%Y-%m-%d} took"
    return Case(
        dead=facts.dead,
        survivors=facts.survivors,
        outcome=outcome,
        lost_s=plan.predicted_loss_s if plan is not None else None,
        until_at=plan.recovered_to_at if plan is not None else None,
        takes_s=takes_s,
        prediction=prediction,
        proven_at=facts.proven[0] if facts.proven is not None else None,
        proven_level=facts.proven[1] if facts.proven is not None else None,
        drilled_at=newest.declared_at if newest is not None else None,
        drill_outcome=newest.outcome if newest is not None else None,
        drill_rto_s=passed.rto_s if passed is not None else None,
        drill_rpo_s=passed.rpo_s if passed is not None else None,
    )


def _findings(facts: CaseFacts, now: datetime) -> Iterator[Finding]:
    def finding(check: str, outcome: Outcome, severity: Severity, message: str, remedy: str = "") -> Finding:
        wrong = outcome != Outcome.PASS
        return Finding(
            check_id=check,
            outcome=outcome,
            severity=severity if wrong else Severity.INFO,
            resource=facts.dead,
            message=f"if {_name(facts.dead)} died now: {message}",
            remedy=remedy if wrong else "",
        )

    lacking = facts.absent if facts.survivors else "no other region is set"
    if lacking is not None:
        yield finding(
            "survivor", Outcome.FAIL, Severity.CRITICAL, lacking, "set BB_OPS_REPLICA, and `bb-ops sync full`"
        )
        return
    if facts.unreadable is not None or facts.plan is None:
        reason = facts.unreadable or "nothing was read"
        yield finding("survivor", Outcome.NOT_MEASURED, Severity.CRITICAL, reason, "mend the access, and ask again")
        return
    yield finding("survivor", Outcome.PASS, Severity.CRITICAL, f"{' and '.join(facts.survivors)} would be left")
    plan = facts.plan
    if plan.refusals:
        yield finding("recoverable", Outcome.FAIL, Severity.CRITICAL, "; ".join(plan.refusals), "`bb-ops sync full`")
        return
    yield finding("recoverable", Outcome.PASS, Severity.CRITICAL, f"{plan.backup_id} in {plan.region} leads to the end")
    whole = "no WAL is missing behind the backups"
    yield finding(
        "archive_whole",
        Outcome.FAIL if facts.open_gaps else Outcome.PASS,
        Severity.HIGH,
        "; ".join(facts.open_gaps) or whole,
        "`bb-ops backup full`, then `bb-ops sync incremental`",
    )
    yield finding(*_loss(plan))
    yield finding(*_proof(facts, now))
    if facts.drills is not None:
        yield finding(*_drill(facts.drills, now))


_Judgement = tuple[str, Outcome, Severity, str, str]


def _loss(plan: RecoveryPlan) -> _Judgement:
    remedy = "`bb-ops sync incremental`; is WAL streamed, and are the replicas made?"
    if plan.predicted_loss_s is None or plan.recovered_to_at is None:
        return "loss", Outcome.NOT_MEASURED, Severity.HIGH, "it is not known what would be lost", remedy
    late = plan.predicted_loss_s > MOST_LOST_S
    message = f"{plan.predicted_loss_s:.0f} s would be lost, all since {said(plan.recovered_to_at)}"
    return "loss", Outcome.FAIL if late else Outcome.PASS, Severity.HIGH, message, remedy


def _proof(facts: CaseFacts, now: datetime) -> _Judgement:
    remedy = "`bb-ops validate latest --region …`"
    if facts.proven is None:
        return "proven", Outcome.FAIL, Severity.HIGH, "no backup that would be left was ever restored", remedy
    at, level = facts.proven
    late = now - at > PROVEN_WITHIN
    message = f"a backup that would be left was proven up to {level} {_ago(now - at)}"
    return "proven", Outcome.FAIL if late else Outcome.PASS, Severity.MEDIUM, message, remedy


def _drill(drills: Sequence[DrillReport], now: datetime) -> _Judgement:
    remedy = "`bb-ops drill` with the offline key"
    if not any(one.outcome == Outcome.PASS for one in drills):
        message = "the offline key was never proven: no drill has passed"
        return "drilled", Outcome.FAIL, Severity.HIGH, message, remedy
    newest = drills[-1]
    if newest.outcome == Outcome.FAIL:
        message = f"the newest drill, {_ago(now - newest.declared_at)}, failed: {newest.reason}"
        return "drilled", Outcome.FAIL, Severity.HIGH, message, remedy
    passed = next(one for one in reversed(drills) if one.outcome == Outcome.PASS)
    late = now - passed.declared_at > DRILLED_WITHIN
    message = f"a drill passed {_ago(now - passed.declared_at)}: RTO {passed.rto_s} s, RPO {passed.rpo_s} s"
    return "drilled", Outcome.FAIL if late else Outcome.PASS, Severity.MEDIUM, message, remedy


def _name(dead: str) -> str:
    return "the server" if dead == SERVER else dead


def _ago(age: timedelta) -> str:
    return f"{age.days} days ago" if age.days else f"{age.total_seconds() / 3600:.1f} h ago"
