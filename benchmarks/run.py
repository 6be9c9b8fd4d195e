"""Compares bb-ops with pgBackRest and pg_basebackup: same cluster, same machine, same hour, order alternating.

    .venv/bin/python benchmarks/run.py [--rounds N] [--gigabytes G] [--json FILE]

Everything happens in one temporary folder, which is removed at the end together with every process started.
Exit code 0 when it was measured, whatever came out; 13 when a program to compare with is missing; 1 when one failed.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import Cluster
from contenders import LEVEL, PROCESSES, BbOps, Contender, PgBackRest, PgBasebackup, Result
from measure import run
from program import distribution_programs, find_pgbackrest, keep, parser, run_on_cluster, say
from report import OURS, Sample, document, tables

_ROOM_FACTOR = 5  # cluster, three compressed repositories, a plain copy, one restored directory


def main() -> int:
    """Run the whole comparison."""
    options = _options()
    room_bytes = options.gigabytes * 1e9 * _ROOM_FACTOR
    return run_on_cluster(options, room_bytes, distribution_programs, lambda cluster: _compare(options, cluster))


def _compare(options: argparse.Namespace, cluster: Cluster) -> None:
    pgbackrest = find_pgbackrest()
    rival = PgBackRest(pgbackrest, cluster, cluster.folder / "pgbackrest")
    cluster.start("archive_mode=on", f"archive_command={rival.archive_command}")
    rival.clear()
    contenders = _contenders(options, cluster, rival, cluster.folder)
    facts = _facts(cluster, pgbackrest, options)
    say(", ".join(f"{name} {value}" for name, value in facts.items()))
    samples: list[Sample] = []
    for number in range(options.rounds + 1):
        samples += _round(number, contenders, cluster)
    facts["raw_bytes"] = cluster.size_bytes()
    print(tables(samples, facts["raw_bytes"]))
    keep(options, document(samples, facts))


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
    say(
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
    options = parser("Compare bb-ops with other backup tools, side by side.", rounds=5, gigabytes=1.6)
    options.add_argument("--short", action="store_true", help="only the rows that the targets and the ratios need")
    options.add_argument(
        "--versus", type=Path, action="append", default=[], metavar="BB-OPS", help="another bb-ops to run beside it"
    )
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
