"""What a file of invariants may say, and what all answers together mean."""

from pathlib import Path

import pytest

from bb_ops.bootstrap import operations
from bb_ops.demo import env_file, postgres
from bb_ops.errors import IntegrityError, SettingsError
from bb_ops.findings import Outcome, Severity
from bb_ops.invariants import Expectation, InvariantResult, InvariantResults, read_invariants
from bb_ops.repository.reports import Proof
from bb_ops.settings import read_settings
from bb_ops.validation.fingerprints import Comparison, judge_data

GOOD = """
database = "shop"
[[invariant]]
name = "one"
expect = "no rows"
sql = "SELECT 1 ;"
[[invariant]]
name = "two"
database = "other"
severity = "low"
expect = "true"
sql = '''
  WITH t AS (SELECT true) SELECT * FROM t
'''
"""


def result(name: str, outcome: Outcome, evidence: str = "seen") -> InvariantResult:
    return InvariantResult(
        name=name,
        database="shop",
        severity=Severity.HIGH,
        outcome=outcome,
        rows=None,
        evidence=evidence,
        duration_s=0.1,
    )


def test_a_file_declares_invariants(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(GOOD, encoding="utf-8")
    one, two = read_invariants(path)
    assert (one.name, one.database, one.sql, one.severity) == ("one", "shop", "SELECT 1", Severity.HIGH)
    assert (two.database, two.expect, two.severity) == ("other", Expectation.TRUE, Severity.LOW)
    assert operations(read_settings({"BB_OPS_INVARIANTS_FILE": str(path)}, tmp_path)).invariants == (one, two)
    assert operations(read_settings({}, tmp_path)).invariants == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "declares no [[invariant]]"),
        ("invariant = 3", "declares no [[invariant]]"),
        ("invariant = [3]", "invariant 1: give it a name"),
        ("[[invariant", "is no TOML"),
        (GOOD.replace('"two"', '"one"'), "one: declared 2 times"),
        (GOOD.replace("severity", "severty"), "two: unknown key 'severty'"),
        (GOOD.replace("low", "grave"), "two: severity must be one of"),
        (GOOD.replace("no rows", "rows"), "one: expect must be one of: no rows, true"),
        (GOOD.replace("SELECT 1", "DELETE FROM a"), "one: sql must be one SELECT"),
        (GOOD.replace('database = "shop"', "more = 1"), "one: no database"),
        (GOOD.replace('name = "one"', 'name = "Öne"'), "invariant 1: give it a name"),
    ],
)
def test_faults_of_a_file_are_one_line_that_names_the_invariant(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="invariants: ") as caught:
        read_invariants(path)
    assert said in str(caught.value)


def test_equal_rows_pass_only_where_every_invariant_holds() -> None:
    equal = Comparison(Outcome.PASS, "all equal", 1, 1)
    holds, violated = result("a", Outcome.PASS), result("b", Outcome.FAIL, "3 rows")
    unknown = result("c", Outcome.NOT_MEASURED, "UndefinedTable (42P01)")
    assert judge_data(equal, InvariantResults()) == (Outcome.PASS, "all equal; no invariants are declared")
    assert judge_data(equal, InvariantResults((holds,))) == (Outcome.PASS, "all equal; 1 of 1 invariants hold")
    outcome, evidence = judge_data(equal, InvariantResults((holds, violated, unknown)))
    assert outcome == Outcome.FAIL
    assert evidence.endswith("1 of 3 invariants hold; violated: b (3 rows); not measured: c (UndefinedTable (42P01))")
    assert judge_data(equal, InvariantResults((holds, unknown)))[0] == Outcome.NOT_MEASURED
    assert judge_data(Comparison(Outcome.NOT_MEASURED, "", 0, 0), InvariantResults((holds,)))[0] == Outcome.NOT_MEASURED
    with pytest.raises(IntegrityError, match="b \\(3 rows\\)"):
        judge_data(Comparison(Outcome.FAIL, "different: t", 1, 1), InvariantResults((violated,)))


def test_the_demo_declares_invariants_of_its_own_database() -> None:
    found = read_invariants(env_file.INVARIANTS)
    assert {one.database for one in found} == {postgres.DATABASE}
    assert len(found) > 5


def test_a_proof_from_before_invariants_reads_as_before() -> None:
    assert Proof.model_fields["invariants"].default == ()
