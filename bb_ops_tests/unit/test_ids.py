"""Names of backups and of daily slots."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.repository.ids import BackupKind, daily_slot, is_backup_id, new_backup_id, slot_window

FIRST = datetime(2000, 1, 2, tzinfo=UTC)
instants = st.timedeltas(timedelta(0), timedelta(days=36_500)).map(lambda passed: FIRST + passed)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@pytest.mark.parametrize(
    ("at", "slot"),
    [
        ("2026-11-24T02:00:00+00:00", "2026-11-24"),
        ("2026-11-24T01:59:59.999999+00:00", "2026-11-23"),
        ("2026-11-24T23:59:59+00:00", "2026-11-24"),
        ("2026-11-25T00:00:00+00:00", "2026-11-24"),
        ("2026-11-25T01:59:59+00:00", "2026-11-24"),
        ("2026-11-25T02:00:00+00:00", "2026-11-25"),
        ("2027-01-01T01:00:00+00:00", "2026-12-31"),
        ("2028-03-01T01:00:00+00:00", "2028-02-29"),
        ("2026-11-24T03:30:00+02:00", "2026-11-23"),
        ("2026-11-23T21:00:00-05:00", "2026-11-24"),
    ],
)
def test_a_slot_opens_at_two_in_the_morning_utc(at: str, slot: str) -> None:
    assert daily_slot(datetime.fromisoformat(at)) == slot


@given(instants)
def test_an_instant_lies_in_the_window_of_its_slot(at: datetime) -> None:
    opens, ends = slot_window(daily_slot(at))
    assert opens <= at < ends


@given(instants)
def test_windows_follow_each_other_without_gap_or_overlap(at: datetime) -> None:
    opens, ends = slot_window(daily_slot(at))
    assert ends - opens == timedelta(days=1)
    assert slot_window(daily_slot(ends))[0] == ends
    assert daily_slot(opens - timedelta(microseconds=1)) < daily_slot(opens)


@given(instants, zones)
def test_the_zone_in_which_an_instant_is_written_does_not_matter(at: datetime, zone: timezone) -> None:
    assert daily_slot(at.astimezone(zone)) == daily_slot(at)


def test_a_window_is_aware_and_utc() -> None:
    opens, ends = slot_window("2026-11-24")
    assert (opens.isoformat(), ends.isoformat()) == ("2026-11-24T02:00:00+00:00", "2026-11-25T02:00:00+00:00")


@pytest.mark.parametrize("slot", ["2026-02-30", "2026-13-01", "today", ""])
def test_a_day_that_does_not_exist_has_no_window(slot: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        slot_window(slot)


@given(instants, zones)
def test_a_new_id_says_when_in_utc_and_has_the_form_of_one(at: datetime, zone: timezone) -> None:
    backup_id = new_backup_id(BackupKind.FULL, at.astimezone(zone))
    assert is_backup_id(backup_id)
    assert backup_id.startswith(f"{at:%Y%m%dT%H%M%S}Z-full-")


def test_ids_of_one_moment_differ() -> None:
    at = datetime(2026, 11, 24, 2, tzinfo=UTC)
    assert len({new_backup_id(BackupKind.FULL, at) for _ in range(200)}) == 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "20261124T020000Z-full-1f3a9c0",
        "20261124T020000Z-full-1f3a9c0e0",
        "20261124T020000Z-FULL-1f3a9c0e",
        "20261124T020000-full-1f3a9c0e",
        "../20261124T020000Z-full-1f3a9c0e",
        "20261124T020000Z-full-1f3a9c0e/",
        "20261124T020000Z-full-1f3a9c0e\n",
        "٢0261124T020000Z-full-1f3a9c0e",
    ],
)
def test_what_is_no_id(text: str) -> None:
    assert not is_backup_id(text)
