"""Fetch archived WAL ahead of a recovery, so that its restore_command only renames a file that is there already.

Everything lies in one folder inside the data directory, on its file system. What is fetched was decrypted, decompressed
and compared with its signed hash; a file that is damaged aborts the recovery, which must never end early by mistake.
"""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Thread
from types import TracebackType
from typing import Self

from bb_ops.clock import sleep
from bb_ops.errors import BbOpsError, IntegrityError, TargetRefused
from bb_ops.postgres.timelines import history_name
from bb_ops.progress import Progress
from bb_ops.recovery.moment.branch import Leg, segments_of
from bb_ops.recovery.target import Target
from bb_ops.recovery.wal import write_file, write_unfinished
from bb_ops.repository import wal_reader
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal_listing import TimelineWal
from bb_ops.repository.wal_reader import ReceiptReader
from bb_ops.repository.windows import WalFacts

FOLDER = ".bb_ops-wal"
RESTORE_COMMAND = f"mv {FOLDER}/ready/%f %p 2>/dev/null || exec sh {FOLDER}/fetch %f %p"
"""PostgreSQL runs it in the data directory; a rename is all that most segments need."""
_CLIENT = """# restore_command of one recovery: exit 1 only when the file is really absent; 126 aborts the recovery.
cd {folder} || exit 126
if [ -e "history/$1" ]; then exec cp "history/$1" "../$2"; fi
: >"want/$1" || exit 126
while [ -e /proc/{pid} ]; do
    if mv "ready/$1" "../$2" 2>/dev/null; then rm -f "want/$1"; exit 0; fi
    if [ -e "absent/$1" ]; then exit 1; fi
    if [ -e "failed/$1" ]; then exit 126; fi
    sleep 0.01
done
exit 126
"""
_FOLDERS = ("ready", "want", "absent", "failed", "history")
_AHEAD_BYTES = 256 << 20
_FEWEST_AHEAD = 4
_THREADS = 3
_ATTEMPTS = 4
_PAUSE_S = 0.005
_RETRY_PAUSE_S = 1.0


class WalFeed:
    """Feeds one recovery. Use as a context manager; safe to begin again after a kill."""

    def __init__(
        self, repository: Repository, facts: WalFacts, legs: tuple[Leg, ...], target: Target, progress: Progress
    ) -> None:
        """Name the archive, the way, and the data directory."""
        self._repository = repository
        self._facts = facts
        self._legs = legs
        self._target = target
        self._progress = progress
        self._folder = target.directory / FOLDER
        self._size = facts.segment_bytes or 1
        self._readers = {
            name: ReceiptReader(repository, listing, facts.system_id, self._size)
            for name, listing in facts.timelines.items()
        }
        self._names = dict.fromkeys(name for _, name in segments_of(legs, self._size))  # in order
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="feed")
        self._active: dict[str, Future[bool]] = {}
        self._stop = Event()
        self._thread = Thread(target=self._run, name="feed", daemon=True)
        self.errors: list[BbOpsError] = []

    @property
    def wal_bytes(self) -> int:
        """How much WAL the way holds."""
        return sum(leg.to_lsn - leg.from_lsn for leg in self._legs)

    def __enter__(self) -> Self:
        """Make the folder, write what is asked for more than once, and begin to fetch."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for path in (self._folder, *(self._folder / name for name in _FOLDERS)):
            path.mkdir(mode=0o700)
            self._target.chown(path)
        client = self._folder / "fetch"
        client.write_text(_CLIENT.format(folder=FOLDER, pid=os.getpid()), encoding="utf-8")
        self._target.chown(client)
        for timeline, listing in self._facts.timelines.items():
            if listing.history:
                self._write_history(timeline)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop fetching and remove what was not used."""
        self._stop.set()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_history(self, timeline: int) -> None:
        name = history_name(timeline)
        receipt = wal_reader.read_receipt(self._repository, TimelineWal(timeline), self._facts.system_id, name, 1)
        if receipt is None:
            raise IntegrityError(f"{self._repository.store.url}: the receipt of {name} is gone")
        path = self._folder / "history" / name
        write_file(self._repository, receipt, path, durable=False)
        self._target.chown(path)

    def _run(self) -> None:
        upcoming, consumed, wanted = iter(self._names), 0, set[str]()
        while not self._stop.is_set():
            ready = {path.name for path in (self._folder / "ready").iterdir()}
            used = [name for name, future in self._active.items() if future.done() and self._is_used(name, ready)]
            for name in used:
                del self._active[name]
            consumed += len(used)
            if used:
                self._progress("replay", min(consumed * self._size, self.wal_bytes), self.wal_bytes)
            while len(self._active) < self._ahead and (name := next(upcoming, "")):
                self._begin(name)
            wanted = self._answer(ready, wanted)
            sleep(_PAUSE_S)

    @property
    def _ahead(self) -> int:
        return max(_FEWEST_AHEAD, _AHEAD_BYTES // self._size)

    def _is_used(self, name: str, ready: set[str]) -> bool:
        return self._active[name].result() and name not in ready

    def _begin(self, name: str) -> None:
        if name not in self._active:
            self._active[name] = self._pool.submit(self._fetch, name)

    def _answer(self, ready: set[str], before: set[str]) -> set[str]:
        """Answer what the client waits for, and return what of it was used before and is wanted once more.

        That is fetched again when it is still wanted in the next round: the client takes its wish back itself.
        """
        again = set[str]()
        for name in [path.name for path in (self._folder / "want").iterdir()]:
            future = self._active.get(name)
            if name in ready:
                continue
            if name not in self._names:
                (self._folder / "absent" / name).touch()
            elif future is None and name in before:
                self._begin(name)
            elif future is None:
                again.add(name)
            elif future.done() and not future.result():
                (self._folder / "failed" / name).touch()
        return again

    def _fetch(self, name: str) -> bool:
        """Fetch one file; return whether it is there. The reason why not is kept."""
        for attempt in range(_ATTEMPTS):
            try:
                self._write(name)
            except OSError as error:
                self.errors.append(TargetRefused(f"{self._target.directory}: {error.strerror}: {name}"))
                return False
            except BbOpsError as error:
                if not error.retryable or attempt + 1 == _ATTEMPTS or self._stop.is_set():
                    self.errors.append(error)
                    return False
                sleep(_RETRY_PAUSE_S)
            else:
                return True
        return False

    def _write(self, name: str) -> None:
        path, timeline = self._folder / name, int(name[:8], 16)
        reader = self._readers.get(timeline)
        receipt = reader.receipt(name) if reader is not None else None
        position = self._facts.positions.get(timeline)
        if receipt is not None:
            write_file(self._repository, receipt, path, durable=False)
        elif position is not None and position.segment == name:
            write_unfinished(self._repository, position, path, durable=False)
        else:
            raise IntegrityError(f"{self._repository.store.url}: the WAL file {name} is gone")
        self._target.chown(path)
        path.rename(self._folder / "ready" / name)
