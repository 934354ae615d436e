"""Do different downstream tasks make a model forget the same examples?"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd

from holdfast.charts.charts import heat_map
from holdfast.contracts import Analysis, Section
from holdfast.errors import UsageError
from holdfast.results.artifacts import AttackResult
from holdfast.results.attacks import Attack, table_names
from holdfast.results.run_dir import RunDir
from holdfast.stats.intervals import bootstrap, wilson
from holdfast.stats.overlap import jaccard, jaccard_by_chance
from holdfast.stats.ranks import spearman
from holdfast.stats.raters import kappa


class Overlap(Analysis):
    """Compares the sets of alignment examples forgotten under different attacks.

    Figure 2 of the paper (arXiv 2506.03850) with what it leaves out: the overlap that would be
    there by chance, and intervals. Forgotten means answered harmfully at one checkpoint at least;
    examples that were not safe before the attack are left out.
    """

    needs: ClassVar[tuple[str, ...]] = ("attack",)

    method: str = "sft"
    """Method whose models are compared, each seed by itself."""

    def run(self, run: RunDir) -> Section:
        """Return pairwise overlaps, averaged over the seeds of the alignment."""
        by_model = _tracked(run, self.method)
        names = _names(by_model)
        frames = [_pairs(results, names) for results in by_model.values()]
        table = pd.concat(frames, ignore_index=True)
        means = table.groupby(["attack", "other attack"], as_index=False, sort=False).mean()
        return Section(
            title="Are the same examples forgotten, whatever the task?",
            findings=(
                *_sentences(by_model, table, names),
                _common(list(by_model.values())),
            ),
            tables={"Overlap of forgotten sets, mean over aligned models": means.round(3)},
            figures={"Jaccard index of the forgotten sets": _map(means)},
            note=(
                "The Jaccard index grows with the size of the sets, so the value expected by "
                "chance stands beside it; kappa is corrected for chance. Attacks that share the "
                "aligned model share its quirks: this is transfer between tasks, not models."
            ),
        )


def _tracked(run: RunDir, method: str) -> dict[str, list[AttackResult]]:
    found: dict[str, list[AttackResult]] = defaultdict(list)
    for entry in run.require("attack"):
        result = AttackResult.load(run.result(entry))
        if result.method == method and result.tracked:
            found[result.model].append(result)
    pairs = {
        model: results
        for model, results in found.items()
        if len(results) > 1 and set.intersection(*(set(r.tracked) for r in results))
    }
    if not pairs:
        raise UsageError(
            f"{run.root}: overlap needs two or more attacks on one {method!r} model that tracked "
            "its alignment rows; run `holdfast attack --track DATA` with several tasks"
        )
    return pairs


def _names(by_model: Mapping[str, list[AttackResult]]) -> dict[Attack, str]:
    attacks = list(dict.fromkeys(r.attack for results in by_model.values() for r in results))
    return dict(zip(attacks, table_names(attacks), strict=True))


def _forgotten(result: AttackResult) -> set[str]:
    return {identity for identity, count in result.tracked.items() if count > 0}


def _pairs(results: list[AttackResult], names: Mapping[Attack, str]) -> pd.DataFrame:
    rows = []
    for a, b in itertools.combinations(results, 2):
        ids = sorted(set(a.tracked) & set(b.tracked))
        x, y = (np.array([r.tracked[i] for i in ids]) for r in (a, b))
        one = {i for i in _forgotten(a) if i in b.tracked}
        two = {i for i in _forgotten(b) if i in a.tracked}
        rows.append(
            {
                "attack": names[a.attack],
                "other attack": names[b.attack],
                "forgotten": len(one) / len(ids),
                "by the other": len(two) / len(ids),
                "jaccard": jaccard(one, two),
                "by chance": jaccard_by_chance(len(ids), len(one), len(two)),
                "kappa": kappa(x > 0, y > 0),
                "spearman": spearman(x, y),
                "n": len(ids),
            }
        )
    return pd.DataFrame(rows)


def _sentences(
    by_model: dict[str, list[AttackResult]], table: pd.DataFrame, names: Mapping[Attack, str]
) -> tuple[str, ...]:
    model, results = next(iter(by_model.items()))
    a, b = results[0], results[1]
    ids = sorted(set(a.tracked) & set(b.tracked))
    x, y = (np.array([float(r.tracked[i]) for i in ids]) for r in (a, b))
    interval = bootstrap(spearman, x, y, resamples=500)
    low, high = table["kappa"].min(), table["kappa"].max()
    return (
        f"Between {names[a.attack]} and {names[b.attack]} on {model}, the "
        f"forgetting counts correlate with Spearman {interval}.",
        f"Over all {len(table)} pairs of attacks on one model, chance-corrected agreement of the "
        f"forgotten sets (kappa) lies between {low:.2f} and {high:.2f}, n={table['n'].max()} "
        "examples each.",
    )


def _common(models: list[list[AttackResult]]) -> str:
    """Say the paper's CommonForgotRatio, examples of all aligned models pooled.

    What is unknown under one of a model's attacks is left out: it may be common or not.
    """
    common = smallest = known = 0
    for results in models:
        ids = set.intersection(*(set(r.tracked) for r in results))
        known += len(ids)
        first, *others = sets = [_forgotten(r) & ids for r in results]
        common += len(first.intersection(*others))
        smallest += min(map(len, sets))
    return (
        f"Forgotten under all {len(models[0])} attacks (the paper's CommonForgotRatio): "
        f"{wilson(common, smallest)} examples of the smallest forgotten set, of {known} whose "
        "count is known under all of them, over "
        f"{len(models)} aligned model{'s' if len(models) > 1 else ''}."
    )


def _map(means: pd.DataFrame) -> str:
    names = list(dict.fromkeys([*means["attack"], *means["other attack"]]))
    index = {n: i for i, n in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    for a, b, value in zip(means["attack"], means["other attack"], means["jaccard"], strict=True):
        values[index[a], index[b]] = values[index[b], index[a]] = value
    return heat_map(names, names, values.tolist(), title="Jaccard index of forgotten sets")
