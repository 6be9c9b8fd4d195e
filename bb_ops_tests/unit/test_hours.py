"""Hours and the archive of WAL: what is covered, what is said of it, and when a full backup is asked for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bb_ops.backup.hour import hour_window, newest_hour, take_hour
from bb_ops.backup.interval import IntervalOptions
from bb_ops.backup.wal_archive import (
    LAG_ERROR_S,
    LAG_WARN_S,
    ArchiveReport,
    RegionArchive,
    Request,
    continuity,
    decide_gap,
    lag,
)
from bb_ops.backup.wal_status import WalStatus
from bb_ops.dsn import parse_dsn
from bb_ops.errors import UsageError
from bb_ops.findings import Outcome, Severity
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.repository.coverage import Coverage, Lineage, coverage
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.wal_listing import assemble, read_folder
from bb_ops.repository.windows import Point, WalFacts, Window
from bb_ops_tests.support.commits import BEGAN, SYSTEM, commit
from bb_ops_tests.unit.builders import NOON, SettableClock, new_repository

MIB16 = 1 << 24
HOUR = timedelta(hours=1)


def lineage(*backups: PhysicalCommit, segments: range | list[int] = ()) -> Lineage:  # type: ignore[assignment]
    names = [segment_name(1, Lsn(number * MIB16), MIB16) for number in segments]
    files = [f"{name}{suffix}" for name in names for suffix in (".zst.age", ".json")]
    listed = assemble(1, [], {0: read_folder(1, 0, files)} if files else {})
    return Lineage(SYSTEM, backups, WalFacts(SYSTEM, {1: listed}, segment_bytes=MIB16))


def at(hours: float) -> datetime:
    return BEGAN + hours * HOUR


def seen(found: Lineage, first: float, last: float, ends: dict[int, float]) -> Coverage:
    """Decide with WAL whose segments end at these hours after the first backup."""
    times = {Point(1, Lsn(number * MIB16)): at(hours) for number, hours in ends.items()}
    return coverage(found, at(first), at(last), times)


def test_an_hour_behind_a_backup_and_whole_wal_is_covered() -> None:
    found = seen(lineage(commit(0), segments=range(1, 9)), 2, 3, {9: 4.5})
    assert (found.whole, found.covered_s, found.missing, found.begins_at) == (True, 3600.0, (), None)


def test_an_hour_across_a_hole_is_not_and_the_hole_is_named() -> None:
    found = seen(lineage(commit(0), segments=[1, 2, 5, 6]), 2, 3, {3: 2.25})
    assert (found.whole, found.covered_s) == (False, 900.0)
    [missing] = found.missing
    assert missing.startswith("nothing from 2026-11-24 04:15:00 to 2026-11-24 05:00:00 UTC can be restored: ")
    assert missing.endswith("WAL from 0/3000000 to 0/5000000 on timeline 1 is missing")


def test_a_backup_inside_the_hour_covers_what_is_behind_a_hole() -> None:
    backups = commit(0), commit(4, as_of=at(2.5))
    found = seen(lineage(*backups, segments=[1, 2, 5, 6]), 2, 3, {3: 2.25, 7: 3.5})
    assert [(window.from_at, window.to_at) for window in found.covered] == [(at(2), at(2.25)), (at(2.5), at(3))]
    assert len(found.missing) == 1
    assert "0/3000000" in found.missing[0]


def test_an_hour_that_the_archive_has_not_reached_is_not_covered() -> None:
    found = seen(lineage(commit(0), segments=range(1, 4)), 2, 3, {4: 2.5})
    [missing] = found.missing
    assert missing.startswith("nothing from 2026-11-24 04:30:00 to 2026-11-24 05:00:00 UTC can be restored: ")
    assert missing.endswith("WAL is archived up to 0/4000000 on timeline 1 only, which is 2026-11-24 04:30:00 UTC")


def test_an_instant_that_was_not_measured_covers_nothing() -> None:
    assert not seen(lineage(commit(0), segments=range(1, 9)), 2, 3, {}).whole


def test_what_lies_before_the_first_backup_is_not_whole() -> None:
    found = seen(lineage(commit(2, as_of=at(2.5)), segments=range(3, 9)), 2, 3, {9: 4})
    assert (found.whole, found.missing, found.begins_at, found.covered_s) == (False, (), at(2.5), 1800.0)


@pytest.mark.parametrize("key", ["2026-11-24", "2026-11-24-13:30", "yesterday", "2026-11-24-13:00+0100"])
def test_what_names_no_hour_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="names no hour"):
        hour_window(key)


def test_an_hour_that_is_not_over_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    key = f"{NOON:%Y-%m-%d-%H:00}"
    assert newest_hour(NOON) == "2026-11-24-11:00"
    repository, nobody = new_repository(tmp_path), parse_dsn("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(UsageError, match="is not over before 13:00 UTC"):
        take_hour(nobody, repository, IntervalOptions(None, None), key, SettableClock(), lambda *_: None)


def report(region: dict[str, Any], **status: Any) -> ArchiveReport:  # noqa: ANN401 - any field
    facts: dict[str, Any] = {
        "slot": "bb_ops_main",
        "timeline": 1,
        "archived_to_lsn": "0/3000000",
        "archived_to_at": NOON,
        "lag_bytes": 100,
        "lag_s": 2.0,
        "slot_active": True,
        "wal_status": "reserved",
        "retained_bytes": 100,
        "problems": (),
    }
    return ArchiveReport(
        seen_at=NOON, status=WalStatus(**{**facts, **status}), regions=(RegionArchive(name="primary", **region),)
    )


SOUND: dict[str, Any] = {"backups": 1, "newest_backup": "a", "windows": (Window(from_at=NOON - HOUR, to_at=NOON),)}
GAP = "WAL from 0/3000000 to 0/4000000 on timeline 1 is missing"


@pytest.mark.parametrize(
    ("region", "outcome", "words"),
    [
        (SOUND, Outcome.PASS, "no hole behind the newest backup: primary up to 2026-11-24 12:00:00 UTC"),
        ({**SOUND, "gaps": (GAP,)}, Outcome.PASS, "no hole behind the newest backup"),
        (
            {**SOUND, "gaps": (GAP,), "open_gaps": (GAP,)},
            Outcome.FAIL,
            f"primary: {GAP}: a new full backup must close that",
        ),
        ({"problem": "it is away"}, Outcome.NOT_MEASURED, "not measured: it is away"),
        ({}, Outcome.NOT_MEASURED, "holds no sound backup"),
    ],
)
def test_continuity_names_open_gaps_and_passes_nothing_unmeasured(
    region: dict[str, Any], outcome: Outcome, words: str
) -> None:
    found = continuity(report(region))
    assert found.outcome == outcome
    assert words in found.message
    assert (found.severity in {Severity.HIGH, Severity.CRITICAL}) == (outcome != Outcome.PASS)


@pytest.mark.parametrize(
    ("status", "outcome", "severity"),
    [
        ({"lag_s": LAG_WARN_S}, Outcome.PASS, Severity.INFO),
        ({"lag_s": LAG_WARN_S + 1}, Outcome.FAIL, Severity.MEDIUM),
        ({"lag_s": LAG_ERROR_S + 1}, Outcome.FAIL, Severity.HIGH),
        ({"slot_active": False, "lag_s": 0.0}, Outcome.FAIL, Severity.HIGH),
        ({"slot_active": None, "lag_s": None}, Outcome.NOT_MEASURED, Severity.MEDIUM),
        ({"lag_s": None}, Outcome.NOT_MEASURED, Severity.MEDIUM),
    ],
)
def test_lag_warns_fails_or_is_not_measured(status: dict[str, Any], outcome: Outcome, severity: Severity) -> None:
    found = lag(report(SOUND, **status))
    assert (found.outcome, found.severity) == (outcome, severity)


def hurt(newest: str = "a") -> RegionArchive:
    return RegionArchive(name="primary", **{**SOUND, "newest_backup": newest, "open_gaps": (GAP,)})


def test_a_gap_asks_for_one_full_backup_and_again_only_when_that_run_did_not_close_it() -> None:
    first = decide_gap(hurt(), None, unfinished=False, now=NOON).request
    assert first is not None
    assert (first.key, Request.from_text(first.to_text())) == ("wal-gap-a-1", first)
    assert decide_gap(hurt(), first, unfinished=True, now=NOON + HOUR).request is None
    assert decide_gap(hurt(), first, unfinished=False, now=NOON + timedelta(minutes=14)).request is None
    second = decide_gap(hurt(), first, unfinished=False, now=NOON + timedelta(minutes=15)).request
    assert second is not None
    assert second.key == "wal-gap-a-2"
    assert decide_gap(hurt(), second, unfinished=False, now=NOON + timedelta(minutes=44)).request is None
    assert decide_gap(RegionArchive(name="primary", **SOUND), second, unfinished=False, now=NOON + HOUR).request is None


def test_a_later_gap_behind_a_newer_backup_is_another_one() -> None:
    first = decide_gap(hurt("a"), None, unfinished=False, now=NOON).request
    later = decide_gap(hurt("b"), first, unfinished=False, now=NOON).request
    assert later is not None
    assert later.key == "wal-gap-b-1"


def test_attempts_come_ever_more_rarely_and_at_least_every_six_hours() -> None:
    now, last, pauses = datetime(2026, 11, 24, tzinfo=UTC), None, []
    for _ in range(8):
        asked = now
        decision = decide_gap(hurt(), last, unfinished=False, now=now)
        while decision.request is None:
            now += timedelta(minutes=15)
            decision = decide_gap(hurt(), last, unfinished=False, now=now)
        pauses.append((now - asked).total_seconds() / 900)
        last = decision.request
    assert pauses == [0, 1, 2, 4, 8, 16, 24, 24]


def test_a_region_that_cannot_be_read_asks_for_nothing() -> None:
    away = RegionArchive(name="primary", problem="it is away")
    assert decide_gap(away, None, unfinished=False, now=NOON).request is None
