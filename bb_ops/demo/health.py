"""The demo application's own health answer: every figure in it is measured when asked for."""

import os
import shutil

import psycopg

from bb_ops.clock import Stopwatch, SystemClock
from bb_ops.demo.booking import Connections

_CPU_WARNING_PCT, _MEMORY_WARNING_PCT, _DISK_WARNING_PCT = 80.0, 85.0, 90.0  # the application's own thresholds
_KIB = 1024


def measured(connections: Connections, service: str) -> dict[str, object]:
    """Return the detailed health; ``status`` is the database's, since nothing works without it."""
    database = _database(connections)
    checks = {
        "database": database,
        "redis": {"status": "not_configured"},
        "system": {"cpu": _cpu(), "memory": _memory(), "disk": _disk()},
        "process": {"pid": os.getpid(), "resident_bytes": _status_kib("/proc/self/status", "VmRSS") * _KIB},
        "connection_pool": {"idle": connections.idle_count},
    }
    timestamp = SystemClock().now().replace(tzinfo=None).isoformat()
    return {"status": database["status"], "timestamp": timestamp, "service": service, "checks": checks}


def _database(connections: Connections) -> dict[str, object]:
    watch = Stopwatch()
    try:
        with connections.borrow() as connection:
            row = connection.execute(
                "SELECT current_setting('server_version') AS version, (SELECT count(*) FROM users) AS users"
            ).fetchone()
    except psycopg.Error as error:
        return {"status": "unhealthy", "error": type(error).__name__, "response_time": watch.elapsed_s}
    return {"status": "healthy", "response_time": watch.elapsed_s, **(row or {})}


def _cpu() -> dict[str, object]:
    load = os.getloadavg()[0]
    return _judged(100 * load / (os.cpu_count() or 1), _CPU_WARNING_PCT, load_1m=round(load, 2))


def _memory() -> dict[str, object]:
    total, available = (_status_kib("/proc/meminfo", name) for name in ("MemTotal", "MemAvailable"))
    return _judged(100 * (total - available) / total, _MEMORY_WARNING_PCT, total_bytes=total * _KIB)


def _disk() -> dict[str, object]:
    usage = shutil.disk_usage("/")
    return _judged(100 * usage.used / usage.total, _DISK_WARNING_PCT, free_bytes=usage.free)


def _judged(percent: float, warning_percent: float, **details: float) -> dict[str, object]:
    status = "warning" if percent > warning_percent else "healthy"
    return {"status": status, "percent": round(percent, 1), **details}


def _status_kib(path: str, name: str) -> int:
    with open(path, encoding="ascii", errors="replace") as handle:  # noqa: PTH123 - procfs, read line by line
        return next(int(line.split()[1]) for line in handle if line.startswith(f"{name}:"))
