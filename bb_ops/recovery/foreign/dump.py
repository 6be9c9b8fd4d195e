"""Load a dump that others made into a new cluster: read whole and judged first, then loaded as a script by psql.

Archives become scripts too (pg_restore --file=-), so that one judge sees every statement of every form. Roles and
tablespaces that a dump of one database names and does not make are made first. psql runs as the server's account.

A dump is a program: its SQL runs as superuser of the new server, which has no network. What is refused here keeps
psql from running programs; it does not make a dump of an enemy harmless.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from bb_ops import process
from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import IntegrityError, ProgramFailed, UsageError
from bb_ops.findings import Outcome
from bb_ops.postgres import dump
from bb_ops.postgres.archive_header import Origin, read_archive_header
from bb_ops.postgres.connection import connect
from bb_ops.postgres.programs import Programs, installed
from bb_ops.postgres.scratch import RunningServer, throw_away_server
from bb_ops.progress import Progress
from bb_ops.recovery.foreign.dump_script import Adaptation, DumpScript, Facts
from bb_ops.recovery.foreign.place import Content
from bb_ops.recovery.load import (
    EMPTY_CLUSTER_BYTES,
    LOADING,
    blaming_host,
    make_cluster,
    make_tablespaces,
)
from bb_ops.recovery.target import Target
from bb_ops.repository.manifest import LocaleFacts

SUPERUSER = "postgres"
_DEFAULT_DATABASE = "postgres"
_ROOM_FACTOR = 2
"""Rows with their headers and indexes take about twice the room of their text."""
_START_TIMEOUT_S = 600.0
_PROGRAM_TIMEOUT_S = 20.0
_PSQL_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_RESTRICT_SINCE = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
_UNKNOWN_FORM = ("unsupported version", "does not support compression", "is not supported by this")


@dataclass(frozen=True)
class Script:
    """A dump as a stream of SQL, whatever its form.

    Attributes:
        form: ``plain``, ``custom``, ``directory`` or ``tar``.
        content: The file; None for a folder.
        folder: The folder; None for a file.
        where: The address that it came from.
        database: Where the rows of a dump of one database go, by wish; None where it says itself.
        header: Of an archive: its first bytes, or those of its table of contents.
    """

    form: str
    content: Content | None
    folder: Path | None
    where: str
    database: str | None
    header: bytes = b""

    @contextmanager
    def pieces(self, programs: Programs | None) -> Iterator[Iterator[bytes]]:
        """Read all of it anew.

        Raises:
            IntegrityError: it is damaged.
            UsageError: it is of a form that these programs do not know.
        """
        if programs is None:
            if self.content is not None:
                yield self.content.pieces()
            return
        source = self.folder if self.content is None else self.content.pieces()
        try:
            with dump.scripting(programs, self.form, source or Path(), create=self.database is None) as pieces:
                yield pieces
        except ProgramFailed as error:
            if not str(error).startswith("pg_restore "):
                raise
            kind = UsageError if any(sign in str(error) for sign in _UNKNOWN_FORM) else IntegrityError
            raise kind(f"{self.where} cannot be read: {error}") from error


@dataclass(frozen=True)
class ForeignDump:
    """A dump that was read whole and judged to be fit to be loaded."""

    script: Script
    facts: Facts
    programs: Programs

    @property
    def where(self) -> str:
        """Where it is."""
        return self.script.where

    @property
    def form(self) -> str:
        """What it is."""
        return f"{self.script.form} dump"

    @property
    def needed_bytes(self) -> int:
        """Room that the cluster takes, estimated from the size of the script."""
        return self.facts.size_bytes * _ROOM_FACTOR + EMPTY_CLUSTER_BYTES

    @property
    def spaces(self) -> dict[str, int]:
        """A folder's number for each tablespace."""
        names = [*self.facts.tablespaces, *self.facts.missing_tablespaces]
        return {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}

    @property
    def oids(self) -> tuple[int, ...]:
        """The numbers of the tablespaces' folders."""
        return tuple(self.spaces.values())

    def whole(self) -> tuple[Outcome, str]:
        """L2: nothing is missing at its end."""
        facts = self.facts
        said = f"read whole up to its last line: {facts.size_bytes} bytes of SQL, {facts.statements} statements"
        return Outcome.PASS, said if self.script.form == "plain" else f"pg_restore reads every entry; {said}"

    def unhashed(self) -> str:
        """Say why the first level does not apply."""
        wrapped = self.script.content.wrapped() if self.script.content else "nothing around it bears a checksum"
        return f"a foreign dump bears no hashes of ours and no signature; {wrapped}"

    @contextmanager
    def loaded(self, target: Target, progress: Progress) -> Iterator["LoadedDump"]:
        """Make a cluster in a prepared target, load everything into it, and keep it running without network.

        Raises:
            NotMeasured: this host lacks an extension or a locale that the source has.
            ProgramFailed: something could not be loaded.
            IntegrityError: the dump has changed since it was judged.
        """
        watch, programs = Stopwatch(), self.programs
        make_cluster(programs, _locale(self.facts.encoding), SUPERUSER, target)
        make_tablespaces(target, self.oids)
        locations = {name: str(target.tablespaces / str(number)) for name, number in self.spaces.items()}
        with throw_away_server(programs, target.directory, SUPERUSER, target.owner, _START_TIMEOUT_S) as server:
            client = dump.client(programs, server.dsn)
            client = replace(client, environment={"PGOPTIONS": LOADING}, run_as=target.owner)
            try:
                start = self._prepare(server.dsn, locations)
            except psycopg.Error as error:
                raise ProgramFailed(f"{self.where} cannot be prepared for: {error}") from error
            script = DumpScript(Adaptation(SUPERUSER, _restriction_key(programs), locations))
            archive = None if self.script.form == "plain" else programs
            with blaming_host(), dump.loading_script(client, start) as fed, self.script.pieces(archive) as pieces:
                fed.write(script.opening())
                for piece in pieces:
                    for part in script.feed(piece):
                        fed.write(part)
                    progress("load", script.facts.size_bytes, self.facts.size_bytes)
                for part in script.finish():
                    fed.write(part)
            yield LoadedDump(server, _tablespaces(server.dsn), script.facts.size_bytes, watch.elapsed_s)

    def _prepare(self, dsn: Dsn, locations: dict[str, str]) -> str:
        """Make what the script takes for granted; return the database that it begins in."""
        facts = self.facts
        alone = not (facts.is_cluster or facts.makes or facts.connects)
        start = "template1" if "postgres" in facts.makes - facts.drops else "postgres"
        with connect(dsn, dbname=start) as connection:
            for role in facts.roles:
                if role != SUPERUSER:
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
            for space in facts.missing_tablespaces:
                names = sql.Identifier(space), sql.Literal(locations[space])
                connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(*names))
            for name in sorted((facts.makes - facts.drops) & {"postgres", "template1"}):
                connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
            if not alone:
                return start
            wanted = self.script.database or _DEFAULT_DATABASE
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (wanted,)).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(wanted)))
            return wanted

    def said(self, loaded: "LoadedDump") -> str:
        """Say what was loaded, for evidence."""
        made = [f"role {name}" for name in self.facts.roles if name != SUPERUSER]
        made += [f"tablespace {name}" for name in self.facts.missing_tablespaces]
        also = f"; made because it names and does not make them: {', '.join(made)}" if made else ""
        return f"PostgreSQL {self.programs.major} loaded it without an error in {loaded.duration_s} s{also}"


