"""Measures how fast WAL gets from the server into a repository, side by side, and what one archive_command costs.

    .venv/bin/python benchmarks/wal.py [--rounds N] [--segments N] [--json FILE]

Everyone pushes the same backlog of segments from the same server, in an order that is turned round after each round,
until the last byte is durable: for receivers when the server's slot has moved there (pg_receivewal: when it ends), for
archive_command when the server's archiver has nothing left.
Exit code 0 when it was measured, whatever came out; 13 when a program to compare with is missing; 1 when one failed.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence

from cluster import Cluster
from contenders import LEVEL, PROCESSES, BbOps, PgBackRest
from measure import adopt_orphans
from program import at_least, distribution_programs, find_pgbackrest, keep, parser, run_on_cluster, say
from report import RIVAL, Sample, aligned, load_note, names, ratios, results, spread
from wal_backlog import Backlog
from wal_contenders import Archiver, PgBackRestPush, Pusher, Receive, Spool, Stream

_PUSH = "push"
_CALLS = 10
_HEADER = ("", "seconds", "MB/s", "segments/s", "rate vs pgBackRest", "CPU s", "peak MB", "stored MB", "one call ms")


def main() -> int:
    """Run all rounds."""
    options = parser("Compare ways to store WAL, side by side.", rounds=5, gigabytes=0.3)
    options.add_argument("--segments", type=at_least(_CALLS, int), default=96, help="size of the backlog")
    options.add_argument("--short", action="store_true", help="only ours and what each is compared with")
    chosen = options.parse_args()
    room_bytes = chosen.gigabytes * 3e9 + chosen.segments * 100e6
    return run_on_cluster(chosen, room_bytes, distribution_programs, lambda cluster: _measure(chosen, cluster))


def _measure(options: argparse.Namespace, cluster: Cluster) -> None:
    adopt_orphans()
    cluster.start("archive_mode=on", "checkpoint_timeout=1h", "wal_keep_size=64MB")
    backlog = Backlog(cluster, options.segments)
    say(f"{len(backlog.names)} segments, up to {backlog.end}")
    pushers = _pushers(options, cluster, backlog)
    samples: list[Sample] = []
    calls: dict[str, list[float]] = {pusher.name: [] for pusher in pushers}
    for number in range(options.rounds + 1):
        for pusher in pushers if number % 2 else reversed(pushers):
            samples.append(_sample(number, pusher, cluster))
            if isinstance(pusher, Archiver):
                pusher.clear()
                cluster.settle()
                calls[pusher.name] += pusher.calls_s(backlog.names[:_CALLS])[1:] if number else []
            pusher.clear()
    print(f"\n{len(backlog.names)} segments, {backlog.size_bytes / 1e9:.2f} GB: median (lowest-highest) of rounds\n")
    print("\n".join(aligned([_HEADER, *(_row(samples, calls, name, backlog) for name in names(samples))])))
    print(f"\n{load_note(samples)}")
    keep(options, _document(samples, calls, backlog, cluster))


def _pushers(options: argparse.Namespace, cluster: Cluster, backlog: Backlog) -> list[Pusher]:
    def ours(place: str) -> BbOps:
        return BbOps(place, options.bb_ops, cluster, cluster.folder / place, encrypted=True, fingerprints=False)

    rival = PgBackRest(find_pgbackrest(), cluster, cluster.folder / "pgbackrest")
    found: list[Pusher] = [
        Stream(backlog, ours("stream")),
        Spool(backlog, ours("serve")),
        PgBackRestPush(backlog, rival, together=True),
    ]
    if options.short:
        return found
    return [
        *found,
        PgBackRestPush(backlog, rival, together=False),
        Receive(backlog, cluster, cluster.folder / "received"),
        Receive(backlog, cluster, cluster.folder / "received", "lz4"),
    ]


def _sample(number: int, pusher: Pusher, cluster: Cluster) -> Sample:
    pusher.clear()
    cluster.settle()
    load = os.getloadavg()[0]
    result = pusher.push()
    cost = result.cost
    say(
        f"{f'round {number}' if number else 'warm-up'}: {pusher.name:28} {cost.wall_s:6.2f} s, "
        f"CPU {cost.cpu_s:5.2f} s, peak {cost.peak_rss_bytes / 1e6:4.0f} MB, load {load:.1f}"
    )
    return Sample(number, _PUSH, pusher.name, load, result)


def _row(samples: Sequence[Sample], calls: dict[str, list[float]], name: str, backlog: Backlog) -> tuple[str, ...]:
    chosen = results(samples, _PUSH, name)
    rates = ratios(samples, _PUSH, RIVAL, name)
    wall_s = statistics.median(result.cost.wall_s for result in chosen)
    return (
        name,
        spread([result.cost.wall_s for result in chosen]),
        f"{backlog.size_bytes / wall_s / 1e6:.0f}",
        f"{len(backlog.names) / wall_s:.1f}",
        f"{statistics.median(rates):.2f}x ({min(rates):.2f}-{max(rates):.2f})",
        spread([result.cost.cpu_s for result in chosen]),
        f"{max(result.cost.peak_rss_bytes for result in chosen) / 1e6:.0f}",
        f"{statistics.median(result.stored_bytes or 0 for result in chosen) / 1e6:.0f}",
        spread([1000 * call for call in calls[name]]) if calls[name] else "-",
    )


def _document(
    samples: Sequence[Sample], calls: dict[str, list[float]], backlog: Backlog, cluster: Cluster
) -> dict[str, object]:
    return {
        "schema_id": "bb-ops/bench-wal/1",
        "postgresql": cluster.query("SHOW server_version"),
        "segments": len(backlog.names),
        "raw_bytes": backlog.size_bytes,
        "zstd_level": LEVEL,
        "pgbackrest_processes": PROCESSES,
        "cpus": os.cpu_count(),
        "rate_ratio_to_pgbackrest": {
            name: statistics.median(ratios(samples, _PUSH, RIVAL, name)) for name in names(samples)
        },
        "one_call_s": {name: statistics.median(found) for name, found in calls.items() if found},
        "samples": [
            {
                "round": sample.round_number,
                "contender": sample.contender,
                "load": sample.load,
                "stored_bytes": sample.result.stored_bytes,
                **vars(sample.result.cost),
            }
            for sample in samples
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
