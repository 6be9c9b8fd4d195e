"""The tools that are compared: how each takes a backup and brings it back."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster, folder_bytes
from measure import Command, Cost, Failed, measure, run

LEVEL = 3
PROCESSES = 2


@dataclass(frozen=True)
class Result:
    """One measured call.

    Attributes:
        stored_bytes: What the repository holds after a backup; None for a restore.
        checks_s: The part of ``cost.wall_s`` that the tool spent on checking what it had restored, where it says so.
    """

    cost: Cost
    stored_bytes: int | None = None
    checks_s: float | None = None


class Contender(ABC):
    """One tool with one configuration. ``clear`` before each ``backup``, which ``restore`` then takes from."""

    name: str
    restores = True

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        """Keep everything below ``folder``."""
        self.cluster = cluster
        self.folder = folder

    @abstractmethod
    def clear(self) -> None:
        """Make an empty repository; not measured."""

    @abstractmethod
    def backup(self) -> Result:
        """Take a full backup."""

    def restore(self) -> Result:
        """Bring it back into a new directory."""
        raise NotImplementedError

    def _restored(self, command: Command, into: Path) -> tuple[Cost, str]:
        try:
            cost, output = measure(command, None)
            if not (into / "global/pg_control").is_file():
                raise Failed(f"{self.name} left no cluster in {into}")
            found = folder_bytes(into)
        finally:
            self.cluster.throw_away(into)
        if found < self.cluster.size_bytes() * 0.99:
            raise Failed(f"{self.name} restored {found} bytes only")
        return cost, output


class BbOps(Contender):
    """Our own command line, as a process of its own and as the current user."""

    def __init__(  # noqa: PLR0913 - one property of a row each
        self,
        name: str,
        program: Path,
        cluster: Cluster,
        folder: Path,
        *,
        encrypted: bool,
        fingerprints: bool,
        **settings: str,
    ) -> None:
        """Name the program, make its keys, and add more settings."""
        super().__init__(cluster, folder)
        self.name = name
        self.restores = not fingerprints
        self._program = program
        self.repository = folder / "repository"
        self._into = folder / "restored"
        folder.mkdir(mode=0o755)
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(folder),
            "DATABASE_URL": f"postgresql://postgres@/postgres?host={cluster.sockets}&port={cluster.port}",
            "BB_OPS_REPOSITORY": f"file://{self.repository}",
            "BB_OPS_COMPRESSION_LEVEL": str(LEVEL),
            "BB_OPS_PG_BINDIR": str(cluster.programs),
            "BB_OPS_SERVER_USER": cluster.account.name,
            "BB_OPS_ENCRYPTION": "age" if encrypted else "none",
            **({} if fingerprints else {"BB_OPS_FINGERPRINT_BUDGET_S": "0"}),
            **settings,
        }
        run(self.command("keys", "init", folder / "keys"))
        for line in (folder / "keys/bb-ops.env").read_text().splitlines():
            setting, _, value = line.partition("=")
            self._environment[setting] = value.strip("'")

    def clear(self) -> None:
        self.cluster.throw_away(self.repository)

    def backup(self) -> Result:
        cost, _ = measure(self.command("backup", "full", "--json"), self.cluster.pid)
        return Result(cost, folder_bytes(self.repository))

    def restore(self) -> Result:
        cost, output = self._restored(
            self.command("recover", "full", "latest", "--into", self._into, "--json"), self._into
        )
        steps = json.loads(output)["steps"]
        return Result(cost, checks_s=sum(step["duration_s"] for step in steps))

    def command(self, *arguments: str | Path) -> Command:
        """Return a call."""
        return Command((self._program, *arguments), self._environment, None, self.folder)


class PgBackRest(Contender):
    """pgBackRest with a repository in a folder, as the server's account: it reads the data directory itself."""

    name = "pgBackRest"

    def __init__(self, program: Path, cluster: Cluster, folder: Path) -> None:
        """Write its configuration; the server archives into its repository from its next start on."""
        super().__init__(cluster, folder)
        self._program = program
        self.repository = folder / "repository"
        self._into = folder / "restored"
        self._settings = folder / "pgbackrest.conf"
        for path in (folder, self.repository, folder / "state"):
            path.mkdir(mode=0o755)
            cluster.account.give(path)
        state = folder / "state"
        self._settings.write_text(
            "[global]\n"
            f"repo1-path={self.repository}\nrepo1-bundle=y\nrepo1-retention-full=9\nexpire-auto=n\n"
            f"compress-type=zst\ncompress-level={LEVEL}\nprocess-max={PROCESSES}\n"
            "start-fast=y\nchecksum-page=y\narchive-check=y\narchive-timeout=60\n"
            f"log-level-file=off\nlog-level-console=warn\nlog-path={state}\nlock-path={state}\nspool-path={state}\n"
            "[main]\n"
            f"pg1-path={cluster.directory}\npg1-socket-path={cluster.sockets}\npg1-port={cluster.port}\n"
            "pg1-user=postgres\n"
        )

    @property
    def archive_command(self) -> str:
        """What the server archives its WAL with."""
        return f"{self._program} --config={self._settings} --stanza=main archive-push %p"

    def clear(self) -> None:
        for path in (*self.repository.iterdir(), self.folder / "state/archive"):
            self.cluster.throw_away(path)
        run(self._command("stanza-create"))

    def backup(self) -> Result:
        cost, _ = measure(self._command("backup", "--type=full"), self.cluster.pid)
        return Result(cost, folder_bytes(self.repository))

    def restore(self) -> Result:
        self._into.mkdir(mode=0o700)
        self.cluster.account.give(self._into)
        return Result(self._restored(self._command("restore", f"--pg1-path={self._into}"), self._into)[0])

    def _command(self, name: str, *arguments: str) -> Command:
        return self.cluster.command(self._program, f"--config={self._settings}", "--stanza=main", *arguments, name)


class PgBasebackup(Contender):
    """PostgreSQL's own tool: a plain copy of the data directory, neither compressed nor encrypted."""

    name = "pg_basebackup"
    restores = False

    def clear(self) -> None:
        self.cluster.throw_away(self.folder)

    def backup(self) -> Result:
        self.folder.mkdir(mode=0o700)
        self.cluster.account.give(self.folder)
        command = self.cluster.command(
            self.cluster.programs / "pg_basebackup",
            *("--pgdata", self.folder, "--format=plain", "--checkpoint=fast", "--wal-method=stream"),
        )
        cost, _ = measure(command, self.cluster.pid)
        return Result(cost, folder_bytes(self.folder))
