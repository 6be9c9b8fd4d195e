"""Recover, prove, and let the copy take a live data directory's place: one command, the same for every target."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bb_ops.bootstrap import Operations
from bb_ops.cli.output import emit, progress_bar
from bb_ops.cli.recover_authority import Authority, newest
from bb_ops.cli.recover_full import exit_code_of, print_recovery
from bb_ops.cli.recover_switch import finish, switch_now
from bb_ops.errors import UsageError
from bb_ops.findings import Outcome
from bb_ops.recovery.full import RecoverOptions, Recovery
from bb_ops.recovery.moment.plan import RecoveryPlan
from bb_ops.recovery.moment.planning import plan_recovery, require_job
from bb_ops.recovery.moment.point_in_time import Job, check_job, recover_point
from bb_ops.recovery.moment.recovery_target import RecoveryTarget
from bb_ops.recovery.switch.decision import (
    SwitchFacts,
    bind_replacement,
    pending_switch,
    read_switch_facts,
    refusals_before,
    refuse,
)
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import Repository

_COPY = ".bb_ops-recovered"


@dataclass(frozen=True)
class Replacement:
    """What is to be brought back, and what it replaces.

    Attributes:
        target: The moment.
        backup: Begin with this backup; None takes the nearest.
        region: Take everything from there; None from the one that serves best.
        into: Where the copy is made; None beside the data directory.
        path: The live data directory.
        level: How high the copy is proven.
        other_system: Whether that may hold another system.
        command: How it was called, without the options that confirm.
        elsewhere: A repository that is none of ours, where the backup was found.
    """

    target: RecoveryTarget
    backup: str | None
    region: str | None
    into: Path | None
    path: Path
    level: Level
    other_system: bool
    command: str
    elsewhere: Repository | None = None

    @property
    def place(self) -> Path:
        """Where the copy is made."""
        path = self.path.resolve()
        return (self.into if self.into is not None else path.with_name(path.name + _COPY)).resolve()


def plan_replacement(ops: Operations, wanted: Replacement) -> tuple[RecoveryPlan, Job | None]:
    """Plan a recovery that ends in a switch; changes nothing.

    Raises:
        TargetRefused: the copy could never take that place.
    """
    facts = _facts(ops, wanted)
    repositories = [ops.region(wanted.region)] if wanted.region is not None else ops.repositories
    if wanted.elsewhere is not None:
        repositories = [wanted.elsewhere]
    with progress_bar() as progress:
        locate = ops.locate(wanted.target, progress)
        found, job = plan_recovery(
            repositories, wanted.target, ops.clock, into=wanted.place, backup_id=wanted.backup, locate=locate
        )
    major = job.best.commit.server_major if job is not None else None
    refuse(refusals_before(facts, found.system_id or None, major, other_system=wanted.other_system))
    found = bind_replacement(found, facts.live)
    return found, replace(job, plan=found) if job is not None else None


def recover_and_replace(  # noqa: PLR0913 - one fact each
    ops: Operations,
    wanted: Replacement,
    authority: Authority,
    show: Callable[[RecoveryPlan], None],
    *,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Do it all: recover beside, prove, let it be confirmed, switch, back up. Killed, the same call goes on."""
    if not dry_run:
        authority.require(wanted.command)
        pending = pending_switch(wanted.path, wanted.place, authority.plan_hash, str(wanted.target))
        if pending is not None:
            return finish(ops, pending, authority, as_json=as_json)
    found, job = plan_replacement(ops, wanted)
    if not as_json:
        show(found)
    job = require_job(found, job, authority.plan_hash)
    facts = _facts(ops, wanted)
    options = RecoverOptions(wanted.place, False, 0, ops.settings.pg_bindirs, facts.live.owner.name, ops.invariants)  # noqa: FBT003
    made = facts.proven is not None and facts.proven.plan_hash == found.plan_hash
    if not made:
        check_job(job, options)
    if dry_run:
        if as_json:
            emit(found.model_dump(mode="json"))
        return 0
    done = None
    if not made:
        done = _make(ops, job, options, wanted, as_json=as_json)
        if done.outcome != Outcome.PASS:
            return exit_code_of(done)
    facts = _facts(ops, wanted)
    bound, other_system = found.plan_hash, wanted.other_system
    return switch_now(ops, facts, authority, done, plan_hash=bound, other_system=other_system, as_json=as_json)


def _facts(ops: Operations, wanted: Replacement) -> SwitchFacts:
    return read_switch_facts(wanted.place, wanted.path, ops.settings.pg_bindirs, newest(ops))


def _make(ops: Operations, job: Job, options: RecoverOptions, wanted: Replacement, *, as_json: bool) -> Recovery:
    with progress_bar() as progress:
        done, error = recover_point(job, options, wanted.level, ops.clock, progress)
    if not as_json:
        print_recovery(done)
    if error is not None:
        raise error
    if done.outcome != Outcome.PASS:
        if as_json:
            emit(done.model_dump(mode="json"))
        click.echo(f"bb-ops: the copy is not proven: {wanted.path} was not touched", err=True)
    return done


def refuse_start(*, start: bool) -> None:
    """Refuse an option that means nothing where a cluster is replaced.

    Raises:
        UsageError: it was given.
    """
    if start:
        raise UsageError("--start leaves a copy running beside: it cannot be given with --replace")


def called(*words: str | Path | None) -> str:
    """Return a command as it can be typed."""
    return shlex.join(str(word) for word in words if word is not None)
