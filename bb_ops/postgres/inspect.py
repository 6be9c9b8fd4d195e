"""Checks of a server's structure: indexes against heaps, constraints against rows, checksums against pages."""

from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from bb_ops import process
from bb_ops.dsn import Dsn
from bb_ops.postgres.connection import connect
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import Programs
from bb_ops.process import Account

_PROGRAM_TIMEOUT_S = 4 * 3600.0
_MOST_COMPLAINTS = 5
_AMCHECK_FOUND = 2
_WHATEVER_DATABASES_SAY = "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
"""A database may set these for its sessions (ALTER DATABASE … SET); an option of the connection wins."""
_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template0' ORDER BY datname"
_CHECKS = """
SELECT conrelid::regclass::text, conname, pg_get_expr(conbin, conrelid)
FROM pg_constraint WHERE contype = 'c' AND convalidated AND conrelid <> 0 AND conparentid = 0
  AND connamespace <> 'information_schema'::regnamespace
ORDER BY 1, 2
"""
_FOREIGN_KEYS = """
SELECT c.conrelid::regclass::text, c.conname, c.confrelid::regclass::text, c.confmatchtype = 'f',
       (SELECT array_agg(a.attname ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum),
       (SELECT array_agg(a.attname ORDER BY k.n) FROM unnest(c.confkey) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum)
FROM pg_constraint c WHERE c.contype = 'f' AND c.convalidated AND c.conparentid = 0 ORDER BY 1, 2
"""


@dataclass(frozen=True)
class _ForeignKey:
    table: str
    name: str
    referenced: str
    match_full: bool
    columns: list[str]
    referenced_columns: list[str]


@dataclass(frozen=True)
class Inspection:
    """What a structural check saw.

    Attributes:
        checked: How many things were checked.
        complaints: What is wrong; empty where nothing is.
    """

    checked: int
    complaints: tuple[str, ...]


def check_manifest(programs: Programs, directory: Path, owner: Account | None, ignore: tuple[str, ...]) -> list[str]:
    """Compare a data directory with its backup manifest (pg_verifybackup); return the complaints.

    Raises:
        NotMeasured: pg_verifybackup is not installed.
    """
    arguments = [word for name in ignore for word in ("--ignore", name)]
    answer = process.run(
        [programs.path("pg_verifybackup"), "--no-parse-wal", *arguments, directory],
        timeout_s=_PROGRAM_TIMEOUT_S,
        run_as=owner,
        accept=frozenset({0, 1}),
    )
    return [] if answer.returncode == 0 else _complaints(answer.stderr + answer.stdout)


def check_wal(  # noqa: PLR0913 - each is a separate fact
    programs: Programs, directory: Path, timeline: int, start: Lsn, end: Lsn, owner: Account | None
) -> list[str]:
    """Read every WAL record from ``start`` to ``end`` (pg_waldump); return the complaints.

    Raises:
        NotMeasured: pg_waldump is not installed.
    """
    answer = process.run(
        [
            programs.path("pg_waldump"),
            "--quiet",
            f"--path={directory / 'pg_wal'}",
            f"--timeline={timeline}",
            f"--start={start}",
            f"--end={end}",
        ],
        timeout_s=_PROGRAM_TIMEOUT_S,
        run_as=owner,
        accept=frozenset({0, 1}),
    )
    return [] if answer.returncode == 0 else _complaints(answer.stderr)


def check_indexes(programs: Programs, dsn: Dsn, owner: Account | None) -> Inspection:
    """Check every heap and B-tree of every database, each index against its heap (pg_amcheck --heapallindexed).

    Raises:
        NotMeasured: pg_amcheck or the amcheck extension is not installed.
        ProgramFailed: it could not do its work.
    """
    parameters = dsn.parameters
    answer = process.run(
        [
            programs.path("pg_amcheck"),
            *("--host", parameters["host"], "--port", parameters["port"], "--username", parameters["user"]),
            *(
                "--maintenance-db",
                parameters["dbname"],
                "--all",
                "--heapallindexed",
                "--install-missing",
                "--jobs",
                "2",
            ),
        ],
        timeout_s=_PROGRAM_TIMEOUT_S,
        env={"PGOPTIONS": _WHATEVER_DATABASES_SAY},
        run_as=owner,
        accept=frozenset({0, _AMCHECK_FOUND}),
    )
    relations = 0
    for name in databases(dsn):
        with connect(dsn, dbname=name) as connection:
            row = connection.execute("SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'm', 't', 'i')").fetchone()
            relations += int(str(row[0])) if row else 0
    return Inspection(relations, tuple(_complaints(answer.stdout)) if answer.returncode else ())


