"""Measures what a backup costs the application: pgbench's transactions per second beside it, as a share of those alone.

    .venv/bin/python benchmarks/load.py [--rounds N] [--gigabytes G] [--seconds S] [--clients N] [--rate TPS]

One round: alone, beside our backups, alone, beside ours held back to 32 MiB/s, alone, beside pgBackRest's (which it
cannot hold back), alone; every second round is turned round. Backups follow each other without a pause for as long as
pgbench runs. A share compares with the mean of the two measurements around it. Exit code 0
when it was measured, whatever came out; 13 when a program is missing; 1 when one failed.
"""

import argparse
import os
import re
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from cluster import Cluster
from contenders import BbOps, Contender, PgBackRest
from measure import Failed, run
from program import at_least, distribution_programs, find_pgbackrest, keep, parser, run_on_cluster, say
from report import OURS, RIVAL, aligned, spread

LEAST_SHARE = 0.85
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_LATENCY = re.compile(r"^latency average = ([0-9.]+) ms", re.MULTILINE)
CALM = f"{OURS}, held back"
_CALM_MIB = "32"
_BEGUN_S = 1.5
"""How long the first backup runs before pgbench begins: by then it reads."""


@dataclass(frozen=True)
class Load:
    """What pgbench achieved."""

    beside: str | None
    tps: float
    latency_ms: float
    backups: int
    load_before: float


@dataclass(frozen=True)
class Share:
    """One comparison; ``load`` is the machine's before it."""

    contender: str
    share: float
    latency_ratio: float
    backups: int
    load: float


def main() -> int:
    """Run all rounds."""
    options = parser("Measure pgbench beside backups.", rounds=5, gigabytes=1.6)
    options.add_argument("--seconds", type=at_least(2, int), default=15, help="how long one measurement takes")
    options.add_argument("--clients", type=at_least(1, int), default=4, help="pgbench's clients")
    options.add_argument("--rate", type=at_least(0, int), default=0, help="transactions per second; 0: all it can do")
    chosen = options.parse_args()
    room_bytes = chosen.gigabytes * 10e9
    return run_on_cluster(chosen, room_bytes, distribution_programs, lambda cluster: _measure(chosen, cluster))


def _measure(options: argparse.Namespace, cluster: Cluster) -> None:
    rival = PgBackRest(find_pgbackrest(), cluster, cluster.folder / "pgbackrest")
    place = cluster.folder / "bb-ops"
    ours = BbOps(OURS, options.bb_ops, cluster, place, encrypted=True, fingerprints=False)
    calm = BbOps(
        CALM,
        options.bb_ops,
        cluster,
        cluster.folder / "calm",
        encrypted=True,
        fingerprints=False,
        BB_OPS_MAX_RATE_MIB=_CALM_MIB,
        BB_OPS_COMPRESSION_THREADS="1",
    )
    cluster.start("archive_mode=on", f"archive_command={rival.archive_command}", "shared_buffers=512MB")
    rival.clear()
    run(cluster.command(cluster.programs / "pgbench", "-i", "-q", "-s", "20", "postgres"))
    shares: list[Share] = []
    for number in range(options.rounds + 1):
        contenders: list[Contender] = [ours, calm, rival] if number % 2 else [rival, calm, ours]
        alone = _pgbench(options, cluster, None)
        for contender in contenders:
            beside = _pgbench(options, cluster, contender)
            again = _pgbench(options, cluster, None)
            found = _share(contender.name, alone, beside, again)
            alone = again
            say(f"{f'round {number}' if number else 'warm-up'}: {found}")
            shares += [found] if number else []
    _print(shares, options)
    keep(options, {"schema_id": "bb-ops/bench-load/1", "shares": [asdict(share) for share in shares]})


def _pgbench(options: argparse.Namespace, cluster: Cluster, contender: Contender | None) -> Load:
    if contender is not None:
        contender.clear()
    cluster.query("CHECKPOINT")
    cluster.settle()
    load = os.getloadavg()[0]
    command = cluster.command(
        cluster.programs / "pgbench",
        *("-n", "-c", str(options.clients), "-j", "2", "-T", str(options.seconds)),
        *(("-R", str(options.rate)) if options.rate else ()),
        "postgres",
    )
    with _backups(contender) as taken:
        said = run(command)
    tps, latency = _TPS.search(said), _LATENCY.search(said)
    if tps is None or latency is None:
        raise Failed("pgbench does not say how fast it was")
    name = None if contender is None else contender.name
    return Load(name, float(tps[1]), float(latency[1]), len(taken), load)


@contextmanager
def _backups(contender: Contender | None) -> Iterator[list[float]]:
    """Take one backup after the other while the block runs; the last one may end after it."""
    taken: list[float] = []
    if contender is None:
        yield taken
        return
    ended, failures = threading.Event(), list[Exception]()

    def take() -> None:
        try:
            while not ended.is_set():
                taken.append(contender.backup().cost.wall_s)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failures.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        ended.wait(_BEGUN_S)
        yield taken
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


def _share(name: str, before: Load, beside: Load, after: Load) -> Share:
    return Share(
        name,
        beside.tps / statistics.mean((before.tps, after.tps)),
        beside.latency_ms / statistics.mean((before.latency_ms, after.latency_ms)),
        beside.backups,
        before.load_before,
    )


def _print(shares: list[Share], options: argparse.Namespace) -> None:
    rows = [("", "share of tps", "latency", "backups", "target")]
    for name in (OURS, CALM, RIVAL):
        found = [share for share in shares if share.contender == name]
        median = statistics.median(share.share for share in found)
        rows.append(
            (
                name,
                spread([share.share for share in found]),
                f"{statistics.median(share.latency_ratio for share in found):.2f}x",
                f"{statistics.mean(share.backups for share in found):.1f}",
                "" if name == RIVAL else f"at least {LEAST_SHARE}: {'met' if median >= LEAST_SHARE else 'MISSED'}",
            )
        )
    limit = f"at {options.rate} tps" if options.rate else "as fast as it can"
    print(f"\npgbench, {options.clients} clients {limit}, {options.seconds} s each: median (lowest-highest)\n")
    print("\n".join(aligned(rows)))
    print(f"\nload average before: {spread([share.load for share in shares])} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    sys.exit(main())
