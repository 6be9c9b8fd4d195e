"""The WAL streamer as a component of the demo world: `bb-ops wal stream`, with the demo's own settings."""

import signal
import sys

import psycopg

from bb_ops.backup.wal_options import slot_name
from bb_ops.demo import postgres, processes
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import World
from bb_ops.demo.processes import Process
from bb_ops.settings import file_settings

_ACTIVE = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"


class WalStreamer:
    """Streams WAL into the first region. It runs as the current user, who alone may read the demo's keys."""

    name = "wal-streamer"
    start_timeout_s = 60.0
    stop_timeout_s = 30.0  # it stores what it has received first
    ask = signal.SIGTERM
    insist = signal.SIGKILL  # the slot keeps what was not stored

    def port(self, world: World) -> int:
        """Return the port of the server that it streams from; it has none of its own."""
        return world.postgres_port

    def with_free_ports(self, world: World) -> World:
        """It has none; remember the world's, whose addresses it is started with."""
        return world.model_copy(update={"streamer_ports": tuple(sorted(world.ports))})

    def find(self, world: World) -> Process | None:
        """Find it by the world's directory, which Python itself ignores."""
        return processes.find(self.name, [_mark(world), "stream"], None)

    def start(self, world: World, known: Credentials) -> Process:
        """Start it; its settings, secrets among them, go by environment."""
        del known
        return processes.launch(
            self.name,
            [sys.executable, "-X", _mark(world), "-m", "bb_ops.cli.main", "wal", "stream"],
            log=world.log(self.name),
            cwd=world.directory,
            env={**file_settings(world.env_file), "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(world.directory)},
        )

    def answers(self, world: World, known: Credentials) -> bool:
        """Tell whether the server sends it WAL."""
        cluster = file_settings(world.env_file).get("BB_OPS_CLUSTER", "")
        try:
            with postgres.connect(world, postgres.ADMIN, known.admin, database="postgres") as connection:
                row = connection.execute(_ACTIVE, (slot_name(cluster),)).fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and bool(row[0])


def _mark(world: World) -> str:
    return f"bb_ops_demo={world.directory}"
