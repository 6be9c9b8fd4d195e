"""The demo's customers: they book, pay and cancel at a gentle rate for as long as the booking API runs."""

import logging
import random
import secrets
import threading
from collections import deque
from datetime import timedelta

import psycopg

from bb_ops.clock import SystemClock
from bb_ops.demo import booking
from bb_ops.demo.booking import BookingRequest, Connections

logger = logging.getLogger(__name__)

_DAYS_AHEAD = 30
_OPENING_HOUR, _HOURS_OPEN = 9, 9
_PAUSE_WHEN_DOWN_S = 0.5
_REMEMBERED = 500
_SHARE_BOOKINGS, _SHARE_PAYMENTS = 0.8, 0.1  # the rest are cancellations
_SHARE_PAID, _SHARE_FAILED = 0.88, 0.02  # of new bookings; the rest pay later

_CHOOSE = """
    SELECT
        (SELECT id FROM clients WHERE id >= %(client)s * (SELECT max(id) FROM clients) ORDER BY id LIMIT 1)
            AS client_id,
        (SELECT barber_id FROM barber_locations OFFSET floor(%(barber)s * (SELECT count(*) FROM barber_locations))
            LIMIT 1) AS barber_id,
        (SELECT id FROM services OFFSET floor(%(service)s * (SELECT count(*) FROM services)) LIMIT 1) AS service_id
"""


class Traffic(threading.Thread):
    """Posts bookings, payments and cancellations until told to stop; survives a restart of the database."""

    def __init__(self, connections: Connections, *, rate_per_s: float) -> None:
        """Prepare the thread; ``start`` begins the traffic."""
        super().__init__(name="traffic", daemon=True)
        self._connections = connections
        self._rate_per_s = rate_per_s
        self._stopping = threading.Event()
        self._random = random.Random()
        self._pending_payments: deque[int] = deque(maxlen=_REMEMBERED)
        self._appointments: deque[int] = deque(maxlen=_REMEMBERED)

    def stop(self) -> None:
        """Ask the thread to end after what it is doing."""
        self._stopping.set()

    def run(self) -> None:
        """Act, pause, and again; the pauses are those of independent customers (exponential)."""
        while not self._stopping.is_set():
            pause_s = self._random.expovariate(self._rate_per_s)
            try:
                self._act()
            except (psycopg.Error, booking.BookingRefused) as error:
                logger.warning(
                    "traffic could not act", extra={"event_type": "request_error", "exception": type(error).__name__}
                )
                pause_s = max(pause_s, _PAUSE_WHEN_DOWN_S)
            self._stopping.wait(pause_s)

    def _act(self) -> None:
        with self._connections.borrow() as connection:
            choice = self._random.random()
            if choice >= _SHARE_BOOKINGS + _SHARE_PAYMENTS and self._appointments:
                self._cancel(connection)
            elif choice >= _SHARE_BOOKINGS and self._pending_payments:
                self._pay(connection)
            else:
                self._book(connection)

    def _book(self, connection: booking.Connection) -> None:
        request = self._some_request(connection)
        booked = booking.book(connection, request, key=f"traffic-{secrets.token_hex(12)}")
        log_booking(booked)
        if request.payment_status == "pending":
            self._pending_payments.append(booked.payment_id)
        elif request.payment_status == "completed":
            self._appointments.append(booked.appointment_id)

    def _pay(self, connection: booking.Connection) -> None:
        paid = booking.capture(connection, self._pending_payments.popleft())
        if paid is not None:
            _log_payment("payment_succeeded", paid["id"], paid["amount"], success=True)

    def _cancel(self, connection: booking.Connection) -> None:
        chosen = self._appointments[self._random.randrange(len(self._appointments))]
        self._appointments.remove(chosen)
        cancelled = booking.cancel(connection, chosen)
        if cancelled is not None:
            _log_booking_event("booking_cancelled", cancelled["id"], cancelled["user_id"])

    def _some_request(self, connection: booking.Connection) -> BookingRequest:
        chosen = connection.execute(
            _CHOOSE,
            {name: self._random.random() for name in ("client", "barber", "service")},
        ).fetchone()
        day = (SystemClock().now() + timedelta(days=self._random.randint(1, _DAYS_AHEAD))).replace(
            hour=_OPENING_HOUR, minute=0, second=0, microsecond=0
        )
        luck = self._random.random()
        paid, failed = luck < _SHARE_PAID, luck >= 1 - _SHARE_FAILED
        return BookingRequest(
            **(chosen or {}),
            start_time=day + timedelta(minutes=30 * self._random.randrange(2 * _HOURS_OPEN)),
            payment_status="completed" if paid else "failed" if failed else "pending",
        )


def log_booking(booked: booking.Booked) -> None:
    """Log a booking and its payment as the application does: one JSON line each."""
    _log_booking_event("booking_created", booked.appointment_id, None)
    success = booked.status == "confirmed"
    _log_payment(
        "payment_succeeded" if success else "payment_initiated", booked.payment_id, booked.amount, success=success
    )


def _log_booking_event(event: str, appointment_id: int, user_id: int | None) -> None:
    extra = {
        "event_type": "booking",
        "booking_event": event,
        "success": True,
        "details": {"appointment_id": appointment_id},
    }
    logger.info("Booking event", extra={**extra, **({} if user_id is None else {"user_id": user_id})})


def _log_payment(event: str, payment_id: int, amount: float, *, success: bool) -> None:
    extra = {"event_type": "payment", "payment_event": event, "success": success, "amount": f"${amount:.2f}"}
    logger.info("Payment event", extra={**extra, "details": {"payment_id": payment_id}})
