"""``bb-ops recover interactive``: a recovery, question by question; each answer shows what it means."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from bb_ops.bootstrap import Operations, operations
from bb_ops.cli.output import human_duration, progress_bar
from bb_ops.cli.recover_authority import Authority
from bb_ops.cli.recover_events import DEFAULT_ROWS
from bb_ops.cli.recover_full import exit_code_of, print_recovery
from bb_ops.cli.recover_point import print_plan
from bb_ops.cli.recover_replace import Replacement, called, recover_and_replace
from bb_ops.errors import BbOpsError, UsageError
from bb_ops.recovery.events.search import LOSSES, EventQuery, find_events
from bb_ops.recovery.full import RecoverOptions
from bb_ops.recovery.moment.planning import plan_recovery, require_job
from bb_ops.recovery.moment.point_in_time import check_job, recover_point
from bb_ops.recovery.moment.recovery_target import FORMS, RecoveryTarget, parse_target
from bb_ops.recovery.switch.decision import pending_switch
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.overview import read_overview
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import Repository
from bb_ops.repository.status import region_status

_SHOWN = 10
_GO = "yes"

Wanted = tuple[RecoveryTarget, str | None]
"""A moment, and the backup to begin with where one was chosen."""
Choose = Callable[[Operations, Repository], Wanted]


@click.command("interactive")
def interactive() -> int:
    """Choose region, moment and place, see the plan, and recover: beside, or in a live cluster's place.

    Nothing is changed before "yes" is typed, nothing that is live before the cluster's name is. Exit codes are those of
    `bb-ops recover point-in-time`; 130 when it is left.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "no terminal: use `bb-ops recover plan TARGET` and `bb-ops recover point-in-time TARGET --into DIR`"
        )
    ops = operations()
    region, repository = _choose_region(ops)
    target, backup = _choose_target(ops, repository)
    replaced = _ask("Data directory to replace, once the copy is proven (empty: none, the copy stays beside)")
    if replaced:
        return _replace(ops, target, backup, region, Path(replaced))
    return _beside(ops, target, backup, region)


def _replace(ops: Operations, target: RecoveryTarget, backup: str | None, region: str | None, path: Path) -> int:
    into = _ask("Directory for the copy until then (empty: beside it)")
    command = called("bb-ops", "recover", "point-in-time", str(target), "--replace", path)
    place = Path(into) if into else None
    wanted = Replacement(target, backup, region, place, path, Level.L5, other_system=False, command=command)
    authority = Authority(yes=False, plan_hash=None)
    if pending_switch(path, wanted.place, None, str(target)) is None:
        recover_and_replace(ops, wanted, authority, print_plan, dry_run=True, as_json=False)
        _confirm("make and prove the copy; the live cluster is not touched by that")
    return recover_and_replace(ops, wanted, authority, lambda _: None, dry_run=False, as_json=False)


def _beside(ops: Operations, target: RecoveryTarget, backup: str | None, region: str | None) -> int:
    into = Path(click.prompt("Empty directory for the copy", type=str))
    port = click.prompt("Port for a server on it (0: none)", default=0, type=click.IntRange(0, 65535))
    options = RecoverOptions(into, port > 0, port, ops.settings.pg_bindirs, ops.settings.server_user, ops.invariants)
    repositories = [ops.region(region)] if region is not None else ops.repositories
    with progress_bar() as progress:
        locate = ops.locate(target, progress)
        plan, job = plan_recovery(repositories, target, ops.clock, into=into, backup_id=backup, locate=locate)
    print_plan(plan)
    job = require_job(plan, job)
    check_job(job, options)
    _confirm("make and prove the copy")
    with progress_bar() as progress:
        done, error = recover_point(job, options, Level.L5, ops.clock, progress)
    print_recovery(done)
    if error is not None:
        raise error
    return exit_code_of(done)


