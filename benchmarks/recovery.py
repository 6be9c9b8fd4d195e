"""Measures how soon a recovered server answers, and what feeding WAL costs its replay, side by side.

    .venv/bin/python benchmarks/recovery.py [--rounds N] [--gigabytes G] [--segments N] [--json FILE]

Everyone brings the same server back from the same backup and the same archived WAL, in an order that is turned round
after each round. *ready*: from nothing to a server that takes writes, at the end of the archive. *replay*: the restored
directory is there already; from the start of the server until it takes writes, with one restore_command or another and
otherwise the same settings. Exit code 0 when it was measured, whatever came out; 13 when a program is missing; 1 when
one failed.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster import Cluster
from contenders import LEVEL, PROCESSES, BbOps, PgBackRest, Result
from measure import Command, Cost, Failed, adopt_orphans, measure, measure_all, run, running
from program import at_least, distribution_programs, find_pgbackrest, keep, parser, run_on_cluster, say
from report import OURS, RIVAL, Sample, aligned, load_note, names, ratios, results, spread

PLAIN = "cp from a folder"
MOST_READY_RATIO = 1.3
MOST_REPLAY_TAX = 1.1
_READY, _REPLAY = "ready", "replay"
_TIMEOUT_S = 600.0
_POLL_S = 0.02
_CHANGE = """
UPDATE bookings SET status = 'completed', price_cents = price_cents + 100 WHERE id % 64 = {part} % 64;
INSERT INTO payments SELECT id + 1000000000::bigint * (1 + {part}), id, price_cents, 'usd',
    'pi_' || md5(random()::text), now(), 'card'
FROM bookings WHERE id % 64 = {part} % 64
"""
_SAME: tuple[str, ...] = ("fsync=off", "full_page_writes=off", "autovacuum=off", "shared_buffers=128MB")
"""What ours replays with: a copy that is not yet anybody's need not survive a crash of the machine."""


def main() -> int:
    """Run all rounds."""
    options = parser("Compare recoveries, side by side.", rounds=4, gigabytes=0.6)
    options.add_argument("--segments", type=at_least(4, int), default=64, help="WAL behind the backup")
    chosen = options.parse_args()
    room_bytes = chosen.gigabytes * 8e9 + chosen.segments * 200e6
    return run_on_cluster(chosen, room_bytes, distribution_programs, lambda cluster: _measure(chosen, cluster))


def _measure(options: argparse.Namespace, cluster: Cluster) -> None:
    adopt_orphans()
    bench = _Bench(options, cluster)
    bench.prepare()
    ready: dict[str, Callable[[], Result]] = {OURS: bench.ready_ours, RIVAL: bench.ready_rival}
    replay: dict[str, Callable[[], Result]] = {
        OURS: bench.replay_ours,
        RIVAL: bench.replay_rival,
        PLAIN: bench.replay_plain,
    }
    samples: list[Sample] = []
    for number in range(options.rounds + 1):
        for action, contenders in ((_READY, ready), (_REPLAY, replay)):
            for name in contenders if number % 2 else reversed(contenders):
                os.sync()
                load = os.getloadavg()[0]
                result = contenders[name]()
                samples.append(Sample(number, action, name, load, result))
                said = f"round {number}" if number else "warm-up"
                say(f"{said}: {action} {name:18} {result.cost.wall_s:6.2f} s, load {load:.1f}")
    bytes_of = {_READY: bench.raw_bytes + bench.wal_bytes, _REPLAY: bench.wal_bytes}
    for action in (_READY, _REPLAY):
        rival = RIVAL if action == _READY else PLAIN
        print(f"\n{action}, {bytes_of[action] / 1e9:.2f} GB: median (lowest-highest) of {options.rounds} rounds\n")
        chosen = names(sample for sample in samples if sample.action == action)
        header = ("", "seconds", "MB/s", f"time vs {rival}")
        print("\n".join(aligned([header, *(_row(samples, action, name, rival, bytes_of) for name in chosen)])))
    ready_ratio = statistics.median(ratios(samples, _READY, OURS, RIVAL))
    tax = statistics.median(ratios(samples, _REPLAY, OURS, PLAIN))
    print(f"\n{load_note(samples)}\n\ntargets\n")
    print(
        "\n".join(
            aligned(
                [
                    _target(
                        f"restore to ready: at most {MOST_READY_RATIO}x pgBackRest's time",
                        ready_ratio,
                        MOST_READY_RATIO,
                    ),
                    _target(f"replay: at most {MOST_REPLAY_TAX}x the time of {PLAIN}", tax, MOST_REPLAY_TAX),
                ]
            )
        )
    )
    keep(options, _document(samples, bench, ready_ratio, tax))


