"""The steps of a drill: each measured, timed and kept, in order; none of them ends the others."""

from dataclasses import dataclass, field
from datetime import datetime

from bb_ops.clock import Clock, Stopwatch
from bb_ops.errors import BbOpsError, NotMeasured, StoreFailed
from bb_ops.findings import Outcome
from bb_ops.recovery.ladder import Climb, Measurement
from bb_ops.repository.drills import DrillStep
from bb_ops.repository.reports import Level


@dataclass
class Course:
    """The steps taken so far."""

    clock: Clock
    steps: list[DrillStep] = field(default_factory=list)
    error: BbOpsError | None = None

    def measure(self, name: str, measurement: Measurement) -> bool:
        """Take one step; return whether it passed."""
        began, watch = self.clock.now(), Stopwatch()
        try:
            outcome, evidence = measurement()
        except (NotMeasured, StoreFailed) as error:
            outcome, evidence = Outcome.NOT_MEASURED, str(error)
        except BbOpsError as error:
            outcome, evidence = Outcome.FAIL, str(error)
            self.error = self.error or error
        self.steps.append(
            DrillStep(name=name, outcome=outcome, evidence=evidence, started_at=began, duration_s=watch.elapsed_s)
        )
        return outcome == Outcome.PASS


@dataclass
class TimedClimb(Climb):
    """A climb that remembers when each rung was tried."""

    clock: Clock | None = None
    began: dict[Level, datetime] = field(default_factory=dict)

    def measure(self, level: Level, measurement: Measurement) -> bool:
        """See ``Climb``."""
        if self.clock is not None:
            self.began.setdefault(level, self.clock.now())
        return super().measure(level, measurement)
