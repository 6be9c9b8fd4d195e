"""Replication slots: what makes a server keep WAL for somebody (PostgreSQL manual, 26.2.6; pg_replication_slots)."""

from dataclasses import dataclass

import psycopg

from bb_ops.dsn import Dsn
from bb_ops.postgres.connection import connect, unusable

_SLOT = """
SELECT active,
       pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, restart_lsn
       )::bigint
FROM pg_replication_slots WHERE slot_name = %s
"""


@dataclass(frozen=True)
class SlotUse:
    """Whether somebody streams from a slot, and how much WAL it makes the server keep (None: none, it is lost)."""

    active: bool
    retained_bytes: int | None


def read_slot(dsn: Dsn, name: str) -> SlotUse | None:
    """Look at a slot; None where there is none.

    Raises:
        ServerUnusable: the server cannot be reached or refuses us.
    """
    with connect(dsn) as connection:
        try:
            row = connection.execute(_SLOT, (name,)).fetchone()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    if row is None:
        return None
    return SlotUse(bool(row[0]), None if row[1] is None else max(0, int(str(row[1]))))
