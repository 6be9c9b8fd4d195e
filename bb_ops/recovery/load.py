"""Load dumps into a new cluster that is made for them, beside everything that exists.

The cluster is made like the source's: encoding, locale, and the name of the role that initdb makes. What belongs to no
database comes first, then each database; the first error ends it. Every byte is verified before any is loaded.
"""

import io
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from psycopg import sql

from bb_ops import process
from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import IntegrityError, NotMeasured, ProgramFailed
from bb_ops.findings import Outcome
from bb_ops.postgres import dump
from bb_ops.postgres.connection import connect
from bb_ops.postgres.dump import Client
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.scratch import RunningServer, throw_away_server
from bb_ops.progress import Progress
from bb_ops.recovery.target import Target
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import LocaleFacts, LogicalCommit, ObjectRole, StoredDatabase, StoredObject
from bb_ops.repository.repository import Repository

CONFIGURATION = "postgresql.conf"
CONFIGURATION_PARTIAL = "postgresql.conf.bb_ops-partial"
"""The configuration bears this name until everything is loaded: nobody starts half a cluster by mistake."""
_NEW = "bb_ops-initdb"
_TIMEOUT_S = 600.0
_SYNC_TIMEOUT_S = 4 * 3600.0
EMPTY_CLUSTER_BYTES = 64 << 20
_TAIL_BYTES = 4096
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
# An option of the connection wins over what databases and roles set for their sessions.
LOADING = "-c default_transaction_read_only=off -c synchronous_commit=off -c maintenance_work_mem=128MB"
_LACKING = (
    "is not available",
    "could not open extension control file",
    "could not access file",
    "invalid locale name",
    "could not create locale",
    "could not open collator for locale",
    "ICU is not supported",
)
"""What programs say where this host, and not the backup, lacks something."""
_LOCATION = re.compile(r"^(CREATE TABLESPACE .*) LOCATION '.*';$")


def needed_bytes(commit: LogicalCommit) -> int:
    """Return how much room a load takes: as much as the databases took at the source."""
    return sum(database.size_bytes for database in commit.databases) + EMPTY_CLUSTER_BYTES


def not_continuous(commit: LogicalCommit) -> str:
    """Say why the third level does not apply."""
    return f"a {commit.kind} backup has no write-ahead log: it shows one instant and cannot be carried forward"


@dataclass(frozen=True)
class Dump:
    """A logical or schema backup in a repository, and the programs that open it."""

    repository: Repository
    commit: LogicalCommit
    programs: Programs

    def contents(self, listed: Mapping[str, bytes]) -> tuple[Outcome, str]:
        """L2: each dump lists what was recorded at the source; each script reaches its end.

        Args:
            listed: From ``read_everything``.

        Raises:
            IntegrityError: one does not.
        """
        count = 0
        for database in self.commit.databases:
            if database.contents is None:
                _expect_end(database.name, listed[database.dump], dump.SCRIPT_END)
                continue
            recorded = self.read(self.commit.named(database.contents)).decode().splitlines()
            found = dump.entries(listed[database.dump])
            if found != recorded:
                raise IntegrityError(f"the dump of {database.name} lists {len(found)} entries, not those of the source")
            count += len(found)
        for entry in self.commit.with_role(ObjectRole.GLOBALS):
            _expect_end("the globals", listed[entry.name], dump.GLOBALS_END)
        if self.commit.kind == BackupKind.SCHEMA:
            return Outcome.PASS, f"{len(self.commit.databases)} scripts and the globals are whole to their last line"
        return Outcome.PASS, f"pg_restore --list: {count} entries as recorded at the source; the globals are whole"

    def read_everything(self) -> tuple[dict[str, bytes], int]:
        """L1: hash, decrypt and decompress every object, once.

        Returns:
            What each dump lists and the end of each script, by the object's name; and the number of raw bytes.

        Raises:
            IntegrityError, KeyRejected: an object is damaged or does not open.
        """
        listed, total = {}, 0
        for entry in self.commit.objects:
            if entry.role == ObjectRole.DUMP:
                try:
                    with dump.listing(self.programs) as fed:
                        total += self.repository.open_object(self.commit, entry, fed)
                except ProgramFailed as error:
                    raise IntegrityError(f"{entry.name} is no dump that can be read: {error}") from error
                listed[entry.name] = fed.stdout
            else:
                tail = Tail()
                total += self.repository.open_object(self.commit, entry, tail)
                listed[entry.name] = tail.data
        return listed, total

    def read(self, entry: StoredObject) -> bytes:
        """Return an object's whole content; for small ones."""
        buffer = io.BytesIO()
        self.repository.open_object(self.commit, entry, buffer)
        return buffer.getvalue()

    def globals(self) -> bytes:
        """Return the script of what belongs to no database."""
        return b"".join(self.read(entry) for entry in self.commit.with_role(ObjectRole.GLOBALS))

    @contextmanager
    def loaded(self, target: Target, progress: Progress) -> Iterator["Loaded"]:
        """Make a cluster in a prepared target, load everything into it, and keep it running without network.

        Raises:
            NotMeasured: this host lacks an extension or a locale that the source has.
            ProgramFailed: something could not be loaded.
            IntegrityError: an object is damaged.
        """
        watch = Stopwatch()
        superuser = self.commit.superuser
        make_cluster(self.programs, self.commit.locale, superuser, target)
        make_tablespaces(target, (space.oid for space in self.commit.tablespaces))
        with throw_away_server(self.programs, target.directory, superuser, target.owner, _TIMEOUT_S) as server:
            client = replace(dump.client(self.programs, server.dsn), environment={"PGOPTIONS": LOADING})
            with blaming_host():
                with dump.loading_script(client, "template1") as fed:
                    fed.write(local_globals(self.globals(), self.commit, target).encode("utf-8", "surrogateescape"))
                done = 0
                for database in self.commit.databases:
                    progress("load", done, self.commit.size_bytes)
                    done += self._load(client, server.dsn, database)
            yield Loaded(server, client, done, watch.elapsed_s)

    def _load(self, client: Client, dsn: Dsn, database: StoredDatabase) -> int:
        maintenance = "postgres" if database.name == "template1" else "template1"
        _drop(dsn, maintenance, database.name)
        entry = self.commit.named(database.dump)
        load = dump.loading_script if entry.role == ObjectRole.SCHEMA else dump.loading_dump
        with load(client, maintenance) as fed:
            return self.repository.open_object(self.commit, entry, fed)


