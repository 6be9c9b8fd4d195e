"""Connections to a server, and its complaints turned into one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import conninfo, pq

from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, ServerUnusable

CONNECT_TIMEOUT_S = 10
_APPLICATION_NAME = "bb_ops"
_KEEPALIVES = {  # a cut line is noticed within a minute, not after the kernel's two hours
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_ABOUT_VALUES = ("22", "23")
"""Classes of errors whose text may quote a row (PostgreSQL manual, appendix A)."""
_REMEDIES = (
    ("password authentication failed", "check the user and the password in DATABASE_URL"),
    ("no password supplied", "DATABASE_URL has no password and the server asks for one"),
    ("no pg_hba.conf entry for replication", "add a `replication` line for this role and host to pg_hba.conf"),
    ("must be superuser or replication role", "run ALTER ROLE … REPLICATION for this role"),
    ("permission denied to start WAL sender", "run ALTER ROLE … REPLICATION for this role"),
    ("max_wal_senders (currently 0)", "set wal_level = replica and max_wal_senders = 10, then restart the server"),
    ("exceeds max_wal_senders", "all walsender slots are in use: raise max_wal_senders"),
    ("too many clients", "raise max_connections or free a connection"),
    ("does not exist", "check the name in DATABASE_URL"),
    ("invalid connection option", "remove that parameter from DATABASE_URL"),
    ("Connection refused", "is the server running there, and does it listen on that address and port?"),
    ("No such file or directory", "is the server running, and is that its socket directory?"),
    ("could not translate host name", "check the host in DATABASE_URL"),
    ("timeout expired", "is the host reachable from here?"),
)


def connection_string(dsn: Dsn, **extra: str) -> str:
    """Return libpq's own form of the address; holds the password, so never print it."""
    parameters: dict[str, str] = {
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "application_name": _APPLICATION_NAME,
        **_KEEPALIVES,
        **dsn.parameters,
        **extra,
    }
    if dsn.password is not None:
        parameters["password"] = dsn.password
    return conninfo.make_conninfo("", **parameters)


@contextmanager
def connect(dsn: Dsn, *, dbname: str | None = None) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Open an ordinary connection in autocommit mode and close it at the end.

    Raises:
        ServerUnusable: the server cannot be reached or refuses us.
    """
    extra = {"dbname": dbname} if dbname is not None else {}
    try:
        connection = psycopg.connect(connection_string(dsn, **extra), autocommit=True)
    except psycopg.Error as error:
        raise unusable(dsn, str(error)) from None
    try:
        yield connection
    finally:
        connection.close()


def open_replication(dsn: Dsn) -> pq.abc.PGconn:
    """Open a physical replication connection (PostgreSQL manual, 53.4); the caller finishes it.

    Raises:
        ServerUnusable: the server cannot be reached or refuses replication to this role.
    """
    try:
        text = connection_string(dsn, replication="true")
    except psycopg.Error as error:
        raise unusable(dsn, str(error)) from None
    connection = pq.PGconn.connect(text.encode())
    if connection.status != pq.ConnStatus.OK:
        complaint = connection.get_error_message()
        connection.finish()
        raise unusable(dsn, complaint)
    return connection


def unusable(dsn: Dsn, complaint: str) -> BbOpsError:
    """Turn libpq's complaint into one line with a remedy and without the password."""
    text = redact(dsn, complaint)
    remedy = next((advice for sign, advice in _REMEDIES if sign in text), "see the server's log")
    return ServerUnusable(f"PostgreSQL at {dsn}: {_essence(text)}: {remedy}")


def redact(dsn: Dsn, text: str) -> str:
    """Remove the password from a text that a library made."""
    return text.replace(dsn.password, "********") if dsn.password else text


def without_values(error: psycopg.Error) -> str:
    """Return a server's complaint in one line; one about a value of a row says which kind, and not the value."""
    state = error.sqlstate or ""
    if state.startswith(_ABOUT_VALUES):
        return f"a value is refused ({type(error).__name__}, SQLSTATE {state})"
    return error.diag.message_primary or "the connection broke off"


def _essence(complaint: str) -> str:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL" in line or "ERROR" in line]
    return (fatal or lines or ["no answer"])[-1 if fatal else 0].rstrip(".")
