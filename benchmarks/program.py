"""What the programs of this folder share: options, what they need, a temporary cluster, an orderly end."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cluster import Cluster, server_programs, unprivileged_account
from measure import Failed

_Number = TypeVar("_Number", int, float)
_NOT_MEASURED = 13


def parser(description: str, *, rounds: int, gigabytes: float) -> argparse.ArgumentParser:
    """Return the options that every program has."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--rounds", type=at_least(1, int), default=rounds, help="measured rounds, after one to warm up")
    found.add_argument("--gigabytes", type=at_least(0.05, float), default=gigabytes, help="size of the cluster")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    found.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the temporary folder is made")
    found.add_argument("--pg-bindir", type=Path, help="PostgreSQL's programs, instead of those found")
    found.add_argument("--bb-ops", type=Path, default=Path(sys.executable).with_name("bb-ops"), help="which bb-ops")
    return found


def at_least(lowest: _Number, kind: Callable[[str], _Number]) -> Callable[[str], _Number]:
    """Return a parser of numbers that are not too small."""

    def parse(text: str) -> _Number:
        number = kind(text)
        if number < lowest:
            raise argparse.ArgumentTypeError(f"give at least {lowest}")
        return number

    return parse


def distribution_programs(options: argparse.Namespace) -> Path:
    """Return the distribution's PostgreSQL, which its pgBackRest knows; both must be there."""
    find_pgbackrest()
    return server_programs(options.pg_bindir)


def find_pgbackrest() -> Path:
    """Return the rival."""
    found = shutil.which("pgbackrest", path="/usr/bin:/usr/local/bin")
    if found is None:
        raise Failed("pgbackrest is missing, and nothing is compared without it: apt-get install pgbackrest")
    return Path(found)


def run_on_cluster(
    options: argparse.Namespace,
    room_bytes: float,
    programs: Callable[[argparse.Namespace], Path],
    work: Callable[[Cluster], None],
) -> int:
    """Make a cluster with data in a temporary folder, work on it (it is not started), and remove everything.

    Returns:
        The exit code: 0 when it was measured, whatever came out; 13 when something that is needed is missing; 1 when
        something failed.
    """
    try:
        bindir = programs(options)
        _refuse_unfit(options, room_bytes)
    except Failed as error:
        say(str(error))
        return _NOT_MEASURED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that we clean up
    account = unprivileged_account()
    folder = Path(tempfile.mkdtemp(prefix="bb_ops-bench-", dir=options.directory))
    folder.chmod(0o755)
    account.give(folder)
    cluster = Cluster(bindir, folder, account)
    try:
        say(f"making a cluster of about {options.gigabytes} GB in {folder}")
        cluster.make(options.gigabytes)
        work(cluster)
    except Failed as error:
        say(str(error))
        return 1
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _refuse_unfit(options: argparse.Namespace, room_bytes: float) -> None:
    if not options.bb_ops.is_file():
        raise Failed(f"{options.bb_ops} is missing: make setup")
    if shutil.disk_usage(options.directory).free < room_bytes:
        raise Failed(f"{options.directory} has too little room: {room_bytes / 1e9:.0f} GB are needed")


def keep(options: argparse.Namespace, document: Mapping[str, Any]) -> None:
    """Write the figures where they were asked for."""
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def say(line: str) -> None:
    """Tell the person how it goes."""
    print(f"bench: {line}", file=sys.stderr, flush=True)
