"""Make a recovered table one that can stand beside the live one: on the copy, where it costs nothing.

What would reach out of the side schema is taken away there: foreign keys, triggers, rules, policies, inheritance, and
sequences, which the live table goes on drawing from. Then pg_dump says how it is made, whatever kind it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bb_ops.errors import UsageError
from bb_ops.postgres.table import Connection, Relation, members

# Each query returns what is taken away and the statement that does so; names in them are those of the moment.
_OUTSIDE = """
SELECT CASE WHEN c.relispartition THEN 'place as a partition' ELSE 'inheritance' END,
       CASE WHEN c.relispartition
           THEN format('ALTER TABLE %%s DETACH PARTITION %%s', i.inhparent::regclass, i.inhrelid::regclass)
           ELSE format('ALTER TABLE %%s NO INHERIT %%s', i.inhrelid::regclass, i.inhparent::regclass) END
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhrelid = ANY(%(members)s) AND NOT i.inhparent = ANY(%(members)s)
"""
_ATTACHED = """
SELECT 'foreign key', format('ALTER TABLE %%s DROP CONSTRAINT IF EXISTS %%I', conrelid::regclass, conname)
FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND conrelid = ANY(%(members)s)
UNION ALL
SELECT 'trigger', format('DROP TRIGGER IF EXISTS %%I ON %%s', tgname, tgrelid::regclass)
FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0 AND tgrelid = ANY(%(members)s)
UNION ALL
SELECT 'rule', format('DROP RULE %%I ON %%s', rulename, ev_class::regclass)
FROM pg_rewrite WHERE ev_class = ANY(%(members)s)
UNION ALL
SELECT 'row security policy', format('DROP POLICY %%I ON %%s', polname, polrelid::regclass)
FROM pg_policy WHERE polrelid = ANY(%(members)s)
UNION ALL
SELECT 'row security', format('ALTER TABLE %%s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', oid::regclass)
FROM pg_class WHERE oid = ANY(%(members)s) AND (relrowsecurity OR relforcerowsecurity)
UNION ALL
SELECT 'type of the whole table', format('ALTER TABLE %%s NOT OF', oid::regclass)
FROM pg_class WHERE oid = ANY(%(members)s) AND reloftype <> 0
UNION ALL
SELECT 'extended statistics', format('DROP STATISTICS %%I.%%I', n.nspname, s.stxname)
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = ANY(%(members)s)
UNION ALL
SELECT 'identity of ' || quote_ident(a.attname),
       format('ALTER TABLE %%s ALTER COLUMN %%I DROP IDENTITY', a.attrelid::regclass, a.attname)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = ANY(%(members)s) AND a.attidentity <> '' AND NOT a.attisdropped AND NOT c.relispartition
UNION ALL
SELECT DISTINCT 'sequence default of ' || quote_ident(a.attname),
       format('ALTER TABLE ONLY %%s ALTER COLUMN %%I DROP DEFAULT', a.attrelid::regclass, a.attname)
FROM pg_depend d JOIN pg_attrdef f ON (d.classid, d.objid) = ('pg_attrdef'::regclass, f.oid)
     JOIN pg_class s ON (d.refclassid, d.refobjid) = ('pg_class'::regclass, s.oid) AND s.relkind = 'S'
     JOIN pg_attribute a ON (a.attrelid, a.attnum) = (f.adrelid, f.adnum)
WHERE f.adrelid = ANY(%(members)s)
"""
_OWNED = """
SELECT 'sequence', format('ALTER SEQUENCE %%s OWNED BY NONE', d.objid::regclass)
FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
WHERE (d.classid, d.refclassid) = ('pg_class'::regclass, 'pg_class'::regclass) AND d.refobjid = ANY(%(members)s)
      AND d.deptype = 'a'
