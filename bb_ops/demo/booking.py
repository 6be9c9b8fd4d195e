"""What the demo booking application does in its database, one transaction per request."""

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from queue import Empty, SimpleQueue
from typing import Literal

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Json

from bb_ops.errors import UsageError
from bb_ops.findings import Value

Connection = psycopg.Connection[DictRow]

_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_MS = 30_000

_INSERT_APPOINTMENT = """
    INSERT INTO appointments (user_id, barber_id, client_id, service_id, organization_id, service_name, start_time,
        duration_minutes, price, status, notes, created_timezone)
    SELECT (SELECT user_id FROM appointments WHERE client_id = c.id ORDER BY id LIMIT 1), b.id, c.id, s.id, 1, s.name,
        %(start_time)s, s.duration_minutes, s.base_price, %(status)s, %(notes)s, b.timezone
    FROM clients AS c, users AS b, services AS s
    WHERE c.id = %(client_id)s AND b.id = %(barber_id)s AND b.unified_role = 'barber' AND s.id = %(service_id)s
    RETURNING id, user_id, barber_id, price
"""
_INSERT_PAYMENT = """
    INSERT INTO payments (user_id, appointment_id, barber_id, organization_id, amount, status, stripe_payment_id,
        stripe_payment_intent_id, platform_fee, barber_amount, commission_rate)
    VALUES (%s, %s, %s, 1, %s, %s, %s, %s, %s, %s, 0.20) RETURNING id
"""
_INSERT_CONFIRMATION = """
    INSERT INTO notification_queue (user_id, appointment_id, notification_type, template_name, subject, body,
        scheduled_for)
    VALUES (%s, %s, 'email', 'booking_confirmation', 'Your appointment is booked', %s, now())
"""
_INSERT_KEY = """
    INSERT INTO idempotency_keys (key, operation_type, user_id, request_hash, response_data, expires_at)
    SELECT %s, 'create_booking', user_id, %s, %s, now() + interval '24 hours' FROM appointments WHERE id = %s
"""
_REFUND = """
    WITH returned AS (
        UPDATE payments SET status = 'refunded', refund_amount = amount, refunded_at = now(), updated_at = now(),
            refund_reason = 'requested_by_customer', stripe_refund_id = %s
        WHERE appointment_id = %s AND status = 'completed' RETURNING *
    )
    INSERT INTO refunds (payment_id, amount, reason, status, stripe_refund_id, processed_at)
    SELECT id, amount, refund_reason, 'completed', stripe_refund_id, now() FROM returned
"""


class BookingRequest(Value):
    """What a client asks for."""

    client_id: int
    barber_id: int
    service_id: int
    start_time: datetime
    notes: str | None = None
    payment_status: Literal["completed", "failed", "pending"] = "completed"


class Booked(Value):
    """What was written for a request, or had been written for the same key before."""

    appointment_id: int
    payment_id: int
    amount: float
    status: str
    repeated: bool = False


class BookingRefused(UsageError):
    """The request names something that does not exist, or reuses a key for another request."""


class Connections:
    """Idle connections kept for the next request. A broken one is dropped, so a restarted database is found again."""

    def __init__(self, dsn: str) -> None:
        """Keep where to connect; nothing is opened yet."""
        self._dsn = dsn
        self._idle: SimpleQueue[Connection] = SimpleQueue()

    @contextmanager
    def borrow(self) -> Iterator[Connection]:
        """Lend a connection that has just answered."""
        connection = self._take()
        try:
            yield connection
        finally:
            if connection.closed:
                connection.close()
            else:
                self._idle.put(connection)

    def close(self) -> None:
        """Close all idle connections."""
        while (connection := self._next_idle()) is not None:
            connection.close()

    @property
    def idle_count(self) -> int:
        """How many connections wait for a request."""
        return self._idle.qsize()

    def _take(self) -> Connection:
        while (connection := self._next_idle()) is not None:
            try:
                connection.execute("SELECT 1")
            except psycopg.OperationalError:
                connection.close()
            else:
                return connection
        return psycopg.connect(
            self._dsn,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="bookedbarber-api (demo)",
            options=f"-c statement_timeout={_STATEMENT_TIMEOUT_MS}",
        )

    def _next_idle(self) -> Connection | None:
        try:
            return self._idle.get_nowait()
        except Empty:
            return None


def book(connection: Connection, request: BookingRequest, key: str) -> Booked:
    """Write appointment, payment, confirmation and idempotency key together. Safe to repeat with the same key.

    Raises:
        BookingRefused: client, barber or service do not exist, or the key belongs to another request.
    """
    digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [key])
        earlier = connection.execute(
            "SELECT request_hash, response_data FROM idempotency_keys WHERE key = %s", [key]
        ).fetchone()
        if earlier is not None:
            if earlier["request_hash"] != digest:
                raise BookingRefused("this idempotency key was used for another request")
            return Booked.model_validate({**earlier["response_data"], "repeated": True})
        booked = _write_booking(connection, request)
        response = json.loads(booked.model_dump_json(exclude={"repeated"}))
        connection.execute(
            _INSERT_KEY,
            [key, digest, Json(response), booked.appointment_id],
        )
    return booked


def capture(connection: Connection, payment_id: int) -> DictRow | None:
    """Complete a pending payment and return it, or None when it is not pending."""
    return connection.execute(
        "UPDATE payments SET status = 'completed', updated_at = now() WHERE id = %s AND status = 'pending'"
        " RETURNING id, appointment_id, user_id, amount",
        [payment_id],
    ).fetchone()


def cancel(connection: Connection, appointment_id: int) -> DictRow | None:
    """Cancel an appointment, refund what was paid, and return it; None when it cannot be cancelled any more."""
    with connection.transaction():
        cancelled = connection.execute(
            "UPDATE appointments SET status = 'cancelled', version = version + 1"
            " WHERE id = %s AND status IN ('pending', 'confirmed', 'scheduled') RETURNING id, user_id, price",
            [appointment_id],
        ).fetchone()
        if cancelled is None:
            return None
        connection.execute(
            _REFUND,
            [_stripe_id("re"), appointment_id],
        )
        connection.execute(
            "UPDATE notification_queue SET status = 'CANCELLED', updated_at = now()"
            " WHERE appointment_id = %s AND status = 'PENDING'",
            [appointment_id],
        )
    return cancelled


def _write_booking(connection: Connection, request: BookingRequest) -> Booked:
    status = {"completed": "confirmed", "failed": "cancelled"}.get(request.payment_status, "pending")
    appointment = connection.execute(
        _INSERT_APPOINTMENT,
        {**request.model_dump(), "status": status},
    ).fetchone()
    if appointment is None:
        raise BookingRefused("client_id, barber_id or service_id does not exist")
    payment = connection.execute(
        _INSERT_PAYMENT,
        [
            *(appointment[name] for name in ("user_id", "id", "barber_id", "price")),
            request.payment_status,
            _stripe_id("ch"),
            _stripe_id("pi"),
            appointment["price"] * 20 / 100,
            appointment["price"] - appointment["price"] * 20 / 100,
        ],
    ).fetchone()
    if payment is None:
        raise BookingRefused("the payment could not be written")
    connection.execute(
        _INSERT_CONFIRMATION,
        [
            appointment["user_id"],
            appointment["id"],
            f"We look forward to seeing you. Reference BB-{appointment['id']}.",
        ],
    )
    return Booked(
        appointment_id=appointment["id"], payment_id=payment["id"], amount=appointment["price"], status=status
    )


def _stripe_id(prefix: str) -> str:
    return f"{prefix}_demo{secrets.token_hex(10)[:19]}"
