"""A server on a restored directory: without network and for a test only, or left running for its user."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from psycopg import pq

from bb_ops import process
from bb_ops.clock import Stopwatch, sleep
from bb_ops.dsn import Dsn
from bb_ops.errors import ProgramFailed
from bb_ops.postgres.connection import connection_string
from bb_ops.postgres.programs import Programs
from bb_ops.process import Account, Child

_CONTROL_SETTINGS = {
    "max_connections setting": "max_connections",
    "max_worker_processes setting": "max_worker_processes",
    "max_wal_senders setting": "max_wal_senders",
    "max_prepared_xacts setting": "max_prepared_transactions",
    "max_locks_per_xact setting": "max_locks_per_transaction",
}
_ALWAYS: Mapping[str, str] = {
    "archive_mode": "off",
    "archive_command": "",
    "restore_command": "",
    "primary_conninfo": "",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "max_logical_replication_workers": "0",
    "ssl": "off",
    "dynamic_shared_memory_type": "mmap",  # /dev/shm may be small or closed, as in containers
    "logging_collector": "off",
    "log_destination": "stderr",
    "external_pid_file": "",
    "event_triggers": "off",
}
_EVENT_TRIGGERS_SINCE = 17
_ACCESS = """local all all trust
local replication all trust
host all all 127.0.0.1/32 scram-sha-256
"""
"""The socket is private; over it a copy that becomes the new server can be backed up at once."""
_THROW_AWAY: Mapping[str, str] = {
    "fsync": "off",
    "autovacuum": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
}
_POLL_S = 0.05
_STOP_TIMEOUT_S = 60.0
_PROGRAM_TIMEOUT_S = 60.0
_TAIL_CHARACTERS = 500
_LONGEST_SOCKET_DIRECTORY = 80
"""In bytes; a socket's whole path has at most 107 (unix(7))."""


@dataclass(frozen=True)
class RunningServer:
    """A server that answers.

    Attributes:
        dsn: How to reach it as its superuser, over a private socket.
        pid: The postmaster.
        start_s: Seconds from its start to its first answer; recovery included.
    """

    dsn: Dsn
    pid: int
    start_s: float
    socket_directory: Path
    port: int

    @property
    def url(self) -> str:
        """The address as people type it; it holds no secret."""
        user = quote(self.dsn.parameters["user"], safe="")
        return f"postgresql://{user}@/postgres?host={quote(str(self.socket_directory))}&port={self.port}"


