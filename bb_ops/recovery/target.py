"""Where a restore may go: an empty place with room, that no server uses, or what a killed restore left."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints, ValidationError

from bb_ops import process
from bb_ops.clock import sleep
from bb_ops.errors import TargetRefused
from bb_ops.files import fsync_directory, is_partial, write_atomic
from bb_ops.findings import Value
from bb_ops.postgres.data_directory import server_in, stop_server
from bb_ops.process import Account
from bb_ops.recovery.finished_parts import RECORD, FinishedParts

MARKER = ".bb_ops-restore.json"
"""Says that a restore is under way in this directory, and so that everything in it is ours."""
OURS = (MARKER, RECORD)
"""What lies in a restored directory until it is finished, and belongs to no backup."""
COMBINED = "combined"
"""The step of a chain behind which nothing is extracted any more."""
_ROOM_FACTOR = 1.05
_ACCOUNTS = ("postgres", "nobody")
_BLOCK_BYTES = 512
"""The unit of ``st_blocks`` (stat(2)), whatever the file system's own."""
_REMOVAL_ATTEMPTS = 20
_REMOVAL_PAUSE_S = 0.1


@dataclass(frozen=True)
class Target:
    """A directory that a backup may be restored into.

    Attributes:
        directory: The data directory to be.
        tablespaces: Where tablespaces go, one folder each, named by oid; only made when there are any.
        owner: The account that will run the server; None where we are not root and run it ourselves.
        beside: Whether there are tablespaces; where there are none, their folder may be anybody's.
    """

    directory: Path
    tablespaces: Path
    owner: Account | None
    beside: bool = True

    def chown(self, path: Path) -> None:
        """Give a file or directory to the server's account."""
        if self.owner is not None:
            os.chown(path, self.owner.uid, self.owner.gid, follow_symlinks=False)


class _Mark(Value):
    """What a marked directory holds.

    Attributes:
        plan: What the caller wants beyond the backup, as a hash of its own; None where there is nothing.
        boot_id: The host's boot; what a restore of another one wrote may never have reached the disk.
        directory: Where the restore was begun; the names of what it made begin with it.
        beside: The folder of the tablespaces is ours too.
        phase: ``restored`` once every file is complete and checked; from then on a server may have changed them.
        writer: The process that works here, ``pid@ticks``.
    """

    schema_id: Literal["bb-ops/restore-mark/1"] = "bb-ops/restore-mark/1"
    backup_id: str
    plan: str | None
    boot_id: str
    directory: Path
    beside: bool
    phase: Literal["extracting", "restored"] = "extracting"
    writer: Annotated[str, StringConstraints(pattern=r"^[0-9]+@[0-9]+$")]


def server_account(wanted: str | None) -> Account | None:
    """Return the account that servers run as: ours, unless we are root, whom PostgreSQL refuses.

    Raises:
        UsageError: the wanted account does not exist.
    """
    if os.geteuid() != 0:
        return None
    if wanted is not None:
        return process.account(wanted)
    return process.first_account(_ACCOUNTS)


