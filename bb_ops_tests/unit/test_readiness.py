"""If something died now: what stands against a recovery, and what does not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bb_ops.findings import Finding, Outcome
from bb_ops.recovery.moment.plan import RecoveryPlan
from bb_ops.recovery.readiness import SERVER, CaseFacts, Readiness, judge
from bb_ops.repository.drills import DrillReport, drill_trend
from bb_ops_tests.unit.builders import new_drill

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def plan(*, lost_s: float | None = 900.0, **changes: Any) -> RecoveryPlan:  # noqa: ANN401
    until = NOW - timedelta(seconds=lost_s) if lost_s is not None else None
    facts: dict[str, Any] = {
        "target": "latest",
        "cluster": "main",
        "system_id": "7",
        "region": "replica",
        "repository_id": "r",
        "backup_id": "20261124T020000Z-full-00000001",
        "chain": ("20261124T020000Z-full-00000001",),
        "timeline": 1,
        "legs": (),
        "stops_at": None,
        "recovered_to_at": until,
        "into": None,
        "segments": 3,
        "wal_bytes": 3 << 24,
        "download_bytes": 1,
        "restore_bytes": 1,
        "predicted_s": 42.0,
        "prediction": "the median of 3",
        "predicted_loss_s": lost_s,
        "others": (),
        "refusals": (),
        "plan_hash": "h",
    }
    return RecoveryPlan(**{**facts, **changes})


def facts(**changes: Any) -> CaseFacts:  # noqa: ANN401
    """Return the case in which nothing is wrong."""
    sound: dict[str, Any] = {
        "dead": "primary",
        "survivors": ("replica",),
        "plan": plan(),
        "proven": (NOW - HOUR, "L6"),
        "drills": (new_drill(NOW - 10 * DAY),),
    }
    return CaseFacts(**{**sound, **changes})


def wrong(found: Readiness) -> dict[str, Finding]:
    return {finding.check_id: finding for finding in found.wrong}


def test_where_nothing_is_wrong_we_are_ready_and_know_the_price() -> None:
    found = judge([facts(), facts(dead=SERVER, survivors=("primary", "replica"), drills=None)], NOW)
    assert (found.outcome, found.wrong) == (Outcome.PASS, ())
    case = found.cases[0]
    assert (case.lost_s, case.until_at, case.takes_s) == (900.0, NOW - timedelta(seconds=900), 42.0)
    assert (case.proven_level, case.drill_outcome, case.drill_rto_s) == ("L6", Outcome.PASS, 60.0)


@pytest.mark.parametrize(
    ("changes", "check", "said"),
    [
        ({"survivors": ()}, "survivor", "no other region is set"),
        ({"absent": "there is no bucket"}, "survivor", "there is no bucket"),
        ({"plan": plan(refusals=("there is no physical backup",))}, "recoverable", "no physical backup"),
        ({"open_gaps": ("WAL from 0/1 to 0/2 is missing",)}, "archive_whole", "WAL from 0/1"),
        ({"plan": plan(lost_s=7201.0)}, "loss", "7201 s would be lost"),
        ({"proven": None}, "proven", "was ever restored"),
        ({"proven": (NOW - 8 * DAY, "L6")}, "proven", "8 days ago"),
        ({"drills": ()}, "drilled", "offline key was never proven"),
        ({"drills": (new_drill(NOW - 36 * DAY),)}, "drilled", "36 days ago"),
        ({"drills": (new_drill(NOW - DAY, Outcome.FAIL),)}, "drilled", "no drill has passed"),
        ({"drills": (new_drill(NOW - 2 * DAY), new_drill(NOW - DAY, Outcome.FAIL))}, "drilled", "failed: archive"),
    ],
)
def test_each_thing_that_stands_against_it_is_named(changes: dict[str, Any], check: str, said: str) -> None:
    found = judge([facts(**changes)], NOW)
    assert found.outcome == Outcome.FAIL
    assert set(wrong(found)) == {check}
    assert said in wrong(found)[check].message
    assert wrong(found)[check].remedy


@pytest.mark.parametrize("changes", [{"unreadable": "refused", "plan": None}, {"plan": plan(lost_s=None)}])
def test_what_could_not_be_looked_at_is_not_ready_and_no_failure(changes: dict[str, Any]) -> None:
    assert judge([facts(**changes)], NOW).outcome == Outcome.NOT_MEASURED


def test_a_failure_outweighs_what_could_not_be_measured() -> None:
    assert judge([facts(unreadable="refused"), facts(proven=None)], NOW).outcome == Outcome.FAIL


def test_a_drill_that_could_not_be_measured_neither_fails_nor_renews() -> None:
    drills = (new_drill(NOW - 36 * DAY), new_drill(NOW - DAY, Outcome.NOT_MEASURED))
    assert set(wrong(judge([facts(drills=drills)], NOW))) == {"drilled"}
    assert judge([facts(drills=(new_drill(NOW - 9 * DAY), drills[1]))], NOW).outcome == Outcome.PASS


def test_without_a_measured_rate_the_newest_drill_tells_how_long() -> None:
    case = judge([facts(plan=plan(predicted_s=None))], NOW).cases[0]
    assert (case.takes_s, case.prediction) == (60.0, "what the drill of 2026-11-14 took")


def test_the_trend_compares_the_newest_passed_drill_with_those_before() -> None:
    def held(days: int, rto_s: float, outcome: Outcome = Outcome.PASS) -> DrillReport:
        return new_drill(NOW - days * DAY, outcome, rto_s=rto_s)

    drills = [held(90, 50.0), held(60, 70.0), held(30, 999.0, Outcome.FAIL), held(1, 75.0)]
    assert (drill_trend(drills).drills, drill_trend(drills).rto_change_s) == (2, 15.0)
    assert drill_trend(drills[:1]).rto_change_s is None
    assert drill_trend([]).drills == 0
