"""Declared invariants on restored copies: they hold, are violated or are not measured; nothing of a row comes out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bb_ops.dsn import parse_dsn
from bb_ops.findings import Outcome
from bb_ops.invariants import Expectation, Invariant, InvariantResult
from bb_ops.postgres.invariants import check_invariants
from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Cluster, available, running_cluster

CANARY = "canary-4711"
_NO_ORPHANS = "SELECT p.* FROM payments p LEFT JOIN bookings b ON b.id = p.booking WHERE b.id IS NULL"


@dataclass(frozen=True)
class Shop:
    """A server with bookings, one payment of which is an orphan, and two backups of it."""

    source: Cluster
    command: BbOps
    full: str
    logical: str

    def declaring(self, room: Path, text: str) -> BbOps:
        """Return the command with a file of invariants."""
        path = room / "invariants.toml"
        path.write_text(f'database = "postgres"\n{text}', encoding="utf-8")
        return self.command.having(BB_OPS_INVARIANTS_FILE=path)


@pytest.fixture(scope="module")
def shop(session_room: Path, module_room: Path) -> Iterator[Shop]:
    build = available("wheel_17", session_room)
    with running_cluster(build, module_room / "cluster") as source:
        source.execute(
            "CREATE TABLE bookings (id int PRIMARY KEY, price int, note text);;"
            "CREATE TABLE payments (id int PRIMARY KEY, booking int, amount int);;"
            f"INSERT INTO bookings SELECT g, 20, '{CANARY}' FROM generate_series(1, 50) g;;"
            "INSERT INTO payments SELECT g, g, 20 FROM generate_series(1, 51) g"
        )
        command = bb_ops(module_room, build, source.url)
        full = command.ok("backup", "full", "--json").document["id"]
        logical = command.ok("backup", "logical", "--json").document["id"]
        yield Shop(source, command, full, logical)


def test_invariants_that_hold_are_part_of_the_proof(shop: Shop, room: Path) -> None:
    text = """
[[invariant]]
name = "amounts"
expect = "true"
sql = "SELECT bool_and(amount = 20) FROM payments"
"""
    proof = shop.declaring(room, text).ok("validate", shop.full, "--json").document
    assert (proof["level"], [one["outcome"] for one in proof["invariants"]]) == ("L6", ["pass"])
    assert "1 of 1 invariants hold" in proof["steps"][-1]["evidence"]


def test_a_violated_invariant_fails_although_all_rows_are_equal(shop: Shop, room: Path) -> None:
    text = f"""
[[invariant]]
name = "no-orphans"
severity = "critical"
expect = "no rows"
sql = "{_NO_ORPHANS}"
"""
    for backup in (shop.full, shop.logical):
        answer = shop.declaring(room, text).run("validate", backup, "--json").expect(4)
        assert (answer.document["level"], answer.document["outcome"]) == ("L5", "fail")
        (found,) = answer.document["invariants"]
        assert (found["name"], found["rows"], found["outcome"]) == ("no-orphans", 1, "fail")
        assert "violated: no-orphans (1 row)" in answer.complaint
    assert shop.declaring(room, "").run("validate", shop.full).expect(2).complaint.endswith("BB_OPS_INVARIANTS_FILE")


def test_an_invariant_that_cannot_be_asked_is_not_measured(shop: Shop, room: Path) -> None:
    text = """
[[invariant]]
name = "elsewhere"
expect = "no rows"
sql = "SELECT 1 FROM no_such_table"
"""
    answer = shop.declaring(room, text).run("validate", shop.logical).expect(13)
    assert "not measured: elsewhere (UndefinedTable (42P01)" in answer.complaint
    assert "high invariant elsewhere" in answer.stdout


@pytest.mark.parametrize(
    ("query", "expect", "outcome", "said"),
    [
        ("SELECT NULL::boolean", "true", Outcome.FAIL, "null"),
        ("SELECT true WHERE false", "true", Outcome.FAIL, "null"),
        ("SELECT 1", "true", Outcome.NOT_MEASURED, "the query gives no boolean"),
        ("SELECT true FROM bookings", "true", Outcome.NOT_MEASURED, "CardinalityViolation (21000)"),
        ("SELECT note::int FROM bookings WHERE note::int > 0", "no rows", Outcome.NOT_MEASURED, "(22P02)"),
        ("SELECT pg_sleep(20) IS NULL", "true", Outcome.NOT_MEASURED, "not done within 0.5 s"),
        ("SELECT 1) x; COMMIT; DROP TABLE bookings; SELECT (1", "true", Outcome.NOT_MEASURED, "SyntaxError (42601)"),
        ("WITH d AS (DELETE FROM bookings RETURNING 1) SELECT * FROM d", "no rows", Outcome.NOT_MEASURED, "(0A000)"),
        ("SELECT setval('s', 9) > 0", "true", Outcome.NOT_MEASURED, "ReadOnlySqlTransaction (25006)"),
        ("SELECT 1 FROM bookings WHERE price < 0 -- none", "no rows", Outcome.PASS, "no rows"),
    ],
)
def test_every_answer_is_an_answer_without_a_row_in_it(
    shop: Shop, query: str, expect: str, outcome: Outcome, said: str
) -> None:
    shop.source.execute("CREATE SEQUENCE IF NOT EXISTS s")
    found = ask(shop, Invariant("asked", "postgres", query, Expectation(expect)))
    assert (found.outcome, said in found.evidence) == (outcome, True), found
    assert CANARY not in found.model_dump_json()
    assert shop.source.value("SELECT count(*) FROM bookings") == 50


def test_a_database_that_is_not_there_is_not_measured(shop: Shop) -> None:
    found = ask(shop, Invariant("asked", "absent", "SELECT true", Expectation.TRUE))
    assert (found.outcome, found.evidence) == (Outcome.NOT_MEASURED, "database absent cannot be entered")


def test_one_slow_invariant_leaves_time_for_others_until_the_deadline(shop: Shop) -> None:
    slow = tuple(Invariant(f"slow-{n}", "postgres", "SELECT pg_sleep(9) IS NULL", Expectation.TRUE) for n in range(3))
    quick, late = (Invariant(name, "postgres", "SELECT true", Expectation.TRUE) for name in ("quick", "late"))
    first, second, third, *rest = check_invariants(
        parse_dsn(shop.source.url), (slow[0], quick, slow[1], slow[2], late), 1.0
    ).results
    assert [one.outcome for one in (first, second, third)] == [Outcome.NOT_MEASURED, Outcome.PASS, Outcome.NOT_MEASURED]
    assert rest[-1].evidence == "the 1 s for all invariants were over"


def ask(shop: Shop, invariant: Invariant) -> InvariantResult:
    (found,) = check_invariants(parse_dsn(shop.source.url), (invariant,), 1.0).results
    return found