@dataclass(frozen=True)
class LoadedDump:
    """A cluster that holds what a dump holds, on a server that answers."""

    server: RunningServer
    tablespaces: dict[int, Path]
    restored_bytes: int
    duration_s: float


def judge_dump(script: Script, bindirs: tuple[Path, ...], progress: Progress) -> ForeignDump:
    """Read a dump whole and decide whether it can be loaded; changes nothing.

    Raises:
        IntegrityError: it is damaged, cut short, or would run programs.
        UsageError: it is newer than every PostgreSQL here, or makes its databases itself where one was wished for.
    """
    archive = None
    if script.form != "plain":
        archive = choose_server(_header(script), bindirs, script.where)
    judge = DumpScript(Adaptation(SUPERUSER, None, {}))
    try:
        with script.pieces(archive) as pieces:
            for piece in pieces:
                for _ in judge.feed(piece):
                    pass
                progress("read", judge.facts.size_bytes, None)
            for _ in judge.finish():
                pass
    except IntegrityError as error:
        raise error if script.where in str(error) else IntegrityError(f"{script.where}: {error}") from error
    facts = judge.facts
    if script.database is not None and (facts.is_cluster or facts.makes or facts.connects):
        raise UsageError(f"{script.where} makes its databases itself: leave --database out")
    return ForeignDump(script, facts, archive or choose_server(facts.origin, bindirs, script.where))


def choose_server(origin: Origin, bindirs: tuple[Path, ...], where: str) -> Programs:
    """Choose a server for a dump: of the version that it was made for, else the nearest newer one, else the newest.

    A dump is made for the server that it came from, and no older one than the pg_dump that wrote it takes it
    (PostgreSQL manual, pg_dump, Notes).

    Raises:
        UsageError: only older ones are here, or none.
    """
    found = list(installed(bindirs))
    least = origin.least_major
    usable = [one for one in found if least is None or one.major >= least]
    if usable:
        return max(usable, key=lambda one: one.major) if least is None else min(usable, key=lambda one: one.major)
    seen = ", ".join(sorted({str(one.major) for one in found})) or "none"
    raise UsageError(
        f"{where} is of PostgreSQL {least or 'any version'}, and no server as new is installed here (found: {seen}): "
        f"install postgresql-{least or 'NN'} or name its folder in BB_OPS_PG_BINDIR"
    )


def _header(script: Script) -> Origin:
    try:
        return read_archive_header(script.header)
    except IntegrityError as error:
        raise IntegrityError(f"{script.where}: {error}") from error


def _restriction_key(programs: Programs) -> str | None:
    r"""Return a fresh key where psql knows ``\restrict``."""
    answer = process.run([programs.path("psql"), "--version"], timeout_s=_PROGRAM_TIMEOUT_S)
    return secrets.token_hex(16) if knows_restrict(answer.stdout) else None


def knows_restrict(version: str) -> bool:
    r"""Say whether a psql of this version knows ``\restrict``: 18, and 13 to 17 since August 2025."""
    found = _PSQL_VERSION.search(version)
    if found is None:
        return False
    major, minor = int(found[1]), int(found[2] or 0)
    return minor >= _RESTRICT_SINCE.get(major, 0) and major >= min(_RESTRICT_SINCE)


def _locale(encoding: str) -> LocaleFacts:
    """Return how the new cluster is made: what a dump of one database says of its collation is nothing."""
    if encoding == "SQL_ASCII":
        return LocaleFacts(encoding=encoding, collate="C", ctype="C", provider="c", locale=None)
    return LocaleFacts(encoding="UTF8", collate="C.UTF-8", ctype="C.UTF-8", provider="c", locale=None)


def _tablespaces(dsn: Dsn) -> dict[int, Path]:
    query = "SELECT oid::bigint, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname !~ '^pg_'"
    with connect(dsn) as connection:
        return {int(str(oid)): Path(str(place)) for oid, place in connection.execute(query)}
