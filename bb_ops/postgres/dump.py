"""PostgreSQL's own dump programs: what they write, read piece by piece, and what they load, fed piece by piece.

Nothing is staged: pg_dump's custom format goes through a pipe, without compression, since zstd follows. Secrets reach
the programs by their environment, never by an argument.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from bb_ops import process
from bb_ops.dsn import Dsn
from bb_ops.errors import ProgramFailed, UsageError
from bb_ops.postgres.connection import connect, connection_string
from bb_ops.postgres.programs import Programs
from bb_ops.process import Account, Fed

_TIMEOUT_S = 24 * 3600.0
_LOCK_WAIT_MS = 300_000
"""A table that stays locked exclusively for longer fails the dump, which otherwise would wait for ever."""
_SESSION_NOISE = re.compile(rb"(?m)^(?:\\(?:un)?restrict .*|-- Dumped (?:from|by) .*)\n")
_ENTRY = re.compile(r"^\d+; (\d+) (\d+) (.*)$")
_OF_ROWS = re.compile(r"^(?:TABLE DATA|SEQUENCE SET|BLOBS?|BLOB METADATA|MATERIALIZED VIEW DATA) | LARGE OBJECTS? ")
TABLE_DATA = "TABLE DATA "
SCRIPT_END = b"PostgreSQL database dump complete"
GLOBALS_END = b"PostgreSQL database cluster dump complete"


@dataclass(frozen=True)
class Client:
    """Dump programs and the server that they work on."""

    programs: Programs
    dsn: Dsn
    environment: Mapping[str, str]
    run_as: Account | None = None

    def version(self) -> str:
        """Return the programs' version, such as ``18.1``."""
        answer = process.run([self.programs.path("pg_dump"), "--version"], timeout_s=60)
        return answer.stdout.split("(PostgreSQL)")[-1].split()[0]

    def address(self, dbname: str) -> str:
        """Return libpq's form of a database's address, without the password: everybody can read arguments."""
        return connection_string(Dsn({**self.dsn.parameters, "dbname": dbname}, None))


def client(programs: Programs, dsn: Dsn) -> Client:
    """Return programs for a server.

    Raises:
        ServerUnusable: the server cannot be reached or refuses us.
        UsageError: the address holds a secret that could only be passed as an argument.
    """
    if "sslpassword" in dsn.parameters:
        raise UsageError("sslpassword in DATABASE_URL would be readable by everybody: use a key file of mode 0600")
    with connect(dsn) as connection:
        password = connection.info.password  # also where it came from the caller's .pgpass, which a child cannot see
    return Client(programs, dsn, {"PGPASSWORD": password} if password else {})


def dump_database(client: Client, dbname: str, snapshot: str) -> AbstractContextManager[Iterator[bytes]]:
    """Dump one database in a snapshot that another session holds: custom format, rows included.

    Raises:
        ProgramFailed: pg_dump could not read everything; it never leaves anything out (``row_security`` is off).
    """
    return _dumping(client, dbname, snapshot, "--format=custom", "--compress=0")


def dump_schema(client: Client, dbname: str, snapshot: str | None) -> AbstractContextManager[Iterator[bytes]]:
    """Dump one database's definitions as a script that makes the database.

    Raises:
        ProgramFailed: pg_dump could not read everything.
    """
    return _dumping(client, dbname, snapshot, "--schema-only", "--create")


def dumped_rows(programs: Programs, file: Path) -> int:
    """Count the rows of all tables that a dump in a file holds, as pg_restore would load them.

    Raises:
        ProgramFailed: it cannot be read to its end.
    """
    with process.reading(
        [programs.path("pg_restore"), "--data-only", "--file=-", file], timeout_s=_TIMEOUT_S
    ) as pieces:
        return count_copied(pieces)


def count_copied(pieces: Iterable[bytes]) -> int:
    """Count the rows in a script's COPY blocks; each is one line (PostgreSQL manual, COPY, text format). Pure."""
    rows, inside, begun = 0, False, list[bytes]()  # a row may be long: it is put together once
    for piece in pieces:
        first, *others = piece.split(b"\n")
        begun.append(first)
        if not others:
            continue
        lines = [b"".join(begun), *others[:-1]]
        begun = [others[-1]]
        for line in lines:
            if not inside:
                inside = line.startswith(b"COPY ") and line.endswith(b" FROM stdin;")
            elif line == b"\\.":
                inside = False
            else:
                rows += 1
    return rows


def dump_definitions(client: Client, dbname: str) -> AbstractContextManager[Iterator[bytes]]:
    """Dump one database's definitions in the custom format, for ``listing``.

    Raises:
        ProgramFailed: pg_dump could not read everything.
    """
    return _dumping(client, dbname, None, "--format=custom", "--schema-only")


def dump_tables(client: Client, dbname: str, tables: Sequence[str]) -> AbstractContextManager[Iterator[bytes]]:
    """Dump tables with their rows and all that belongs to them: custom format, compressed.

    Args:
        client: The server that nobody writes to.
        dbname: The database.
        tables: Qualified names, quoted throughout; each stands in the arguments.

    Raises:
        ProgramFailed: pg_dump could not read everything.
    """
    return _dumping(client, dbname, None, "--format=custom", *(f"--table={name}" for name in tables))


def table_script(client: Client, dbname: str, tables: Sequence[str], section: str) -> bytes:
    """Return the definitions of tables as a script for any role and place: no owner, privileges or tablespaces.

    Args:
        client: The server.
        dbname: The database.
        tables: Qualified names, quoted throughout.
        section: ``pre-data`` or ``post-data``; rows belong between them.

    Raises:
        ProgramFailed: pg_dump could not read everything.
    """
    options = ("owner", "privileges", "publications", "security-labels", "tablespaces", "table-access-method")
    with _dumping(
        client,
        dbname,
        None,
        f"--section={section}",
        "--encoding=UTF8",
        *(f"--no-{option}" for option in options),
        *(f"--table={name}" for name in tables),
    ) as pieces:
        return stable_script(b"".join(pieces))


