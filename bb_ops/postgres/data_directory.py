"""A data directory on this host, and the server in it: what it is, whether it runs, how it is stopped and started."""

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from bb_ops import process
from bb_ops.clock import Stopwatch, sleep
from bb_ops.errors import ProgramFailed, TargetRefused, UsageError
from bb_ops.postgres.programs import find_programs
from bb_ops.process import Account, Child

_PROGRAM_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 600.0
_STAYS_DOWN_S = 1.0
"""How long a stopped server is watched: what restarts it (a service manager, a container) does so at once."""
_POLL_S = 0.05
_TAIL_CHARACTERS = 500
_WORD = re.compile(r' "(.*?)"(?= "|\s*$)', re.DOTALL)
_STATUS_LINE = 7
_UNIT = re.compile(r"/([^/\n]+\.service)\s*$", re.MULTILINE)
_LOG = "bb_ops.log"


@dataclass(frozen=True)
class DataDirectory:
    """What lies in a data directory.

    Attributes:
        path: Without symbolic links.
        timeline: Of its newest checkpoint, as are the other facts of the control file.
        next_xid: The next transaction's number, its epoch included.
        checkpoint_at: When that checkpoint was made.
        shut_down: Whether its server was stopped in an orderly way.
        inode: Names it also when it is renamed; its file system is ``device``.
        uid: Whose it is.
        pid: The server that runs in it; None where none does.
        port: Where that listens.
        standby: Whether it follows another server.
        mounted: Whether it is a mount point, which cannot be renamed.
        tablespaces: Where its tablespaces are, by oid.
    """

    path: Path
    major: int
    system_id: str
    timeline: int
    next_xid: int
    checkpoint_at: datetime
    shut_down: bool
    device: int
    inode: int
    uid: int
    pid: int | None
    port: int | None
    standby: bool
    mounted: bool
    tablespaces: Mapping[int, Path]

    @property
    def owner(self) -> Account:
        """The account that it belongs to."""
        return _account(self.uid)


def owner_of(directory: Path) -> Account:
    """Return the account that a directory belongs to, which its server runs as.

    Raises:
        UsageError: there is no such account.
    """
    return _account(directory.stat().st_uid)


