"""From scores to groups: apply a rule, cross it with a category, count what is in doubt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.groups.recommend import recommend
from holdfast.groups.stability import TOO_CLOSE, doubt
from holdfast.groups.thresholds import Cuts, Rule, find_cuts, levels
from holdfast.results.artifacts import Groups, Scores

AUTO = "auto"
UNKNOWN = "unknown"
OTHER = "other"
UNDIVIDED = "undivided"

REPEATS = ("repeats", "attacks", "draws", "members")
"""Facts of an estimate that may hold the number of repetitions."""


@dataclass(frozen=True, slots=True, order=True)
class _Cell:
    """The rows of a category between two levels; without categories, one level of all rows."""

    category: str
    first: int
    last: int

    def named(self, names: Sequence[str]) -> str:
        """Return its name; `names` are the levels'."""
        if self.first == 0 and self.last == len(names) - 1:
            return f"{self.category}: {UNDIVIDED}"
        words = " + ".join(names[self.first : self.last + 1])
        return f"{self.category}: {words}" if self.category else words


def group(
    scores: Scores,
    examples: Examples,
    *,
    rule: Rule | str = "otsu",
    by: str = "",
    min_size: int = 8,
    seed: int = 0,
) -> Groups:
    """Split the examples into groups by vulnerability, least vulnerable first.

    Args:
        scores: Vulnerability; examples without a score (nan) go to the most vulnerable group, the
            cautious side, and are counted in `facts`.
        examples: The rows that were scored.
        rule: A `Rule`, the name of one, or "auto": what `recommend` says, with its reason. For
            "auto" the options of a `Rule` other than `groups` do not matter.
        by: A provenance column, e.g. "category": every value of it is divided by the same cuts.
            Rows without a value form the category "unknown".
        min_size: With `by`: smaller cells are merged with their neighbour in the category, and
            categories that are smaller altogether are pooled as "other".
        seed: Of the resampling in "auto".

    Returns:
        The groups, none of them empty.

    Raises:
        UsageError: Unknown rule or column, fewer than two scored examples, all scores equal, or a
            rule that leaves a group empty.
        MismatchError: The scores lack some of the examples.
    """
    values = scores.aligned_to(examples.ids)
    errors = scores.errors
    if errors is not None:
        errors = replace(scores, values=errors).aligned_to(examples.ids)
    spec = Rule(rule) if isinstance(rule, str) else rule
    spec, cuts, facts = _chosen(values, spec, seed)
    words = _words(spec, scores.estimator)
    if "reason" in facts:
        words += f" (chosen automatically: {facts['reason']})"
    level = _levels(values, cuts, spec)
    names = level_names(spec.groups)
    if by:
        cells, counted = _crossed(_categories(examples, by), level, spec.groups, min_size)
        words, facts = f"{words}, times {by}", {**facts, "by": by, **counted}
    else:
        cells = [_Cell("", k, k) for k in level.tolist()]
    order = _ordered(cells, values)
    unsure = doubt(values, errors, *_bands(cells, cuts.at), _repeats(scores))
    return Groups(
        ids=examples.ids,
        labels=np.array([order.index(cell) for cell in cells], dtype=np.int64),
        names=tuple(cell.named(names) for cell in order),
        rule=words,
        scores_hash=scores.hash,
        data_hash=examples.hash,
        facts={**facts, **close_calls(unsure)},
        doubt=unsure,
    )


def _repeats(scores: Scores) -> int | None:
    """Return how often an estimator did what its errors are made of, None if it does not say."""
    return next((int(scores.facts[name]) for name in REPEATS if name in scores.facts), None)


def level_names(groups: int) -> tuple[str, ...]:
    """Return the names of so many levels of vulnerability, least vulnerable first."""
    if groups == 2:
        return ("invulnerable", "vulnerable")
    ends = {1: " (least vulnerable)", groups: " (most vulnerable)"}
    return tuple(f"level {k} of {groups}{ends.get(k, '')}" for k in range(1, groups + 1))


def close_calls(unsure: np.ndarray | None) -> dict[str, int]:
    """Count the examples that are too close to call; no entry where nothing is known of it."""
    doubts = np.array([]) if unsure is None else unsure[~np.isnan(unsure)]
    if not len(doubts):
        return {}
    return {"too_close_to_call": int((doubts > TOO_CLOSE).sum()), "doubt_known": len(doubts)}


def _chosen(values: np.ndarray, rule: Rule, seed: int) -> tuple[Rule, Cuts, dict[str, Any]]:
    """Return the rule, its cuts, and what there is to keep of it."""
    chosen: dict[str, Any] = {}
    if rule.name == AUTO:
        advice = recommend(values, groups=rule.groups, seed=seed)
        rule = advice.rule
        chosen = {"chosen_rule": advice.rule.name, "reason": advice.reason}
    cuts = find_cuts(values, rule)
    at = {"threshold": cuts.at[0]} if len(cuts.at) == 1 else {"thresholds": list(cuts.at)}
    not_scored = int((~np.isfinite(values)).sum())
    return rule, cuts, {**at, "not_scored": not_scored, **cuts.facts, **chosen}