def _choose_region(ops: Operations) -> tuple[str | None, Repository]:
    repositories, lines, now = ops.repositories, [], ops.clock.now()
    for repository in repositories:
        try:
            found = region_status(read_overview(repository, ops.settings.cache_directory, now), now)
        except BbOpsError as error:
            lines.append(f"{repository.region}: cannot be looked at: {error}")
            continue
        windows = [f"{one.from_at:%Y-%m-%d %H:%M:%S} to {one.to_at:%Y-%m-%d %H:%M:%S} UTC" for one in found.windows]
        last = found.last_proven_at
        ago = f"{found.last_proven_level} {human_duration((now - last).total_seconds())} ago" if last else "never"
        lines.append(f"{found.name}: {found.backups} backups, {' and '.join(windows[-3:]) or 'nothing'}; proven {ago}")
    number = _choose("Region", [*lines, "whichever serves best"])
    if number == len(repositories):
        return None, repositories[0]
    return repositories[number].region, repositories[number]


def _choose_target(ops: Operations, repository: Repository) -> Wanted:
    names = list(_TARGETS)
    while True:
        choose = _TARGETS[names[_choose("What to go back to", names)]]
        try:
            return choose(ops, repository)
        except UsageError as error:
            click.echo(str(error))


def _latest(_: Operations, __: Repository) -> Wanted:
    return parse_target("latest"), None


def _moment(_: Operations, __: Repository) -> Wanted:
    return parse_target(click.prompt(f"Which ({FORMS})", type=str)), None


def _backup(_: Operations, repository: Repository) -> Wanted:
    entries = read_catalog(repository).physical[-_SHOWN:]
    if not entries:
        raise UsageError(f"{repository.region} holds no physical backup")
    lines = [
        f"{entry.commit.id}, shows {entry.physical.as_of:%Y-%m-%d %H:%M:%S} UTC"
        + (f", damaged: {entry.problems[0]}" if entry.problems else "")
        for entry in entries
    ]
    return parse_target("immediate"), entries[_choose("Backup", lines)].commit.id


def _event(ops: Operations, repository: Repository) -> Wanted:
    query = EventQuery(
        since=None,
        until=None,
        kinds=LOSSES,
        rows=DEFAULT_ROWS,
        database=None,
        limit=_SHOWN,
        server=ops.settings.database,
        pg_bindirs=ops.settings.pg_bindirs,
        scratch=ops.settings.scratch_directory,
    )
    with progress_bar() as progress:
        found = find_events(repository, read_catalog(repository), query, progress)
    for reason in found.not_looked_at:
        click.echo(f"NOT LOOKED AT {reason}")
    if not found.events:
        raise UsageError("nothing was dropped, truncated or deleted in bulk in the last 24 hours that are archived")
    lines = []
    for one in found.events:
        what = ", ".join(of.table or of.database or of.file or "(name not known)" for of in one.relations)
        lines.append(f"{one.at:%Y-%m-%d %H:%M:%S} UTC {one.kind} {what}")
    event = found.events[_choose("Just before which", lines)]
    return parse_target(event.just_before_lsn, timeline=event.timeline), None


_TARGETS: dict[str, Choose] = {
    "the latest that is archived": _latest,
    "a moment: a time, a position, a transaction, a restore point": _moment,
    "a backup as it is": _backup,
    "just before something was dropped, truncated or deleted": _event,
}
"""What can be gone back to; another way to choose a moment is another line here."""


def _choose(what: str, lines: list[str]) -> int:
    for number, line in enumerate(lines, 1):
        click.echo(f"  {number}  {line}")
    return int(click.prompt(what, type=click.IntRange(1, len(lines)))) - 1


def _ask(what: str) -> str:
    return str(click.prompt(what, default="", show_default=False)).strip()


def _confirm(what: str) -> None:
    """Let "yes" be typed.

    Raises:
        UsageError: it was not.
    """
    if _ask(f'Type "{_GO}" to {what}') != _GO:
        raise UsageError("not confirmed: nothing was changed")
