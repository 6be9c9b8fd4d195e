"""Timelines: where one branch of the write-ahead log left another (PostgreSQL manual, 26.3.6; timeline.c)."""

import re
from dataclasses import dataclass

from bb_ops.errors import IntegrityError
from bb_ops.postgres.lsn import Lsn

_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)(?:\s.*)?", re.ASCII)


@dataclass(frozen=True)
class Ancestor:
    """One timeline before the present one, and where the next one left it."""

    timeline: int
    until: Lsn


@dataclass(frozen=True)
class History:
    """What a history file says: the ancestors of ``timeline``, oldest first; empty for a first timeline."""

    timeline: int
    ancestors: tuple[Ancestor, ...] = ()

    def until(self, timeline: int) -> Lsn | None:
        """Return where an ancestor ends; None where ``timeline`` is no ancestor."""
        return next((entry.until for entry in self.ancestors if entry.timeline == timeline), None)

    def after(self, timeline: int) -> int:
        """Return the timeline that follows an ancestor."""
        names = [entry.timeline for entry in self.ancestors] + [self.timeline]
        return names[names.index(timeline) + 1]

    def begin_of(self, timeline: int) -> Lsn:
        """Return where an ancestor, or this timeline itself, left its parent."""
        names = [entry.timeline for entry in self.ancestors] + [self.timeline]
        before = names.index(timeline) - 1
        return self.ancestors[before].until if before >= 0 else Lsn(0)

    @property
    def begins(self) -> Lsn:
        """Where this timeline leaves its parent; the beginning of all WAL where it has none."""
        return self.ancestors[-1].until if self.ancestors else Lsn(0)


def history_name(timeline: int) -> str:
    """Return the name of a timeline's history file."""
    return f"{timeline:08X}.history"


def parse_history(timeline: int, content: bytes) -> History:
    """Read a history file.

    Raises:
        IntegrityError: it is none, or its lines do not lead to ``timeline``.
    """
    found: list[Ancestor] = []
    for line in content.decode("utf-8", errors="replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise IntegrityError(f"{history_name(timeline)} is no timeline history: {line[:80]!r}")
        found.append(Ancestor(int(match[1]), Lsn.parse(match[2])))
    names = [entry.timeline for entry in found]
    if not names or names != sorted(set(names)) or names[-1] >= timeline:
        raise IntegrityError(f"{history_name(timeline)} does not lead to timeline {timeline}")
    return History(timeline, tuple(found))
