"""Medians, ratios and targets of a comparison, as tables for people and as one document for programs."""

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from contenders import Result

OURS = "bb-ops"
RIVAL = "pgBackRest"
LEAST_THROUGHPUT_RATIO = 1.3
MOST_RESTORE_TIME_RATIO = 1.2


@dataclass(frozen=True)
class Sample:
    """One measured call in one round; round 0 warms up and does not count."""

    round_number: int
    action: str
    contender: str
    load: float
    result: Result


@dataclass(frozen=True)
class Target:
    """What was promised, and what was measured."""

    text: str
    measured: float
    met: bool


def targets(samples: Sequence[Sample]) -> list[Target]:
    """Compare with the targets: medians of the ratios within each round."""
    throughput = statistics.median(ratios(samples, "backup", RIVAL, OURS))
    duration = statistics.median(ratios(samples, "restore", OURS, RIVAL))
    return [
        Target(
            f"backup, encrypted: at least {LEAST_THROUGHPUT_RATIO}x pgBackRest's throughput",
            throughput,
            throughput >= LEAST_THROUGHPUT_RATIO,
        ),
        Target(
            f"restore with all its checks: at most {MOST_RESTORE_TIME_RATIO}x pgBackRest's time",
            duration,
            duration <= MOST_RESTORE_TIME_RATIO,
        ),
    ]


def tables(samples: Sequence[Sample], raw_bytes: int) -> str:
    """Return one table for each action, and the targets."""
    lines = []
    for action in ("backup", "restore"):
        counted = [sample for sample in samples if sample.action == action and sample.round_number]
        lines += ["", f"{action}: median (lowest-highest) of {max(s.round_number for s in counted)} rounds", ""]
        lines += aligned([_HEADER, *(_row(samples, action, name, raw_bytes) for name in names(counted))])
    lines += ["", load_note(samples)]
    lines += ["", "targets", ""]
    lines += aligned(
        [(target.text, f"{target.measured:.2f}", "met" if target.met else "MISSED") for target in targets(samples)]
    )
    return "\n".join(lines)


def document(samples: Sequence[Sample], facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "schema_id": "bb-ops/bench/1",
        **facts,
        "summary": [
            _summary(samples, action, name, facts["raw_bytes"])
            for action in ("backup", "restore")
            for name in names(sample for sample in samples if sample.action == action)
        ],
        "targets": [vars(target) for target in targets(samples)],
        "samples": [
            {
                "round": sample.round_number,
                "action": sample.action,
                "contender": sample.contender,
                "load": sample.load,
                **vars(sample.result.cost),
                "stored_bytes": sample.result.stored_bytes,
                "checks_s": sample.result.checks_s,
            }
            for sample in samples
        ],
    }


def load_note(samples: Sequence[Sample]) -> str:
    """Say how busy the machine was."""
    return f"load average before the runs: {spread([sample.load for sample in samples])} on {os.cpu_count()} CPUs"


_HEADER = ("", "seconds", "MB/s", "vs pgBackRest", "CPU s", "server CPU s", "peak MB", "stored MB", "checks s")


def _row(samples: Sequence[Sample], action: str, name: str, raw_bytes: int) -> tuple[str, ...]:
    chosen = results(samples, action, name)
    found = ratios(samples, action, name, RIVAL)
    return (
        name,
        spread([result.cost.wall_s for result in chosen]),
        f"{statistics.median(raw_bytes / result.cost.wall_s for result in chosen) / 1e6:.0f}",
        f"{statistics.median(found):.2f}x time ({min(found):.2f}-{max(found):.2f})",
        spread([result.cost.cpu_s for result in chosen]),
        spread([result.cost.server_cpu_s for result in chosen]) if action == "backup" else "-",
        f"{max(result.cost.peak_rss_bytes for result in chosen) / 1e6:.0f}",
        "-" if chosen[0].stored_bytes is None else f"{_median(chosen, 'stored_bytes') / 1e6:.0f}",
        "-" if chosen[0].checks_s is None else f"{_median(chosen, 'checks_s'):.2f}",
    )


def _summary(samples: Sequence[Sample], action: str, name: str, raw_bytes: int) -> dict[str, Any]:
    chosen = results(samples, action, name)
    walls = [result.cost.wall_s for result in chosen]
    return {
        "action": action,
        "contender": name,
        "wall_s": {"median": statistics.median(walls), "min": min(walls), "max": max(walls)},
        "bytes_per_s": raw_bytes / statistics.median(walls),
        "time_ratio_to_pgbackrest": statistics.median(ratios(samples, action, name, RIVAL)),
        "cpu_s": statistics.median(result.cost.cpu_s for result in chosen),
        "server_cpu_s": statistics.median(result.cost.server_cpu_s for result in chosen),
        "peak_rss_bytes": max(result.cost.peak_rss_bytes for result in chosen),
        "stored_bytes": None if chosen[0].stored_bytes is None else _median(chosen, "stored_bytes"),
        "checks_s": None if chosen[0].checks_s is None else _median(chosen, "checks_s"),
    }


def results(samples: Sequence[Sample], action: str, name: str) -> list[Result]:
    """Return what counts of one contender's runs, in order."""
    return [
        sample.result
        for sample in samples
        if sample.action == action and sample.contender == name and sample.round_number
    ]


def ratios(samples: Sequence[Sample], action: str, one: str, other: str) -> list[float]:
    """Divide one contender's time by the other's, round by round: what disturbs a round disturbs both."""
    return [
        mine.cost.wall_s / theirs.cost.wall_s
        for mine, theirs in zip(results(samples, action, one), results(samples, action, other), strict=True)
    ]


def _median(results: Sequence[Result], field: str) -> float:
    return float(statistics.median(getattr(result, field) for result in results))


def names(samples: Iterable[Sample]) -> list[str]:
    """Return the contenders, ours and its rival first."""
    return sorted({sample.contender for sample in samples}, key=lambda name: (name != OURS, name != RIVAL, name))


def spread(values: Sequence[float]) -> str:
    """Return a median with what it lies between."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a table's lines."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