def give(path: Path, owner: Account) -> None:
    """Give a file to a server's account, where we are root; else it is ours, and so is the account."""
    if os.geteuid() == 0:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def read_data_directory(path: Path, bindirs: Sequence[Path]) -> DataDirectory:
    """Look at a data directory; changes nothing.

    Raises:
        TargetRefused: it is none, or its control file cannot be read.
        NotMeasured: PostgreSQL's programs of its version are missing.
    """
    path = path.resolve()
    try:
        major = int((path / "PG_VERSION").read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise TargetRefused(f"{path} is no PostgreSQL data directory (PG_VERSION): give the right one") from error
    stat = path.stat()
    owner = _account(stat.st_uid)
    program = find_programs(major, bindirs).path("pg_controldata")
    try:
        answer = process.run([program, "-D", path], timeout_s=_PROGRAM_TIMEOUT_S, run_as=owner)
        facts = dict(line.split(":", 1) for line in answer.stdout.splitlines() if ":" in line)
        epoch, xid = facts["Latest checkpoint's NextXID"].strip().split(":")
        at = datetime.strptime(facts["Time of latest checkpoint"].strip(), "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007 - below
        return DataDirectory(
            path=path,
            major=major,
            system_id=facts["Database system identifier"].strip(),
            timeline=int(facts["Latest checkpoint's TimeLineID"]),
            next_xid=(int(epoch) << 32) + int(xid),
            checkpoint_at=at.replace(tzinfo=UTC),
            shut_down=facts["Database cluster state"].strip() == "shut down",
            device=stat.st_dev,
            inode=stat.st_ino,
            uid=stat.st_uid,
            pid=server_in(path),
            port=port_of(path),
            standby=(path / "standby.signal").exists(),
            mounted=path.is_mount(),
            tablespaces=tablespaces_of(path),
        )
    except (ProgramFailed, KeyError, ValueError) as error:
        raise TargetRefused(f"the control file of {path} cannot be read: {error}") from error


def tablespaces_of(directory: Path) -> dict[int, Path]:
    """Return where a data directory's tablespaces are, by oid."""
    links = [path for path in (directory / "pg_tblspc").glob("*") if path.name.isdecimal() and path.is_symlink()]
    return {int(link.name): link.readlink() for link in links}


def inode_of(path: Path) -> int | None:
    """Return what names a directory for as long as it exists; None where there is none."""
    try:
        return path.stat(follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def server_in(directory: Path) -> int | None:
    """Return the postmaster that runs in a directory, by its lock file; a dead one's file counts for nothing."""
    lines = _lock_file(directory)
    pid = int(lines[0]) if lines and lines[0].strip().isdecimal() else None
    return pid if pid is not None and _works_in(pid, directory) else None


def command_line_of(directory: Path) -> tuple[str, ...]:
    """Return how the directory's server was started last (``postmaster.opts``); empty where it never was."""
    try:
        text = (directory / "postmaster.opts").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    program = text.partition(' "')[0].strip()
    return (program, *_WORD.findall(text))


def port_of(directory: Path) -> int | None:
    """Return the port of the server that runs in a directory; None where none does."""
    lines = _lock_file(directory) if server_in(directory) is not None else []
    return int(lines[3]) if len(lines) > 3 and lines[3].strip().isdecimal() else None  # noqa: PLR2004 - its fourth line


def log_of(pid: int) -> Path | None:
    """Return the file that a server's standard error goes to; None where it is none."""
    try:
        path = Path(f"/proc/{pid}/fd/2").resolve()
    except OSError:
        return None
    return path if path.is_file() else None


def unit_of(pid: int) -> str | None:
    """Return the service that a server is run by (cgroups(7)); None where none is seen."""
    try:
        found = _UNIT.search(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found is not None and not found[1].startswith("user@") else None


def stop_server(directory: Path, major: int, bindirs: Sequence[Path]) -> str:
    """Stop the server in a directory, if one runs, and prove that it stays down; return the evidence. Repeatable.

    Raises:
        ProgramFailed: it did not stop, something starts it again, or processes of it are left.
    """
    pid = server_in(directory)
    if pid is not None:
        words = ["stop", "-D", str(directory), "-m", "fast", "-w", "-t", f"{_STOP_TIMEOUT_S:.0f}"]
        program, owner = find_programs(major, bindirs).path("pg_ctl"), owner_of(directory)
        process.run([program, *words], timeout_s=_STOP_TIMEOUT_S + _PROGRAM_TIMEOUT_S, run_as=owner)
    watch = Stopwatch()
    while watch.elapsed_s < (_STAYS_DOWN_S if pid is not None else 0.0):
        again = server_in(directory)
        if again is not None:
            raise ProgramFailed(f"something starts the server in {directory} again (process {again}): stop that first")
        sleep(_POLL_S)
    left = processes_in(directory)
    if left:
        raise ProgramFailed(f"processes {left} of PostgreSQL still work in {directory}: end them first")
    return f"process {pid} ended in an orderly way" if pid is not None else "no server was running"


def start_as_before(command_line: Sequence[str], directory: Path, log: Path | None, timeout_s: float) -> int:
    """Start the directory's server with a command line that is known to work, outliving us; return its process.

    One that is running already is waited for.

    Raises:
        ProgramFailed: it ended, or did not accept connections within ``timeout_s``; the message ends its log.
    """
    pid = server_in(directory)
    owner = owner_of(directory)
    path = log if log is not None and log.parent.is_dir() else directory / _LOG
    child: Child | None = None
    begins_at = path.stat().st_size if path.exists() else None
    if pid is None:
        with path.open("ab") as handle:
            if begins_at is None:
                give(path, owner)
            child = process.start(
                [*command_line, *_place_of(command_line, directory)],
                env={"PGDATA": str(directory)},
                cwd=directory,
                run_as=owner,
                stdout=handle.fileno(),
                stderr=handle.fileno(),
                outlive=True,
            )
    watch = Stopwatch()
    while watch.elapsed_s < timeout_s:
        lines = _lock_file(directory)
        running = server_in(directory)
        if running is not None and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready":
            return running
        if (child.poll() is not None) if child is not None else running is None:
            raise ProgramFailed(f"the server in {directory} ended while it started: {_tail(path, begins_at)}")
        sleep(_POLL_S)
    raise ProgramFailed(f"the server in {directory} did not answer within {timeout_s:g} s: {_tail(path, begins_at)}")


def _place_of(command_line: Sequence[str], directory: Path) -> list[str]:
    """Name the directory where the command line does so only relative to where it was typed; the last ``-D`` counts."""
    places = [after for word, after in pairwise(command_line) if word == "-D"]
    return ["-D", str(directory)] if places and not Path(places[-1]).is_absolute() else []


def processes_in(directory: Path) -> list[int]:
    """Return the processes of PostgreSQL that work in a directory, also those whose postmaster was killed."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and _works_in(int(place.name), directory, known=False):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                name = (place / "comm").read_text(encoding="utf-8", errors="replace").strip()
                found += [int(place.name)] if name in {"postgres", "postmaster"} else []
    return found


def _works_in(pid: int, directory: Path, *, known: bool = True) -> bool:
    """Say whether a process has the directory as its working directory, as every process of its server has.

    Args:
        pid: The process.
        directory: The data directory.
        known: The answer where we may not look.
    """
    if process.start_ticks(pid) is None:
        return False
    try:
        there, here = Path(f"/proc/{pid}/cwd").stat(), directory.stat()
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return known
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _account(uid: int) -> Account:
    try:
        return process.account(pwd.getpwuid(uid).pw_name)
    except KeyError as error:
        raise UsageError(f"there is no operating-system account with number {uid}: create it") from error


def _lock_file(directory: Path) -> list[str]:
    try:
        return (directory / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _tail(path: Path, begins_at: int | None) -> str:
    with path.open("rb") as handle:
        handle.seek(begins_at or 0)
        lines = handle.read().decode("utf-8", "replace").splitlines()
    telling = [line for line in lines if any(sign in line for sign in ("FATAL", "PANIC", "HINT"))]
    return " ".join(telling or lines)[-_TAIL_CHARACTERS:]