def _words(rule: Rule, estimator: str) -> str:
    scores = f"of {estimator}"
    upper = f"in {rule.groups - 1} groups of equal"
    if rule.groups > 2:
        return {
            "quantile": f"scores {scores} above the {rule.quantile:.0%} quantile {upper} size",
            "mass": f"highest scores {scores} with {rule.mass:.0%} of the positive mass {upper} "
            "mass",
            "otsu": f"{rule.groups} groups of scores {scores} by Otsu's criterion",
            "gmm": f"{rule.groups} groups of scores {scores}, each a Gaussian of a mixture",
        }[rule.name]
    return {
        "positive": f"vulnerable = score {scores} above 0",
        "quantile": f"vulnerable = score {scores} above the {rule.quantile:.0%} quantile",
        "mass": f"vulnerable = highest scores {scores} with {rule.mass:.0%} of the positive mass",
        "otsu": f"vulnerable = score {scores} above Otsu's threshold",
        "gmm": f"vulnerable = score {scores} likelier under the upper of two Gaussians",
        "knee": f"vulnerable = score {scores} above the knee of the sorted scores",
    }[rule.name]


def _levels(values: np.ndarray, cuts: Cuts, rule: Rule) -> np.ndarray:
    finite = np.isfinite(values)
    level = np.full(len(values), rule.groups - 1, dtype=np.int64)
    level[finite] = levels(values[finite], cuts.at)
    sizes = np.bincount(level, minlength=rule.groups)
    if sizes.all():
        return level
    low = values[finite].min()
    high = values[finite].max()
    where = f"(scores {low:.3g} to {high:.3g}, cut at {', '.join(f'{c:.3g}' for c in cuts.at)})"
    names = level_names(rule.groups)
    if (sizes > 0).sum() == 1:
        raise UsageError(
            f"rule {rule.name!r} puts all {len(level)} examples into the {names[level[0]]} group "
            f"{where}: nothing to protect apart. Use --rule otsu or --rule quantile, or a longer "
            "proxy attack."
        )
    raise UsageError(
        f"rule {rule.name!r} leaves the group {names[int(np.argmin(sizes))]!r} empty {where}: too "
        "many scores are equal. Ask for fewer --groups, or use --rule otsu."
    )


# ------------------------------------------------------------------------------- by category


def _categories(examples: Examples, by: str) -> list[str]:
    columns = sorted({column for row in examples for column in row.provenance})
    if by not in columns:
        raise UsageError(
            f"--by {by!r}: no row of {examples.name} has that column; "
            f"the rows have {', '.join(columns) or 'no provenance at all'}"
        )
    return [row.provenance.get(by) or UNKNOWN for row in examples]


def _crossed(
    categories: Sequence[str], level: np.ndarray, groups: int, min_size: int
) -> tuple[list[_Cell], dict[str, int]]:
    """Return the cell of each row, none of them empty, and how many were merged or pooled."""
    if min_size < 1:
        raise UsageError(f"--min-size {min_size} must be at least 1")
    totals = Counter(categories)
    small = {name for name, n in totals.items() if n < min_size}
    pooled = [OTHER if name in small else name for name in categories]
    spans = {}
    merged = 0
    for name in sorted(set(pooled)):
        levels_in_category = [
            k for k, category in zip(level.tolist(), pooled, strict=True) if category == name
        ]
        sizes = np.bincount(levels_in_category, minlength=groups)
        spans[name] = _spans(sizes, min_size)
        merged += int((sizes > 0).sum()) - len(spans[name])
    cells = [
        next(_Cell(name, a, b) for a, b in spans[name] if a <= k <= b)
        for name, k in zip(pooled, level.tolist(), strict=True)
    ]
    if len(set(cells)) < 2:
        raise UsageError(
            f"--min-size {min_size} merges all {len(cells)} examples into one group; lower it"
        )
    return cells, {"merged_cells": merged, "pooled_categories": len(small)}


def _spans(sizes: np.ndarray, min_size: int) -> list[tuple[int, int]]:
    """Merge the smallest level with its smaller neighbour until none is below `min_size`."""
    spans = [(k, k, int(size)) for k, size in enumerate(sizes)]
    while len(spans) > 1:
        i = min(range(len(spans)), key=lambda k: spans[k][2])
        if spans[i][2] >= min_size:
            break
        beside = [j for j in (i + 1, i - 1) if 0 <= j < len(spans)]
        j = min(beside, key=lambda k: spans[k][2])  # of equals, the more vulnerable one
        a, b = sorted((i, j))
        spans[a : b + 1] = [(spans[a][0], spans[b][1], spans[a][2] + spans[b][2])]
    return [(first, last) for first, last, _ in spans]


def _ordered(cells: Sequence[_Cell], values: np.ndarray) -> list[_Cell]:
    """Return the cells that there are by their mean score; those without any score come last."""
    if not any(cell.category for cell in cells):
        return sorted(set(cells))
    scores_of_cell: dict[_Cell, list[float]] = {cell: [] for cell in cells}
    for cell, value in zip(cells, values.tolist(), strict=True):
        if math.isfinite(value):
            scores_of_cell[cell].append(value)
    means: Mapping[_Cell, float] = {
        cell: float(np.mean(own)) if own else math.inf for cell, own in scores_of_cell.items()
    }
    return sorted(scores_of_cell, key=lambda cell: (means[cell], cell))


def _bands(cells: Sequence[_Cell], at: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends between which a score keeps its example in its cell, both (n,)."""
    edges = np.array([-math.inf, *at, math.inf])
    low = edges[[cell.first for cell in cells]]
    return low, edges[[cell.last + 1 for cell in cells]]
