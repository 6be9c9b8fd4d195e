"""Take WAL files that an archive_command puts into a spool folder, and store them; nothing starts per file.

The command's shell client waits for the answer: a file is acknowledged only once it is durable in the repository.
"""

import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from bb_ops.backup.wal_admission import FileAdmission, WalForm
from bb_ops.backup.wal_options import WalOptions
from bb_ops.backup.wal_segment import Archive, Segment
from bb_ops.backup.wal_writer import WalWriter
from bb_ops.clock import Clock
from bb_ops.errors import BbOpsError, IntegrityError, StoreFailed
from bb_ops.files import make_directory, write_atomic
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.wal_file import HEADER_BYTES, WalFileHeader, read_header
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
FOLDERS = ("push", "done", "failed", "want", "ready", "absent")
_CHUNK_BYTES = 1 << 20
_STORE_TIMEOUT_S = 50.0
_NAME_DIGITS = 24


def prepare_spool(spool: Path) -> None:
    """Make the spool's folders, and clear answers that nobody waits for any more."""
    for folder in FOLDERS:
        make_directory(spool / folder)
        if folder not in {"push", "want"}:  # what is asked of us while we are away is answered now
            for path in (spool / folder).iterdir():
                path.unlink(missing_ok=True)


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

    def step(self) -> int:
        """Store what waits; return how many files were dealt with."""
        waiting = sorted(path for path in (self._spool / "push").iterdir() if not path.name.startswith("."))
        for path in waiting:
            try:
                self._store(path)
            except BbOpsError as error:
                _LOGGER.error("a WAL file is refused", extra={"file": path.name, "reason": str(error)})  # noqa: TRY400
                write_atomic(self._spool / "failed" / path.name, f"bb-ops: {error}\n".encode(), 0o644)
            else:
                write_atomic(self._spool / "done" / path.name, b"", 0o644)
            with suppress(FileNotFoundError):
                path.unlink()
        return len(waiting)

    def close(self) -> None:
        """End the threads."""
        if self._writer is not None:
            self._writer.close()

    def _store(self, path: Path) -> None:
        if path.name.endswith(".history"):
            if self._writer is None:  # a promoted server asks for this first
                self._writer = WalWriter(self._archive(*self._admission.owner(path.name)), Lsn(0))
            self._writer.history(int(path.name[:8], 16), path.read_bytes())
        elif len(path.name) == _NAME_DIGITS:
            self._store_segment(path)
        else:
            _LOGGER.info("not kept: no restore needs it", extra={"file": path.name})

    def _store_segment(self, path: Path) -> None:
        with path.open("rb") as handle:
            header = read_header(path.name, handle.read(HEADER_BYTES))
            writer = self._writer_for(path.name, header)
            segment = Segment(writer.archive, int(path.name[:8], 16), header.start)
            handle.seek(0)
            while piece := handle.read(_CHUNK_BYTES):
                segment.take(memoryview(piece), 0, None)
        if not segment.whole:
            raise IntegrityError(f"{path.name} has {segment.offset} bytes instead of {header.segment_bytes}")
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else None
        writer.segment(segment, at)
        writer.partial(Segment(writer.archive, segment.timeline, Lsn(segment.end)), at)
        if not writer.wait_until_settled(_STORE_TIMEOUT_S):
            self._writer = None
            writer.close()
            raise StoreFailed(f"{path.name} could not be stored in time: {writer.outage.reason or 'no answer'}")

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
            system_id=system_id,
            segment_bytes=form.segment_bytes,
            server_major=form.server_major,
            seal=self._repository.seal(self._options.compression_level, 0),
            scratch=self._options.scratch,
            clock=self._clock,
        )
