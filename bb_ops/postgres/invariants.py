"""Evaluates declared invariants on a restored copy: read only, bounded in time, and only counts leave the server."""

from itertools import groupby

import psycopg
from psycopg import sql

from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import ServerUnusable
from bb_ops.findings import Outcome
from bb_ops.invariants import Expectation, Invariant, InvariantResult, InvariantResults
from bb_ops.postgres.connection import connect

Connection = psycopg.Connection[tuple[object, ...]]

_BOOLEAN = 16
"""Its oid in every server (pg_type.dat)."""
_FAULT_OF_THE_QUERY = "42"
"""The class of errors in which the server names what the query says, never what a row holds (manual, appendix A)."""
_CANCELLED = "57014"


def check_invariants(dsn: Dsn, invariants: tuple[Invariant, ...], deadline_s: float) -> InvariantResults:
    """Evaluate invariants on a throw-away or restored server, each in a read-only transaction of its own.

    Args:
        dsn: The server, never the source.
        invariants: From ``read_invariants``.
        deadline_s: Seconds for all of them; one of them gets at most half of these, so that it cannot starve the rest.

    Returns:
        An answer for each, in their order. What cannot be measured is an answer too: nothing is raised.
    """
    watch = Stopwatch()
    answers: dict[str, InvariantResult] = {}
    for database, group in groupby(sorted(invariants, key=lambda one: one.database), lambda one: one.database):
        wanted = list(group)
        try:
            with connect(dsn, dbname=database) as connection:
                connection.read_only = True
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                for one in wanted:
                    answers[one.name] = _check(connection, one, deadline_s, watch)
        except ServerUnusable:
            said = f"database {database} cannot be entered"
            answers |= {one.name: _answer(one, Outcome.NOT_MEASURED, None, said, 0.0) for one in wanted}
    return InvariantResults(tuple(answers[one.name] for one in invariants))


def _check(connection: Connection, one: Invariant, deadline_s: float, watch: Stopwatch) -> InvariantResult:
    began_s = watch.elapsed_s
    limit_s = min(deadline_s - began_s, deadline_s / 2)
    if limit_s <= 0:
        return _answer(one, Outcome.NOT_MEASURED, None, f"the {deadline_s:g} s for all invariants were over", 0.0)
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL statement_timeout = {max(1, int(limit_s * 1000))}")
            outcome, rows, evidence = _measure(connection, one)
    except psycopg.Error as error:
        outcome, rows, evidence = Outcome.NOT_MEASURED, None, _reason(error, limit_s)
    return _answer(one, outcome, rows, evidence, watch.elapsed_s - began_s)


def _measure(connection: Connection, one: Invariant) -> tuple[Outcome, int | None, str]:
    """Ask for a number or a truth; whatever the query selects stays in the server.

    The query is prepared: the server takes one statement only, so it cannot end the read-only transaction.
    """
    query = sql.SQL(one.sql)  # the owners' own text
    if one.expect == Expectation.NO_ROWS:
        answer = connection.execute(sql.SQL("SELECT count(*) FROM (\n{}\n) AS violating").format(query), prepare=True)
        rows = int(str((answer.fetchone() or (0,))[0]))
        said = "no rows" if rows == 0 else f"{rows} row{'s' * (rows > 1)}"
        return Outcome.FAIL if rows else Outcome.PASS, rows, said
    answer = connection.execute(sql.SQL("SELECT (\n{}\n)").format(query), prepare=True)
    if answer.description is None or answer.description[0].type_code != _BOOLEAN:
        return Outcome.NOT_MEASURED, None, "the query gives no boolean"
    truth = (answer.fetchone() or (None,))[0]
    return (Outcome.PASS, None, "true") if truth is True else (Outcome.FAIL, None, "null" if truth is None else "false")


def _reason(error: psycopg.Error, limit_s: float) -> str:
    """Say why nothing was measured, without what a row holds: messages of other classes may quote values."""
    state = error.sqlstate
    if state is None:
        return "the server went away"
    if state == _CANCELLED:
        return f"not done within {limit_s:.3g} s"
    name = type(error).__name__
    detail = error.diag.message_primary if state.startswith(_FAULT_OF_THE_QUERY) else None
    return f"{name} ({state})" + (f": {' '.join(detail.split())}" if detail else "")


def _answer(one: Invariant, outcome: Outcome, rows: int | None, evidence: str, duration_s: float) -> InvariantResult:
    return InvariantResult(
        name=one.name,
        database=one.database,
        severity=one.severity,
        outcome=outcome,
        rows=rows,
        evidence=evidence,
        duration_s=round(duration_s, 3),
    )
