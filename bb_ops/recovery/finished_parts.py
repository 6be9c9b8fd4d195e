"""Which parts of a restore are complete: what a killed one need not read again."""

import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePath

from bb_ops.repository.manifest import BackupCommit, StoredObject

RECORD = ".bb_ops-restore.parts"
"""One line for each finished part of the restore in this directory, with the names of what it made."""


class FinishedParts:
    """The parts that one restore has finished, and what they made.

    A line is appended once every byte of a part was verified and written; a line that a kill cut off counts for
    nothing. Nothing is forced to disk: a killed process leaves what it wrote in the page cache, and a restore that
    another boot began is not continued at all.
    """

    def __init__(self, directory: Path | None) -> None:
        """Read and keep the record in a restore's target; in none of a copy that is thrown away."""
        self._path = None if directory is None else directory / RECORD

    def __contains__(self, key: str) -> bool:
        """Say whether a killed restore had finished a part, or a step, of this name."""
        return key in self._found

    def __bool__(self) -> bool:
        """Say whether a killed restore had finished anything."""
        return bool(self._found)

    def made(self) -> frozenset[str]:
        """Return the paths of everything that finished parts made, and of the folders that it lies in."""
        made = {name for names in self._found.values() for name in names}
        folders = {str(folder) for name in made for folder in PurePath(name).parents}
        return frozenset(made | folders)

    def add(self, key: str, names: Iterable[str] = ()) -> None:
        """Record that a part is complete.

        Raises:
            OSError: there is no room for the line.
        """
        if self._path is None:
            return
        line = b"\n" + json.dumps({"key": key, "made": list(names)}).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as record:
            record.write(line)

    def forget(self) -> None:
        """Remove the record: whoever continues begins anew."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self.__dict__.pop("_found", None)

    @cached_property
    def _found(self) -> dict[str, list[str]]:
        if self._path is None or self._path.is_symlink() or not self._path.is_file():
            return {}
        found = {}
        for line in self._path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                found[entry["key"]] = entry["made"]
            except (ValueError, TypeError, KeyError):  # empty, cut off by a kill, or not ours
                continue
        return found


def part_key(commit: BackupCommit, entry: StoredObject) -> str:
    """Return what names one stored object of one backup in every region: its content."""
    return f"{commit.id}/{entry.sha256}"
