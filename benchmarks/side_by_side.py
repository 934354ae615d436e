"""Two processes on the same cores, against one after the other, by how their threads wait.

Each process loads and warms up before the clock starts. "libgomp": as PyTorch's OpenMP runtime
waits by itself; "command": as a `holdfast` command beside another; "jobs": as the processes of
`--jobs`; "passive": threads that sleep at once.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from common import ROOT, Row, main, parser, write
from holdfast.errors import HoldfastError
from holdfast.runtime import threads
from holdfast.stats.intervals import bootstrap

PROGRAM = Path(__file__).parent / "engines" / "beside.py"
COUNTS = {("world", "steps"): 10, ("world", "answers"): 8, ("wide", "steps"): 6}
"""What each process does: optimizer steps, or multiples of eight answers."""
NOTES = (
    "pair_ratio: seconds until both processes have ended, over twice the seconds of one alone; "
    "above 1, one after the other would have been faster. alone_ratio: seconds alone over those "
    "with libgomp's own settings. Medians over rounds, bootstrap over rounds. world: a million "
    "weights; wide: twelve million."
)
Environment = Mapping[str, str]


def settings() -> dict[str, Environment]:
    """Return the environment variables that are compared."""
    cores = str(threads.cores())
    spins = str(threads.SPINS)
    return {
        "libgomp": {"OMP_NUM_THREADS": cores},
        "command": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": spins},
        "jobs": {"OMP_NUM_THREADS": str(max(threads.cores() // 2, 1)), "GOMP_SPINCOUNT": spins},
        "passive": {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "passive"},
    }


def seconds(n: int, model: str, what: str, count: int, environment: Environment) -> float:
    """Return the seconds in which n processes end that start together.

    Raises:
        HoldfastError: One of them failed.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    inherited |= {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, str(PROGRAM), model, what, str(count)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=inherited,
                )
            )
            for _ in range(n)
        ]
        _wait_for("ready", processes)
        start = time.perf_counter()
        for process in processes:
            _say_to(process, "go")
        _wait_for("done", processes)
        return time.perf_counter() - start


def _say_to(process: subprocess.Popen[str], text: str) -> None:
    if process.stdin is not None:
        process.stdin.write(text + "\n")
        process.stdin.flush()


def _wait_for(text: str, processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        line = process.stdout.readline() if process.stdout else ""
        if line.strip() != text:
            raise HoldfastError(f"a measured process ended without writing {text!r}")


def measure(counts: Mapping[tuple[str, str], int], rounds: int) -> list[Row]:
    """Return a row for each model, kind of work and settings; the settings take turns."""
    results = []
    for (model, what), count in counts.items():
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in settings()}
        for turn in range(rounds):
            for name, environment in settings().items():
                print(f"{model} {what}, round {turn + 1}: {name}", file=sys.stderr)
                alone = seconds(1, model, what, count, environment)
                pair = seconds(2, model, what, count, environment)
                taken[name].append((alone, pair))
        results += rows(model, what, taken)
    return results


def rows(model: str, what: str, taken: Mapping[str, Sequence[tuple[float, float]]]) -> list[Row]:
    """Return a row for each of the settings, from (seconds alone, seconds of both) by round."""
    plain = statistics.median(alone for alone, _ in taken["libgomp"])
    results = []
    for name, values in taken.items():
        alone = statistics.median(value for value, _ in values)
        results.append(
            {
                "model": model,
                "what": what,
                "settings": name,
                "threads": int(settings()[name]["OMP_NUM_THREADS"]),
                **_pair_ratio(np.array(values)),
                "alone_ratio": alone / plain,
                "alone_seconds": alone,
                "pair_seconds": statistics.median(pair for _, pair in values),
                "rounds": len(values),
            }
        )
    return results


def _pair_ratio(values: np.ndarray) -> dict[str, float]:
    def median(pairs: np.ndarray) -> float:
        return float(np.median(pairs[:, 1] / (2 * pairs[:, 0])))

    if len(values) > 1:
        return bootstrap(median, values).fields("pair_ratio")
    unknown = {"pair_ratio_low": math.nan, "pair_ratio_high": math.nan}
    return {"pair_ratio": median(values), **unknown}


def options() -> argparse.ArgumentParser:
    """Return the options."""
    return parser(__doc__)


def run_benchmark() -> None:
    """Measure and write."""
    chosen = options().parse_args()
    counts = {("world", "answers"): 1} if chosen.quick else COUNTS
    rounds = 1 if chosen.quick else chosen.seeds
    facts = {
        "setting": "world",
        "quick": chosen.quick,
        "cores": threads.cores(),
        "counts": {f"{model} {what}": count for (model, what), count in counts.items()},
        "settings": settings(),
        "notes": NOTES,
    }
    write(chosen.json, "side_by_side", facts, measure(counts, rounds))


if __name__ == "__main__":
    main(run_benchmark)
