"""Table names as SQL reads them, the table that is meant, and differences between two streams of rows."""

from collections import Counter
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.errors import UsageError
from bb_ops.postgres.connection import without_values
from bb_ops.postgres.table import Column, Relation, TableName, parse_table_name, qualified
from bb_ops.recovery.table.choice import choose_table, require_members
from bb_ops.recovery.table.diff import MOST_KEYS, HashedRow, column_differences, compare_rows

Rows = dict[str, list[int]]
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


def relation(schema: str, name: str, kind: str = "r", persistence: str = "p", extension: str | None = None) -> Relation:
    return Relation(1, schema, name, kind, persistence, extension)


@pytest.mark.parametrize(
    ("text", "schema", "table"),
    [
        ("Orders", None, "orders"),
        ("Shop.Orders", "shop", "orders"),
        ('"Shop".orders', "Shop", "orders"),
        (' shop . "a.b" ', "shop", "a.b"),
        ('"a""b"', None, 'a"b'),
        ("_x$1", None, "_x$1"),
        ("Straße", None, "straße"),
    ],
)
def test_a_name_is_read_as_sql_reads_it(text: str, schema: str | None, table: str) -> None:
    assert parse_table_name(text) == TableName(schema, table)


@pytest.mark.parametrize("text", ["", "a.b.c", '"', "a b", "1st", "a;b", '""', "a."])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no table name"):
        parse_table_name(text)


@given(NAMES, NAMES)
def test_a_quoted_name_is_read_back(schema: str, table: str) -> None:
    assert parse_table_name(qualified(schema, table)) == TableName(schema, table)


def test_a_bare_name_means_public_before_the_only_other_one() -> None:
    there = [relation("a", "twin"), relation("a", "only"), relation("b", "both"), relation("public", "both")]
    assert choose_table(TableName(None, "both"), there, "then").schema == "public"
    assert choose_table(TableName(None, "only"), there, "then").schema == "a"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("order", r'no table "order" \(similar: "public"."orders"\): `bb-ops recover events`'),
        ("ORDERS2", 'similar: "public"."orders"'),
        ("b.orders", "no table"),
        ("twin", '"a"."twin", "b"."twin": give it with its schema'),
        ("seen", "is a view"),
        ("counter", "is a sequence"),
        ("kept", "is a materialized view"),
        ("far", "is a foreign table"),
        ("fleeting", "is unlogged"),
        ("theirs", "extension postgis"),
    ],
)
def test_what_cannot_be_brought_back_is_refused(name: str, said: str) -> None:
    there = [
        relation("public", "orders"),
        relation("a", "twin"),
        relation("b", "twin"),
        relation("public", "seen", "v"),
        relation("public", "counter", "S"),
        relation("public", "kept", "m"),
        relation("public", "far", "f"),
        relation("public", "fleeting", persistence="u"),
        relation("public", "theirs", extension="postgis"),
    ]
    with pytest.raises(UsageError, match=said):
        choose_table(parse_table_name(name), there, "then")


def test_a_table_with_a_part_elsewhere_is_refused() -> None:
    with pytest.raises(UsageError, match="foreign table"):
        require_members([relation("public", "all", "p"), relation("public", "part", "f")])


def stream(rows: Rows, collisions: int) -> list[HashedRow]:
    """Return rows as a server sends them; few different hashes of keys make many of them collide."""
    listed = [HashedRow(len(key) % collisions, digest, 1, key) for key, digests in rows.items() for digest in digests]
    return sorted(listed, key=lambda row: row.order)


ROWS = st.dictionaries(st.text("abc", max_size=4), st.lists(st.integers(0, 3), max_size=3), max_size=12)


@given(ROWS, ROWS, st.integers(1, 5))
def test_keyed_rows_are_told_apart(then: Rows, now: Rows, collisions: int) -> None:
    found = compare_rows(stream(then, collisions), stream(now, collisions), keyed=True)
    gone = came = changed = 0
    for key in then | now:
        old, new = Counter(then.get(key, [])), Counter(now.get(key, []))
        less, more = (old - new).total(), (new - old).total()
        changed += min(less, more)
        gone += less - min(less, more)
        came += more - min(less, more)
    assert (found.only_then, found.only_now, found.changed) == (gone, came, changed)
    assert found.rows_then == sum(map(len, then.values()))
    assert found.rows_now == sum(map(len, now.values()))


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_rows_without_a_key_are_compared_as_multisets(then: list[int], now: list[int]) -> None:
    def counted(rows: Sequence[int]) -> list[HashedRow]:
        return [HashedRow(digest, digest, times, "") for digest, times in sorted(Counter(rows).items())]

    found = compare_rows(counted(then), counted(now), keyed=False)
    old, new = Counter(then), Counter(now)
    assert (found.only_then, found.only_now, found.changed) == ((old - new).total(), (new - old).total(), 0)
    assert found.only_then_keys == []


def test_the_first_keys_are_kept_in_the_order_of_numbers() -> None:
    found = compare_rows(stream({str(number): [0] for number in range(200)}, 3), [], keyed=True)
    assert found.only_then_keys == [str(number) for number in range(MOST_KEYS)]


def column(name: str, of: str, value: str = "", *, not_null: bool = False) -> Column:
    return Column(name, of, not_null=not_null, generated=False, value=value)


def test_columns_that_differ_are_named() -> None:
    then = [column("id", "integer", not_null=True), column("same", "date"), column("a", "text")]
    now = [column("id", "bigint", not_null=True), column("same", "date"), column("b", "text", "default 'x'")]
    assert column_differences(then, now) == (
        "id: integer not null then, bigint not null now",
        "a: text then, absent now",
        "b: absent then, text default 'x' now",
    )


def test_a_complaint_about_a_value_does_not_quote_it() -> None:
    said = without_values(psycopg.errors.InvalidTextRepresentation('invalid input for integer: "Mrs Miller"'))
    assert said == "a value is refused (InvalidTextRepresentation, SQLSTATE 22P02)"
