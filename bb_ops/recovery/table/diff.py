"""How a recovered table differs from the live one: rows only then, only now, changed; and columns.

Both servers sort hashes of their rows and send them side by side; nothing but the first few keys is kept here, and row
contents never leave the database.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import psycopg
from psycopg import sql

from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError
from bb_ops.findings import Outcome, Value
from bb_ops.postgres.connection import connect, without_values
from bb_ops.postgres.databases import NO_TIMEOUTS
from bb_ops.postgres.fingerprint import pin_settings
from bb_ops.postgres.table import Column, Connection, Relation, columns, key_columns, relations
from bb_ops.recovery.table.rows import selection

MOST_KEYS = 10
_ENCODING = "SELECT current_setting('server_encoding')"


class TableDiff(Value):
    """How the recovered table differs from the live one.

    Attributes:
        outcome: ``pass`` where it was measured, whatever it showed; ``not_applicable`` where the live table is gone.
        reason: Why there are no figures; empty where there are.
        key: The columns that tell rows apart; empty where rows were compared as a whole, without knowing changed ones.
        only_then: Rows that the recovered table alone has.
        only_now: Rows that the live table alone has.
        changed: Rows of the same key with other contents.
        only_then_keys: The first keys of these rows, shortest first; likewise the others.
        columns: What differs between the definitions; of the rows the columns that both have are compared.
    """

    outcome: Outcome
    reason: str = ""
    key: tuple[str, ...] = ()
    rows_then: int | None = None
    rows_now: int | None = None
    only_then: int | None = None
    only_now: int | None = None
    changed: int | None = None
    only_then_keys: tuple[str, ...] = ()
    only_now_keys: tuple[str, ...] = ()
    changed_keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class HashedRow(NamedTuple):
    """A row, or several equal ones, as a server sends it.

    Attributes:
        order: What the stream is sorted by: the hash of the key, or of the whole row where there is no key.
        digest: Of the compared columns.
        key: Its key as text; empty without one.
    """

    order: int
    digest: int
    times: int
    key: str


@dataclass
class RowDifference:
    """What a comparison of two streams found."""

    rows_then: int = 0
    rows_now: int = 0
    only_then: int = 0
    only_now: int = 0
    changed: int = 0
    only_then_keys: list[str] = field(default_factory=list)
    only_now_keys: list[str] = field(default_factory=list)
    changed_keys: list[str] = field(default_factory=list)


def compare_rows(then: Iterable[HashedRow], now: Iterable[HashedRow], *, keyed: bool) -> RowDifference:
    """Compare two streams sorted by ``order``, in the memory of one key. Pure.

    Args:
        then: The recovered rows.
        now: The live ones.
        keyed: Whether rows have keys; without them a changed row is one that went and one that came.
    """
    found = RowDifference()
    for before, after in _side_by_side(then, now):
        for key in sorted({row.key for row in before} | {row.key for row in after}):
            old, new = _digests(before, key), _digests(after, key)
            same = (old & new).total()
            gone, came = old.total() - same, new.total() - same
            changed = min(gone, came) if keyed else 0
            found.rows_then += old.total()
            found.rows_now += new.total()
            found.changed += changed
            found.only_then += gone - changed
            found.only_now += came - changed
            if keyed:
                _keep(found.changed_keys, key, changed)
                _keep(found.only_then_keys, key, gone - changed)
                _keep(found.only_now_keys, key, came - changed)
    return found


def column_differences(then: Sequence[Column], now: Sequence[Column]) -> tuple[str, ...]:
    """Say which columns differ in their definition. Pure."""
    old, new = ({column.name: column.definition for column in side} for side in (then, now))
    names = dict.fromkeys([*old, *new])
    return tuple(
        f"{name}: {old.get(name, 'absent')} then, {new.get(name, 'absent')} now"
        for name in names
        if old.get(name) != new.get(name)
    )


@dataclass(frozen=True)
class Recovered:
    """A table in a copy.

    Attributes:
        connection: To the copy, after ``pin_settings``.
        original: As it was called at that moment, and still is where it lives.
        current: As it is called in the copy.
        columns: As they were at that moment.
        where: What selects the rows that are wanted; None takes all.
    """

    connection: Connection
    original: Relation
    current: sql.Identifier
    columns: Sequence[Column]
    where: str | None


def diff_table(recovered: Recovered, live: Dsn, dbname: str) -> TableDiff:
    """Compare a recovered table with the live one, which is only read; what cannot be measured is said to be so."""
    try:
        with connect(live, dbname=dbname) as connection:
            pin_settings(connection)
            connection.execute(NO_TIMEOUTS)
            return _diff(recovered, connection)
    except BbOpsError as error:
        return TableDiff(outcome=Outcome.NOT_MEASURED, reason=str(error))
    except psycopg.Error as error:
        return TableDiff(outcome=Outcome.NOT_MEASURED, reason=without_values(error))


def _diff(recovered: Recovered, live: Connection) -> TableDiff:
    original = recovered.original
    named = [one for one in relations(live) if (one.schema, one.name) == (original.schema, original.name)]
    if not named:
        return TableDiff(outcome=Outcome.NOT_APPLICABLE, reason=f"there is no table {original} on the live server now")
    if named[0].kind not in {"r", "p"}:
        return TableDiff(outcome=Outcome.NOT_MEASURED, reason=f"{original} on the live server is no table now")
    encodings = {row for side in (recovered.connection, live) for row in side.execute(_ENCODING)}
    if len(encodings) > 1:
        return TableDiff(outcome=Outcome.NOT_MEASURED, reason="the two databases have different encodings")
    now = columns(live, named[0].oid)
    types = {column.name: column.type for column in now}
    common = tuple(column.name for column in recovered.columns if types.get(column.name) == column.type)
    key = key_columns(recovered.connection, original.oid)
    key = key if set(key) <= set(common) else ()
    found = _rows(recovered, live, key, common)
    return TableDiff(
        outcome=Outcome.PASS,
        key=key,
        rows_then=found.rows_then,
        rows_now=found.rows_now,
        only_then=found.only_then,
        only_now=found.only_now,
        changed=found.changed,
        only_then_keys=tuple(found.only_then_keys),
        only_now_keys=tuple(found.only_now_keys),
        changed_keys=tuple(found.changed_keys),
        columns=column_differences(recovered.columns, now),
    )


def _rows(recovered: Recovered, live: Connection, key: Sequence[str], common: Sequence[str]) -> RowDifference:
    sides = (recovered.connection, recovered.current), (live, recovered.original.identifier)
    for connection, _ in sides:
        connection.execute("BEGIN READ ONLY")
        if recovered.where is not None:  # a person's expression may call the database's own functions
            connection.execute("SET LOCAL search_path = public")
    (old, old_table), (new, new_table) = sides
    streams = (
        _stream(old, old_table, key, common, recovered.where),
        _stream(new, new_table, key, common, recovered.where),
    )
    found = compare_rows(*streams, keyed=bool(key))
    for connection, _ in sides:
        connection.execute("ROLLBACK")
    return found


def _stream(
    connection: Connection, table: sql.Identifier, key: Sequence[str], common: Sequence[str], where: str | None
) -> Iterator[HashedRow]:
    with connection.cursor().copy(_query(table, key, common, where)) as copy:
        for order, digest, times, text in copy.rows():
            yield HashedRow(int(order), int(digest), int(times), text)


def _query(table: sql.Identifier, key: Sequence[str], common: Sequence[str], where: str | None) -> sql.Composed:
    parts = {
        "table": table,
        "row": sql.SQL("ROW({})::text").format(_list(common)),
        "key": sql.SQL("{}::text" if len(key) == 1 else "ROW({})::text").format(_list(key)),
        "where": selection(where),
    }
    if key:
        text = (
            "SELECT hashtextextended(k, 0), hashtextextended(r, 0), 1, k "
            'FROM (SELECT {key} COLLATE "C", {row} COLLATE "C"'
            " FROM {table} WHERE {where}) AS s (k, r) ORDER BY 1"
        )
    else:
        text = (
            "SELECT h, h, count(*), '' "
            'FROM (SELECT hashtextextended({row} COLLATE "C", 0) FROM {table} WHERE {where})'
            " AS s (h) GROUP BY h ORDER BY h"
        )
    return sql.SQL("COPY ({}) TO STDOUT").format(sql.SQL(text).format(**parts))


def _list(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _side_by_side(
    then: Iterable[HashedRow], now: Iterable[HashedRow]
) -> Iterator[tuple[list[HashedRow], list[HashedRow]]]:
    """Yield the rows of both sides with the same ``order``."""
    left, right = _groups(then), _groups(now)
    before, after = next(left, None), next(right, None)
    while before is not None or after is not None:
        order = min(side[0].order for side in (before, after) if side is not None)
        old = before if before is not None and before[0].order == order else []
        new = after if after is not None and after[0].order == order else []
        yield old, new
        before = next(left, None) if old else before
        after = next(right, None) if new else after


def _groups(rows: Iterable[HashedRow]) -> Iterator[list[HashedRow]]:
    return (list(group) for _, group in groupby(rows, key=attrgetter("order")))


def _digests(rows: Sequence[HashedRow], key: str) -> Counter[int]:
    found = Counter[int]()
    for row in rows:
        if row.key == key:
            found[row.digest] += row.times
    return found


def _keep(keys: list[str], key: str, count: int) -> None:
    """Keep the first keys: the shortest, so that numbers are in their order."""
    if count:
        insort(keys, key, key=lambda text: (len(text), text))
        del keys[MOST_KEYS:]
