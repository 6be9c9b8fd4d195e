"""Answers, of which "not measured" is never a pass, and "not applicable" counts for nothing."""

from hypothesis import given
from hypothesis import strategies as st

from bb_ops.findings import Outcome, worst


@given(st.lists(st.sampled_from(Outcome)))
def test_it_passes_only_where_everything_was_measured_and_passed(outcomes: list[Outcome]) -> None:
    asked = set(outcomes) - {Outcome.NOT_APPLICABLE}
    assert (worst(outcomes) == Outcome.PASS) == (asked == {Outcome.PASS})


@given(st.lists(st.sampled_from(Outcome)))
def test_any_failure_fails(outcomes: list[Outcome]) -> None:
    assert (worst(outcomes) == Outcome.FAIL) == (Outcome.FAIL in outcomes)


def test_nothing_at_all_was_not_measured() -> None:
    assert worst([]) == Outcome.NOT_MEASURED
