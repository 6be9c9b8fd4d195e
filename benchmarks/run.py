"""Compares bb-ops with pgBackRest and pg_basebackup: same cluster, same machine, same hour, order alternating.

    .venv/bin/python benchmarks/run.py [--rounds N] [--gigabytes G] [--json FILE]

Everything happens in one temporary folder, which is removed at the end together with every process started.
Exit code 0 when it was measured, whatever came out; 13 when a program to compare with is missing; 1 when one failed.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster import Cluster, server_programs, unprivileged_account
from contenders import LEVEL, PROCESSES, BbOps, Contender, PgBackRest, PgBasebackup, Result
from measure import Failed, run
from report import OURS, Sample, document, tables

_Number = TypeVar("_Number", int, float)
_NOT_MEASURED = 13
_ROOM_FACTOR = 5  # cluster, three compressed repositories, a plain copy, one restored directory


def main() -> int:
    """Run the whole comparison."""
    options = _options()
    pgbackrest = shutil.which("pgbackrest", path="/usr/bin:/usr/local/bin")
    if pgbackrest is None:
        return _refuse("pgbackrest is missing, and nothing is compared without it: apt-get install pgbackrest")
    try:
        programs = server_programs(options.pg_bindir)
    except Failed as error:
        return _refuse(str(error))
    if not options.bb_ops.is_file():
        return _refuse(f"{options.bb_ops} is missing: make setup")
    free = shutil.disk_usage(options.directory).free
    if free < options.gigabytes * 1e9 * _ROOM_FACTOR:
        return _refuse(f"{options.directory} has too little room: {_ROOM_FACTOR * options.gigabytes:.0f} GB are needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that we clean up
    try:
        return _compare(options, programs, Path(pgbackrest))
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _compare(options: argparse.Namespace, programs: Path, pgbackrest: Path) -> int:
    account = unprivileged_account()
    folder = Path(tempfile.mkdtemp(prefix="bb_ops-bench-", dir=options.directory))
    folder.chmod(0o755)
    account.give(folder)
    cluster = Cluster(programs, folder, account)
    try:
        _say(f"making a cluster of about {options.gigabytes} GB in {folder}")
        cluster.make(options.gigabytes)
        rival = PgBackRest(pgbackrest, cluster, folder / "pgbackrest")
        cluster.start("archive_mode=on", f"archive_command={rival.archive_command}")
        rival.clear()
        contenders = _contenders(options, cluster, rival, folder)
        facts = _facts(cluster, pgbackrest, options)
        _say(", ".join(f"{name} {value}" for name, value in facts.items()))
        samples: list[Sample] = []
        for number in range(options.rounds + 1):
            samples += _round(number, contenders, cluster)
        facts["raw_bytes"] = cluster.size_bytes()
        print(tables(samples, facts["raw_bytes"]))
        if options.json:
            options.json.write_text(json.dumps(document(samples, facts), indent=2) + "\n")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _contenders(options: argparse.Namespace, cluster: Cluster, rival: PgBackRest, folder: Path) -> list[Contender]:
    def ours(name: str, program: Path, *, encrypted: bool = True, fingerprints: bool = False) -> BbOps:
        place = folder / name.replace(" ", "-").replace(",", "")
        return BbOps(name, program, cluster, place, encrypted=encrypted, fingerprints=fingerprints)

    found: list[Contender] = [
        ours(OURS, options.bb_ops),
        rival,
        PgBasebackup(cluster, folder / "pg_basebackup"),
    ]
    if not options.short:
        found += [
            ours(f"{OURS}, no encryption", options.bb_ops, encrypted=False),
            ours(f"{OURS}, with fingerprints", options.bb_ops, fingerprints=True),
        ]
    for number, program in enumerate(options.versus, start=1):
        found.append(ours(f"{OURS}, other {number}", program))
    return found


def _round(number: int, contenders: Sequence[Contender], cluster: Cluster) -> list[Sample]:
    """Measure everyone once; every second round runs in the opposite order, so that nobody always goes first."""
    ordered = list(contenders) if number % 2 else list(reversed(contenders))
    samples = []
    for contender in ordered:
        contender.clear()
        samples.append(_sample(number, "backup", contender.name, contender.backup, cluster))
        if not contender.restores:
            contender.clear()
    for contender in ordered:
        if contender.restores:
            samples.append(_sample(number, "restore", contender.name, contender.restore, cluster))
            contender.clear()
    return samples


def _sample(number: int, action: str, name: str, call: Callable[[], Result], cluster: Cluster) -> Sample:
    cluster.settle()
    load = os.getloadavg()[0]
    result = call()
    cost = result.cost
    _say(
        f"{f'round {number}' if number else 'warm-up'}: {action:7} {name:28} {cost.wall_s:6.2f} s, "
        f"CPU {cost.cpu_s:5.2f} + {cost.server_cpu_s:4.2f} s, peak {cost.peak_rss_bytes / 1e6:4.0f} MB, load {load:.1f}"
    )
    return Sample(number, action, name, load, result)


def _facts(cluster: Cluster, pgbackrest: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "raw_bytes": cluster.size_bytes(),
        "postgresql": cluster.query("SHOW server_version"),
        "pgbackrest": run(cluster.command(pgbackrest, "version")).strip().removeprefix("pgBackRest "),
        "zstd_level": LEVEL,
        "pgbackrest_processes": PROCESSES,
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare bb-ops with other backup tools, side by side.")
    parser.add_argument("--rounds", type=_at_least(1, int), default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--gigabytes", type=_at_least(0.05, float), default=1.6, help="size of the cluster")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    parser.add_argument("--short", action="store_true", help="only the rows that the targets and the ratios need")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the temporary folder is made")
    parser.add_argument("--pg-bindir", type=Path, help="PostgreSQL's programs, instead of the distribution's")
    parser.add_argument("--bb-ops", type=Path, default=Path(sys.executable).with_name("bb-ops"), help="which bb-ops")
    parser.add_argument(
        "--versus", type=Path, action="append", default=[], metavar="BB-OPS", help="another bb-ops to run beside it"
    )
    return parser.parse_args()


def _at_least(lowest: _Number, kind: Callable[[str], _Number]) -> Callable[[str], _Number]:
    def parse(text: str) -> _Number:
        number = kind(text)
        if number < lowest:
            raise argparse.ArgumentTypeError(f"give at least {lowest}")
        return number

    return parse


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _refuse(reason: str) -> int:
    _say(reason)
    return _NOT_MEASURED


if __name__ == "__main__":
    sys.exit(main())
