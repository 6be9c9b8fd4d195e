"""The demo application's log files: one JSON object per line, in the application's own format."""

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

_MEGABYTE = 1_000_000
_FILES = (("audit.log", 10 * _MEGABYTE, 10), ("performance.log", 10 * _MEGABYTE, 5))
_EXTRAS = (
    "user_id",
    "request_id",
    "ip_address",
    "endpoint",
    "response_time",
    "status_code",
    "event_type",
    "booking_event",
    "payment_event",
    "success",
    "amount",
    "details",
    "exception",
)


class JsonLines(logging.Formatter):
    """Formats a record as the application does: naive UTC ISO timestamp, fixed fields, then the extras that are set."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "module": record.module,
            "function": record.funcName,
            "line": record.lineno,
        }
        line.update({name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)})
        return json.dumps(line)


def configure(directory: Path) -> None:
    """Write bookings and payments to ``audit.log`` and requests to ``performance.log``, rotated by size."""
    directory.mkdir(exist_ok=True)
    for name, max_bytes, keep in _FILES:
        handler = RotatingFileHandler(directory / name, maxBytes=max_bytes, backupCount=keep, encoding="utf-8")
        handler.setFormatter(JsonLines())
        handler.addFilter(_OnlyRequests(wanted=name == "performance.log"))
        logging.getLogger("bb_ops.demo").addHandler(handler)
    logging.getLogger("bb_ops.demo").setLevel(logging.INFO)


class _OnlyRequests(logging.Filter):
    """Passes what concerns requests, or, when turned round, everything else."""

    def __init__(self, *, wanted: bool) -> None:
        super().__init__()
        self._wanted = wanted

    def filter(self, record: logging.LogRecord) -> bool:
        return str(getattr(record, "event_type", "")).startswith("request_") is self._wanted
