"""The disaster-recovery exercise: a region is declared dead, and another process brings everything back without it."""

import logging
import sys
from datetime import datetime

from pydantic import ValidationError

from bb_ops import process
from bb_ops.clock import Clock
from bb_ops.errors import (
    BbOpsError,
    FindingsPresent,
    IntegrityError,
    KeyRejected,
    NotMeasured,
    ProgramFailed,
    RepositoryMissing,
    SettingsError,
    UsageError,
)
from bb_ops.findings import Finding, Outcome, Severity, worst
from bb_ops.recovery.readiness import MOST_LOST_S
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.repository.drills import DrillReport, record_drill
from bb_ops.repository.ids import SlotKey, monthly_slot
from bb_ops.repository.recoveries import RecoveryRecord, record_recovery
from bb_ops.repository.reports import Level, Proof, Step
from bb_ops.repository.repository import Repository
from bb_ops.validation.denial import Declaration, Denial

_LOGGER = logging.getLogger(__name__)
_TIMEOUT_S = 7 * 24 * 3600.0
_ANY_CODE = frozenset(range(256))
_ERRORS: dict[int, type[BbOpsError]] = {
    one.exit_code: one
    for one in (UsageError, FindingsPresent, IntegrityError, RepositoryMissing, KeyRejected, NotMeasured)
}
EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: FindingsPresent.exit_code, Outcome.NOT_MEASURED: NotMeasured.exit_code}


def hold_drill(denial: Denial, clock: Clock) -> tuple[DrillReport, int]:
    """Declare a region dead and measure how everything comes back from the other one. Records nothing yet.

    The recovery runs in a process whose whole environment is ``denial.environment``, in an empty directory, so that no
    file of settings is found either. It dies with this one.

    Returns:
        What it saw, and with which code it ended.

    Raises:
        BbOpsError: it ended before it could say anything, for instance because its settings are wrong.
    """
    declaration = Declaration(
        declared_at=clock.now(),
        region=denial.region,
        dead=denial.dead,
        working_recipient=denial.working_recipient,
        shared=denial.shared,
    )
    argv = [sys.executable, "-m", "bb_ops.cli.main", "drill", "--json", "--declared", declaration.model_dump_json()]
    _LOGGER.info("drill starts", extra={"region": denial.region, "dead": denial.dead})
    with scratch_directory(None, None) as empty:  # swept by the next one, should this process be killed
        done = process.run(argv, timeout_s=_TIMEOUT_S, env=denial.environment, cwd=empty, accept=_ANY_CODE)
    try:
        report = DrillReport.model_validate_json(done.stdout)
    except ValidationError:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        kind = _ERRORS.get(done.returncode, ProgramFailed)
        raise kind(f"the drill ended early: {said[0].removeprefix('bb-ops: ')}") from None
    _LOGGER.info(
        "drill ends", extra={"region": report.region, "outcome": report.outcome, "duration_s": done.duration_s}
    )
    return report, done.returncode


def exit_code_of(report: DrillReport, error: BbOpsError | None) -> int:
    """Return how the command ends."""
    if report.outcome == Outcome.FAIL and error is not None:
        return error.exit_code
    return EXIT_CODES[report.outcome]


def record(repository: Repository, report: DrillReport) -> DrillReport:
    """Store what a drill showed in the region that it recovered from: proof, measurement, report; return the report.

    Killed in between, the drill is in no history, and what was stored before is true all the same.

    Raises:
        SettingsError: no signing key is set.
        RepositoryMissing: there is no repository there.
        StoreFailed: the store refuses.
    """
    if not repository.can_sign:
        raise SettingsError("BB_OPS_SIGNING_KEY_FILE is not set: the drill is recorded nowhere")
    repository.open()
    commit = repository.read_commit(report.system_id, report.backup_id) if report.backup_id else None
    if commit is not None and report.ladder:
        repository.record_proof(commit, proof_of(report))
    if report.restore_s is not None and report.replay_s is not None:
        record_recovery(repository, report.system_id, _recovery_of(report))
    recorded = report.model_copy(update={"recorded": True})
    record_drill(repository, recorded)
    return recorded


