"""Ways to get WAL from the server into a repository."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from cluster import Cluster, folder_bytes
from contenders import BbOps, PgBackRest, Result
from measure import Command, Failed, measure, measure_all, run, running
from wal_backlog import Backlog

_SLOT = "bb_ops_main"  # what bb-ops calls that of the cluster "main", its default
_DEPLOY = Path(__file__).parent.parent / "deploy/wal"
_START_TIMEOUT_S = 30.0


class Pusher(ABC):
    """One way. ``clear`` before each ``push``."""

    name: str

    def __init__(self, backlog: Backlog, cluster: Cluster) -> None:
        """Push this backlog of this server."""
        self.backlog = backlog
        self.cluster = cluster

    @abstractmethod
    def clear(self) -> None:
        """Make an empty repository; not measured."""

    @abstractmethod
    def push(self) -> Result:
        """Store the whole backlog."""


class Archiver(Pusher):
    """A way by archive_command."""

    def push(self) -> Result:
        with self.service() as repository, self.backlog.waiting(self.backlog.names):
            cost = measure_all(("bb-ops", "pgbackrest"), lambda: self.backlog.archive(self.command("%p", "%f")))
            return Result(cost, folder_bytes(repository))

    def calls_s(self, names: list[str]) -> list[float]:
        """Return the seconds of single calls, where nothing else waits. ``clear`` before."""
        found = []
        with self.service():
            for name in names:
                shell = ("/bin/sh", "-c", self.command(f"pg_wal/{name}", name))
                command = Command(shell, self.cluster.environment, self.cluster.account, self.cluster.directory)
                with self.backlog.waiting([name]):
                    found.append(measure(command, None)[0].wall_s)
        return found

    @abstractmethod
    def service(self) -> AbstractContextManager[Path]:
        """Have running what must run beside the server; the repository comes of it."""

    @abstractmethod
    def command(self, path: str, name: str) -> str:
        """Return the call."""


class Stream(Pusher):
    """``bb-ops wal stream``."""

    name = "bb-ops wal stream"

    def __init__(self, backlog: Backlog, ours: BbOps) -> None:
        super().__init__(backlog, ours.cluster)
        self._ours = ours

    def clear(self) -> None:
        self._ours.clear()

    def push(self) -> Result:
        with self.backlog.slot(_SLOT), ExitStack() as until_stored:

            def work() -> None:
                command = self._ours.command("wal", "stream")
                until_stored.enter_context(running(command, self._ours.folder / "log"))
                self.backlog.wait_until_confirmed(_SLOT)

            cost = measure_all(("bb-ops",), work)
            until_stored.close()  # the slot can be dropped only then
        return Result(cost, folder_bytes(self._ours.repository))


class Spool(Archiver):
    """``bb-ops wal serve`` and its shell client."""

    name = "bb-ops wal serve"

    def __init__(self, backlog: Backlog, ours: BbOps) -> None:
        super().__init__(backlog, ours.cluster)
        self._ours = ours
        self._spool = ours.folder / "spool"
        self._client = ours.folder / "bb-ops-wal-push"
        self._client.write_text((_DEPLOY / self._client.name).read_text())

    def clear(self) -> None:
        self._ours.clear()

    @contextmanager
    def service(self) -> Iterator[Path]:
        log = self._ours.folder / "log"
        with running(self._ours.command("wal", "serve", self._spool), log):
            deadline = time.monotonic() + _START_TIMEOUT_S
            while not (self._spool / "absent").exists() or not self._ours.repository.exists():
                if time.monotonic() > deadline:
                    raise Failed(f"bb-ops wal serve does not start: {log.read_text()[-400:]}")
                time.sleep(0.05)
            for path in (self._spool, *self._spool.iterdir()):
                path.chmod(0o777)  # the server is another account
            yield self._ours.repository

    def command(self, path: str, name: str) -> str:
        return f"/bin/sh {self._client} {self._spool} {path} {name}"


class PgBackRestPush(Archiver):
    """``pgbackrest archive-push``, asynchronous or not."""

    def __init__(self, backlog: Backlog, rival: PgBackRest, *, together: bool) -> None:
        super().__init__(backlog, rival.cluster)
        self.name = "pgBackRest" if together else "pgBackRest, one by one"
        self._rival = rival
        self._option = "--archive-async" if together else "--no-archive-async"

    def clear(self) -> None:
        self._rival.clear()

    @contextmanager
    def service(self) -> Iterator[Path]:
        yield self._rival.repository

    def command(self, path: str, name: str) -> str:
        del name
        return self._rival.archive_command.replace("archive-push %p", f"{self._option} archive-push {path}")


class Receive(Pusher):
    """``pg_receivewal``: neither encrypted nor recorded; a segment is flushed when it is whole (no --synchronous)."""

    def __init__(self, backlog: Backlog, cluster: Cluster, folder: Path, compression: str | None = None) -> None:
        super().__init__(backlog, cluster)
        self.name = f"pg_receivewal, {compression or 'not compressed'}"
        self._folder = folder
        self._options = [f"--compress={compression}"] if compression else []

    def clear(self) -> None:
        self.cluster.throw_away(self._folder)

    def push(self) -> Result:
        self._folder.mkdir(mode=0o700)
        self.cluster.account.give(self._folder)
        receive = self.cluster.command(
            self.cluster.programs / "pg_receivewal",
            *("--directory", self._folder, "--slot", _SLOT, "--no-loop", "--endpos", self.backlog.end, *self._options),
        )
        with self.backlog.slot(_SLOT):
            cost = measure_all(("pg_receivewal",), lambda: _do(receive))
        return Result(cost, folder_bytes(self._folder))


def _do(command: Command) -> None:
    run(command)
