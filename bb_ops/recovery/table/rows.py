"""Select rows of a recovered table by a person's SQL expression, on the copy, which is ours to change."""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from bb_ops.errors import ProgramFailed, UsageError
from bb_ops.postgres.connection import without_values
from bb_ops.postgres.table import PUBLIC, Connection, Relation

# What fires although session_replication_role is replica: how it is silenced, and how it gets its voice back.
_LOUD = """
SELECT format('ALTER TABLE ONLY %%s DISABLE %%s %%I', t.oid::regclass, kind, name),
       format('ALTER TABLE ONLY %%s ENABLE %%s %%s %%I', t.oid::regclass,
              CASE enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END, kind, name)
FROM unnest(%s::oid[]) AS t (oid) JOIN (
    SELECT tgrelid, 'TRIGGER', tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT ev_class, 'RULE', rulename, ev_enabled FROM pg_rewrite
) AS loud (oid, kind, name, enabled) ON loud.oid = t.oid AND enabled IN ('A', 'R')
"""


def selection(where: str | None) -> sql.SQL:
    """Return what follows WHERE; a comment at the end of an expression ends with its line."""
    return sql.SQL(f"(\n{where}\n)" if where is not None else "true")  # the operator's own SQL


def keep_only(copy: Connection, tables: Sequence[Relation], where: str) -> None:
    """Delete from a copy what is not wanted; what remains are the very rows that were there.

    Args:
        copy: A superuser's connection with ``session_replication_role = replica``.
        tables: From ``members``; the table first.
        where: One SQL expression; names without a schema are looked for in ``public``.

    Raises:
        UsageError: it is none.
        ProgramFailed: the copy's server gave up.
    """
    facts = {"table": tables[0].identifier, "where": selection(where)}
    count = sql.SQL("SELECT count(*) FROM {table} WHERE {where}").format(**facts)
    rest = sql.SQL("DELETE FROM {table} WHERE {where} IS NOT TRUE").format(**facts)
    try:
        loud = copy.execute(_LOUD, ([one.oid for one in tables],)).fetchall()
        copy.execute("BEGIN")
        for silence, _ in loud:
            copy.execute(str(silence).encode())
        copy.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(PUBLIC)))
        # The binary form goes through the extended protocol, which takes one statement and no more.
        wanted = copy.execute(count, binary=True).fetchone()
        copy.execute(rest, binary=True)
        kept = copy.execute(sql.SQL("SELECT count(*) FROM {table}").format(**facts)).fetchone()
        copy.execute("SET LOCAL search_path = pg_catalog")
        for _, speak in loud:
            copy.execute(str(speak).encode())
        copy.execute("COMMIT")
    except psycopg.OperationalError as error:
        raise ProgramFailed(f"--where: the copy's server gave up: {without_values(error)}") from None
    except psycopg.Error as error:
        raise UsageError(f"--where: {without_values(error)}") from None
    if wanted != kept:
        raise UsageError("--where is no single expression that says the same each time: put it in parentheses")
