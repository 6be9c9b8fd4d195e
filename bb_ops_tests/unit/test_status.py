"""What a region can promise at an instant."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.errors import IntegrityError
from bb_ops.findings import Outcome
from bb_ops.repository.catalog import Catalog, CatalogEntry
from bb_ops.repository.ids import daily_slot
from bb_ops.repository.reports import Level
from bb_ops.repository.status import SLOTS_WATCHED, missing_slots, region_status, slot_punctuality
from bb_ops_tests.support.commits import overview
from bb_ops_tests.unit.builders import new_commit, new_proof

TWO = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def entry(
    started_at: datetime = TWO,
    *verdicts: tuple[Level | None, Outcome],
    problems: tuple[str, ...] = (),
    encryption: str = "age",
) -> CatalogEntry:
    commit = new_commit(started_at=started_at, encryption=encryption)
    proofs = tuple(
        new_proof(commit, level, outcome, after_s=60.0 * (number + 1))
        for number, (level, outcome) in enumerate(verdicts)
    )
    return CatalogEntry(commit, problems, proofs)


def catalog(*entries: CatalogEntry) -> Catalog:
    return Catalog("primary", list(entries))


class TestMissingSlots:
    def test_without_any_backup_the_open_slot_is_missing(self) -> None:
        assert missing_slots(overview(catalog()).backups, TWO) == ("2026-11-24",)
        assert missing_slots(overview(catalog()).backups, TWO - timedelta(seconds=1)) == ("2026-11-23",)

    def test_every_slot_since_the_first_backup_counts(self) -> None:
        held = catalog(entry(TWO), entry(TWO + 2 * DAY))
        assert missing_slots(overview(held).backups, TWO + 4 * DAY) == ("2026-11-25", "2026-11-27", "2026-11-28")

    def test_before_the_first_backup_nothing_was_missed(self) -> None:
        assert missing_slots(overview(catalog(entry(TWO))).backups, TWO + timedelta(hours=1)) == ()

    def test_a_backup_just_before_two_belongs_to_the_day_before(self) -> None:
        held = catalog(entry(TWO), entry(TWO + DAY - timedelta(minutes=1)))
        assert missing_slots(overview(held).backups, TWO + DAY) == ("2026-11-25",)

    @given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 40))
    def test_they_are_the_watched_slots_that_no_backup_represents(self, days: set[int], now: int) -> None:
        held = catalog(*(entry(TWO + day * DAY) for day in sorted(days)))
        missing = set(missing_slots(overview(held).backups, TWO + now * DAY))
        watched = {daily_slot(TWO + (now - back) * DAY) for back in range(SLOTS_WATCHED) if now - back >= min(days)}
        assert missing == watched - {daily_slot(TWO + day * DAY) for day in days}


class TestRegion:
    def test_nothing_promises_nothing(self) -> None:
        status = region_status(overview(catalog()), TWO)
        assert (status.backups, status.windows, status.lag_s, status.last_proven_at) == (0, (), None, None)
        assert not status.healthy

    def test_a_proven_backup_of_the_open_slot_is_healthy(self) -> None:
        held = entry(TWO, (Level.L6, Outcome.PASS))
        status = region_status(overview(catalog(held)), TWO + timedelta(hours=3))
        assert status.healthy
        assert status.last_proven_at == TWO + timedelta(seconds=60 + 12.5)
        assert status.last_proven_level == "L6"
        assert [(window.from_at, window.to_at) for window in status.windows] == [(held.commit.as_of, held.commit.as_of)]

    @pytest.mark.parametrize("level", [level for level in Level if level < Level.L5])
    def test_below_l5_nothing_counts_as_proven(self, level: Level) -> None:
        status = region_status(overview(catalog(entry(TWO, (level, Outcome.NOT_MEASURED)))), TWO)
        assert status.last_proven_at is None
        assert not status.healthy

    def test_lag_is_the_age_of_the_newest_instant_that_can_be_restored(self) -> None:
        newest = entry(TWO + DAY)
        status = region_status(overview(catalog(entry(TWO), newest)), TWO + DAY + timedelta(hours=2))
        assert status.lag_s == (TWO + DAY + timedelta(hours=2) - newest.commit.as_of).total_seconds()

    def test_a_failed_backup_promises_no_instant_and_is_a_problem(self) -> None:
        good, bad = entry(TWO, (Level.L6, Outcome.PASS)), entry(TWO + DAY, (Level.L3, Outcome.FAIL))
        status = region_status(overview(catalog(good, bad)), TWO + DAY)
        assert [window.to_at for window in status.windows] == [good.commit.as_of]
        assert any(bad.commit.id in problem for problem in status.problems)
        assert not status.healthy

    def test_a_proof_that_a_later_failure_voided_is_not_the_last_proven(self) -> None:
        status = region_status(overview(catalog(entry(TWO, (Level.L6, Outcome.PASS), (Level.L4, Outcome.FAIL)))), TWO)
        assert status.last_proven_at is None

    def test_the_last_proven_is_the_newest_proof_of_any_backup(self) -> None:
        held = catalog(entry(TWO, (Level.L6, Outcome.PASS)), entry(TWO + DAY, (Level.L5, Outcome.PASS)))
        status = region_status(overview(held), TWO + DAY)
        assert status.last_proven_at == TWO + DAY + timedelta(seconds=72.5)
        assert status.last_proven_level == "L5"

    def test_damage_is_a_problem_of_its_own(self) -> None:
        held = catalog(entry(TWO, (Level.L6, Outcome.PASS)))
        held.damaged.append(IntegrityError("x/COMMIT.json is damaged"))
        status = region_status(overview(held), TWO)
        assert status.problems == ("x/COMMIT.json is damaged",)
        assert not status.healthy

    def test_missing_objects_are_problems_by_name(self) -> None:
        status = region_status(overview(catalog(entry(TWO, problems=("a is missing", "b is missing")))), TWO)
        assert status.problems == ("a is missing", "b is missing")
        assert status.windows == ()

    def test_a_backup_without_encryption_is_said(self) -> None:
        status = region_status(overview(catalog(entry(TWO, (Level.L6, Outcome.PASS), encryption="none"))), TWO)
        assert "is not encrypted" in status.problems[0]
        assert not status.healthy


class TestPunctuality:
    def test_a_slot_without_backup_is_not_on_time(self) -> None:
        assert not slot_punctuality(catalog(entry(TWO)), "2026-11-25").on_time

    @pytest.mark.parametrize(("late_s", "on_time"), [(0, True), (3600, True), (3601, False), (80_000, False)])
    def test_an_hour_is_the_limit(self, late_s: int, on_time: bool) -> None:  # noqa: FBT001 - a table
        held = catalog(entry(TWO), entry(TWO + DAY + timedelta(seconds=late_s)))
        assert slot_punctuality(held, "2026-11-25").on_time == on_time

    def test_the_first_of_all_cannot_be_late(self) -> None:
        assert slot_punctuality(catalog(entry(TWO + timedelta(hours=9))), "2026-11-24").on_time

    def test_the_earliest_backup_of_a_slot_decides(self) -> None:
        held = catalog(entry(TWO), entry(TWO + DAY), entry(TWO + DAY + timedelta(hours=8)))
        assert slot_punctuality(held, "2026-11-25").on_time
