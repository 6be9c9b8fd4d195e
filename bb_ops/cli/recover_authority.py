"""Who may let a recovered copy replace or become the live cluster, and the backup that follows at once."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from bb_ops.backup.full import take_full_backup
from bb_ops.backup.physical import read_source
from bb_ops.bootstrap import Operations
from bb_ops.cli.output import progress_bar
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, TargetRefused, UsageError
from bb_ops.postgres.cluster import Newest, read_newest
from bb_ops.recovery.switch.journal import Proven
from bb_ops.repository.ids import BackupId


@dataclass(frozen=True)
class Authority:
    """Who lets a live cluster be replaced: a person who types its name, or the hash of the plan that was looked at."""

    yes: bool
    plan_hash: str | None

    def require(self, command: str) -> None:
        """Refuse before anything is done what could not be confirmed at the end.

        Raises:
            UsageError: there is neither a terminal nor a confirmed plan.
        """
        if self.yes and self.plan_hash is None:
            raise UsageError(f"--yes needs --plan HASH, which `{command} --dry-run` prints: nothing was changed")
        if not self.yes and not sys.stdin.isatty():
            raise UsageError(
                f"there is no terminal to confirm on: look at `{command} --dry-run`, then give --yes --plan HASH"
            )

    def confirm(self, cluster: str, what: str) -> None:
        """Let a person type the cluster's name, unless the plan's hash stands for that.

        Raises:
            UsageError: something else was typed.
        """
        if self.yes:
            return
        typed = click.prompt(f"Type the cluster's name, {cluster}, to {what}", default="", show_default=False, err=True)
        if typed.strip() != cluster:
            raise UsageError(f"{typed.strip()!r} is not the cluster's name: nothing was changed")

    def match(self, plan_hash: str) -> None:
        """Refuse a plan that is not the confirmed one.

        Raises:
            UsageError: it is another.
        """
        if self.plan_hash not in {None, plan_hash}:
            raise UsageError(f"the plan is {plan_hash}, and {self.plan_hash} was confirmed: look at it again")


def authority_options(function: Callable[..., object]) -> Callable[..., object]:
    """Give a command the options that let it replace a cluster."""
    for option in (
        click.option("--other-system", is_flag=True, help="Also replace a directory that holds another system."),
        click.option("--plan", "plan_hash", metavar="HASH", help="Execute this plan or none; see --dry-run."),
        click.option("--yes", is_flag=True, help="Replace without asking; needs --plan."),
    ):
        function = option(function)
    return function


def newest(ops: Operations) -> Newest | None:
    """Ask the live server how far it is; None where it does not answer: it may well be what is to be replaced."""
    if ops.settings.database is None:
        return None
    try:
        return read_newest(ops.settings.database)
    except BbOpsError:
        return None


def back_up(ops: Operations, dsn: Dsn, proven: Proven, directory: Path) -> BackupId:
    """Take the first full backup of a recovered cluster's new timeline.

    Raises:
        BbOpsError: it could not be taken, or the address leads to another server.
    """
    found = read_source(dsn, ops.repository, ops.clock).identity
    if (found.system_id, found.timeline) != (proven.system_id, proven.timeline):
        raise TargetRefused(f"{dsn} is another server than the one in {directory}")
    with progress_bar() as progress:
        return take_full_backup(dsn, ops.repository, ops.full_backup_options(), ops.clock, progress).id
