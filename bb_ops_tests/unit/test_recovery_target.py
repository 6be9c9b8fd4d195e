"""What people type as the moment to go back to."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.errors import UsageError
from bb_ops.postgres.lsn import Lsn
from bb_ops.recovery.moment.recovery_target import TargetKind, parse_target

AT = datetime(2026, 11, 24, 3, 7, 12, 500000, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24 03:07:12.5+00",
        "2026-11-24T03:07:12.5Z",
        "time:2026-11-24 03:07:12.5 UTC",
        "2026-11-24 04:07:12.5 Europe/Berlin",
        "2026-11-23 22:07:12.500000-05",
        "2026-11-24 08:37:12.5+05:30",
        "20261124T030712.5Z",
    ],
)
def test_a_time_is_an_instant_whatever_its_zone(text: str) -> None:
    target = parse_target(text)
    assert (target.kind, target.at, target.inclusive) == (TargetKind.TIME, AT, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-24 03:07:12", "has no time zone: add one, as in 2026-11-24 03:07:12+00"),
        ("2026-11-24", "has no time zone: add one, as in 2026-11-24 00:00:00+00"),
        ("2026-11-24 03:07 PM +00", "12-hour clock"),
        ("2026-11-24 03:07 CET", "may mean several zones"),
        ("2026-11-24 03:07 Europe/Nowhere", "there is no time zone"),
        ("2026-11-24 03:07+01 UTC", "has two time zones"),
        ("2026-10-25 02:30 Europe/Berlin", "change of clocks"),
        ("2026-03-29 02:30 Europe/Berlin", "change of clocks"),
        ("2026-02-30 03:07+00", "is no time"),
        ("yesterday", "is no recovery target"),
        ("735", "is no recovery target"),
        ("lsn:G/0", "is no WAL position"),
        ("lsn:123456789/0", "is no WAL position"),
        ("xid:-3", "is no transaction id"),
        ("xid:2", "is no transaction id"),
        ("xid:٣٣", "is no transaction id"),
        ("name:", "is no restore point's name"),
        (f"name:{'n' * 64}", "is no restore point's name"),
        ("", "is no recovery target"),
    ],
)
def test_what_could_mean_something_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_target(text)


def test_a_position_names_the_end_of_what_is_wanted_unless_told_otherwise() -> None:
    assert parse_target("16/B374D848").lsn == Lsn.parse("16/B374D848")
    assert not parse_target("16/B374D848").inclusive
    assert parse_target("lsn:16/B374D848", inclusive=True).inclusive
    assert not parse_target("xid:735", inclusive=False).inclusive
    with pytest.raises(UsageError, match="mean nothing for latest"):
        parse_target("latest", inclusive=False)


def test_an_xid_with_its_epoch_is_the_transaction_of_its_lower_half() -> None:
    assert parse_target(f"xid:{(7 << 32) + 735}").xid == 735


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone is added
    st.integers(-14 * 60, 14 * 60),
    st.booleans(),
)
def test_every_instant_is_read_back_as_it_is_said(local: datetime, offset_min: int, inclusive: bool) -> None:  # noqa: FBT001
    at = local.replace(tzinfo=UTC) + timedelta(minutes=offset_min)
    target = parse_target(at.isoformat(sep=" "), inclusive=inclusive)
    assert target.at == at
    assert parse_target(str(target).removesuffix(" (exclusive)"), inclusive=inclusive) == target
