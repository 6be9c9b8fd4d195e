"""Put a proven copy in the place of a live data directory, or everything back as it was; safe to kill at any point.

Where a switch stands is read from the disk: a directory keeps its inode whatever it is called.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from pathlib import Path

from bb_ops.clock import Clock
from bb_ops.errors import BbOpsError, Locked, ProgramFailed, TargetRefused
from bb_ops.files import fsync_directory, write_atomic
from bb_ops.postgres.data_directory import (
    give,
    inode_of,
    owner_of,
    read_data_directory,
    server_in,
    start_as_before,
    stop_server,
    tablespaces_of,
)
from bb_ops.postgres.programs import find_programs
from bb_ops.postgres.scratch import forget_configuration
from bb_ops.recovery.restore import NO_ARCHIVING
from bb_ops.recovery.switch.journal import Journal, Step, forget_proven, spaces_path
from bb_ops.recovery.target import Target, finish_target

_LOGGER = logging.getLogger(__name__)
_START_TIMEOUT_S = 3600.0
_CONFIGURATION = ("*.conf", "conf.d/*", "*.crt", "*.key", "*.pem", "*.crl")
"""What the live server's word counts for; all else is as it was at the copy's moment."""
_NEW = ".bb_ops-new"


class Place(Enum):
    """Where a switch stands on the disk."""

    BEFORE = auto()
    HALF = auto()
    AFTER = auto()


def carry_out(journal: Journal, clock: Clock, bindirs: tuple[Path, ...]) -> Journal:
    """Do what is left of a switch, up to a running server. Safe to kill: called again it goes on, forward or back.

    Raises:
        ProgramFailed: something failed: the old data directory is back in its place, and its server runs if it did.
        TargetRefused: the directories are not what the journal names.
        Locked: another one does it at this moment.
    """
    with _alone(journal):
        exchange = _Exchange(journal, clock, bindirs)
        if journal.failure is not None:
            exchange.back(journal.failure)
        elif not journal.did(Step.STARTED):
            place = exchange.place()
            try:
                exchange.forward(place)
            except BaseException as error:
                reason = str(error) if isinstance(error, BbOpsError | OSError) else "it was interrupted"
                exchange.back(reason, interrupted=not isinstance(error, BbOpsError | OSError))
                raise
        forget_proven(journal.copy_path)  # what lay there is the cluster from now on
        return exchange.journal


class _Exchange:
    def __init__(self, journal: Journal, clock: Clock, bindirs: tuple[Path, ...]) -> None:
        self.journal = journal
        self._clock = clock
        self._bindirs = bindirs

    def forward(self, place: Place) -> None:
        """Stop, prepare, rename twice, start; from where it stands."""
        journal = self.journal
        if place == Place.BEFORE:
            self._did(Step.BEGUN, f"confirmed: plan {journal.plan_hash}")
            self._did(Step.COPY_STOPPED, self._stop(journal.copy_path))
            forget_configuration(journal.copy_path)
            self._did(Step.COPY_PREPARED, self._prepare())
            self._check_copy()
            self._did(Step.LIVE_STOPPED, self._stop(journal.replace))
            _rename(journal.replace, journal.old)
            place = Place.HALF
        self._did(Step.OLD_ASIDE, f"{journal.replace} is {journal.old} now")
        if place == Place.HALF:
            _rename(journal.copy_path, journal.replace)
        self._did(Step.COPY_IN_PLACE, f"{journal.copy_path} is {journal.replace} now")
        pid = self._start()
        self._did(Step.STARTED, f"process {pid} answers in {journal.replace}")

    def back(self, reason: str, *, interrupted: bool = False) -> None:
        """Put everything back as it was, and say so.

        Raises:
            ProgramFailed: always, unless we were interrupted: that is said by another error.
        """
        journal = self.journal
        self.journal = journal.model_copy(update={"failure": reason})
        self.journal.keep()
        try:
            if self.place() == Place.AFTER:
                self._stop(journal.replace)
                _rename(journal.replace, journal.copy_path)
            if self.place() == Place.HALF:
                _rename(journal.old, journal.replace)
            if journal.was_running and server_in(journal.replace) is None:
                self._start()
        except BbOpsError as error:
            raise ProgramFailed(
                f"{reason}; and the way back failed: {error}: mend that and repeat the same command, the old data "
                f"directory is {journal.old if journal.old.exists() else journal.replace}"
            ) from error
        self._did(Step.ROLLED_BACK, reason)
        if not interrupted:
            running = "runs" if server_in(journal.replace) is not None else "is stopped, as it was before"
            raise ProgramFailed(
                f"{reason}; the old cluster is back in {journal.replace} and {running}; the copy is in "
                f"{journal.copy_path}"
            )

    def place(self) -> Place:
        """Look where it stands.

        Raises:
            TargetRefused: nowhere that we know.
        """
        journal = self.journal
        here, old, copy = (inode_of(path) for path in (journal.replace, journal.old, journal.copy_path))
        if here == journal.copy_inode and old == journal.live_inode:
            return Place.AFTER
        if here is None and old == journal.live_inode and copy == journal.copy_inode:
            return Place.HALF
        if here == journal.live_inode and copy == journal.copy_inode:
            return Place.BEFORE
        raise TargetRefused(
            f"{journal.replace}, {journal.old} and {journal.copy_path} are not the directories that {journal.path} "
            "names: nothing was changed; put them back, or move that file away"
        )

    def _did(self, step: Step, evidence: str) -> None:
        _LOGGER.info("switch", extra={"step": str(step), "evidence": evidence})
        self.journal = self.journal.with_step(step, evidence, self._clock)

    def _stop(self, directory: Path) -> str:
        major = int((directory / "PG_VERSION").read_text(encoding="ascii").strip())
        return stop_server(directory, major, self._bindirs)

    def _start(self) -> int:
        journal = self.journal
        words = journal.command_line
        if not words:
            major = int((journal.replace / "PG_VERSION").read_text(encoding="ascii").strip())
            words = (str(find_programs(major, self._bindirs).path("postgres")), "-D", str(journal.replace))
        return start_as_before(words, journal.replace, journal.log, _START_TIMEOUT_S)

    def _prepare(self) -> str:
        journal = self.journal
        copy = journal.copy_path
        finish_target(Target(copy, copy, None))
        moved = _move_tablespaces(copy, spaces_path(journal.replace, journal.id))
        taken = take_configuration(journal.replace, copy)
        fsync_directory(copy)
        return f"configuration of the live server: {', '.join(taken) or 'none'}; tablespaces: {moved}"

    def _check_copy(self) -> None:
        """Look at the copy once more before the live server is stopped for it."""
        proven = self.journal.proven
        copy = read_data_directory(self.journal.copy_path, self._bindirs)
        if (copy.system_id, copy.timeline) != (proven.system_id, proven.timeline) or not copy.shut_down:
            raise ProgramFailed(f"{copy.path} is not the copy that was proven, or was not stopped in an orderly way")


def take_configuration(live: Path, copy: Path) -> list[str]:
    """Give a copy the configuration of the live server; return the names. What the copy may not archive ends with it.

    The live one counts, not that of the backup: the server comes up as it was run last, with certificates that are
    valid today. Repeatable.
    """
    owner = owner_of(copy)
    allow_archiving(copy)
    taken = []
    for pattern in _CONFIGURATION:
        for path in sorted(live.glob(pattern)):
            if not path.is_file():
                continue
            place = copy / path.relative_to(live)
            if not place.parent.exists():
                place.parent.mkdir(mode=0o700)
                give(place.parent, owner)
            new = place.with_name(f"{place.name}{_NEW}")
            new.unlink(missing_ok=True)
            shutil.copy2(path, new, follow_symlinks=False)
            give(new, owner)
            new.replace(place)
            _sync(place)
            taken.append(str(path.relative_to(live)))
    return taken


def allow_archiving(directory: Path) -> None:
    """Take back what kept a restored copy from archiving: from now on it is the cluster. Repeatable."""
    path = directory / "postgresql.auto.conf"
    text = path.read_bytes() if path.exists() else b""
    if NO_ARCHIVING in text:
        write_atomic(path, text.replace(NO_ARCHIVING, b""))
        give(path, owner_of(directory))


def _move_tablespaces(copy: Path, place: Path) -> str:
    """Move a copy's tablespaces beside what it becomes, so that its place is free for the next copy. Repeatable."""
    spaces = copy.with_name(f"{copy.name}.tablespaces")
    links = tablespaces_of(copy)
    if not links:
        return "none"
    if spaces.exists() and not place.exists():
        _rename(spaces, place)
    owner = owner_of(copy)
    for oid, location in links.items():
        if location.parent == spaces and (place / str(oid)).is_dir():
            new = copy / f"{oid}{_NEW}"
            new.unlink(missing_ok=True)
            new.symlink_to(place / str(oid))
            give(new, owner)
            new.replace(copy / "pg_tblspc" / str(oid))
    fsync_directory(copy / "pg_tblspc")
    return ", ".join(f"{oid} in {location}" for oid, location in sorted(tablespaces_of(copy).items()))


def _rename(path: Path, to: Path) -> None:
    if inode_of(to) is not None:
        raise ProgramFailed(f"{to} exists already: {path} was not renamed")
    try:
        path.rename(to)
    except OSError as error:
        raise ProgramFailed(f"{path} cannot be renamed to {to}: {error.strerror}") from error
    for parent in {path.parent, to.parent}:
        fsync_directory(parent)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(journal: Journal) -> Iterator[None]:
    """Keep others from the same directories while we live; a killed run keeps nobody."""
    with ExitStack() as stack:
        for path in (journal.replace, journal.old, journal.copy_path):
            if inode_of(path) not in {journal.copy_inode, journal.live_inode}:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked(f"another switch works on {path} at this moment: wait for its end") from error
        yield
