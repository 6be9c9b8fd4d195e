"""Programs that tests need from the system, and the Debian package that brings each.

A missing one makes a test be left out, with a line that names the package; with ``CI=true`` it makes the test fail.
Tests say what they need with ``@pytest.mark.requires("age", "zstd")``; the rule itself lives in ``conftest.py``.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SystemProgram:
    """A program, the Debian package that it comes with, and how to find it."""

    package: str
    find: Callable[[], Path | None]


def _on_path(*names: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        found = next((path for name in names if (path := shutil.which(name, path=SEARCHED))), None)
        return Path(found) if found else None

    return find


def _newest_server() -> Path | None:
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where system programs are looked for, whatever the caller's PATH is."""

SYSTEM_PROGRAMS = {
    "age": SystemProgram("age", _on_path("age")),
    "chromium": SystemProgram("chromium", _on_path("chromium", "google-chrome")),
    "pgbackrest": SystemProgram("pgbackrest", _on_path("pgbackrest")),
    "postgresql": SystemProgram("postgresql", _newest_server),
    "tar": SystemProgram("tar", _on_path("tar")),
    "zstd": SystemProgram("zstd", _on_path("zstd")),
}
"""By the word that tests use. ``postgresql`` is found as the program folder of the newest packaged server."""


def missing_packages(words: Iterable[str]) -> list[str]:
    """Return the Debian packages whose programs are absent."""
    return sorted({SYSTEM_PROGRAMS[word].package for word in words if SYSTEM_PROGRAMS[word].find() is None})


def system_program(word: str) -> Path:
    """Return where a program is; a test that calls this bears the ``requires`` mark."""
    found = SYSTEM_PROGRAMS[word].find()
    if found is None:
        raise LookupError(f"{word} is not installed: mark the test with @pytest.mark.requires({word!r})")
    return found
