"""Which table a name means in a copy, and whether it can be brought back. Pure."""

from collections.abc import Sequence
from difflib import get_close_matches

from bb_ops.errors import UsageError
from bb_ops.postgres.table import PUBLIC, Relation, TableName

_TABLES = {"r", "p"}
_WHAT = {
    "v": "a view: it holds no rows of its own",
    "m": "a materialized view: its rows are made anew from its query",
    "S": "a sequence",
    "f": "a foreign table: its rows are on another server",
}
_MOST_NAMED = 5


def choose_table(name: TableName, relations: Sequence[Relation], moment: str) -> Relation:
    """Return what a name means: without a schema, that in ``public``, else the only one.

    Args:
        name: As it was typed.
        relations: Everything in the copy.
        moment: For the message.

    Raises:
        UsageError: it is not there, it is ambiguous, or it is no table that can be brought back.
    """
    found = [one for one in relations if one.name == name.table and name.schema in {None, one.schema}]
    in_public = [one for one in found if one.schema == PUBLIC]
    if name.schema is None and in_public:
        found = in_public
    if not found:
        raise UsageError(
            f"at {moment} there was no table {name}{_similar(name, relations)}: `bb-ops recover events` lists when "
            "something was dropped"
        )
    if len(found) > 1:
        candidates = ", ".join(str(one) for one in found[:_MOST_NAMED])
        raise UsageError(f"{name} may be any of {candidates}: give it with its schema")
    return _require_table(found[0])


def require_members(members: Sequence[Relation]) -> None:
    """Refuse a table whose rows are not all in a physical backup.

    Args:
        members: The table and all below it.

    Raises:
        UsageError: one is unlogged, or elsewhere.
    """
    for member in members:
        _require_table(member)


def _require_table(one: Relation) -> Relation:
    if one.kind not in _TABLES:
        raise UsageError(f"{one} is {_WHAT.get(one.kind, 'no table')}: name a table")
    if one.extension is not None:
        raise UsageError(f"{one} belongs to the extension {one.extension}: CREATE EXTENSION brings it back")
    if one.persistence == "u":
        raise UsageError(f"{one} is unlogged: its rows are in no physical backup and in no WAL")
    return one


def _similar(name: TableName, relations: Sequence[Relation]) -> str:
    tables = [one for one in relations if one.kind in _TABLES]
    close = get_close_matches(name.table.lower(), {one.name.lower() for one in tables}, n=_MOST_NAMED)
    named = [str(one) for one in tables if one.name.lower() in close]
    return f" (similar: {', '.join(named[:_MOST_NAMED])})" if named else ""
