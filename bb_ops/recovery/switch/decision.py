"""Decide whether a proven copy may take the place of a live data directory, and say what that means. Pure.

The facts are read before, and again when it is done; what does the work is ``exchange``.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime

from bb_ops.errors import TargetRefused
from bb_ops.findings import Value
from bb_ops.postgres.cluster import Newest
from bb_ops.postgres.data_directory import (
    DataDirectory,
    command_line_of,
    inode_of,
    log_of,
    read_data_directory,
    unit_of,
)
from bb_ops.recovery.full import Recovery
from bb_ops.recovery.moment.plan import RecoveryPlan
from bb_ops.recovery.switch.journal import Done, Journal, Proven, Step, journals_of, old_path, read_proven
from bb_ops.repository.reports import Level

LOWEST_LEVEL = Level.L4
"""A copy that is proven less never becomes what is live."""


@dataclass(frozen=True)
class SwitchFacts:
    """All that a switch is decided from.

    Attributes:
        live: The data directory to be replaced.
        copy: What is to take its place; None before it was made.
        copy_path: Where it lies, or will lie.
        copy_device: The file system of that place.
        proven: What was proven of it; None where nothing was.
        newest: What the live server says; None where it is not asked or does not answer.
        writable: Whether the names in both parent directories may be changed.
        may_act: Whether we may do what the live directory's account may.
        old_exists: Whether the place for the old directory is taken.
        unit: The service that runs the live server, where one is seen.
        wal_elsewhere: Where the live cluster's WAL lies, where that is not in its directory.
    """

    live: DataDirectory
    copy: DataDirectory | None
    copy_path: Path
    copy_device: int
    proven: Proven | None
    newest: Newest | None
    writable: bool
    may_act: bool
    old_exists: bool
    unit: str | None = None
    wal_elsewhere: Path | None = None


class SwitchPlan(Value):
    """What a switch will do, or why it is refused; nothing has been changed.

    Attributes:
        plan_hash: What ``--plan`` must say.
        old: Where the replaced data directory will be.
        copy_at: The instant whose state the copy shows.
        live_at: How new the live server's state is known to be.
        lost_transactions: How many transaction numbers the live server has used since the copy's state.
        notes: What an operator should know besides.
        refusals: Why it cannot be; empty where it can.
    """

    schema_id: str = "bb-ops/switch-plan/1"
    plan_hash: str
    cluster: str
    copy_path: Path
    replace: Path
    old: Path
    target: str
    backup_id: str
    level: str
    copy_at: AwareDatetime
    live_running: bool
    live_at: AwareDatetime
    lost_transactions: int | None
    notes: tuple[str, ...]
    refusals: tuple[str, ...]


class Switched(Value):
    """What a recovery that ended in a switch did.

    Attributes:
        data_directory: Where the new cluster is: where the old one was.
        old_directory: Where that one is kept until it is released.
        port: Of the new cluster's server.
        proof: The highest level that the copy showed.
        duration_s: From the start of the command to its end.
        new_backup_id: The full backup of the new timeline; None where it is missing.
    """

    schema_id: str = "bb-ops/switch/1"
    data_directory: Path
    old_directory: Path
    journal: Path
    plan_hash: str
    port: int | None
    timeline: int
    target: str
    backup_id: str
    recovered_to_at: AwareDatetime
    duration_s: float
    proof: str
    new_backup_id: str | None
    steps: tuple[Done, ...]
    recovery: Recovery | None


def pending_switch(replace: Path, copy_path: Path, plan_hash: str | None, target: str | None = None) -> Journal | None:
    """Return the switch that the same command began before: to be ended, or, by its very hash, ended already.

    Args:
        replace: The live data directory.
        copy_path: Where the copy lay.
        plan_hash: What was confirmed; None where a person confirms.
        target: Of the recovery; None where the copy is all that is asked for.

    Raises:
        TargetRefused: another switch of that directory is under way, and must be ended first.
    """
    replace, copy_path = replace.resolve(), copy_path.resolve()
    for journal in reversed(list(journals_of(replace))):
        same = journal.copy_path == copy_path and target in {None, journal.proven.target}
        if not journal.ended:
            if same and plan_hash in {None, journal.plan_hash}:
                return journal
            raise TargetRefused(
                f"a switch of {replace} is under way: end it with `bb-ops recover switch {journal.copy_path} --replace "
                f"{replace} --yes --plan {journal.plan_hash}`"
            )
        if not journal.did(Step.ROLLED_BACK) and (
            journal.plan_hash == plan_hash or (same and plan_hash is None and not journal.did(Step.BACKED_UP))
        ):
            return journal
    return None


def switched(journal: Journal, done: Recovery | None, port: int | None, duration_s: float) -> Switched:
    """Say what was done. Pure."""
    proven = journal.proven
    return Switched(
        data_directory=journal.replace,
        old_directory=journal.old,
        journal=journal.path,
        plan_hash=journal.plan_hash,
        port=port,
        timeline=proven.timeline,
        target=proven.target,
        backup_id=proven.backup_id,
        recovered_to_at=proven.recovered_to_at,
        duration_s=round(duration_s + (done.duration_s if done is not None else 0.0), 3),
        proof=proven.level,
        new_backup_id=journal.backup_id,
        steps=journal.steps,
        recovery=done,
    )


def bind_replacement(plan: RecoveryPlan, live: DataDirectory) -> RecoveryPlan:
    """Make a recovery's plan one that ends in a switch: its hash binds the directory, system and timeline replaced."""
    bound = _hash(plan.plan_hash, live)
    return plan.model_copy(update={"replaces": live.path, "plan_hash": bound})


