"""How far the archived WAL is behind, as Prometheus reads it from a running streamer. Documented in docs/metrics.md.

What is not measured is absent, never zero: alert on ``absent()`` as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from bb_ops.errors import SettingsError

LOOPBACK = "127.0.0.1"
"""The endpoint has no authentication: nobody from outside may ask."""
_LABELS = ("cluster", "region")


class WalProgress(Protocol):
    """What is asked of a streamer; None is "not measured"."""

    @property
    def lag_s(self) -> float | None: ...  # noqa: D102
    @property
    def lag_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def retained_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def archived_lsn(self) -> int | None: ...  # noqa: D102


class WalCollector(Collector):
    """Makes gauges of a streamer's progress at each scrape."""

    def __init__(self, read: Callable[[], WalProgress], cluster: str, region: str) -> None:
        """Name what is read, and whose it is."""
        self._read = read
        self._labels = (cluster, region)

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge; one that is not measured has no sample."""
        found = self._read()
        yield self._gauge(
            "bb_ops_wal_lag_seconds", "Everything committed longer ago than this is archived.", found.lag_s
        )
        yield self._gauge(
            "bb_ops_wal_lag_bytes", "WAL that the server has and the repository has not.", found.lag_bytes
        )
        yield self._gauge(
            "bb_ops_wal_retained_bytes", "WAL that the slot makes the server keep on its disk.", found.retained_bytes
        )
        yield self._gauge(
            "bb_ops_wal_archived_lsn_bytes", "Position in the WAL up to which it is archived.", found.archived_lsn
        )

    def _gauge(self, name: str, help_text: str, value: float | None) -> Metric:
        gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
        if value is not None:
            gauge.add_metric(self._labels, value)
        return gauge


@contextmanager
def serving_wal_metrics(port: int, read: Callable[[], WalProgress], cluster: str, region: str) -> Iterator[None]:
    """Answer ``http://127.0.0.1:PORT/metrics`` during a block.

    Raises:
        SettingsError: the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(WalCollector(read, cluster, region))
    try:
        server, thread = start_http_server(port, LOOPBACK, registry)
    except OSError as error:
        raise SettingsError(
            f"--metrics-port {port}: {error.strerror} on {LOOPBACK}: choose another port, or end what listens there"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