def dump_globals(client: Client, dbname: str) -> AbstractContextManager[Iterator[bytes]]:
    """Dump roles without passwords, memberships and tablespaces as a script.

    Raises:
        ProgramFailed: pg_dumpall could not read everything.
    """
    return process.reading(
        [
            client.programs.path("pg_dumpall"),
            "--globals-only",
            "--no-role-passwords",
            "--no-password",
            f"--dbname={client.address(dbname)}",
            f"--database={dbname}",
        ],
        timeout_s=_TIMEOUT_S,
        env=client.environment,
    )


@contextmanager
def listing(programs: Programs) -> Iterator[Fed]:
    """Read a dump's table of contents from its first bytes; what follows them may be fed too, and is ignored."""
    with process.feeding(
        [programs.path("pg_restore"), "--list", "--format=custom"], timeout_s=_TIMEOUT_S, may_end_early=True
    ) as fed:
        yield fed


def loading_dump(client: Client, maintenance_db: str) -> AbstractContextManager[Fed]:
    """Load a dump that is fed, into a database that it makes; the first error ends it.

    Raises:
        ProgramFailed: something could not be loaded.
    """
    return process.feeding(
        [
            client.programs.path("pg_restore"),
            "--format=custom",
            "--create",
            "--exit-on-error",
            "--no-password",
            f"--dbname={client.address(maintenance_db)}",
        ],
        timeout_s=_TIMEOUT_S,
        env=client.environment,
    )


@contextmanager
def scripting(
    programs: Programs, form: str, source: Path | Iterable[bytes], *, create: bool
) -> Iterator[Iterator[bytes]]:
    """Turn an archive of pg_dump into a script, and so read all of it; no server is asked.

    Args:
        programs: Whose pg_restore reads it.
        form: ``custom``, ``tar`` or ``directory``.
        source: Where it is, or its bytes, which are read to their end.
        create: The script makes the archive's own database.

    Raises:
        ProgramFailed: the archive is damaged, or not known to this version.
    """
    options = ["--create"] if create else []
    argv: list[str | Path] = [programs.path("pg_restore"), f"--format={form}", "--file=-", *options]
    if isinstance(source, Path):
        with process.reading([*argv, source], timeout_s=_TIMEOUT_S) as pieces:
            yield pieces
        return
    abandoned = Event()
    theirs, ours = os.pipe()
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        try:
            with process.reading(argv, timeout_s=_TIMEOUT_S, stdin=theirs) as pieces:
                os.close(theirs)
                feeding = pool.submit(_feed, ours, source, abandoned)
                yield _then(pieces, feeding)
        finally:
            abandoned.set()


def _feed(pipe: int, source: Iterable[bytes], abandoned: Event) -> None:
    """Write everything; what comes behind an archive's end is still read, since it holds the checksum."""
    with os.fdopen(pipe, "wb") as sink:
        for piece in source:
            if abandoned.is_set():
                return
            with suppress(BrokenPipeError):
                sink.write(piece)
                sink.flush()


def _then(pieces: Iterator[bytes], feeding: Future[None]) -> Iterator[bytes]:
    """Yield a program's output; an error of what it was fed with comes before its own complaint."""
    try:
        yield from pieces
    except ProgramFailed:
        feeding.result()
        raise
    feeding.result()


def loading_script(client: Client, maintenance_db: str) -> AbstractContextManager[Fed]:
    """Run a script that is fed; the first error ends it.

    Raises:
        ProgramFailed: a statement failed.
    """
    return process.feeding(
        [
            client.programs.path("psql"),
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set=ON_ERROR_STOP=1",
            "--file=-",
            f"--dbname={client.address(maintenance_db)}",
        ],
        timeout_s=_TIMEOUT_S,
        env=client.environment,
        run_as=client.run_as,
    )


def entries(contents: bytes) -> list[str]:
    """Return a table of contents' entries, without its header."""
    lines = contents.decode("utf-8", errors="surrogateescape").splitlines()
    return [line for line in lines if line and not line.startswith(";")]


def dumped_tables(contents: Sequence[str]) -> set[int]:
    """Return the oids of the tables whose rows a dump holds."""
    matches = (_ENTRY.match(line) for line in contents)
    return {int(match.group(2)) for match in matches if match and match.group(3).startswith(TABLE_DATA)}


def definitions(contents: Sequence[str]) -> Counter[str]:
    """Return what a dump defines, without the numbers that differ between servers and without rows."""
    found = (match.group(3) for line in contents if (match := _ENTRY.match(line)))
    return Counter(entry for entry in found if not _OF_ROWS.search(entry))


def stable_script(script: bytes) -> bytes:
    """Take out of a script what differs whenever it is made: psql's restriction keys and the versions in comments."""
    return _SESSION_NOISE.sub(b"", script)


def _dumping(
    client: Client, dbname: str, snapshot: str | None, *options: str
) -> AbstractContextManager[Iterator[bytes]]:
    return process.reading(
        [
            client.programs.path("pg_dump"),
            *options,
            *([f"--snapshot={snapshot}"] if snapshot else []),
            "--no-password",
            f"--lock-wait-timeout={_LOCK_WAIT_MS}",
            f"--dbname={client.address(dbname)}",
        ],
        timeout_s=_TIMEOUT_S,
        env=client.environment,
    )