def _target(text: str, measured: float, most: float) -> tuple[str, ...]:
    return text, f"{measured:.2f}", "met" if measured <= most else "MISSED"


def _row(samples: Sequence[Sample], action: str, name: str, rival: str, bytes_of: dict[str, int]) -> tuple[str, ...]:
    walls = [result.cost.wall_s for result in results(samples, action, name)]
    found = ratios(samples, action, name, rival)
    return (
        name,
        spread(walls),
        f"{bytes_of[action] / statistics.median(walls) / 1e6:.0f}",
        f"{statistics.median(found):.2f}x ({min(found):.2f}-{max(found):.2f})",
    )


def _document(samples: Sequence[Sample], bench: "_Bench", ready: float, tax: float) -> dict[str, object]:
    return {
        "schema_id": "bb-ops/bench-recovery/1",
        "raw_bytes": bench.raw_bytes,
        "wal_bytes": bench.wal_bytes,
        "zstd_level": LEVEL,
        "pgbackrest_processes": PROCESSES,
        "cpus": os.cpu_count(),
        "ready_ratio_to_pgbackrest": ready,
        "replay_tax_over_cp": tax,
        "samples": [
            {
                "round": sample.round_number,
                "action": sample.action,
                "contender": sample.contender,
                "load": sample.load,
                **vars(sample.result.cost),
            }
            for sample in samples
        ],
    }


