"""A fresh PostgreSQL cluster with realistic data, in one folder, owned by an unprivileged account."""

import os
import pwd
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import Account, Command, Failed, run

_HERE = Path(__file__).parent
_SESSIONS = 2
_BOOKINGS_PER_GIGABYTE = 2_870_000
_START_TIMEOUT_S = 60.0
_VOCABULARIES = {
    "given": """
        Ada Ben Cleo Dan Eva Finn Gia Hugo Ida Jon Kim Leo Mia Noah Ola Paul Quinn Rosa Sam Tara Uma Vic Wes Xena
        Yara Zoe Amir Bela Carl Dora Emil Fay Gus Hana Ivan Jade Kurt Lena Max Nora""",
    "family": """
        Adams Baker Clark Davis Evans Foster Garcia Harris Ito Jones Khan Lopez Meyer Nguyen Olsen Perez Quist Rossi
        Smith Taylor Ueda Vega White Xu Young Zhang Abbott Brown Cohen Diaz Ellis Fischer Gray Hall Irwin Jensen Kelly
        Lewis Moore Novak""",
    "words": """
        about after again along another asked before beard because booking bring business call change chair clean
        client close colour come confirm could cream crown cut day deposit discount double early every fade few first
        fringe from full gift hair half haircut have hot hour invoice kids last late leave length less line long mail
        member minutes more morning moved much neck needs never new nine noon note oil only open other paid part please
        prefers price quick razor regular same scissors second short shave side skin soon style sunday taper thanks tip
        towel trim usual visit voucher wait walk wash""",
}
"""40, 40 and 100 words: what ``data.sql`` picks from."""


def server_programs(wanted: Path | None) -> Path:
    """Return the folder of PostgreSQL's programs: the oldest supported one that the distribution installed.

    The distribution's pgBackRest knows the distribution's PostgreSQL, and perhaps no newer one.
    """
    found = [wanted] if wanted else sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major)
    for folder in found:
        if (folder / "postgres").is_file() and (wanted or _major(folder) >= 15):
            return folder
    raise Failed("PostgreSQL's server programs are missing: apt-get install postgresql")


def unprivileged_account() -> Account:
    """Return who runs PostgreSQL and pgBackRest: ourselves, or a fitting account where we are root."""
    if os.geteuid() != 0:
        return Account(pwd.getpwuid(os.geteuid()).pw_name, None, None)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise Failed("neither the account postgres nor nobody exists, and PostgreSQL refuses to run as root")


class Cluster:
    """One cluster below one folder."""

    def __init__(self, programs: Path, folder: Path, account: Account) -> None:
        """Name it; nothing happens yet."""
        self.programs = programs
        self.folder = folder
        self.account = account
        self.directory = folder / "pg"
        self.sockets = folder / "s"
        self.port = 5432
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._server is None:
            raise Failed("the server is not running")
        return self._server.pid

    @property
    def environment(self) -> dict[str, str]:
        """What PostgreSQL's client programs need to find it."""
        return {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.folder),
            "PGHOST": str(self.sockets),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
        }

    def make(self, gigabytes: float) -> None:
        """Create the cluster and fill it; without WAL and flushes, which a cluster to be measured has later."""
        self.sockets.mkdir(mode=0o700)
        self.account.give(self.sockets)
        self._run("initdb", "-D", self.directory, "-U", "postgres", "-A", "trust", "-k", "-E", "UTF8", "--no-sync")
        self.start("wal_level=minimal", "max_wal_senders=0", "fsync=off", "max_wal_size=16GB", "shared_buffers=512MB")
        try:
            self._script("schema.sql")
            variables = {
                "bookings": str(int(gigabytes * _BOOKINGS_PER_GIGABYTE)),
                "parts": str(_SESSIONS),
                **{name: "{" + ",".join(words.split()) + "}" for name, words in _VOCABULARIES.items()},
            }
            with ThreadPoolExecutor(_SESSIONS) as pool:
                parts = [
                    pool.submit(self._script, "data.sql", **variables, part=str(part + 1)) for part in range(_SESSIONS)
                ]
                for part in parts:
                    part.result()
            self._script("indexes.sql")
        finally:
            self.stop()

    def start(self, *settings: str) -> None:
        """Start the server as a child of ours and wait until it answers."""
        options = [
            *("listen_addresses=", f"unix_socket_directories={self.sockets}", f"port={self.port}"),
            *("autovacuum=off", "max_wal_size=1GB", "logging_collector=off", *settings),
        ]
        log = (self.folder / "server.log").open("ab")
        with log:
            self._server = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.directory), *(f"--{option}" for option in options)],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.account.uid,
                group=self.account.gid,
                extra_groups=self.account.groups,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > deadline or self._server.poll() is not None:
                said = (self.folder / "server.log").read_text(errors="replace").strip()[-400:]
                raise Failed(f"the server does not start: {said}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if self._server is None:
            return
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(120)
            except subprocess.TimeoutExpired:
                self._server.send_signal(signal.SIGQUIT)
                self._server.wait(30)
        self._server = None

    def query(self, sql: str) -> str:
        """Return the first value of a query."""
        return self._run("psql", "-XAtq", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql).strip()

    def settle(self) -> None:
        """Let the archiver finish and the disk catch up, so that no run pays for the one before."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while list((self.directory / "pg_wal/archive_status").glob("*.ready")):
            if time.monotonic() > deadline:
                raise Failed("the archiver does not catch up")
            time.sleep(0.1)
        os.sync()

    def throw_away(self, path: Path) -> None:
        """Free the room that a folder takes; its emptied files are removed with everything else at the end.

        ext4 steps over each recently deleted inode for minutes (ialloc.c, ``recently_deleted``), so whoever creates
        files soon after would pay for our deletions.
        """
        if not path.exists():
            return
        for directory, _, names in os.walk(path):
            for name in names:
                file = Path(directory) / name
                if not file.is_symlink():
                    os.truncate(file, 0)
        trash = self.folder / "trash"
        trash.mkdir(exist_ok=True)
        path.rename(trash / str(len(list(trash.iterdir()))))

    def size_bytes(self) -> int:
        """Return the size of everything that a backup must hold; WAL is not counted."""
        return folder_bytes(self.directory) - folder_bytes(self.directory / "pg_wal")

    def command(self, program: str | Path, *arguments: str | Path) -> Command:
        """Return a call of one of PostgreSQL's programs, or of another one, as the server's account."""
        return Command((program, *arguments), self.environment, self.account, self.folder)

    def _run(self, program: str, *arguments: str | Path) -> str:
        return run(self.command(self.programs / program, *arguments))

    def _script(self, name: str, **variables: str) -> None:
        script = self.folder / name
        script.write_text((_HERE / name).read_text())
        script.chmod(0o644)
        pairs = [word for pair in variables.items() for word in ("-v", "=".join(pair))]
        self._run("psql", "-Xq", "-d", "postgres", "-v", "ON_ERROR_STOP=1", *pairs, "-f", script)

    def _answers(self) -> bool:
        try:
            self._run("pg_isready", "-q")
        except Failed:
            return False
        return True


def folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files below a folder."""
    return sum((Path(directory) / name).lstat().st_size for directory, _, names in os.walk(folder) for name in names)


def _major(folder: Path) -> int:
    match = re.search(r"(\d+)", folder.parent.name)
    return int(match.group(1)) if match else 0
