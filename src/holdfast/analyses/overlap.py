"""Do different downstream tasks make a model forget the same examples?"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd

from holdfast.charts.figures import HeatMap, numbers
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.errors import UsageError
from holdfast.results.artifacts import AttackResult
from holdfast.results.attacks import Attack, table_names
from holdfast.results.run_dir import RunDir
from holdfast.stats.intervals import bootstrap, wilson
from holdfast.stats.overlap import jaccard, jaccard_by_chance
from holdfast.stats.ranks import spearman
from holdfast.stats.raters import kappa
from holdfast.stats.wording import measured
from holdfast.texts import Text


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
        texts = {"".join(text): text for text in names.values()}
        return Section(
            title=Text("Do different tasks make a model forget the same examples?"),
            findings=(
                *_sentences(by_model, table, names),
                _common(list(by_model.values())),
            ),
            tables={
                Text("Overlap of forgotten sets, mean over aligned models"): _table(means, texts)
            },
            figures={Text("Jaccard index of the forgotten sets"): _map(means, texts)},
            note=Text(
                "The Jaccard index grows with the size of the sets, so the value expected by "
                "chance is shown beside it; kappa is corrected for chance. Attacks on one aligned "
                "model share its quirks: this is transfer between tasks, not between models."
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


def _names(by_model: Mapping[str, list[AttackResult]]) -> dict[Attack, Text]:
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
                "attack": "".join(names[a.attack]),
                "other attack": "".join(names[b.attack]),
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


def _table(means: pd.DataFrame, names: Mapping[str, Text]) -> SectionTable:
    heads = {
        "forgotten": Text("forgotten"),
        "by the other": Text("by the other"),
        "jaccard": "Jaccard",
        "by chance": Text("by chance"),
        "kappa": "kappa",
        "spearman": "Spearman",
        "n": "n",
    }
    return SectionTable.of(
        {
            Text("attack"): names[record["attack"]],
            Text("other attack"): names[record["other attack"]],
            **{head: record[key] for key, head in heads.items()},
        }
        for record in means.to_dict("records")
    )


def _sentences(
    by_model: dict[str, list[AttackResult]], table: pd.DataFrame, names: Mapping[Attack, Text]
) -> tuple[Text, ...]:
    model, results = next(iter(by_model.items()))
    a, b = results[0], results[1]
    ids = sorted(set(a.tracked) & set(b.tracked))
    x, y = (np.array([float(r.tracked[i]) for i in ids]) for r in (a, b))
    return (
        Text(
            "The forgetting counts under {attack} and under {other} on {model} correlate with a "
            "Spearman coefficient of {rank}.",
            attack=names[a.attack],
            other=names[b.attack],
            model=model,
            rank=measured(bootstrap(spearman, x, y, resamples=500)),
        ),
        Text(
            "Over all {pairs:d} pairs of attacks on one model, the chance-corrected agreement of "
            "the forgotten sets (kappa) lies between {low:.2f} and {high:.2f} (n={n:d} examples "
            "each).",
            pairs=len(table),
            low=float(table["kappa"].min()),
            high=float(table["kappa"].max()),
            n=int(table["n"].max()),
        ),
    )


def _common(models: list[list[AttackResult]]) -> Text:
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
    return Text(
        "Forgotten under all {attacks:d} attacks (the paper's CommonForgotRatio): {share} examples "
        "of the smallest forgotten set, out of {known:d} whose count is known under all of them "
        "(aligned models: {models:d}).",
        attacks=len(models[0]),
        share=measured(wilson(common, smallest)),
        known=known,
        models=len(models),
    )


def _map(means: pd.DataFrame, names: Mapping[str, Text]) -> HeatMap:
    order = list(dict.fromkeys([*means["attack"], *means["other attack"]]))
    index = {attack: i for i, attack in enumerate(order)}
    values = np.full((len(order), len(order)), np.nan)
    np.fill_diagonal(values, 1.0)
    for a, b, value in zip(means["attack"], means["other attack"], means["jaccard"], strict=True):
        values[index[a], index[b]] = values[index[b], index[a]] = value
    labels = tuple(names[attack] for attack in order)
    return HeatMap(
        title=Text("Jaccard index of the forgotten sets"),
        rows=labels,
        columns=labels,
        values=tuple(numbers(row) for row in values),
    )
