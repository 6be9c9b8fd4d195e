"""Under which operating-system account the demo's servers run, and where that account can reach."""

import os
from collections.abc import Mapping
from pathlib import Path

from bb_ops import process
from bb_ops.errors import ProgramFailed, UsageError
from bb_ops.process import Account

_CANDIDATES = ("postgres", "nobody")
_FALLBACK_DIRECTORY = Path("/var/tmp/bb_ops-demo")  # noqa: S108 - its owner is checked before use (world.py)
_PROBE_TIMEOUT_S = 60.0


def server_account() -> Account | None:
    """Return the account that the servers become, or None for "whoever is running this".

    PostgreSQL refuses to run as root, so root hands over to ``postgres`` where a package made that account, else to
    ``nobody``. Anyone else stays as they are.

    Raises:
        UsageError: we are root and neither account exists.
    """
    if os.geteuid() != 0:
        return None
    for name in _CANDIDATES:
        try:
            return process.account(name)
        except UsageError:
            continue
    raise UsageError(f"PostgreSQL does not run as root, and none of the accounts {', '.join(_CANDIDATES)} exists")


def can_run(argv: list[str], run_as: Account | None, env: Mapping[str, str] | None = None) -> bool:
    """Tell whether the account can run a program to success, by doing so.

    Permission bits alone do not answer this: access lists, interpreters and libraries elsewhere also decide.
    """
    try:
        process.run(argv, timeout_s=_PROBE_TIMEOUT_S, run_as=run_as, env=env)
    except ProgramFailed:
        return False
    return True


def can_enter(directory: Path, run_as: Account | None) -> bool:
    """Tell whether the account can reach what lies inside an existing directory."""
    return can_run(["/usr/bin/test", "-x", str(directory)], run_as)


def choose_directory(checkout: Path) -> Path:
    """Return where the demo world of a checkout lives: inside it, or under /var/tmp when that cannot work.

    It cannot work where we may not write, or where the servers' account cannot pass (a checkout under a home of
    mode 0700). Parents are never opened up for it. Nothing is created.
    """
    inside = checkout / ".demo"
    writable = os.access(inside if os.access(inside, os.F_OK) else checkout, os.W_OK | os.X_OK)
    return inside if writable and can_enter(checkout, server_account()) else _FALLBACK_DIRECTORY


def hand_over(path: Path, run_as: Account | None) -> None:
    """Make the account own ``path``; nothing to do when we run as ourselves."""
    if run_as is not None:
        os.chown(path, run_as.uid, run_as.gid, follow_symlinks=False)


def owned_directory(path: Path, run_as: Account | None) -> Path:
    """Create a private directory (0700) of the servers' account. Safe to repeat."""
    path.mkdir(mode=0o700, exist_ok=True)
    hand_over(path, run_as)
    return path
