"""The proof ladder: one rung after the other, each measured, the first that is not passed ends the climb.

A rung that does not apply to a kind of backup is stepped over: it is recorded as such, it never is the level reached,
and it does not keep the rungs above from being reached.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError, NotMeasured
from bb_ops.findings import Outcome, worst
from bb_ops.repository.reports import Level, Step

Measurement = Callable[[], tuple[Outcome, str]]


@dataclass
class Climb:
    """The rungs measured so far.

    Attributes:
        wanted: The highest rung that is asked for.
        error: What ended the climb, for the command's exit code; None while nothing did.
    """

    wanted: Level
    steps: dict[Level, Step] = field(default_factory=dict)
    error: BbOpsError | None = None

    def measure(self, level: Level, measurement: Measurement) -> bool:
        """Measure one rung; return whether it passed. An error that says "could not" is not a failure."""
        if level > self.wanted:
            return False
        watch = Stopwatch()
        try:
            outcome, evidence = measurement()
        except NotMeasured as error:
            outcome, evidence = Outcome.NOT_MEASURED, str(error)
        except BbOpsError as error:
            outcome, evidence = Outcome.FAIL, str(error)
            self.error = self.error or error
        self.steps[level] = Step(level=level.name, outcome=outcome, evidence=evidence, duration_s=watch.elapsed_s)
        return outcome == Outcome.PASS

    def step_over(self, level: Level, reason: str) -> None:
        """Record that a rung does not apply to this kind of backup."""
        if level <= self.wanted:
            self.steps[level] = Step(level=level.name, outcome=Outcome.NOT_APPLICABLE, evidence=reason, duration_s=0.0)

    def close(self) -> tuple[Step, ...]:
        """Return every rung up to the wanted one; what was not reached is not measured."""
        for level in Level:
            if level <= self.wanted and level not in self.steps:
                reason = "a lower level was not passed"
                self.steps[level] = Step(
                    level=level.name, outcome=Outcome.NOT_MEASURED, evidence=reason, duration_s=0.0
                )
        return tuple(self.steps[level] for level in sorted(self.steps))

    @property
    def reached(self) -> Level | None:
        """The highest rung that passed together with all below it that apply."""
        reached = None
        for level in Level:
            outcome = self.steps[level].outcome if level in self.steps else Outcome.NOT_MEASURED
            if outcome == Outcome.NOT_APPLICABLE:
                continue
            if outcome != Outcome.PASS:
                break
            reached = level
        return reached

    @property
    def outcome(self) -> Outcome:
        """The worst answer of all rungs up to the wanted one."""
        return worst(step.outcome for step in self.close())
