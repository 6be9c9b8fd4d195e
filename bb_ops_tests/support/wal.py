"""A client that remembers what was committed, a streamer that is watched, and a plain restore from archived WAL."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from bb_ops_tests.support.commands import BbOps
from bb_ops_tests.support.postgres import Build, Cluster, connection_to, free_port, stop_server_in, wait_until
from bb_ops_tests.support.rooms import hand_over

TABLE = "CREATE TABLE IF NOT EXISTS acked (id bigint PRIMARY KEY, filler text)"


@dataclass
class Client:
    """Commits rows one by one, each with an id, and remembers which were acknowledged and when.

    Attributes:
        acked: Ids with the instant after their commit was acknowledged, by this host's clock.
    """

    cluster: Cluster
    acked: list[tuple[int, float]] = field(default_factory=list)
    filler: int = 200
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Commit until told to stop; connect again after every failure."""
        number = self.acked[-1][0] + 1 if self.acked else 1
        while not self._stop.is_set():
            try:
                with self.cluster.connect() as connection:
                    connection.execute(TABLE)
                    while not self._stop.is_set():
                        number += 1
                        connection.execute("INSERT INTO acked VALUES (%s, repeat('x', %s))", (number, self.filler))
                        self.acked.append((number, time.time()))
                        if number % 20 == 0:
                            time.sleep(0.01)
            except psycopg.Error:
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop."""
        self._stop.set()


@contextmanager
def committing(cluster: Cluster, client: Client | None = None) -> Iterator[Client]:
    """Commit rows during a block."""
    client = client or Client(cluster)
    thread = threading.Thread(target=client.run, name="client")
    thread.start()
    try:
        yield client
    finally:
        client.stop()
        thread.join()


def status(command: BbOps) -> dict[str, Any]:
    """Return what ``wal status`` says."""
    answer = command.run("wal", "status", "--json")
    assert answer.returncode in {0, 4}, answer.stderr
    return answer.document


def wait_until_archived(command: BbOps, timeout_s: float = 60.0) -> None:
    """Wait until nothing is missing from the archive."""
    wait_until(lambda: status(command)["lag_bytes"] == 0, f"WAL is not archived: {status(command)}", timeout_s)


@contextmanager
def restored(
    command: BbOps, build: Build, room: Path, *, region: str | None = None, settings: str = ""
) -> Iterator[Path]:
    """Restore the newest full backup and all archived WAL by plain means, and run it; yield the socket's folder.

    Its port is in the file ``port`` there. ``settings`` are lines of configuration, such as those of a recovery target.
    """
    place = ("--region", region) if region else ()
    target, archive = room / "back", room / "archive"
    command.ok("recover", "full", "latest", "--into", target, *place)
    command.ok("wal", "fetch-all", archive, *place)
    archive.chmod(0o755)
    hand_over(archive)
    with (target / "postgresql.auto.conf").open("a", encoding="utf-8") as handle:
        handle.write(f"restore_command = 'cp {archive}/%f %p'\nrecovery_target_timeline = 'latest'\n{settings}")
    (target / "recovery.signal").touch()
    hand_over(target)
    port = free_port()
    cluster = Cluster(build, room / "socket", port=port)
    cluster.directory.mkdir()
    hand_over(cluster.directory)
    cluster.write(target / "pg_hba.conf", "local all all trust\n")
    cluster.write(
        target / "postgresql.conf",
        f"port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{cluster.directory}'\nfsync = off\n"
        "min_wal_size = 256MB\n",
    )
    cluster.run("pg_ctl", "-D", str(target), "-w", "-t", "120", "-l", f"{cluster.directory}/log", "start")
    try:
        (cluster.directory / "port").write_text(str(port), encoding="utf-8")
        wait_until(lambda: not _one(cluster.directory, port, "SELECT pg_is_in_recovery()"), "recovery did not end")
        yield cluster.directory
    finally:
        stop_server_in(target)


def rows_of(socket: Path) -> set[int]:
    """Return the ids that a restored server holds."""
    port = int((socket / "port").read_text(encoding="utf-8"))
    with connection_to(socket, port, "postgres") as connection:
        return {int(row[0]) for row in connection.execute("SELECT id FROM acked")}


def missing_rows(client: Client, socket: Path) -> list[tuple[int, float]]:
    """Return the acknowledged rows that a restored server lacks."""
    there = rows_of(socket)
    return [row for row in client.acked if row[0] not in there]


def standby_of(primary: Cluster, directory: Path) -> Cluster:
    """Make and start a streaming standby."""
    standby = Cluster(primary.build, directory, settings=dict(primary.settings))
    standby.directory.mkdir()
    hand_over(standby.directory)
    primary.run("pg_basebackup", "-D", str(standby.data), "-R", "-X", "stream", "-c", "fast", "-d", f"{primary.url}")
    return standby.start()


def _one(socket: Path, port: int, query: str) -> Any:  # noqa: ANN401 - whatever the query gives
    with connection_to(socket, port, "postgres") as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]