"""
_OUT_OF_PLACE = """
SELECT 'schema', format('ALTER TABLE %%s SET SCHEMA %%I', c.oid::regclass, %(schema)s::text)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%(members)s) AND n.nspname <> %(schema)s
"""
_STANDING = """
SELECT pg_is_in_recovery(), has_database_privilege(current_database(), 'CREATE'), n.oid IS NOT NULL,
       coalesce(has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE'), true)
FROM (SELECT 1) AS one LEFT JOIN pg_namespace n ON n.nspname = %s
"""
_TAKEN = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY(%s) ORDER BY 1 LIMIT 1
"""
_LONGEST_NAME = 63
"""NAMEDATALEN - 1: the server cuts longer names off."""
ALWAYS_LEFT_OUT = "owner and privileges"


@dataclass(frozen=True)
class Movable:
    """A table in a copy that stands in the side schema there, with nothing that reaches out of it.

    Attributes:
        members: The table first, then its partitions and children, as they are called now.
        left_out: What it had and has no more, in words.
    """

    members: tuple[Relation, ...]
    left_out: tuple[str, ...]


def check_schema(live: Connection, schema: str, names: Sequence[str]) -> bool:
    """Prove that tables can be made in a schema and overwrite nothing; return whether the schema exists.

    Raises:
        UsageError: the schema holds such a name, may not be used, or the server takes no writes.
    """
    if not 0 < len(schema.encode()) <= _LONGEST_NAME:
        raise UsageError(f"{schema!r} is no schema's name: give 1 to {_LONGEST_NAME} bytes")
    if schema.startswith("pg_") or schema == "information_schema":
        raise UsageError(f"{schema} is PostgreSQL's own: choose another schema")
    recovering, may_create, exists, may_use = live.execute(_STANDING, (schema,)).fetchone() or (
        True,
        False,
        False,
        False,
    )
    if recovering:
        raise UsageError("the live server is a standby, which takes no writes: name the primary in DATABASE_URL")
    if not exists and not may_create:
        raise UsageError(
            f"this role may make no schema in database {live.info.dbname}: GRANT CREATE ON DATABASE, or name a schema "
            "that it may create tables in"
        )
    if not may_use:
        raise UsageError(
            f"this role may not create tables in schema {schema}: GRANT CREATE, USAGE ON SCHEMA, or name another one"
        )
    taken = live.execute(_TAKEN, (schema, list(names))).fetchone()
    if taken is not None:
        raise UsageError(
            f"schema {schema} has {taken[0]} already, and nothing is ever overwritten: choose another schema"
        )
    return bool(exists)


def make_movable(copy: Connection, tables: Sequence[Relation], schema: str) -> Movable:
    """Move a table and all below it into the side schema of the copy, without what would reach out of it.

    Args:
        copy: A superuser's connection to the copy, which is changed.
        tables: From ``members``; the table first.
        schema: The side schema's name.

    Raises:
        UsageError: the copy has another table of that name in such a schema.
    """
    oids = [one.oid for one in tables]
    facts: dict[str, object] = {"members": oids, "schema": schema}
    taken: list[str] = []
    try:
        copy.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        for query in (_OUTSIDE, _ATTACHED, _OWNED, _OUT_OF_PLACE):
            for what, statement in copy.execute(query, facts).fetchall():
                copy.execute(str(statement).encode())
                taken.append(str(what))
    except psycopg.errors.DuplicateObject as error:
        raise _occupied(schema, error) from None
    except psycopg.errors.DuplicateTable as error:
        raise _occupied(schema, error) from None
    moved = members(copy, tables[0].oid)
    kinds = dict.fromkeys(what for what in taken if what not in {"schema", "sequence"})
    said = [f"{taken.count(kind)} times {kind}" if taken.count(kind) > 1 else kind for kind in kinds]
    return Movable(tuple(moved), (ALWAYS_LEFT_OUT, *said))


def _occupied(schema: str, error: psycopg.Error) -> UsageError:
    return UsageError(
        f"at that moment schema {schema} was in use too ({error.diag.message_primary}): choose another schema"
    )