@contextmanager
def throw_away_server(  # noqa: PLR0913 - each is a separate property of the server
    programs: Programs,
    directory: Path,
    superuser: str,
    owner: Account | None,
    timeout_s: float,
    recovery: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Run a server on a copy, reachable over a private socket alone, and stop it at the end.

    The copy's own configuration is ignored: no archiving, no preloaded libraries, no replication, no network.
    Nothing is forced to disk.

    Args:
        programs: Of its major version.
        directory: The data directory.
        superuser: The role that initdb made.
        owner: Whose account it runs as; None for ours.
        timeout_s: How long its recovery may take.
        recovery: Settings of an archive recovery; the caller has put ``recovery.signal`` there.

    Raises:
        ProgramFailed: it did not start within ``timeout_s``; the message carries the end of its log.
    """
    with _socket_directory(directory, owner) as sockets:
        settings = {
            **_fixed_settings(programs, directory, owner),
            **_THROW_AWAY,
            "listen_addresses": "",
            **(recovery or {}),
        }
        _write_configuration(directory, sockets, settings, owner)
        child = _start(programs, directory, owner, outlive=False)
        try:
            yield _wait(child, directory, sockets, superuser, 5432, timeout_s)
        finally:
            process.end(child, signal.SIGINT, _STOP_TIMEOUT_S)  # a fast shutdown


def start_server(  # noqa: PLR0913 - each is a separate property of the server
    programs: Programs, directory: Path, superuser: str, owner: Account | None, port: int, timeout_s: float
) -> RunningServer:
    """Start a server that outlives us, on the loopback address and a private socket, with archiving off.

    Raises:
        ProgramFailed: it did not start within ``timeout_s``; it is stopped, and the message carries its log's end.
    """
    sockets = directory
    if len(os.fsencode(directory)) > _LONGEST_SOCKET_DIRECTORY:
        sockets = Path(tempfile.mkdtemp(prefix="bb_ops-"))
        if owner is not None:
            os.chown(sockets, owner.uid, owner.gid)
    settings = {**_fixed_settings(programs, directory, owner), "listen_addresses": "127.0.0.1", "port": str(port)}
    _write_configuration(directory, sockets, settings, owner)
    child = _start(programs, directory, owner, outlive=True)
    try:
        return _wait(child, directory, sockets, superuser, port, timeout_s)
    except BaseException:
        process.end(child, signal.SIGINT, _STOP_TIMEOUT_S)
        raise


def port_is_free(port: int) -> bool:
    """Say whether nothing listens on a port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _fixed_settings(programs: Programs, directory: Path, owner: Account | None) -> dict[str, str]:
    """Return the settings that recovery demands (at least the source's) and those that keep the copy quiet."""
    answer = process.run([programs.path("pg_controldata"), "-D", directory], timeout_s=_PROGRAM_TIMEOUT_S, run_as=owner)
    settings = dict(_ALWAYS)
    if programs.major < _EVENT_TRIGGERS_SINCE:
        del settings["event_triggers"]
    for line in answer.stdout.splitlines():
        label, _, value = line.partition(":")
        if label.strip() in _CONTROL_SETTINGS:
            settings[_CONTROL_SETTINGS[label.strip()]] = value.strip()
    return settings


def _write_configuration(directory: Path, sockets: Path, settings: Mapping[str, str], owner: Account | None) -> None:
    auto = directory / "postgresql.auto.conf"
    if auto.exists():  # it is read whatever configuration file is named, and wins over it
        auto.rename(directory / "postgresql.auto.conf.source")
    chosen = {
        **settings,
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "hba_file": f"{directory}/bb_ops.hba.conf",
        "ident_file": f"{directory}/bb_ops.ident.conf",
    }
    lines = [f"{name} = '{_quoted(value)}'\n" for name, value in chosen.items()]
    files = {
        "bb_ops.conf": "# Made by bb_ops for a restored copy.\n" + "".join(lines),
        "bb_ops.hba.conf": _ACCESS,
        "bb_ops.ident.conf": "",
        "bb_ops.log": "",
    }
    for name, text in files.items():
        path = directory / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        if owner is not None:
            os.chown(path, owner.uid, owner.gid)


def _quoted(value: str) -> str:
    """Escape a value as configuration files want it (PostgreSQL manual, 19.1.2)."""
    return value.replace("\\", "\\\\").replace("'", "''")


def _start(programs: Programs, directory: Path, owner: Account | None, *, outlive: bool) -> Child:
    with (directory / "bb_ops.log").open("ab") as log:
        return process.start(
            [programs.path("postgres"), "-D", directory, "-c", f"config_file={directory}/bb_ops.conf"],
            cwd=directory,
            run_as=owner,
            stdout=log.fileno(),
            stderr=log.fileno(),
            outlive=outlive,
        )


def _wait(  # noqa: PLR0913 - each is a separate fact
    child: Child, directory: Path, sockets: Path, superuser: str, port: int, timeout_s: float
) -> RunningServer:
    watch = Stopwatch()
    dsn = Dsn({"host": str(sockets), "port": str(port), "user": superuser, "dbname": "template1"}, None)
    while watch.elapsed_s < timeout_s:
        if child.poll() is not None:
            raise ProgramFailed(f"the restored server ended with code {child.returncode}: {_tail(directory)}")
        if pq.PGconn.ping(connection_string(dsn).encode()) == pq.Ping.OK:
            return RunningServer(dsn, child.pid, watch.elapsed_s, sockets, port)
        sleep(_POLL_S)
    raise ProgramFailed(f"the restored server did not answer within {timeout_s:g} s: {_tail(directory)}")


def _tail(directory: Path) -> str:
    text = (directory / "bb_ops.log").read_text(encoding="utf-8", errors="replace")
    telling = [line for line in text.splitlines() if "FATAL" in line or "PANIC" in line or "HINT" in line]
    return " ".join(telling or text.splitlines())[-_TAIL_CHARACTERS:]


def forget_configuration(directory: Path) -> None:
    """Take our configuration away from a directory whose server has stopped, and give it its own back."""
    for path in directory.glob("bb_ops.*"):
        path.unlink()
    source = directory / "postgresql.auto.conf.source"
    if source.exists():
        source.replace(directory / "postgresql.auto.conf")


@contextmanager
def _socket_directory(directory: Path, owner: Account | None) -> Iterator[Path]:
    """Give the data directory itself, so that a kill leaves nothing elsewhere, unless its path is too long."""
    if len(os.fsencode(directory)) <= _LONGEST_SOCKET_DIRECTORY:
        yield directory
        return
    sockets = Path(tempfile.mkdtemp(prefix="bb_ops-"))
    try:
        if owner is not None:
            os.chown(sockets, owner.uid, owner.gid)
        yield sockets
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