def read_switch_facts(
    copy_path: Path, replace: Path, bindirs: Sequence[Path], newest: Newest | None = None
) -> SwitchFacts:
    """Look at both directories; changes nothing.

    Raises:
        TargetRefused: the one to be replaced is no data directory, or the copy is there and is none.
    """
    live = read_data_directory(replace, bindirs)
    copy_path = copy_path.resolve()
    proven = read_proven(copy_path)
    copy = read_data_directory(copy_path, bindirs) if proven is not None else None
    existing = next(path for path in (copy_path, *copy_path.parents) if path.exists())
    wal = live.path / "pg_wal"
    parents = {live.path.parent, copy_path.parent if copy_path.parent.exists() else existing}
    return SwitchFacts(
        live=live,
        copy=copy,
        copy_path=copy_path,
        copy_device=existing.stat().st_dev,
        proven=proven,
        newest=newest,
        writable=all(os.access(path, os.W_OK | os.X_OK) for path in parents),
        may_act=os.geteuid() in {0, live.uid},
        old_exists=proven is not None and inode_of(old_path(live.path, proven.id)) is not None,
        unit=unit_of(live.pid) if live.pid is not None else None,
        wal_elsewhere=wal.resolve() if wal.is_symlink() else None,
    )


def refusals_before(facts: SwitchFacts, system_id: str | None, major: int | None, *, other_system: bool) -> list[str]:
    """Say why a copy could never take this place, whatever it holds; asked before it is made. Pure.

    Args:
        facts: Of the live directory and the copy's place.
        system_id: Of the backup; None where it is not known.
        major: PostgreSQL's, of the backup, likewise.
        other_system: Another system was accepted.
    """
    live, path, found = facts.live, facts.live.path, []
    if facts.copy_path == path or path in facts.copy_path.parents or facts.copy_path in path.parents:
        found.append(f"{facts.copy_path} lies in or around {path}: put the copy beside it")
    elif facts.copy_device != live.device:
        found.append(f"{facts.copy_path} is on another file system than {path}, so it cannot be renamed to it")
    if live.mounted:
        found.append(f"{path} is a mount point, which cannot be renamed: recover beside it and serve from there")
    if live.standby:
        found.append(f"{path} is a standby: name the primary's data directory")
    if not facts.writable:
        found.append(f"the directories around {path} and {facts.copy_path} cannot be written to by this account")
    if not facts.may_act:
        found.append(f"{path} belongs to another account: run this as {live.owner.name} or root")
    if system_id is not None and system_id != live.system_id and not other_system:
        found.append(
            f"{path} holds the system {live.system_id}, and the backup is of {system_id}: is it the right directory? "
            "(--other-system accepts it)"
        )
    if major not in {None, live.major}:
        found.append(f"{path} is of PostgreSQL {live.major}, and the backup of {major}")
    if facts.newest is not None and (facts.newest.system_id, facts.newest.port) != (live.system_id, live.port):
        found.append(f"DATABASE_URL leads to another running server than that of {path}: which one is to be replaced?")
    return found