class _Bench:
    """A backup and its WAL in every contender's archive, and the ways to bring them back."""

    def __init__(self, options: argparse.Namespace, cluster: Cluster) -> None:
        self._segments = options.segments
        self._cluster = cluster
        self._rival = PgBackRest(find_pgbackrest(), cluster, cluster.folder / "pgbackrest")
        self._ours = BbOps(OURS, options.bb_ops, cluster, cluster.folder / "ours", encrypted=True, fingerprints=False)
        self._wal = cluster.folder / "wal"
        self._into = cluster.folder / "back"
        self.raw_bytes = 0
        self.wal_bytes = 0
        self._rows = ""

    def prepare(self) -> None:
        """Take both backups, then write WAL that both archive; the server is stopped afterwards."""
        cluster, archive = (
            self._cluster,
            self._rival.archive_command.replace("archive-push", "--archive-async archive-push"),
        )
        cluster.start("archive_mode=on", f"archive_command={archive}", "checkpoint_timeout=1h")
        self._rival.clear()
        self._rival.backup()
        self._ours.backup()
        self.raw_bytes = cluster.size_bytes()
        before = self._position()
        with running(self._ours.command("wal", "stream"), cluster.folder / "stream.log"):
            part = 0
            while self._position() - before < self._segments << 24:
                cluster.query(_CHANGE.format(part=part))
                part += 1
            self._rows = cluster.query("SELECT count(*) FROM payments")
            cluster.query("SELECT pg_switch_wal()")
            self.wal_bytes = self._position() - before
            cluster.settle()
            self._wait_until_streamed()
        cluster.stop()
        run(self._ours.command("wal", "fetch-all", self._wal))
        self._wal.chmod(0o755)
        for path in self._wal.iterdir():
            path.chmod(0o644)
        say(f"{self.raw_bytes / 1e9:.2f} GB of data, {self.wal_bytes / 1e9:.2f} GB of WAL")

    def ready_ours(self) -> Result:
        """Everything that ours does, its checks included, up to a server that takes writes."""
        port = "6543"
        command = self._ours.command(
            *("recover", "point-in-time", "latest", "--into", self._into, "--level", "L4", "--start", "--port", port)
        )
        try:
            return Result(measure(command, None)[0])
        finally:
            _stop(self._into)
            self._check()

    def ready_rival(self) -> Result:
        """Restore with pgBackRest, then recovery with its own restore_command."""
        self._make_directory()
        restore = self._rival_command(f"--pg1-path={self._into}", "restore")

        with ExitStack() as until_measured:

            def work() -> None:
                run(restore)
                until_measured.enter_context(self._server())

            cost = measure_all(("pgbackrest", "postgres"), work)
            self._expect_rows()
        self._check()
        return Result(cost)

    def replay_ours(self) -> Result:
        """What the command itself measures of the replay: it starts its feed and the server in one moment."""
        command = self._ours.command(
            *("recover", "point-in-time", "latest", "--into", self._into, "--level", "L4", "--json")
        )
        cost, output = measure(command, None)
        self._check()
        return Result(Cost(json.loads(output)["replay_s"], cost.cpu_s, 0.0, cost.peak_rss_bytes))

    def replay_rival(self) -> Result:
        """pgBackRest's restore_command, asynchronous, with its processes."""
        words = ("--archive-async", f"--pg1-path={self._into}", "archive-get", "%f", '"%p"')
        command = " ".join(str(word) for word in (*self._rival_command().argv, *words))
        return self._replay(command)

    def replay_plain(self) -> Result:
        """Segments that lie decrypted and decompressed in a local folder."""
        return self._replay(f"cp {self._wal}/%f %p")

    def _replay(self, restore_command: str) -> Result:
        run(self._ours.command("recover", "full", "latest", "--into", self._into))
        (self._into / "recovery.signal").touch()
        self._cluster.account.give(self._into / "recovery.signal")
        os.sync()

        settings = (f"restore_command={restore_command}", "recovery_target_timeline=current", *_SAME)
        with ExitStack() as until_measured:
            cost = measure_all(("postgres",), lambda: until_measured.enter_context(self._server(*settings)))
            self._expect_rows()
        self._check()
        return Result(cost)

    @contextmanager
    def _server(self, *settings: str) -> Iterator[None]:
        """Run a server until recovery has ended; the block's end stops it."""
        cluster, started = self._cluster, time.monotonic()
        words = ("archive_mode=off", "listen_addresses=", f"unix_socket_directories={cluster.sockets}", *settings)
        options = [f"--{word}" for word in (*words, "port=5432", "hot_standby=off")]
        command = cluster.command(cluster.programs / "postgres", "-D", self._into, *options)
        log = cluster.folder / "recovery.log"
        with running(Command(command.argv, command.environment, command.account, self._into), log) as child:
            while not self._answers():
                if child.poll() is not None or time.monotonic() - started > _TIMEOUT_S:
                    raise Failed(f"the recovered server does not answer: {log.read_text()[-600:]}")
                time.sleep(_POLL_S)
            yield

    def _expect_rows(self) -> None:
        rows = self._cluster.query("SELECT count(*) FROM payments")
        if rows != self._rows:
            raise Failed(f"recovered {rows} payments instead of {self._rows}")

    def _answers(self) -> bool:
        command = self._cluster.command(self._cluster.programs / "pg_isready", "-q")
        return (
            subprocess.run(
                [os.fspath(word) for word in command.argv], env=dict(command.environment), check=False
            ).returncode
            == 0
        )

    def _check(self) -> None:
        """Prove that a cluster is there, and make room."""
        if not (self._into / "global/pg_control").is_file():
            raise Failed(f"no cluster in {self._into}")
        self._cluster.throw_away(self._into)

    def _make_directory(self) -> None:
        self._into.mkdir(mode=0o700)
        self._cluster.account.give(self._into)

    def _rival_command(self, *words: str) -> Command:
        base = self._rival.archive_command.removesuffix(" archive-push %p").split(" ")
        return self._cluster.command(*base, *words)

    def _position(self) -> int:
        return int(self._cluster.query("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))

    def _wait_until_streamed(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while json.loads(run(self._ours.command("wal", "status", "--json")))["lag_bytes"]:
            if time.monotonic() > deadline:
                raise Failed("the streamer does not catch up")
            time.sleep(0.2)


def _stop(directory: Path) -> None:
    """Stop the server that ours left running."""
    pid_file = directory / "postmaster.pid"
    if pid_file.exists():
        os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGINT)
    deadline = time.monotonic() + _TIMEOUT_S
    while pid_file.exists():
        if time.monotonic() > deadline:
            raise Failed(f"the server in {directory} does not stop")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main())
