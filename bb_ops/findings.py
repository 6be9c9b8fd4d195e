"""What a check says: passed, failed, or could not be measured. The third is never a pass.

A fourth answer, not applicable, says that the question does not arise, as the continuity of WAL does not for a dump. It
counts neither for nor against.
"""

from collections.abc import Iterable
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Base of everything that crosses the process boundary: frozen, and unknown fields are an error.

    Its validators are built when they are first needed: a command that starts does not need most of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Outcome(StrEnum):
    """The answers a measurement can have."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOT_MEASURED = "not_measured"
    NOT_APPLICABLE = "not_applicable"


class Severity(StrEnum):
    """How bad a failed check is."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Finding(Value):
    """One check's answer, with its evidence and what to do."""

    check_id: str
    outcome: Outcome
    severity: Severity
    resource: str
    message: str
    remedy: str = ""


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Combine answers: any failure fails, else anything unmeasured (or nothing at all) is not measured."""
    seen = set(outcomes) - {Outcome.NOT_APPLICABLE}
    if Outcome.FAIL in seen:
        return Outcome.FAIL
    if Outcome.NOT_MEASURED in seen or not seen:
        return Outcome.NOT_MEASURED
    return Outcome.PASS
