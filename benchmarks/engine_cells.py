"""What the engine benchmark compares, and the rows it makes of measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common import Row
from holdfast.stats.intervals import Interval, bootstrap
from real_models import Model

PEERS = ("trl", "llama.cpp")


@dataclass(frozen=True)
class Contestant:
    """What is measured in one process."""

    engine: str
    precision: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} {self.engine} {self.precision}"


@dataclass(frozen=True)
class Cell:
    """Measurements that are compared with each other.

    Attributes:
        model: The model.
        contestants: What takes turns.
        threads: Threads of each process.
    """

    model: Model
    contestants: tuple[Contestant, ...]
    threads: int

    @property
    def name(self) -> str:
        """Its model, what is measured, and the threads."""
        return f"{self.model.name}-{self.contestants[0].what}-{self.threads}"


Taken = dict[Contestant, Row]
"""The measurements of one round."""
Rounds = dict[Contestant, list[Row]]
"""The measurements of a cell, one per round."""


def contestants(
    what: str, precisions: Sequence[str], *, peer: bool, before: bool = True
) -> tuple[Contestant, ...]:
    """Return the contestants of a cell, the earlier build first."""
    today = [Contestant("today", precision, what) for precision in precisions]
    earlier = [Contestant("before", "float32", what)] if before else []
    peers: list[Contestant] = []
    if what == "step" and peer:
        peers = [Contestant("trl", precision, what) for precision in precisions]
    if what == "answers" and peer:
        peers = [Contestant("llama.cpp", "4-bit", what)]
    if what == "sft_step":
        peers = [Contestant("today", precision, "hold_step") for precision in precisions]
    return (*earlier, *today, *peers)


def rows(cell: Cell, rounds: Rounds) -> list[Row]:
    """Return a row for everything that today's build did in a cell."""
    return [
        _row(cell, contestant, rounds)
        for contestant in cell.contestants
        if contestant.engine == "today" and rounds.get(contestant)
    ]


def _row(cell: Cell, contestant: Contestant, rounds: Rounds) -> Row:
    own = rounds[contestant]
    before = rounds.get(Contestant("before", "float32", contestant.what), [])
    sft = rounds.get(Contestant("today", contestant.precision, "sft_step"), [])
    peer_name, peer = _peer(cell, contestant, rounds)
    is_hold = contestant.what == "hold_step"
    return {
        "model": cell.model.name,
        "what": contestant.what,
        "precision": contestant.precision,
        "threads": cell.threads,
        **time_ratio(own, before).fields("time_ratio"),
        "memory_ratio": _median_ratio(own, before, "peak_bytes"),
        "peer": peer_name,
        "peer_ratio": time_ratio(own, peer).value,
        **time_ratio(own, sft if is_hold else []).fields("sft_ratio"),
        "seconds": _median([_seconds(row) for row in own]),
        "seconds_before": _median([_seconds(row) for row in before]),
        "seconds_peer": _median([_seconds(row) for row in peer]),
        "peak_gib": _median([row["peak_bytes"] for row in own]) / 2**30,
        "peak_gib_before": _median([row["peak_bytes"] for row in before]) / 2**30,
        "same_answers": _same_answers(own, before),
        "loss_difference": _loss_difference(own, before),
        "rounds": len(own),
        "load": max(row["load"] for row in [*own, *before]),
    }


def _peer(cell: Cell, contestant: Contestant, rounds: Rounds) -> tuple[str | None, list[Row]]:
    for other in cell.contestants:
        same = other.precision in (contestant.precision, "4-bit")
        if other.engine in PEERS and same and other.what == contestant.what:
            return other.engine, rounds.get(other, [])
    return None, []


def time_ratio(own: Sequence[Row], other: Sequence[Row]) -> Interval:
    """Return the median over rounds of own seconds over another's, with a bootstrap interval."""
    pairs = np.array([[_seconds(a), _seconds(b)] for a, b in zip(own, other, strict=False)])
    if len(pairs) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(pairs) == 1:
        return Interval(float(pairs[0, 0] / pairs[0, 1]), math.nan, math.nan, 1)
    return bootstrap(lambda both: float(np.median(both[:, 0] / both[:, 1])), pairs)


def _median_ratio(own: Sequence[Row], other: Sequence[Row], name: str) -> float:
    return _median([a[name] / b[name] for a, b in zip(own, other, strict=False)])


def _seconds(row: Row) -> float:
    return float(np.mean(row["seconds"]))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _same_answers(own: Sequence[Row], before: Sequence[Row]) -> float:
    shares = [
        float(np.mean([x == y for x, y in zip(a["answers"], b["answers"], strict=True)]))
        for a, b in zip(own, before, strict=False)
        if "answers" in a
    ]
    return _median(shares)


def _loss_difference(own: Sequence[Row], before: Sequence[Row]) -> float:
    pairs = zip(own, before, strict=False)
    return _median([a["loss"] - b["loss"] for a, b in pairs if "loss" in a])
