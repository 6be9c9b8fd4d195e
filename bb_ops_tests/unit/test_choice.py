"""Which backup, and which way from there, leads to a moment; and what is said where none does."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.errors import IntegrityError, RepositoryMissing, UsageError
from bb_ops.findings import Outcome
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.timelines import Ancestor, History
from bb_ops.recovery.events.locate import Located
from bb_ops.recovery.moment.branch import branch_to, segments_of
from bb_ops.recovery.moment.choice import Choice, RegionFacts, choose
from bb_ops.recovery.moment.plan import NO_RATES, Rates, RecoveryPlan, finish_plan, refuse_impossible
from bb_ops.recovery.moment.recovery_target import RecoveryTarget, parse_target
from bb_ops.repository.catalog import CatalogEntry
from bb_ops.repository.reports import Level
from bb_ops.repository.wal_listing import TimelineWal
from bb_ops.repository.windows import Point
from bb_ops_tests.unit.archives import MIB, START, facts, listing
from bb_ops_tests.unit.builders import new_commit, new_proof

NOW = START + timedelta(hours=12)
HOUR = timedelta(hours=1)


def entry(hour: int, end: int, timeline: int = 1, **changes: Any) -> CatalogEntry:  # noqa: ANN401 - any field
    """A full taken at an hour, whose WAL ends at a position in MiB."""
    commit = new_commit(
        id=f"20261124T{hour:02d}0000Z-full-{end:08x}",
        started_at=START + hour * HOUR,
        as_of=START + hour * HOUR,
        timeline=timeline,
        end_lsn=Lsn(end * MIB),
        wal_end_lsn=Lsn(end * MIB),
        wal_segment_bytes=MIB,
    )
    return CatalogEntry(commit, **{"problems": (), "proofs": (), **changes})


def region(
    name: str,
    entries: list[CatalogEntry],
    *listings: TimelineWal,
    histories: tuple[History, ...] = (),
    hours: dict[Point, int] | None = None,
    located: tuple[Located, ...] = (),
) -> RegionFacts:
    times = {point: START + hour * HOUR for point, hour in (hours or {}).items()}
    return RegionFacts(name, name, tuple(entries), facts(*listings, histories=histories), times, located)


def at(hour: float) -> RecoveryTarget:
    return parse_target((START + hour * HOUR).isoformat())


def chosen(choice: Choice) -> tuple[str, str, int]:
    assert choice.best is not None, choice.refusals
    return choice.best.facts.region, choice.best.commit.id, choice.best.branch.timeline


def end(timeline: int, mib: int) -> Point:
    return Point(timeline, Lsn(mib * MIB))


FIRST, SECOND = entry(0, 3), entry(4, 8)
A = region("a", [FIRST, SECOND], listing(1, range(3, 12)), hours={end(1, 12): 10})


def test_the_nearest_backup_before_the_moment_is_taken() -> None:
    assert chosen(choose(at(3), [A], NOW, None)) == ("a", FIRST.commit.id, 1)
    choice = choose(at(5), [A], NOW, None)
    assert chosen(choice) == ("a", SECOND.commit.id, 1)
    assert choice.others[0].reason == "serves, but replays 5 MiB more of WAL"


def test_what_the_first_region_lacks_the_second_gives() -> None:
    gone = region("a", [FIRST, SECOND], listing(1, [3, 4, 5, 10, 11]), hours={end(1, 6): 2})
    choice = choose(
        at(9), [gone, region("b", [FIRST, SECOND], listing(1, range(3, 12)), hours={end(1, 12): 10})], NOW, None
    )
    assert chosen(choice) == ("b", SECOND.commit.id, 1)
    assert any("WAL from 0/800000 to 0/A00000 on timeline 1 is missing" in one.reason for one in choice.others)


def test_a_damaged_or_disproven_backup_is_passed_over_and_named() -> None:
    damaged = entry(4, 8, problems=("base.0000.tar is missing",))
    choice = choose(at(5), [region("a", [FIRST, damaged], listing(1, range(3, 12)), hours={end(1, 12): 10})], NOW, None)
    assert chosen(choice)[1] == FIRST.commit.id
    assert "base.0000.tar is missing" in choice.others[-1].reason
    failed = entry(4, 8, proofs=(new_proof(SECOND.physical, Level.L1, Outcome.FAIL),))
    choice = choose(at(5), [region("a", [FIRST, failed], listing(1, range(3, 12)), hours={end(1, 12): 10})], NOW, None)
    assert chosen(choice)[1] == FIRST.commit.id
    assert choice.others[-1].reason == "its newest restore test failed"


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        (at(-1), [START]),
        (at(11), [START + 10 * HOUR]),
        (at(13), [START + 10 * HOUR]),
        (parse_target("lsn:0/100"), "lsn:0/300000"),
        (parse_target("lsn:1/0"), "lsn:0/C00000"),
    ],
)
def test_outside_of_everything_the_nearest_moments_are_named(target: RecoveryTarget, nearest: Any) -> None:  # noqa: ANN401
    choice = choose(target, [A], NOW, None)
    assert choice.best is None
    for one in nearest if isinstance(nearest, list) else [nearest]:
        assert (f"{one:%Y-%m-%d %H:%M:%S}" if isinstance(one, datetime) else one) in choice.refusals[0]


def test_inside_a_gap_the_moments_on_both_sides_are_named() -> None:
    holed = region("a", [FIRST, SECOND], listing(1, [3, 4, *range(8, 12)]), hours={end(1, 5): 1, end(1, 12): 10})
    (refusal,) = choose(at(2), [holed], NOW, None).refusals
    assert f"{START + HOUR:%Y-%m-%d %H:%M:%S}" in refusal
    assert f"{SECOND.commit.as_of:%Y-%m-%d %H:%M:%S}" in refusal
    assert "is missing" in refusal


# Timeline 2 left timeline 1 at 6 MiB; timeline 1 went on to 12 MiB.
BRANCHED = region(
    "a",
    [FIRST, SECOND],
    listing(1, range(3, 12)),
    listing(2, range(6, 10)),
    histories=(History(2, (Ancestor(1, Lsn(6 * MIB)),)),),
    hours={end(1, 12): 10, end(2, 10): 11},
)


def test_the_newest_timeline_is_followed_unless_another_is_named() -> None:
    choice = choose(at(10.5), [BRANCHED], NOW, None)
    assert chosen(choice) == ("a", FIRST.commit.id, 2)
    assert [(leg.timeline, leg.to_lsn) for leg in choice.best.branch.legs] == [(1, 6 * MIB), (2, 10 * MIB)]  # type: ignore[union-attr]
    old = at(9).model_copy(update={"timeline": 1})
    assert chosen(choose(old, [BRANCHED], NOW, None)) == ("a", SECOND.commit.id, 1)


def test_a_backup_that_the_timeline_does_not_descend_from_is_refused() -> None:
    target = at(10.5).model_copy(update={"timeline": 2})
    choice = choose(target, [BRANCHED], NOW, SECOND.commit.id)
    assert choice.best is None
    assert "its timeline 1 is no ancestor of timeline 2 there" in choice.refusals[0]
    target = at(9).model_copy(update={"timeline": 7})
    assert "there is no timeline 7, only 1, 2" in choose(target, [BRANCHED], NOW, None).refusals[0]


def test_a_hole_before_the_newest_timeline_does_not_make_an_older_one_the_latest() -> None:
    holed = region(
        "a",
        [FIRST],
        listing(1, [3, 4]),
        listing(2, range(6, 10)),
        histories=tuple(BRANCHED.wal.histories.values()),
        hours={end(1, 5): 1},
    )
    choice = choose(parse_target("latest").model_copy(update={"timeline": 2}), [holed], NOW, None)
    assert choice.best is None
    assert "is missing" in choice.refusals[0]


def test_the_segment_in_which_a_timeline_left_is_asked_of_the_younger_one() -> None:
    branch = branch_to(
        facts(
            listing(1, range(3, 7)), listing(2, range(6, 8)), histories=(History(2, (Ancestor(1, Lsn(6 * MIB + 77)),)),)
        ),
        FIRST.physical,
        2,
    )
    assert branch is not None
    numbers = [(timeline, int(name[-8:], 16)) for timeline, name in segments_of(branch.legs, MIB)]
    assert numbers == [(1, 3), (1, 4), (1, 5), (2, 6), (2, 7)]


def test_a_transaction_is_reached_where_its_timeline_is_on_the_way() -> None:
    place = Located(timeline=1, lsn=Lsn(7 * MIB), end_lsn=Lsn(7 * MIB + 34), at=None)
    held = region(
        "a",
        [FIRST],
        listing(1, range(3, 12)),
        listing(2, range(6, 10)),
        histories=(History(2, (Ancestor(1, Lsn(6 * MIB)),)),),
        located=(place,),
    )
    assert chosen(choose(parse_target("xid:735"), [held], NOW, None)) == ("a", FIRST.commit.id, 1)
    nowhere = region("a", [FIRST], listing(1, range(3, 12)))
    assert "nowhere in the archived WAL" in choose(parse_target("xid:735"), [nowhere], NOW, None).refusals[0]


def plan_for(target: RecoveryTarget, *regions: RegionFacts, rates: Rates = NO_RATES, **changes: Any) -> RecoveryPlan:  # noqa: ANN401
    choice = choose(target, regions, NOW, None)
    given: dict[str, Any] = {"stops_at": None, "at": None, "into": Path("/data"), "rates": rates, "now": NOW, **changes}
    return finish_plan(target, "main", choice, **given)


def test_the_hash_binds_what_is_decided_and_not_how_far_the_archive_has_grown() -> None:
    plan = plan_for(at(5), A)
    grown = region("a", [FIRST, SECOND], listing(1, range(3, 20)), hours={end(1, 20): 11})
    assert plan_for(at(5), grown).plan_hash == plan.plan_hash
    newer = region("a", [FIRST, SECOND, entry(5, 9)], listing(1, range(3, 12)), hours={end(1, 12): 10})
    assert plan_for(at(5), newer).plan_hash != plan.plan_hash
    assert plan_for(at(5), A, into=Path("/other")).plan_hash != plan.plan_hash
    assert plan_for(at(5.1), A).plan_hash != plan.plan_hash


def test_a_duration_is_predicted_from_what_was_measured_or_not_at_all() -> None:
    assert plan_for(at(5), A).predicted_s is None
    assert "no restore has been measured" in plan_for(at(5), A).prediction
    assert "no replay" in plan_for(at(5), A, rates=Rates(1e6, None, "")).prediction
    plan = plan_for(at(5), A, rates=Rates(1e6, 2.0 * MIB, "measured"), stops_at=Lsn(10 * MIB), at=START + 5 * HOUR)
    assert (plan.predicted_s, plan.predicted_loss_s) == (1.0, 7 * 3600.0)


def test_nothing_to_begin_with_is_another_answer_than_no_way() -> None:
    with pytest.raises(RepositoryMissing):
        refuse_impossible(plan_for(at(5), region("a", [])))
    with pytest.raises(UsageError):
        refuse_impossible(plan_for(at(-1), A))
    with pytest.raises(IntegrityError):
        refuse_impossible(plan_for(at(5), region("a", [entry(4, 8, problems=("gone",))])))


@given(st.sets(st.integers(3, 20), max_size=18), st.floats(0, 10, allow_nan=False))
def test_what_is_chosen_can_be_replayed_and_what_is_refused_cannot(numbers: set[int], hour: float) -> None:
    """The hour of a position is a fifth of its MiB: what is reached is what the segments join to."""
    size = 21
    hours = {end(1, mib): mib for mib in range(size + 1)}
    times = {point: START + timedelta(hours=mib / 2) for point, mib in hours.items()}
    held = RegionFacts("a", "a", (entry(0, 3), entry(2, 7)), facts(listing(1, sorted(numbers))), times)
    choice = choose(at(hour), [held], NOW, None)

    def leads(begin_hour: float, begin: int) -> bool:
        reached = begin
        while reached in numbers:
            reached += 1
        return begin_hour <= hour and (hour <= reached / 2 or hour == begin_hour)

    possible = [begin for begin_hour, begin in ((0, 3), (2, 7)) if leads(begin_hour, begin)]
    if choice.best is None:
        assert possible == []
    else:
        assert choice.best.commit.end_lsn // MIB == max(possible)