def plan_switch(facts: SwitchFacts, *, other_system: bool = False, plan_hash: str | None = None) -> SwitchPlan:
    """Decide whether the copy may take the live directory's place. Pure.

    Args:
        facts: All of them.
        other_system: Accept that the live directory holds another system than the backup.
        plan_hash: The hash of the recovery that made the copy for this very place; None makes one for the switch alone.

    Raises:
        TargetRefused: there is no proven copy to speak of.
    """
    live, copy, proven = facts.live, facts.copy, facts.proven
    if proven is None or copy is None:
        raise TargetRefused(
            f"nothing is known of a proven copy in {facts.copy_path}: only what `bb-ops recover point-in-time` has "
            "made and proven there may take a live directory's place"
        )
    found = refusals_before(facts, proven.system_id, copy.major, other_system=other_system)
    if Level[proven.level] < LOWEST_LEVEL:
        found.append(f"{copy.path} is proven {proven.level} only")
    if copy.mounted:
        found.append(f"{copy.path} is a mount point, which cannot be renamed")
    if copy.system_id != proven.system_id or copy.timeline != proven.timeline:
        found.append(f"{copy.path} is no longer the copy that was proven: recover again")
    if copy.timeline <= live.timeline and copy.system_id == live.system_id:
        found.append(f"{copy.path} is on timeline {copy.timeline}, and {live.path} is already on {live.timeline}")
    if copy.uid != live.uid:
        found.append(
            f"{copy.path} belongs to another account than {live.path}: set BB_OPS_SERVER_USER and recover again"
        )
    if facts.old_exists:
        found.append(f"{old_path(live.path, proven.id)} exists already")
    lost = (facts.newest.next_xid if facts.newest else live.next_xid) - copy.next_xid
    return SwitchPlan(
        plan_hash=plan_hash or _hash(f"{proven.id} {proven.plan_hash} {copy.path}", live),
        cluster=proven.cluster,
        copy_path=copy.path,
        replace=live.path,
        old=old_path(live.path, proven.id),
        target=proven.target,
        backup_id=proven.backup_id,
        level=proven.level,
        copy_at=proven.recovered_to_at,
        live_running=live.pid is not None,
        live_at=facts.newest.at if facts.newest else live.checkpoint_at,
        lost_transactions=max(0, lost) if live.system_id == copy.system_id else None,
        notes=tuple(_notes(facts)),
        refusals=tuple(found),
    )


def refuse(refusals: Sequence[str]) -> None:
    """Refuse what has reasons against it.

    Raises:
        TargetRefused: says them all.
    """
    if refusals:
        raise TargetRefused(f"nothing was changed: {'; '.join(refusals)}")


def begin(facts: SwitchFacts, plan: SwitchPlan) -> Journal:
    """Return the journal of a switch that was confirmed; nothing is written yet.

    Raises:
        TargetRefused: the plan is refused.
    """
    refuse(plan.refusals)
    live, copy, proven = facts.live, facts.copy, facts.proven
    if copy is None or proven is None:
        raise TargetRefused(f"there is no proven copy in {facts.copy_path}")
    return Journal(
        id=proven.id,
        plan_hash=plan.plan_hash,
        copy_path=copy.path,
        replace=live.path,
        old=plan.old,
        copy_inode=copy.inode,
        live_inode=live.inode,
        was_running=live.pid is not None,
        command_line=command_line_of(live.path),
        log=log_of(live.pid) if live.pid is not None else None,
        old_tablespaces=dict(live.tablespaces),
        proven=proven,
    )


def _notes(facts: SwitchFacts) -> list[str]:
    found = []
    if facts.newest is None:
        found.append("the live server was not asked: its newest state is that of its last checkpoint")
    if facts.wal_elsewhere is not None:
        found.append(f"the old cluster's WAL stays in {facts.wal_elsewhere}; the new one's lies in its own directory")
    if facts.unit is not None:
        found.append(
            f"the live server is run by {facts.unit}, the new one at first is not: restart it by that at a quiet moment"
        )
    return found


def _hash(text: str, live: DataDirectory) -> str:
    decided = {"of": text, "replaces": str(live.path), "system_id": live.system_id, "timeline": live.timeline}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]
