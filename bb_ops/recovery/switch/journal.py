"""What is known of a copy that was proven, and of a switch that is under way: files beside the directories concerned.

``COPY.bb_ops-recovery.json`` says what a copy is. ``OLD.json``, beside the old data directory that a switch keeps, says
what the switch does and how far it is; it stays, also when that directory is released.
"""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime, ValidationError

from bb_ops.clock import Clock
from bb_ops.errors import TargetRefused
from bb_ops.files import write_atomic
from bb_ops.findings import Value
from bb_ops.postgres.data_directory import inode_of
from bb_ops.repository.ids import BackupId

_EVIDENCE = ".bb_ops-recovery.json"
_OLD = ".bb_ops-old-"
_SPACES = ".bb_ops-spaces-"
_V = TypeVar("_V", bound=Value)


class Proven(Value):
    """A copy that reached its target and was checked.

    Attributes:
        id: Names this copy among all.
        plan_hash: Of the plan that made it.
        level: How high it is proven.
        timeline: Its own, which no archive holds yet.
        inode: Of its directory: another one under the same name is another copy.
    """

    schema_id: str = "bb-ops/proven-copy/1"
    id: str
    plan_hash: str
    cluster: str
    backup_id: BackupId
    region: str
    target: str
    level: str
    system_id: str
    timeline: int
    recovered_to_at: AwareDatetime
    recovered_to_lsn: str
    inode: int


class Step(StrEnum):
    """What a switch does, in order."""

    BEGUN = "begun"
    COPY_STOPPED = "copy stopped"
    COPY_PREPARED = "copy prepared"
    LIVE_STOPPED = "live server stopped"
    OLD_ASIDE = "old data directory set aside"
    COPY_IN_PLACE = "copy in its place"
    STARTED = "started"
    BACKED_UP = "new full backup"
    ROLLED_BACK = "rolled back"
    RELEASED = "old data directory released"


class Done(Value):
    """One step that was done."""

    step: Step
    at: AwareDatetime
    evidence: str


class Journal(Value):
    """A switch. The disk says where it stands; this says what is to be done, and what was.

    Attributes:
        id: Of the copy.
        plan_hash: What was confirmed.
        copy_path: The proven copy, before it takes its place.
        replace: The data directory that is replaced.
        old: Where that is kept.
        copy_inode: Of the copy, whatever it is called.
        live_inode: Of the replaced directory, likewise.
        was_running: Whether a server ran in it.
        command_line: How.
        log: Where its standard error went, where that is a file.
        old_tablespaces: What belongs to the old cluster outside of its data directory.
        failure: Why it is rolled back; None while it is not.
        backup_id: The full backup of the new timeline.
    """

    schema_id: str = "bb-ops/switch-journal/1"
    id: str
    plan_hash: str
    copy_path: Path
    replace: Path
    old: Path
    copy_inode: int
    live_inode: int
    was_running: bool
    command_line: tuple[str, ...]
    log: Path | None
    old_tablespaces: dict[int, Path]
    proven: Proven
    steps: tuple[Done, ...] = ()
    failure: str | None = None
    backup_id: BackupId | None = None

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self.old.with_name(f"{self.old.name}.json")

    def did(self, step: Step) -> bool:
        """Say whether a step was done."""
        return any(done.step == step for done in self.steps)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do on the data directories."""
        return self.did(Step.STARTED) or self.did(Step.ROLLED_BACK)

    def with_step(self, step: Step, evidence: str, clock: Clock) -> "Journal":
        """Record a step, durably; a step that is recorded stays as it is."""
        if self.did(step):
            return self
        done = Done(step=step, at=clock.now(), evidence=evidence)
        journal = self.model_copy(update={"steps": (*self.steps, done)})
        journal.keep()
        return journal

    def keep(self) -> None:
        """Write it, whole or not at all."""
        write_atomic(self.path, self.model_dump_json(indent=1).encode())


def old_path(replace: Path, name: str) -> Path:
    """Return where a replaced data directory is kept."""
    return replace.with_name(f"{replace.name}{_OLD}{name}")


def spaces_path(replace: Path, name: str) -> Path:
    """Return where the tablespaces of a copy lie that took a data directory's place."""
    return replace.with_name(f"{replace.name}{_SPACES}{name}")


def is_spaces_path(path: Path, replace: Path) -> bool:
    """Say whether tablespaces were put there by a switch."""
    return path.parent == replace.parent and path.name.startswith(f"{replace.name}{_SPACES}")


def journals_of(replace: Path) -> Iterator[Journal]:
    """Yield the switches of a data directory, oldest first.

    Raises:
        TargetRefused: one cannot be read.
    """
    for path in sorted(replace.parent.glob(f"{_plain(replace.name)}{_OLD}*.json")):
        yield _read(path, Journal)


def journal_of_old(old: Path) -> Journal:
    """Return the switch that keeps an old data directory.

    Raises:
        TargetRefused: there is none: it is no such directory.
    """
    path = old.with_name(f"{old.name}.json")
    if not path.is_file():
        raise TargetRefused(f"{old} was not kept by a switch (there is no {path.name}): it is not touched")
    return _read(path, Journal)


def proven_path(copy: Path) -> Path:
    """Return where is kept what was proven of a copy."""
    return copy.with_name(copy.name + _EVIDENCE)


def forget_proven(copy: Path) -> None:
    """Take the proof of a copy away: it is changed from now on, or has become the cluster."""
    proven_path(copy).unlink(missing_ok=True)


def remember_proven(copy: Path, proven: Proven) -> None:
    """Keep what was proven of a copy."""
    write_atomic(proven_path(copy), proven.model_dump_json(indent=1).encode())


def read_proven(copy: Path) -> Proven | None:
    """Return what was proven of the copy that lies there; None where it is another one.

    It is written last, when all else is durable: from then on the copy is complete, whatever marks are still in it.

    Raises:
        TargetRefused: what is kept cannot be read.
    """
    path = proven_path(copy)
    if not path.is_file():
        return None
    proven = _read(path, Proven)
    return proven if proven.inode == inode_of(copy) else None


def _read(path: Path, kind: type[_V]) -> _V:
    try:
        return kind.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise TargetRefused(f"{path} cannot be read as what a recovery keeps: move it away, or restore it") from error


def _plain(name: str) -> str:
    """Escape what a pattern of names would not take literally."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