def check_target(directory: Path, owner: Account | None, needed_bytes: int, tablespace_oids: tuple[int, ...]) -> Target:
    """Prove that a restore into ``directory`` destroys nothing and has room; changes nothing.

    Raises:
        TargetRefused: it is not empty, a server or another restore works in it, it has too little room, or it cannot
            be reached.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow links
    tablespaces = directory.with_name(directory.name + ".tablespaces")
    target = Target(directory, tablespaces, owner, beside=bool(tablespace_oids))
    try:
        _check_place(target, needed_bytes)
    except OSError as error:
        raise TargetRefused(f"{directory} cannot be reached: {error.strerror}: choose another directory") from error
    return target


def prepare_target(target: Target, backup_id: str, plan: str | None = None) -> bool:
    """Make the directory and mark it as ours; keep of an interrupted restore what it had finished, and nothing else.

    Only the same restore goes on: of the same backup and plan, to the same place, in the same boot of the host. What
    its finished parts made stays; everything else in the directory is removed. Safe to repeat and to kill.

    Args:
        target: From ``check_target``.
        backup_id: The backup that is restored.
        plan: What else the caller wants done, as an opaque hash.

    Returns:
        Whether an interrupted restore is continued; False where the directory was cleared or begun.

    Raises:
        TargetRefused: it cannot be written to.
    """
    found = _read_mark(target.directory)
    beside = target.beside or (found is not None and found.beside)
    wanted = _Mark(
        backup_id=backup_id,
        plan=plan,
        boot_id=process.boot_id(),
        directory=target.directory,
        beside=beside,
        writer=_ourselves(),
    )
    parts = FinishedParts(target.directory)
    with writing_below(target.directory):
        _make_reachable(target)
        if found is None or found.model_copy(update={"writer": wanted.writer}) != wanted:
            parts.forget()
        write_atomic(target.directory / MARKER, wanted.model_dump_json().encode())
        if COMBINED not in parts:
            kept = parts.made() | {str(target.directory / name) for name in OURS}
            for directory in (target.directory, *((target.tablespaces,) if beside else ())):
                _sweep(directory, kept)
        target.directory.chmod(0o700)
        target.chown(target.directory)
    return bool(parts)


def mark_restored(target: Target) -> None:
    """Say durably that every file is complete and checked: from now on a server may change them.

    Raises:
        TargetRefused: the directory is not marked, or cannot be written to.
    """
    mark = _read_mark(target.directory)
    if mark is None:
        raise TargetRefused(f"{target.directory} is not marked as a restore")
    with writing_below(target.directory):
        restored = mark.model_copy(update={"phase": "restored", "writer": _ourselves()})
        write_atomic(target.directory / MARKER, restored.model_dump_json().encode())
        FinishedParts(target.directory).forget()


def is_restored(target: Target, backup_id: str, plan: str | None) -> bool:
    """Say whether the same restore, in this boot of the host, had come so far that its files were complete."""
    mark = _read_mark(target.directory)
    return mark is not None and mark == mark.model_copy(
        update={
            "backup_id": backup_id,
            "plan": plan,
            "boot_id": process.boot_id(),
            "directory": target.directory,
            "phase": "restored",
        }
    )


def begin_anew_next_time(target: Target) -> None:
    """Let the same restore, when it is repeated, keep nothing: what lies here is wrong, or is about to be changed."""
    FinishedParts(target.directory).forget()


def end_unfinished(directory: Path, major: int, bindirs: tuple[Path, ...]) -> None:
    """Stop the server that a killed run left in a directory which it had not handed over yet: it is ours. Repeatable.

    Raises:
        ProgramFailed: it does not stop.
        NotMeasured: PostgreSQL's programs are missing.
    """
    mark = _read_mark(directory)
    if mark is None or mark.phase != "restored" or _is_alive(mark):
        return
    if server_in(directory) is not None:
        stop_server(directory, major, bindirs)


def finish_target(target: Target) -> None:
    """Take the mark away: from now on the directory belongs to its user and is never touched again."""
    begin_anew_next_time(target)
    (target.directory / MARKER).unlink(missing_ok=True)


def cannot_write(directory: Path, error: OSError) -> TargetRefused:
    """Return what is said of a target that cannot be written to; what was finished there is kept."""
    return TargetRefused(f"cannot write below {directory}: {error.strerror}: mend that and run the same command again")


@contextmanager
def writing_below(directory: Path) -> Iterator[None]:
    """Say in one line that a target cannot be written to.

    Raises:
        TargetRefused: something in the block failed to write.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(directory, error) from error


def _check_place(target: Target, needed_bytes: int) -> None:
    directory, owner = target.directory, target.owner
    ours = _is_ours(directory)
    mark = _read_mark(directory)
    _check_empty(directory, ours=ours)
    if target.beside:
        _check_empty(target.tablespaces, ours=ours and mark is not None and mark.beside)
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise TargetRefused(f"{existing} cannot be written to: choose another directory")
    if owner is not None:
        _check_reachable(existing, owner, but=directory)
    free_bytes = shutil.disk_usage(existing).free
    if ours and mark is not None:
        ours_too = (target.tablespaces,) if mark.beside else ()
        free_bytes += _occupied_bytes(existing.stat().st_dev, (directory, *ours_too))
    if free_bytes < needed_bytes * _ROOM_FACTOR:
        raise TargetRefused(
            f"{existing} has {free_bytes >> 20} MiB free, and the restore needs "
            f"{int(needed_bytes * _ROOM_FACTOR) >> 20} MiB: free some or choose another directory"
        )


