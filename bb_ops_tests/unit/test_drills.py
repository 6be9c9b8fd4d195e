"""A drill's report: kept once, signed, beside the backups; and what it says of a backup, of RPO and of RTO."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from bb_ops.errors import KeyRejected, UsageError
from bb_ops.findings import Outcome
from bb_ops.repository import layout
from bb_ops.repository.drills import read_drills, record_drill
from bb_ops.repository.reports import Level, Step
from bb_ops.validation.drill import examine_drill, proof_of, record, require_open_month
from bb_ops_tests.unit.builders import NOON, new_drill, new_repository, overwrite, stored_backup

DAY = timedelta(days=1)


def ladder(**outcomes: Outcome) -> tuple[Step, ...]:
    return tuple(
        Step(level=one.name, outcome=outcomes.get(one.name, Outcome.PASS), evidence="seen", duration_s=1.0)
        for one in Level
    )


def test_drills_are_read_in_order_and_only_where_they_were_held(tmp_path: Path) -> None:
    held, other = new_repository(tmp_path), new_repository(tmp_path, name="other")
    mine = [new_drill(NOON - days * DAY, repository_id=held.open().repository_id) for days in (1, 31)]
    for report in mine:
        record_drill(held, report)
        record_drill(held, report)
    shutil.copytree(tmp_path / "primary/main/drills", tmp_path / "other/main/drills")
    assert read_drills(held) == mine[::-1]
    assert read_drills(other) == []


def test_a_forged_report_is_refused(tmp_path: Path) -> None:
    held = new_repository(tmp_path)
    forger = new_repository(tmp_path, keys=tmp_path / "forged", name="forger")
    report = new_drill(NOON, repository_id=held.open().repository_id)
    key = layout.drill_key("main", report.id)
    record_drill(held, report)
    record_drill(forger, report)
    overwrite(held.store, key, forger.store.read(key) or b"")
    with pytest.raises(KeyRejected):
        read_drills(held)


def test_a_passed_drill_is_a_proof_of_its_backup_up_to_l7(tmp_path: Path) -> None:
    held = new_repository(tmp_path)
    commit = stored_backup(held)
    report = new_drill(NOON, backup_id=commit.id, repository_id=held.open().repository_id, ladder=ladder())
    assert record(held, report).recorded
    [key] = [info.key for info in held.store.objects(layout.evidence_prefix("main", commit.system_id))]
    proof = held.parse_proof(held.store.read(key) or b"", key)
    assert (proof.level, proof.outcome, proof.repository_id) == ("L7", Outcome.PASS, held.open().repository_id)


@pytest.mark.parametrize(
    ("failed", "changes", "outcome"),
    [
        ("L1", {"level": "L0"}, Outcome.FAIL),
        ("L4", {"level": "L3"}, Outcome.NOT_MEASURED),
        ("L6", {"level": "L5"}, Outcome.FAIL),
        ("L6", {"level": "L5", "tables_compared": 0}, Outcome.NOT_MEASURED),
    ],
)
def test_damaged_wal_behind_a_backup_does_not_condemn_the_backup(
    failed: str, changes: dict[str, object], outcome: Outcome
) -> None:
    report = new_drill(NOON, Outcome.FAIL, ladder=ladder(**{failed: Outcome.FAIL}), **changes)
    assert proof_of(report).outcome == outcome


def test_the_checks_tell_rpo_and_rto_and_what_was_not_measured() -> None:
    found = {one.check_id: one.outcome for one in examine_drill(new_drill(NOON))}
    assert found == {
        "restored_from_region_b": Outcome.PASS,
        "rpo": Outcome.PASS,
        "rto": Outcome.PASS,
        "stock_tools": Outcome.NOT_MEASURED,
    }
    late = {one.check_id: one for one in examine_drill(new_drill(NOON, Outcome.FAIL, rpo_s=7201.0, rto_s=None))}
    assert (late["rpo"].outcome, late["rto"].outcome) == (Outcome.FAIL, Outcome.NOT_MEASURED)
    assert late["restored_from_region_b"].message == "archive fail: seen"


def test_a_drill_of_now_counts_for_no_other_month() -> None:
    require_open_month("2026-11-01", NOON)
    with pytest.raises(UsageError, match="slot 2026-10-01 is not open"):
        require_open_month("2026-10-01", NOON)
