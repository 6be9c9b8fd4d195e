"""Comparing what was recorded at the source with what was restored."""

import pytest

from bb_ops.findings import Outcome
from bb_ops.postgres.fingerprint import Fingerprints, TableFingerprint
from bb_ops.postgres.lsn import Lsn
from bb_ops.validation.fingerprints import compare_fingerprints

PASS, FAIL, NOT_MEASURED = Outcome.PASS, Outcome.FAIL, Outcome.NOT_MEASURED
UNMEASURED = TableFingerprint(database="x", table="public.t", rows=None, digest=None, reason="permission denied")


def table(name: str = "public.t", rows: int = 3, digest: str = "17", database: str = "x") -> TableFingerprint:
    return TableFingerprint(database=database, table=name, rows=rows, digest=digest)


def taken(*tables: TableFingerprint, exact: bool = True, unseen: tuple[str, ...] = ()) -> Fingerprints:
    return Fingerprints(anchor_lsn=Lsn.parse("0/3000000"), exact=exact, tables=tables, unseen=unseen, duration_s=0.5)


T = table()
COMPARISONS = {
    "nothing recorded": (None, taken(T), NOT_MEASURED, "no fingerprints"),
    "equal": (taken(T), taken(T), PASS, "1 tables and 3 rows compared at 0/3000000, all equal"),
    "equal in another order": (taken(T, table("b.u")), taken(table("b.u"), T), PASS, "2 tables and 6 rows"),
    "empty tables are equal": (taken(table(rows=0, digest="0")), taken(table(rows=0, digest="0")), PASS, "0 rows"),
    "no table on either side": (taken(), taken(), NOT_MEASURED, "no table to compare"),
    "other digest": (taken(T), taken(table(digest="18")), FAIL, "different: x/public.t"),
    "same digest, other count": (taken(T), taken(table(rows=4)), FAIL, "different: x/public.t"),
    "missing after the restore": (taken(T, table("b.u")), taken(T), FAIL, "different: x/b.u"),
    "everything missing": (taken(T), taken(), FAIL, "different: x/public.t"),
    "extra after the restore": (taken(T), taken(T, table("b.u")), FAIL, "different: x/b.u"),
    "extra where there was nothing": (taken(), taken(T), FAIL, "different: x/public.t"),
    "same name in another database": (taken(T), taken(table(database="y")), FAIL, "x/public.t, y/public.t"),
    "not measured at the source": (taken(UNMEASURED), taken(T), NOT_MEASURED, "permission denied"),
    "not measured after the restore": (taken(T), taken(UNMEASURED), NOT_MEASURED, "permission denied"),
    "one of two not measured": (taken(UNMEASURED, table("b.u")), taken(T, table("b.u")), NOT_MEASURED, "1 tables"),
    "one not measured, another different": (
        taken(UNMEASURED, table("b.u")),
        taken(T, table("b.u", digest="1")),
        FAIL,
        "different: x/b.u",
    ),
    "not measured at the source, and gone": (taken(UNMEASURED), taken(), NOT_MEASURED, "permission denied"),
    "a database not looked at, its tables there": (
        taken(T, unseen=("database y: no CONNECT privilege",)),
        taken(T, table(database="y")),
        NOT_MEASURED,
        "not looked at: database y: no CONNECT privilege",
    ),
    "a database not looked at, another different": (
        taken(T, unseen=("database y: no CONNECT privilege",)),
        taken(table(digest="1"), table(database="y")),
        FAIL,
        "different: x/public.t",
    ),
    "never quiet, equal": (taken(T, exact=False), taken(T), NOT_MEASURED, "not exact; 0 tables differ"),
    "never quiet, different": (taken(T, exact=False), taken(table(digest="1")), NOT_MEASURED, "1 tables differ"),
}


@pytest.mark.parametrize(("source", "restored", "outcome", "evidence"), COMPARISONS.values(), ids=COMPARISONS.keys())
def test_comparisons(source: Fingerprints | None, restored: Fingerprints, outcome: Outcome, evidence: str) -> None:
    comparison = compare_fingerprints(source, restored)
    assert comparison.outcome == outcome
    assert evidence in comparison.evidence


def test_many_differences_are_counted_and_a_few_named() -> None:
    many = taken(*(table(f"public.t{number}") for number in range(40)))
    comparison = compare_fingerprints(many, taken())
    assert comparison.evidence.endswith("x/public.t4 and 35 more")
    assert (comparison.tables, comparison.rows) == (40, 120)


def test_what_was_recorded_survives_being_stored() -> None:
    recorded = taken(T, UNMEASURED)
    assert Fingerprints.model_validate_json(recorded.model_dump_json()) == recorded
