"""The demo booking API: a stand-in for the application's backend, with customers of its own.

``DATABASE_URL=... python -m bb_ops.demo.api --port N --directory DIR``; the connection string comes by environment so
that it is on no command line. It binds to the loopback address, has no authentication, and ends on SIGTERM.
"""

import argparse
import json
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
from pydantic import ValidationError

from bb_ops.clock import Stopwatch
from bb_ops.demo import booking, health, logs, traffic
from bb_ops.demo.booking import BookingRefused, BookingRequest, Connections
from bb_ops.demo.ports import HOST
from bb_ops.demo.traffic import Traffic

logger = logging.getLogger(__name__)

SERVICE = "BookedBarber API (demo)"
DEFAULT_RATE_PER_S = 5.0

_MAX_BODY_BYTES = 64 * 1024
Answer = Callable[[], tuple[HTTPStatus, Mapping[str, object]]]


class Server(ThreadingHTTPServer):
    """The HTTP server, with what its handlers need."""

    daemon_threads = True

    def __init__(self, port: int, connections: Connections) -> None:
        """Bind to the loopback address."""
        super().__init__((HOST, port), Handler)
        self.connections = connections


class Handler(BaseHTTPRequestHandler):
    """Answers one client's requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Answer the health questions."""
        self._timed(self._get)

    def do_POST(self) -> None:
        """Take a booking."""
        self._timed(self._post)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Keep the base class from writing to stderr; requests are logged as JSON lines."""

    def _get(self) -> tuple[HTTPStatus, Mapping[str, object]]:
        if self.path == "/health":
            return HTTPStatus.OK, {"status": "healthy", "service": SERVICE}
        if self.path == "/api/v1/health/detailed":
            measured = health.measured(self.server.connections, SERVICE)
            healthy = measured["status"] != "unhealthy"
            return HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, measured
        return HTTPStatus.NOT_FOUND, {"detail": "Not Found"}

    def _post(self) -> tuple[HTTPStatus, Mapping[str, object]]:
        body = self._body()
        if body is None:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"detail": "the request needs a body of at most 64 KiB"}
        if self.path != "/api/v2/bookings":
            return HTTPStatus.NOT_FOUND, {"detail": "Not Found"}
        try:
            return self._book(body)
        except ValidationError as error:
            detail = json.loads(error.json(include_url=False, include_input=False))
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": detail}
        except (BookingRefused, psycopg.DataError) as error:
            detail = str(error) if isinstance(error, BookingRefused) else "a value is out of range"
            return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": detail}
        except psycopg.Error:
            detail = "the database does not answer: try again with the same Idempotency-Key"
            return HTTPStatus.SERVICE_UNAVAILABLE, {"detail": detail}

    def _book(self, body: bytes) -> tuple[HTTPStatus, Mapping[str, object]]:
        request = BookingRequest.model_validate_json(body)
        key = self.headers.get("Idempotency-Key") or secrets.token_hex(16)
        with self.server.connections.borrow() as connection:
            booked = booking.book(connection, request, key)
        if not booked.repeated:
            traffic.log_booking(booked)
        return HTTPStatus.OK if booked.repeated else HTTPStatus.CREATED, booked.model_dump(mode="json")

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            return None
        return self.rfile.read(int(length))

    def _timed(self, answer: Answer) -> None:
        watch = Stopwatch()
        status, document = answer()
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
        logger.info(
            "Request complete",
            extra={
                "event_type": "request_complete",
                "endpoint": f"{self.command} {self.path}",
                "response_time": watch.elapsed_s,
                "status_code": int(status),
                "ip_address": "127.0.*.1",
            },
        )


def main() -> None:
    """Serve, with traffic, until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="The demo booking API of bb_ops.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True, help="where the folder 'logs' is kept")
    parser.add_argument(
        "--rate", type=float, default=DEFAULT_RATE_PER_S, help="customers' actions per second; 0 for none"
    )
    options = parser.parse_args()
    logs.configure(options.directory / "logs")
    connections = Connections(os.environ["DATABASE_URL"])
    server = Server(options.port, connections)
    customers = Traffic(connections, rate_per_s=options.rate) if options.rate > 0 else None
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    if customers is not None:
        customers.start()
    stopping.wait()
    if customers is not None:
        customers.stop()
        customers.join(timeout=5)
    server.shutdown()
    server.server_close()
    connections.close()


if __name__ == "__main__":
    main()