def proof_of(report: DrillReport) -> Proof:
    """Return what a drill says of the backup that it restored. Pure.

    What failed beside the backup, as a hole in the WAL behind it, is no failure of the backup: it can still be
    restored, and is only not proven up to L7.
    """
    steps = tuple(_of_the_backup(step, report) for step in report.ladder)
    return Proof(
        id=f"{report.id}-drill",
        backup_id=report.backup_id or "",
        region=report.region,
        level=report.level,
        outcome=worst(step.outcome for step in steps),
        steps=steps,
        started_at=report.declared_at,
        duration_s=round((report.ended_at - report.declared_at).total_seconds(), 3),
        restore_s=report.restore_s,
        restored_bytes=report.restored_bytes,
        tables_compared=report.tables_compared,
        rows_compared=report.rows_compared,
        anchor_lsn=report.anchor_lsn,
        host=report.host,
        bb_ops_version=report.bb_ops_version,
    )


def _of_the_backup(step: Step, report: DrillReport) -> Step:
    """Take back what may be the fault of the WAL behind a backup: a restore test tells of the backup alone."""
    may_be_wal = step.level == Level.L4.name or (step.level == Level.L6.name and not report.tables_compared)
    if step.outcome != Outcome.FAIL or not may_be_wal:
        return step
    return step.model_copy(update={"outcome": Outcome.NOT_MEASURED, "evidence": f"with WAL: {step.evidence}"})


def examine_drill(report: DrillReport) -> tuple[Finding, ...]:
    """Judge a drill by the questions that it was held for. Pure."""

    def finding(check: str, outcome: Outcome, message: str, severity: Severity = Severity.HIGH) -> Finding:
        return Finding(
            check_id=check, outcome=outcome, severity=severity, resource=report.region, message=message, remedy=""
        )

    level = report.level or "nothing"
    until = f", up to {report.recovered_until_at:%Y-%m-%d %H:%M:%S} UTC" if report.recovered_until_at else ""
    stock = next((step for step in report.steps if step.name == "stock_tools"), None)
    return (
        finding(
            "restored_from_region_b", report.outcome, report.reason or f"proven {level} from {report.region} alone"
        ),
        finding("rpo", _within(report.rpo_s, MOST_LOST_S), f"{_said(report.rpo_s)} would have been lost{until}"),
        finding("rto", _within(report.rto_s, None), f"a server answered after {_said(report.rto_s)}", Severity.MEDIUM),
        finding(
            "stock_tools", stock.outcome if stock else Outcome.NOT_MEASURED, stock.evidence if stock else "not tried"
        ),
    )


def _within(seconds: float | None, most_s: float | None) -> Outcome:
    if seconds is None:
        return Outcome.NOT_MEASURED
    return Outcome.PASS if most_s is None or seconds <= most_s else Outcome.FAIL


def _said(seconds: float | None) -> str:
    return "a time that was not measured" if seconds is None else f"{seconds} s"


def require_open_month(slot: SlotKey, now: datetime) -> None:
    """Prove that a drill of now may count for a month.

    Raises:
        UsageError: another month is open.
    """
    if slot != monthly_slot(now):
        raise UsageError(
            f"slot {slot} is not open: a drill of now counts for {monthly_slot(now)}; a missed one stays so"
        )


def _recovery_of(report: DrillReport) -> RecoveryRecord:
    return RecoveryRecord(
        id=f"{report.declared_at:%Y%m%dT%H%M%S%fZ}-drill",
        backup_id=report.backup_id or "",
        region=report.region,
        target="latest",
        restored_bytes=report.restored_bytes or 0,
        restore_s=report.restore_s or None,
        replayed_bytes=report.replayed_bytes or 0,
        replay_s=report.replay_s,
        duration_s=report.proven_s or report.rto_s or 0.0,
        proof=report.level,
        started_at=report.declared_at,
        host=report.host,
        bb_ops_version=report.bb_ops_version,
    )
