"""How well do cheap scores foresee what an attack makes a model forget, and what do they cost?

For every seed the base is aligned with SFT, every estimator scores the alignment rows, and the
aligned model is attacked with other rows and for other tasks than any estimator saw. The truth is
the attack's ForgotNum. AUROC and AUPRC are for "forgotten at one checkpoint at least", Spearman is
against the count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from common import Row, Setting, add_setting, configured, folder, main, parser, setting, walk, write
from holdfast.artifacts import AttackResult, RunDir, Scores
from holdfast.stats import Interval, auprc, auroc, bootstrap, mean_interval, spearman

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from holdfast.stages.pipeline import RunConfig

REFERENCE = "forget_count"
VARIANTS = ("half_flip", "critical_step")
POOLING = (
    "value: mean over cells (seed x attack), beside it the median; interval: Student's t over the "
    "cells, cut to the statistic's range, or a bootstrap over examples where there is one cell. "
    "Attacks on one model share its quirks, so the cells are not quite independent."
)
# A mild attack: under that of the demo nearly all examples end as victims, and none is first.
WORLD_ATTACK = {"learning_rates": [2e-5], "steps": 100}
QUICK_ATTACK = {"steps": 30, "every": 10, "rows": 150, "task_rows": 0}
QUICK_COUNT = "steps=30,every=10,rows=150"
# The reference as the paper makes it, with ten checkpoints; the settings' own are cut for time.
FULL_COUNT = "steps=100,every=10,rows=400"


@dataclass(frozen=True)
class Cell:
    """One estimator's scores against one attack on one seed's model.

    Attributes:
        estimator: Label.
        seed: Of the alignment and the estimator.
        attack: Label.
        scores: (n,) higher = forgotten sooner, finite.
        count: (n,) the attack's ForgotNum.
        seconds: What the estimator took.
    """

    estimator: str
    seed: int
    attack: str
    scores: np.ndarray
    count: np.ndarray
    seconds: float


def configuration(base: Setting, options: argparse.Namespace, out: Path) -> RunConfig:
    """Return the run: SFT, all estimators on it, attacks whose forgetting is tracked."""
    limit = {"limit": 160} if options.quick else {}
    changes: dict[str, Any] = {
        "methods": {"sft": {}},
        "score": {k: {**v, **limit} for k, v in _estimators(base, options.quick).items()},
        "group": {"scores": "half_flip-mismatched", **limit},
        "attack": {
            "poison_ratios": [0.1],
            **(WORLD_ATTACK if base.name == "world" else {}),
            **limit,
            **(QUICK_ATTACK if options.quick else {}),
        },
        "align": limit,
        "track": True,
    }
    return configured(base, options, out, changes)


def _estimators(base: Setting, quick: bool) -> dict[str, dict[str, Any]]:
    reference, probe = base.config.score[REFERENCE], base.config.score["attack_direction"]
    count = f"{reference['estimator']},{QUICK_COUNT if quick else FULL_COUNT}"
    length = probe["estimator"].partition(",")[2]
    found: dict[str, dict[str, Any]] = {
        "free_margin": {"estimator": ",".join(filter(None, ["loss,quantity=margin", length]))},
        REFERENCE: {**reference, "estimator": count},
    }
    for variant in VARIANTS:
        for source in base.sources:
            spec = f"{probe['estimator']},variant={variant},source={source}"
            if source == "affirmative":
                spec += f",prefix={base.prefix}"
            harmful = {"harmful": base.probe} if source == "harmful" else {}
            found[f"{variant}-{source}"] = {"estimator": spec, **harmful}
    return found


# ----------------------------------------------------------------------------------------- rows


def cells(run: RunDir) -> list[Cell]:
    """Pair every estimator's scores with every attack on the model that was scored."""
    attacks = [AttackResult.load(run.path(next(iter(e.outputs)))) for e in run.require("attack")]
    found = []
    for entry in run.require("score"):
        scores = Scores.load(run.path(next(iter(entry.outputs))))
        label = entry.name.removesuffix(f"-s{scores.seed}")
        for attack in attacks:
            if attack.model_hash == scores.model_hash and attack.tracked:
                found.append(_cell(label, scores, attack))
    return found


