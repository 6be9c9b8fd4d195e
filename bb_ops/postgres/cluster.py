"""What a server is and allows, asked before any work begins."""

from dataclasses import dataclass
from datetime import datetime

import psycopg

from bb_ops.dsn import Dsn
from bb_ops.postgres.connection import connect, unusable

_FACTS = """
SELECT current_setting('server_version_num')::int,
       current_setting('server_version'),
       current_setting('wal_level'),
       current_setting('max_wal_senders')::int,
       pg_size_bytes(current_setting('wal_segment_size')),
       current_setting('data_checksums') = 'on',
       r.rolsuper OR r.rolreplication,
       r.rolname,
       (SELECT rolname FROM pg_roles WHERE oid = 10),
       pg_is_in_recovery(),
       (SELECT count(*) FROM pg_stat_progress_basebackup)
FROM pg_roles r WHERE r.rolname = current_user
"""
_NEWEST = """
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, clock_timestamp(), system_identifier::text,
       current_setting('port')::int
FROM pg_control_system()
"""
OLDEST_VERSION = 150000
"""The one-stream form of BASE_BACKUP came with PostgreSQL 15."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server is and allows to our role."""

    version_num: int
    version: str
    wal_level: str
    max_wal_senders: int
    wal_segment_bytes: int
    data_checksums: bool
    may_replicate: bool
    role: str
    superuser: str
    is_standby: bool
    running_base_backups: int

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return self.version_num // 10000


def read_facts(dsn: Dsn) -> ServerFacts:
    """Ask a server what it is.

    Raises:
        ServerUnusable: it cannot be reached or refuses us.
    """
    with connect(dsn) as connection:
        try:
            row = connection.execute(_FACTS).fetchone()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    return ServerFacts(*row)  # type: ignore[misc]  # the columns of _FACTS, in order


@dataclass(frozen=True)
class Newest:
    """How far a running server is; a control file knows only the newest checkpoint.

    Attributes:
        next_xid: The next transaction's number, its epoch included.
        at: When that was so.
        port: Its own, whatever stands between.
    """

    next_xid: int
    at: datetime
    system_id: str
    port: int


def read_newest(dsn: Dsn) -> Newest:
    """Ask a server how far it is.

    Raises:
        ServerUnusable: it cannot be reached or refuses us.
    """
    with connect(dsn) as connection:
        try:
            row = connection.execute(_NEWEST).fetchone()
        except psycopg.Error as error:
            raise unusable(dsn, str(error)) from None
    return Newest(*row)  # type: ignore[misc]  # the columns of _NEWEST, in order


def refusals(facts: ServerFacts) -> list[str]:
    """Say why a physical backup of this server cannot be taken, with the remedy; empty where it can. Pure."""
    found = []
    if facts.version_num < OLDEST_VERSION:
        found.append(f"it is PostgreSQL {facts.version}, and physical backups need 15 or later")
    if facts.wal_level == "minimal":
        found.append("wal_level is minimal: set wal_level = replica and restart the server")
    if facts.max_wal_senders < 2:  # noqa: PLR2004 - one for the data, one for the WAL
        found.append(f"max_wal_senders is {facts.max_wal_senders}: set it to 10 and restart the server")
    if not facts.may_replicate:
        found.append(f"role {facts.role} may not replicate: run ALTER ROLE {facts.role} REPLICATION")
    if facts.is_standby:
        found.append("it is a standby: name the primary in DATABASE_URL")
    return found
