"""Answer a restore_command's shell client, and fetch the following segments ahead of it."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bb_ops.errors import BbOpsError
from bb_ops.files import write_atomic
from bb_ops.postgres.lsn import Lsn, segment_name
from bb_ops.recovery.wal import fetch_file
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal_listing import TimelineWal

_LOGGER = logging.getLogger(__name__)
_AHEAD = 6
_THREADS = 3
_NAME_DIGITS = 24


class Fetcher:
    """Fetches what is asked for in the spool's ``want`` folder, and what will be asked for next."""

    def __init__(self, spool: Path, repository: Repository, system_id: str) -> None:
        """Name the spool and whose WAL it is."""
        self._spool = spool
        self._repository = repository
        self._system_id = system_id
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
        self._running: dict[str, Future[bool]] = {}
        self._sizes: dict[int, int | None] = {}

    def step(self) -> int:
        """Answer what can be answered; return how many requests were seen."""
        wanted = sorted(path.name for path in (self._spool / "want").iterdir())
        for name in wanted:
            if self._begin(name):
                for following in self._following(name):
                    self._begin(following)
        for name, future in list(self._running.items()):
            if future.done():
                del self._running[name]
                self._answer(name, future, asked=name in wanted)
        return len(wanted)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, name: str) -> bool:
        if name in self._running or (self._spool / "ready" / name).exists():
            return False
        self._running[name] = self._pool.submit(self._fetch, name)
        return True

    def _fetch(self, name: str) -> bool:
        if len(name) != _NAME_DIGITS and not name.endswith(".history"):
            return False
        return fetch_file(self._repository, self._system_id, name, self._spool / "ready" / name)

    def _answer(self, name: str, future: "Future[bool]", *, asked: bool) -> None:
        try:
            found = future.result()
        except BbOpsError as error:
            if asked:
                _LOGGER.error("a WAL file cannot be fetched", extra={"file": name, "reason": str(error)})  # noqa: TRY400
                write_atomic(self._spool / "failed" / name, f"bb-ops: {error}\n".encode(), 0o644)
        else:
            if asked and not found:
                write_atomic(self._spool / "absent" / name, b"", 0o644)
        if asked:
            (self._spool / "want" / name).unlink(missing_ok=True)

    def _following(self, name: str) -> Iterator[str]:
        if len(name) != _NAME_DIGITS:
            return
        timeline = int(name[:8], 16)
        if timeline not in self._sizes:
            self._sizes[timeline] = wal_reader.segment_size(self._repository, self._system_id, TimelineWal(timeline))
        size = self._sizes[timeline]
        if size is None:
            return
        start = wal.segment_position(name, size)
        for number in range(1, _AHEAD + 1):
            following = Lsn(start + number * size)
            yield segment_name(timeline, following, size)
