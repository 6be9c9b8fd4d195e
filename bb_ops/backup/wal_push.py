"""Take WAL files that an archive_command puts into a spool folder, and store them; nothing starts per file.

The command's shell client waits for the answer: a file is acknowledged only once it is durable in the repository.
"""

import logging
import os
from collections import deque
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bb_ops.backup.wal_admission import FileAdmission, WalForm
from bb_ops.backup.wal_options import WalOptions
from bb_ops.backup.wal_segment import Archive, Segment
from bb_ops.backup.wal_writer import WalWriter
from bb_ops.clock import Clock, Stopwatch
from bb_ops.errors import BbOpsError, IntegrityError
from bb_ops.files import make_directory, partial_path, write_atomic
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.wal_file import HEADER_BYTES, WalFileHeader, read_header
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
FOLDERS = ("push", "done", "failed", "want", "ready", "absent")
_CHUNK_BYTES = 1 << 20
_STORE_TIMEOUT_S = 50.0
_PAUSE_S = 0.02
_NAME_DIGITS = 24


def prepare_spool(spool: Path) -> None:
    """Make the spool's folders, and clear answers that nobody waits for any more."""
    for folder in FOLDERS:
        make_directory(spool / folder)
        if folder not in {"push", "want"}:  # what is asked of us while we are away is answered now
            for path in (spool / folder).iterdir():
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _OnWay:
    """A file that is being stored: which state of it, and since when; ``end`` of a segment."""

    path: Path
    modified_ns: int
    since: Stopwatch
    future: "Future[None]"
    end: "_End | None" = None


@dataclass(frozen=True)
class _End:
    """How far a stored segment reaches, and an instant whose every commit lies before that."""

    timeline: int
    lsn: Lsn
    at: datetime


class Pusher:
    """Stores what arrives in the spool. The caller holds the lock of WAL."""

    def __init__(self, spool: Path, repository: Repository, options: WalOptions, clock: Clock) -> None:
        """Name the spool; it was prepared."""
        self._spool = spool
        self._repository = repository
        self._options = options
        self._clock = clock
        self._admission = FileAdmission(repository)
        self._writer: WalWriter | None = None
        self._on_way: deque[_OnWay] = deque()
        self._end: _End | None = None
        self._refused: set[str] = set()

    def step(self) -> int:
        """Answer what is stored and begin with what waits, in order; return how many files are on their way."""
        self._settle()
        while self._on_way and self._on_way[0].future.done():
            self._answer(self._on_way.popleft())
        if self._on_way and self._on_way[0].since.elapsed_s > _STORE_TIMEOUT_S:
            self._give_up()
        begun = {entry.path.name for entry in self._on_way}
        for path in sorted((self._spool / "push").iterdir()):
            if self._writer is not None and self._writer.full:
                break
            if not path.name.startswith(".") and path.name not in begun:
                self._begin(path)
        if self._on_way:
            wait([self._on_way[0].future], _PAUSE_S)
        else:
            self._record_position()
        return len(self._on_way)

    def close(self) -> None:
        """End the threads."""
        if self._writer is not None:
            self._writer.close()

    def _settle(self) -> None:
        """Let the writer forget what has ended; each file is answered for by itself."""
        with suppress(BbOpsError, CancelledError):
            if self._writer is not None:
                self._writer.settle()

    def _begin(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # its client has gone, and took it back
            modified_ns = path.stat().st_mtime_ns
            try:
                self._on_way.append(self._store(path, modified_ns))
            except BbOpsError as error:
                failed: Future[None] = Future()
                failed.set_exception(error)
                self._on_way.append(_OnWay(path, modified_ns, Stopwatch(), failed))

    def _answer(self, entry: _OnWay) -> None:
        """Say what became of a file; its answer bears the instant of its last change, so that it is for no other."""
        try:
            entry.future.result()
        except (BbOpsError, CancelledError) as error:
            reason = str(error) or "it could not be stored in time"
            _LOGGER.error("a WAL file is refused", extra={"file": entry.path.name, "reason": reason})  # noqa: TRY400
            self._refused.add(entry.path.name)
            write_atomic(self._spool / "failed" / entry.path.name, f"bb-ops: {reason}\n".encode(), 0o644)
        else:
            self._refused.discard(entry.path.name)
            self._end = entry.end or self._end
            answer = self._spool / "done" / entry.path.name
            temporary = partial_path(answer)
            temporary.touch(0o644)
            os.utime(temporary, ns=(entry.modified_ns, entry.modified_ns))
            temporary.replace(answer)  # not flushed: after a crash the server asks again
        with suppress(FileNotFoundError):
            if entry.path.stat().st_mtime_ns == entry.modified_ns:
                entry.path.unlink()

    def _give_up(self) -> None:
        """Let the server ask again: the store is away. Whatever is on its way fails, or is stored after all."""
        if self._writer is not None:
            _LOGGER.error("WAL could not be stored in time", extra={"reason": self._writer.outage.reason})
            self._writer.close()
            self._writer = self._end = None
        while self._on_way:
            self._answer(self._on_way.popleft())

    def _record_position(self) -> None:
        """Record how far all is durable, once nothing is on its way; what was refused would be missing before it."""
        end, self._end = self._end, None
        if end is not None and self._writer is not None and not self._refused:
            self._writer.partial(Segment(self._writer.archive, end.timeline, end.lsn), end.at)

    def _store(self, path: Path, modified_ns: int) -> _OnWay:
        if len(path.name) == _NAME_DIGITS:
            return self._store_segment(path, modified_ns)
        if path.name.endswith(".history"):
            if self._writer is None:  # a promoted server asks for this first
                self._writer = WalWriter(self._archive(*self._admission.owner(path.name)), Lsn(0))
            self._writer.history(int(path.name[:8], 16), path.read_bytes())
        else:
            _LOGGER.info("not kept: no restore needs it", extra={"file": path.name})
        done: Future[None] = Future()
        done.set_result(None)
        return _OnWay(path, modified_ns, Stopwatch(), done)

    def _store_segment(self, path: Path, modified_ns: int) -> _OnWay:
        with path.open("rb") as handle:
            header = read_header(path.name, handle.read(HEADER_BYTES))
            writer = self._writer_for(path.name, header)
            segment = Segment(writer.archive, int(path.name[:8], 16), header.start)
            handle.seek(0)
            while piece := handle.read(_CHUNK_BYTES):
                segment.take(memoryview(piece), 0, None)
        if not segment.whole:
            raise IntegrityError(f"{path.name} has {segment.offset} bytes instead of {header.segment_bytes}")
        # The server writes in order: what was committed before its last write to a segment lies before the end of that.
        end = _End(segment.timeline, segment.end, datetime.fromtimestamp(modified_ns / 1e9, UTC))
        return _OnWay(path, modified_ns, Stopwatch(), writer.segment(segment, end.at), end)

    def _writer_for(self, name: str, header: WalFileHeader) -> WalWriter:
        form = self._admission.admit(name, header)
        if self._writer is not None and self._writer.archive.system_id == header.system_id:
            return self._writer
        self.close()
        self._writer = WalWriter(self._archive(header.system_id, form), Lsn(0))
        return self._writer

    def _archive(self, system_id: str, form: WalForm) -> Archive:
        return Archive(
            repository=self._repository,
            second=self._options.second,
            system_id=system_id,
            segment_bytes=form.segment_bytes,
            server_major=form.server_major,
            seal=self._repository.seal(self._options.compression_level, 0),
            scratch=self._options.scratch,
            clock=self._clock,
        )
