"""Tables as the catalog has them: found by name, with their parts, columns, keys and types.

Connections have ``pg_catalog`` alone as their search path (``fingerprint.pin_settings``), so that every other name that
the server says is qualified.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from bb_ops.errors import UsageError

Connection = psycopg.Connection[tuple[object, ...]]
PUBLIC = "public"
_PART = r'(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))'
_NAME = re.compile(rf"\s*{_PART}(?:\s*\.\s*{_PART})?\s*")
_RELATION = """
c.oid::bigint, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
(SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
 WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
       AND d.deptype = 'e' LIMIT 1)
"""
_RELATIONS = f"""
SELECT {_RELATION} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY n.nspname, c.relname
"""  # noqa: S608 - constants
_TREE = f"""
WITH RECURSIVE tree (oid) AS (
    SELECT %s::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree t ON t.oid = i.inhparent)
SELECT {_RELATION} FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY t.oid <> %s::oid, n.nspname, c.relname
"""  # noqa: S608 - constants
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '',
       CASE WHEN a.attidentity <> '' THEN 'identity'
            ELSE coalesce(CASE WHEN a.attgenerated <> '' THEN 'generated as ' ELSE 'default ' END
                          || pg_get_expr(d.adbin, d.adrelid), '') END
FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_KEY = """
SELECT array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k (number, place)
     JOIN pg_attribute a ON (a.attrelid, a.attnum) = (i.indrelid, k.number)
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull) ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1
"""
_TYPES = """
SELECT DISTINCT format_type(t.oid, NULL) FROM pg_type t
WHERE t.typnamespace <> 'pg_catalog'::regnamespace
  AND t.oid IN (SELECT atttypid FROM pg_attribute WHERE attrelid = ANY(%s) AND attnum > 0 AND NOT attisdropped)
ORDER BY 1
"""


@dataclass(frozen=True)
class TableName:
    """A table's name as a person wrote it; without a schema where none was given."""

    schema: str | None
    table: str

    def __str__(self) -> str:
        """Return it as SQL has it."""
        return qualified(self.schema, self.table) if self.schema is not None else sql.Identifier(self.table).as_string()


@dataclass(frozen=True)
class Relation:
    """What ``pg_class`` knows by a name.

    Attributes:
        kind: ``relkind``.
        persistence: ``relpersistence``.
        extension: The extension that it belongs to; None for a user's own.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    extension: str | None

    @property
    def holds_rows(self) -> bool:
        """Whether rows are stored in it, and not in its parts."""
        return self.kind == "r"

    @property
    def identifier(self) -> sql.Identifier:
        """Its qualified name, for a statement."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        """Return its qualified name as SQL has it."""
        return qualified(self.schema, self.name)


@dataclass(frozen=True)
class Column:
    """One column: what its definition says.

    Attributes:
        type: With its modifiers, such as ``numeric(12,2)``.
        value: Its default, generation expression or identity; empty without one.
    """

    name: str
    type: str
    not_null: bool
    generated: bool
    value: str

    @property
    def definition(self) -> str:
        """All but the name."""
        return " ".join(filter(None, (self.type, self.value, "not null" if self.not_null else "")))


def parse_table_name(text: str) -> TableName:
    """Read ``table`` or ``schema.table`` as SQL does: what is not quoted is in lower case.

    Raises:
        UsageError: it is neither.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no table name: give table or schema.table, quoted as in SQL where SQL needs it")
    first, second = (_word(found[one], found[one + 1]) for one in (1, 3))
    return TableName(first, second) if second is not None else TableName(None, str(first))


def qualified(schema: str, name: str) -> str:
    """Return a qualified name as SQL has it, quoted throughout."""
    return sql.Identifier(schema, name).as_string()


def relations(connection: Connection) -> list[Relation]:
    """Return everything of users that has rows, a query or a number behind it, by name."""
    return [Relation(*row) for row in connection.execute(_RELATIONS)]  # type: ignore[arg-type]  # as _RELATION has them


def members(connection: Connection, oid: int) -> list[Relation]:
    """Return a table and, below it, its partitions and children, itself first."""
    rows = connection.execute(_TREE, (oid, oid))
    return [Relation(*row) for row in rows]  # type: ignore[arg-type]  # likewise


def columns(connection: Connection, oid: int) -> list[Column]:
    """Return a table's columns in order."""
    return [Column(*row) for row in connection.execute(_COLUMNS, (oid,))]  # type: ignore[arg-type]  # as _COLUMNS has them


def key_columns(connection: Connection, oid: int) -> tuple[str, ...]:
    """Return the columns that tell every row: the primary key's, else those of a unique key without NULLs; or none."""
    row = connection.execute(_KEY, (oid,)).fetchone()
    return tuple(row[0]) if row is not None and isinstance(row[0], list) else ()


def foreign_types(connection: Connection, tables: Sequence[Relation]) -> tuple[str, ...]:
    """Return the columns' types that are none of PostgreSQL's own: a user's or an extension's."""
    return tuple(str(row[0]) for row in connection.execute(_TYPES, ([table.oid for table in tables],)))


def missing_types(connection: Connection, types: Sequence[str]) -> list[str]:
    """Return which of these types a database lacks."""
    query = "SELECT name FROM unnest(%s::text[]) AS wanted (name) WHERE to_regtype(name) IS NULL"
    return [str(row[0]) for row in connection.execute(query, (list(types),))]


def _word(quoted: str | None, plain: str | None) -> str | None:
    if quoted is not None:
        return quoted.replace('""', '"')
    # The server folds ASCII alone (scansup.c, downcase_identifier, where the encoding has more than one byte).
    return re.sub("[A-Z]+", lambda found: found[0].lower(), plain) if plain is not None else None