def _check_empty(path: Path, *, ours: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise TargetRefused(f"{path} is not a directory: choose another one")
    if _server_runs_in(path):
        raise TargetRefused(f"a PostgreSQL server is running in {path}: restores go beside, choose an empty directory")
    if not ours and any(path.iterdir()):
        raise TargetRefused(f"{path} is not empty: restores go beside, choose an empty directory")


def _is_ours(directory: Path) -> bool:
    """Say whether a restore began here, also where it was killed while it wrote its mark.

    Raises:
        TargetRefused: it is still at work.
    """
    if not directory.is_dir():
        return False
    mark = _read_mark(directory)
    if mark is not None and _is_alive(mark):
        pid = mark.writer.partition("@")[0]
        raise TargetRefused(f"another restore, process {pid}, is at work in {directory}: wait for its end or end it")
    if (directory / "postmaster.pid").exists():  # killed while a server replayed, or somebody's own server
        return mark is not None and mark.phase == "restored"
    return (directory / MARKER).is_file() or all(is_partial(entry, MARKER) for entry in directory.iterdir())


def _is_alive(mark: _Mark) -> bool:
    """Whether another process still works where it was marked."""
    pid, _, ticks = mark.writer.partition("@")
    return mark.writer != _ourselves() and str(process.start_ticks(int(pid))) == ticks


def _read_mark(directory: Path) -> _Mark | None:
    """Return the mark; None where there is none, or one that another version wrote."""
    try:
        return _Mark.model_validate_json((directory / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _ourselves() -> str:
    return f"{os.getpid()}@{process.start_ticks(os.getpid())}"


def _make_reachable(target: Target) -> None:
    """Make the directory and its missing parents, which its account must be able to enter."""
    missing = [path for path in (target.directory, *target.directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700)
        target.chown(path)
        fsync_directory(path.parent)


def _sweep(directory: Path, kept: frozenset[str]) -> None:
    """Remove everything below a directory that is not kept. Links are never followed, and never kept."""
    if not directory.is_dir():
        return
    for entry in list(os.scandir(directory)):
        is_kept = entry.path in kept and not entry.is_symlink()
        if is_kept and entry.is_dir():
            _sweep(Path(entry.path), kept)
        elif not is_kept:
            _remove(Path(entry.path))


def _occupied_bytes(device: int, directories: tuple[Path, ...]) -> int:
    """Return the room on one file system that an interrupted restore's files take; it is theirs to use again."""
    files: dict[int, int] = {}
    for directory in directories:
        for folder, _, names in os.walk(directory):
            for name in names:
                facts = os.lstat(Path(folder, name))
                if facts.st_dev == device:
                    files[facts.st_ino] = facts.st_blocks * _BLOCK_BYTES
    return sum(files.values())


def _server_runs_in(directory: Path) -> bool:
    try:
        first_line = (directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]
        return process.start_ticks(int(first_line)) is not None
    except (OSError, ValueError, IndexError):
        return False


def _check_reachable(existing: Path, owner: Account, *, but: Path) -> None:
    """Prove that the account can enter every folder above; ``but`` the target itself, which it is given."""
    for path in (existing, *existing.parents):
        mode = path.stat()
        bits = mode.st_mode
        reachable = (
            bits & 0o001
            or (mode.st_uid == owner.uid and bits & 0o100)
            or (mode.st_gid == owner.gid and bits & 0o010)
            or path == but
        )
        if not reachable:
            raise TargetRefused(
                f"{path} cannot be entered by the account {owner.name}, which runs the restored server: choose a "
                "directory elsewhere, or another account in BB_OPS_SERVER_USER"
            )


def remove_tree(path: Path) -> None:
    """Remove a directory, also while a program of PostgreSQL that was killed a moment ago still removes files in it."""
    for _ in range(_REMOVAL_ATTEMPTS):
        with suppress(OSError):  # a name that has gone by itself, or a folder that was filled again
            shutil.rmtree(path)
        if not path.exists():
            return
        sleep(_REMOVAL_PAUSE_S)
    shutil.rmtree(path)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        remove_tree(entry)
    else:
        entry.unlink(missing_ok=True)