@dataclass(frozen=True)
class Loaded:
    """A cluster that holds what a dump holds, on a server that answers."""

    server: RunningServer
    client: Client
    restored_bytes: int
    duration_s: float


def publish(target: Target) -> None:
    """Make a loaded cluster whose server has stopped startable by anybody."""
    directory = target.directory
    (directory / CONFIGURATION_PARTIAL).rename(directory / CONFIGURATION)
    for path in directory.glob("bb_ops.*"):
        path.unlink()
    (directory / "postgresql.auto.conf.source").unlink(missing_ok=True)


def make_durable(programs: Programs, target: Target) -> None:
    """Force a cluster and its tablespaces to disk."""
    process.run(
        [programs.path("initdb"), "--sync-only", f"--pgdata={target.directory}"],
        timeout_s=_SYNC_TIMEOUT_S,
        run_as=target.owner,
    )


def local_globals(script: bytes, commit: LogicalCommit, target: Target) -> str:
    """Adapt the globals to a new cluster: its first role exists already, and tablespaces go where we have made room.

    Raises:
        IntegrityError: the script does not make the tablespaces that the commit names.
    """
    made = {f"CREATE ROLE {form};" for form in (commit.superuser, sql.Identifier(commit.superuser).as_string())}
    spaces = list(commit.tablespaces)
    lines = []
    for line in script.decode("utf-8", "surrogateescape").split("\n"):
        match = _LOCATION.match(line)
        if line in made:
            continue
        if match is None:
            lines.append(line)
            continue
        if not spaces:
            raise IntegrityError(f"the globals of {commit.id} make more tablespaces than its commit names")
        location = sql.Literal(str(target.tablespaces / str(spaces.pop(0).oid))).as_string()
        lines.append(f"{match.group(1)} LOCATION {location};")
    if spaces:
        raise IntegrityError(f"the globals of {commit.id} do not make tablespace {spaces[0].name}")
    return "\n".join(lines)


def comparable_globals(script: bytes) -> list[bytes]:
    """Return the lines of a script of globals that must be the same on both sides."""
    lines = dump.stable_script(script).splitlines()
    return [line for line in lines if not line.startswith(b"CREATE TABLESPACE ")]


class Tail:
    """A sink that keeps the end of what it is given."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.data = b""

    def write(self, data: bytes, /) -> int:
        """Take the next bytes."""
        self.data = (self.data + bytes(data))[-_TAIL_BYTES:]
        return len(data)


def _expect_end(name: str, tail: bytes, mark: bytes) -> None:
    if mark not in tail:
        raise IntegrityError(f"the script of {name} ends before its end")


def make_cluster(programs: Programs, locale: LocaleFacts, superuser: str, target: Target) -> None:
    """Run initdb in a prepared target. It wants an empty directory, and ours bears a mark.

    Its directory is new each time: what a killed run's initdb still does for a moment, it does elsewhere.
    """
    new = target.directory / f"{_NEW}-{secrets.token_hex(4)}"
    new.mkdir(mode=0o700)
    target.chown(new)
    options = [f"--encoding={locale.encoding}", f"--lc-collate={locale.collate}", f"--lc-ctype={locale.ctype}"]
    if locale.provider != "c":
        provider = _PROVIDERS[locale.provider]
        options += [f"--locale-provider={provider}", f"--{provider}-locale={locale.locale}"]
    with blaming_host():
        process.run(
            [
                programs.path("initdb"),
                f"--pgdata={new}",
                f"--username={superuser}",
                "--auth=trust",
                "--data-checksums",
                "--no-sync",
                "--no-instructions",
                *options,
            ],
            timeout_s=_TIMEOUT_S,
            run_as=target.owner,
        )
    for path in new.iterdir():
        path.rename(target.directory / (CONFIGURATION_PARTIAL if path.name == CONFIGURATION else path.name))
    new.rmdir()


def make_tablespaces(target: Target, names: Iterable[int]) -> None:
    """Make an empty folder for each tablespace."""
    for name in names:
        folder = target.tablespaces / str(name)
        for path in (target.tablespaces, folder):
            path.mkdir(mode=0o700, exist_ok=True)
            target.chown(path)


def _drop(dsn: Dsn, maintenance: str, name: str) -> None:
    """Remove one of the databases that initdb made, so that the dump's own takes its place."""
    with connect(dsn, dbname=maintenance) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


@contextmanager
def blaming_host() -> Iterator[None]:
    """Tell what this host lacks from what is wrong with a dump.

    Raises:
        NotMeasured: a program failed for want of an extension or a locale here.
    """
    try:
        yield
    except ProgramFailed as error:
        if any(sign in str(error) for sign in _LACKING):
            raise NotMeasured(f"this host cannot load it: {error}") from error
        raise