def check_constraints(dsn: Dsn) -> Inspection:
    """Check every validated foreign key and CHECK constraint of every database against the rows."""
    checked, complaints = 0, []
    for name in databases(dsn):
        with connect(dsn, dbname=name) as connection:
            connection.execute("SET search_path = ''")
            for table, constraint, query in _constraint_queries(connection):
                checked += 1
                row = connection.execute(query).fetchone()
                if row is not None:
                    complaints.append(f"{name}: {table}: rows violate {constraint}")
    return Inspection(checked, tuple(complaints))


def check_page_checksums(programs: Programs, directory: Path, owner: Account | None) -> Inspection | None:
    """Check every page of a stopped server's directory (pg_checksums); None where checksums are off.

    Raises:
        NotMeasured: pg_checksums is not installed.
    """
    answer = process.run(
        [programs.path("pg_checksums"), "--check", "-D", directory],
        timeout_s=_PROGRAM_TIMEOUT_S,
        run_as=owner,
        accept=frozenset({0, 1}),
    )
    if "not enabled" in answer.stderr:
        return None
    facts = dict(line.split(":", 1) for line in answer.stdout.splitlines() if ":" in line)
    blocks = int(facts.get("Blocks scanned", "0").strip())
    return Inspection(blocks, tuple(_complaints(answer.stderr)) if answer.returncode else ())


def databases(dsn: Dsn) -> list[str]:
    """Return the databases that can be connected to, without template0."""
    with connect(dsn) as connection:
        return [str(row[0]) for row in connection.execute(_DATABASES)]


def _constraint_queries(
    connection: psycopg.Connection[tuple[object, ...]],
) -> list[tuple[str, str, sql.SQL | sql.Composed]]:
    """Return (table, constraint, query that finds one violating row) for each constraint."""
    found: list[tuple[str, str, sql.SQL | sql.Composed]] = []
    for table, name, expression in connection.execute(_CHECKS).fetchall():
        query = f"SELECT 1 FROM {table} WHERE NOT ({expression}) LIMIT 1"  # noqa: S608 - quoted by the server itself
        found.append((str(table), str(name), sql.SQL(query)))  # made and quoted by the server itself
    for row in connection.execute(_FOREIGN_KEYS).fetchall():
        key = _ForeignKey(*row)  # type: ignore[arg-type]  # the columns of _FOREIGN_KEYS, in order
        found.append((key.table, key.name, _orphans(key)))
    return found


def _orphans(key: _ForeignKey) -> sql.Composed:
    """Find a row whose key is not null and has no match (ri_triggers.c, RI_Initial_Check)."""
    present = sql.SQL(" OR " if key.match_full else " AND ").join(
        sql.SQL("f.{} IS NOT NULL").format(sql.Identifier(column)) for column in key.columns
    )
    matches = sql.SQL(" AND ").join(
        sql.SQL("p.{} = f.{}").format(sql.Identifier(theirs), sql.Identifier(ours))
        for theirs, ours in zip(key.referenced_columns, key.columns, strict=True)
    )
    text = sql.SQL("SELECT 1 FROM {} f WHERE ({}) AND NOT EXISTS (SELECT 1 FROM {} p WHERE {}) LIMIT 1")
    return text.format(sql.SQL(key.table), present, sql.SQL(key.referenced), matches)


def _complaints(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("heap table") or "corrupt" in line] or lines
    shown = telling[:_MOST_COMPLAINTS]
    return shown + ([f"and {len(telling) - len(shown)} more lines"] if len(telling) > len(shown) else [])