def _cell(label: str, scores: Scores, attack: AttackResult) -> Cell:
    count = np.array([attack.tracked.get(i, np.nan) for i in scores.ids], dtype=np.float64)
    known = np.isfinite(count) & np.isfinite(scores.values)
    task = str(attack.attack["task"]).partition(",")[0]
    return Cell(
        estimator=label,
        seed=scores.seed,
        attack=f"{task} p={attack.attack['poison_ratio']:g} "
        f"lr={attack.attack['learning_rate']:g} draw {attack.attack['seed']}",
        scores=scores.values[known],
        count=count[known],
        seconds=float(scores.facts.get("seconds", np.nan)),
    )


def rows(found: Sequence[Cell], order: Sequence[str] = ()) -> list[Row]:
    """Return one row per estimator, in this order, others as they come."""
    reference = _seconds(c for c in found if c.estimator == REFERENCE)
    labels = dict.fromkeys([*order, *(c.estimator for c in found)])
    mine = [[c for c in found if c.estimator == label] for label in labels]
    return [row(part, reference) for part in mine if part]


def row(mine: Sequence[Cell], reference_seconds: float) -> Row:
    """Pool one estimator's cells."""
    area = pooled(mine, _auroc, 0.0)
    precision = pooled(mine, _auprc, 0.0)
    rank = pooled(mine, spearman_of, -1.0)
    return {
        "estimator": mine[0].estimator,
        "auroc": area.value,
        "auroc_low": area.low,
        "auroc_high": area.high,
        "auroc_median": median(_auroc(c.count, c.scores) for c in mine),
        "spearman": rank.value,
        "spearman_low": rank.low,
        "spearman_high": rank.high,
        "auprc": precision.value,
        "auprc_low": precision.low,
        "auprc_high": precision.high,
        "base_rate": mean(float((c.count > 0).mean()) if c.count.size else np.nan for c in mine),
        "seconds": _seconds(mine),
        "reference_seconds": reference_seconds,
        "seeds": len({c.seed for c in mine}),
        "attacks": len(mine),
        "cells": [_detail(c) for c in mine],
    }


Statistic = Callable[[np.ndarray, np.ndarray], float]
"""Maps ForgotNum (n,) and scores (n,) to an agreement."""


def _auroc(count: np.ndarray, scores: np.ndarray) -> float:
    return auroc(count > 0, scores)


def _auprc(count: np.ndarray, scores: np.ndarray) -> float:
    return auprc(count > 0, scores)


def spearman_of(count: np.ndarray, scores: np.ndarray) -> float:
    """Return the rank correlation of counts and scores."""
    return spearman(count, scores)


def pooled(mine: Sequence[Cell], statistic: Statistic, least: float) -> Interval:
    """Return the mean over cells with its interval, see `POOLING`."""
    if len(mine) == 1:
        return _bootstrapped(mine[0], statistic)
    found = mean_interval([statistic(c.count, c.scores) for c in mine])
    low, high = np.clip([found.low, found.high], least, 1.0).tolist()
    return Interval(found.value, low, high, found.n, found.level)


def _bootstrapped(cell: Cell, statistic: Statistic) -> Interval:
    if cell.count.size < 2:
        return Interval(np.nan, np.nan, np.nan, cell.count.size)
    return bootstrap(statistic, cell.count, cell.scores, seed=cell.seed, resamples=300)


def _detail(cell: Cell) -> Row:
    detail: Row = {"seed": cell.seed, "attack": cell.attack, "n": cell.count.size}
    for name, statistic in (("auroc", _auroc), ("spearman", spearman_of), ("auprc", _auprc)):
        found = _bootstrapped(cell, statistic)
        detail |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return detail


def _seconds(mine: Iterable[Cell]) -> float:
    by_seed = {c.seed: c.seconds for c in mine}
    return mean(by_seed.values()) if by_seed else float("nan")


def run_benchmark() -> None:
    """Score, attack, compare, write."""
    options = parser(__doc__)
    add_setting(options)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.seeds = 1
    with folder(chosen.work) as work:
        base = setting(chosen, work)
        config = configuration(base, chosen, work / "run")
        run = RunDir(config.out)
        before = {entry.key for entry in run.entries("score")}
        walk(config, ("align", "score", "attack"))
        now = {entry.key for entry in run.entries("score")}
        facts = {
            "setting": base.name,
            "quick": chosen.quick,
            "seeds": config.seeds,
            "pooling": POOLING,
            "scores_from_an_earlier_process": len(before & now),
            "run": config.model_dump(mode="json", exclude={"out", "device", "report"}),
        }
        write(chosen.json, "estimators", facts, rows(cells(run), tuple(config.score)))


if __name__ == "__main__":
    main(run_benchmark)
