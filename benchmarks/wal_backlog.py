"""Segments of WAL that wait on the server, so that every contender can push the same ones."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster import Cluster
from measure import Failed

_KEEPER = "keeper"
_SEGMENT_BYTES = 16 << 20
_POLL_S = 0.01
_TIMEOUT_S = 300.0
_CHANGE = """
UPDATE bookings SET status = 'completed', price_cents = price_cents + 100 WHERE id % 64 = {part} % 64;
INSERT INTO payments SELECT id + 1000000000::bigint * (1 + {part}), id, price_cents, 'usd',
    'pi_' || md5(random()::text), now(), 'card'
FROM bookings WHERE id % 64 = {part} % 64
"""


class Backlog:
    """Whole segments, which a slot makes the server keep."""

    def __init__(self, cluster: Cluster, segments: int) -> None:
        """Make them, by changes as an application makes them, with checkpoints between; none is archived."""
        self._cluster = cluster
        self._status = cluster.directory / "pg_wal/archive_status"
        cluster.query("CHECKPOINT")
        cluster.query("SELECT pg_switch_wal()")
        before = set(self._waiting())
        cluster.query("CHECKPOINT")
        cluster.query(f"SELECT pg_create_physical_replication_slot('{_KEEPER}', true)")
        part = 0
        while len(self._waiting()) - len(before) < segments:
            cluster.query(_CHANGE.format(part=part))
            part += 1
            if part % 4 == 0:
                cluster.query("CHECKPOINT")
        cluster.query("SELECT pg_switch_wal()")
        cluster.query("CHECKPOINT")  # so that something follows
        found = self._waiting()
        self.names = sorted(set(found) - before)
        self.size_bytes = len(self.names) * _SEGMENT_BYTES
        self.end = self._border(cluster.query("SELECT pg_current_wal_flush_lsn()"))
        for name in found:
            self._mark(name, "ready", "done")

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """Have a slot that begins where the backlog does."""
        self._cluster.query(f"SELECT pg_copy_physical_replication_slot('{_KEEPER}', '{name}')")
        try:
            yield
        finally:
            self._cluster.query(f"SELECT pg_drop_replication_slot('{name}')")

    def wait_until_confirmed(self, slot: str) -> None:
        """Wait, in the server, until a receiver has said that all of it is durable."""
        self._cluster.query(
            f"SET statement_timeout = '{_TIMEOUT_S:.0f}s'; DO $$ BEGIN "
            f"WHILE NOT (SELECT restart_lsn >= '{self.end}' FROM pg_replication_slots WHERE slot_name = '{slot}') "
            f"LOOP PERFORM pg_sleep({_POLL_S}); END LOOP; END $$"
        )

    @contextmanager
    def waiting(self, names: Sequence[str]) -> Iterator[None]:
        """Let the server take some of it for not archived; afterwards none is."""
        for name in names:
            self._mark(name, "done", "ready")
        try:
            yield
        finally:
            for name in self._waiting():
                self._mark(name, "ready", "done")

    def archive(self, command: str) -> None:
        """Let the server's archiver call ``command`` until nothing waits."""
        self._configure(command)
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while self._waiting():
                if time.monotonic() > deadline:
                    raise Failed("the archiver does not catch up")
                time.sleep(_POLL_S)
        finally:
            self._configure("")

    def _configure(self, command: str) -> None:
        self._cluster.query(f"ALTER SYSTEM SET archive_command = '{command}'")
        self._cluster.query("SELECT pg_reload_conf()")

    def _waiting(self) -> list[str]:
        return [path.stem for path in self._status.glob("*.ready")]

    def _mark(self, name: str, old: str, new: str) -> None:
        (self._status / f"{name}.{old}").rename(self._status / f"{name}.{new}")

    @staticmethod
    def _border(position: str) -> str:
        high, _, low = position.partition("/")
        return f"{high}/{int(low, 16) // _SEGMENT_BYTES * _SEGMENT_BYTES:X}"
