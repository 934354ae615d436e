"""How many threads a process computes with, and how long they wait for one another awake.

In PyTorch's OpenMP runtime on Linux (libgomp), a thread that waits for the others of its team tries
300,000 times before it sleeps. If another process computes on the same cores, it keeps the thread
it is waiting for from running. Two fine-tunings side by side, with two threads each on two cores,
took up to 48 times as long as one after the other for a model of a million weights, and 1.2 times
for twelve million; with 1,000 tries it was 0.93 and 0.88 times as long, with one thread each 0.74
and 0.55 (`benchmarks/side_by_side.py`). Fewer tries cost time alone: `SPINS` is where two at once
still take no longer than one after the other, 0.88 times, and one alone a fifth longer instead of
a half.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

SPINS = 2000
"""Tries before a thread sleeps; libgomp takes 1,000 when it knows that threads outnumber cores."""
COUNT = "OMP_NUM_THREADS"
CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of cores that this process may use, by affinity and by its quota."""
    return max(1, math.ceil(min(_affinity(), quota())))


def _affinity() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def quota(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the seconds of processor time per second that control groups allow; inf if any.

    Args:
        root: Where control groups (version 2) are mounted.
        own: File that names the group of this process.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    names = [Path(line.removeprefix("0::/")) for line in lines if line.startswith("0::/")]
    # A container can see the group's name outside of it; its own group is then the mount itself.
    folders = {root, *(root / group for name in names for group in (name, *name.parents))}
    return min(map(_limit, folders))


def _limit(group: Path) -> float:
    """Return the limit of one group, e.g. 1.5 for "150000 100000"."""
    try:
        allowed, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        return math.inf


def per_process(processes: int) -> int:
    """Return the threads of each of several processes: its share of the cores, or fewer if set.

    More threads than cores would wait for one another, so a higher OMP_NUM_THREADS is not used.
    """
    share = max(cores() // processes, 1)
    return min(chosen() or share, share)


def chosen() -> int | None:
    """Return OMP_NUM_THREADS, its first level; None if it is not set or not a positive number."""
    first = os.environ.get(COUNT, "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def settings(processes: int) -> dict[str, str]:
    """Return the environment variables for each of several processes."""
    return {COUNT: str(per_process(processes)), **waiting()}


def waiting() -> dict[str, str]:
    """Return the environment variable that shortens waiting; none if the user has set one."""
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return {}
    return {"GOMP_SPINCOUNT": str(SPINS)}


def settle() -> None:
    """Set this process up to share the cores; it must not have imported torch yet.

    The number of threads is set only if a quota allows fewer cores than the machine has: PyTorch
    counts the cores and knows of no quota.
    """
    os.environ.update(waiting())
    if chosen() is None and cores() < _affinity():
        os.environ[COUNT] = str(cores())


def description(processes: int) -> str:
    """Return what several processes are started with, in one line."""
    n = per_process(processes)
    text = f"{processes} processes with {n} thread{'s' * (n > 1)} each on {_count(cores())}"
    asked = chosen()
    if asked is not None and asked > n:
        return f"{text}; {COUNT}={asked} would be more threads than cores"
    return text


def _count(n: int) -> str:
    return f"{n} core{'s' * (n > 1)}"
