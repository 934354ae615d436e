"""Making groups from scores: apply a rule, cross it with a category, count doubtful examples."""

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
"""Facts of an estimate that may contain the number of repeats."""


@dataclass(frozen=True, slots=True, order=True)
class _Cell:
    """The rows of a category from a first to a last level; without a category, of all rows."""

    category: str
    first: int
    last: int

    def name(self, names: Sequence[str]) -> str:
        """Return the name of the cell, given the names of the levels."""
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
        scores: Vulnerability; examples without a score (nan) go to the most vulnerable group, to
            be cautious, and are counted in `facts`.
        examples: The scored rows.
        rule: A `Rule`, its name, or "auto" for the rule that `recommend` returns. With "auto",
            `groups` is the only option of a `Rule` that is used.
        by: A provenance column, e.g. "category"; the same cuts divide each of its values. Rows
            without a value form the category "unknown".
        min_size: Smallest cell with `by`: smaller cells are merged with their neighbour in the
            category, and smaller categories are pooled as "other".
        seed: Random seed of the resampling in "auto".

    Returns:
        The groups, none of them empty.

    Raises:
        UsageError: The rule or column does not exist, there are fewer than two scored examples,
            all scores are equal, or the rule leaves a group empty.
        MismatchError: The scores lack some of the examples.
    """
    values = scores.aligned_to(examples.ids)
    errors = scores.errors
    if errors is not None:
        errors = replace(scores, values=errors).aligned_to(examples.ids)
    spec = Rule(rule) if isinstance(rule, str) else rule
    spec, cuts, facts = _apply_rule(values, spec, seed)
    description = _describe(spec, scores.estimator)
    if "reason" in facts:
        description += f" (chosen automatically: {facts['reason']})"
    level = _levels(values, cuts, spec)
    names = level_names(spec.groups)
    if by:
        cells, counts = _cross(_categories(examples, by), level, spec.groups, min_size)
        description = f"{description}, times {by}"
        facts = {**facts, "by": by, **counts}
    else:
        cells = [_Cell("", k, k) for k in level.tolist()]
    order = _order(cells, values)
    unsure = doubt(values, errors, *_bands(cells, cuts.at), _repeats(scores))
    return Groups(
        ids=examples.ids,
        labels=np.array([order.index(cell) for cell in cells], dtype=np.int64),
        names=tuple(cell.name(names) for cell in order),
        rule=description,
        scores_hash=scores.hash,
        data_hash=examples.hash,
        facts={**facts, **close_calls(unsure)},
        doubt=unsure,
    )


def _repeats(scores: Scores) -> int | None:
    """Return the number of repeats behind an estimator's errors; None if it is not recorded."""
    return next((int(scores.facts[name]) for name in REPEATS if name in scores.facts), None)


def level_names(groups: int) -> tuple[str, ...]:
    """Return names for this number of vulnerability levels, least vulnerable first."""
    if groups == 2:
        return ("invulnerable", "vulnerable")
    ends = {1: " (least vulnerable)", groups: " (most vulnerable)"}
    return tuple(f"level {k} of {groups}{ends.get(k, '')}" for k in range(1, groups + 1))


def close_calls(unsure: np.ndarray | None) -> dict[str, int]:
    """Count the examples that are too close to call; empty if no doubt is known."""
    doubts = np.array([]) if unsure is None else unsure[~np.isnan(unsure)]
    if not len(doubts):
        return {}
    return {"too_close_to_call": int((doubts > TOO_CLOSE).sum()), "doubt_known": len(doubts)}


def _apply_rule(values: np.ndarray, rule: Rule, seed: int) -> tuple[Rule, Cuts, dict[str, Any]]:
    """Return the rule (recommended, if it is "auto"), its cuts, and facts to record."""
    choice: dict[str, Any] = {}
    if rule.name == AUTO:
        advice = recommend(values, groups=rule.groups, seed=seed)
        rule = advice.rule
        choice = {"chosen_rule": advice.rule.name, "reason": advice.reason}
    cuts = find_cuts(values, rule)
    at = {"threshold": cuts.at[0]} if len(cuts.at) == 1 else {"thresholds": list(cuts.at)}
    not_scored = int((~np.isfinite(values)).sum())
    return rule, cuts, {**at, "not_scored": not_scored, **cuts.facts, **choice}


def _describe(rule: Rule, estimator: str) -> str:
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


def _cross(
    categories: Sequence[str], level: np.ndarray, groups: int, min_size: int
) -> tuple[list[_Cell], dict[str, int]]:
    """Return the cell of each row, and how many cells were merged and categories pooled."""
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
        neighbours = [j for j in (i + 1, i - 1) if 0 <= j < len(spans)]
        # Of two equal neighbours, min takes the first, which is the more vulnerable one.
        j = min(neighbours, key=lambda k: spans[k][2])
        a, b = sorted((i, j))
        spans[a : b + 1] = [(spans[a][0], spans[b][1], spans[a][2] + spans[b][2])]
    return [(first, last) for first, last, _ in spans]


def _order(cells: Sequence[_Cell], values: np.ndarray) -> list[_Cell]:
    """Return the distinct cells in order of their mean score; cells without a score come last."""
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
    """Return lower and upper end of the scores of each example's cell, (n,) each."""
    edges = np.array([-math.inf, *at, math.inf])
    low = edges[[cell.first for cell in cells]]
    return low, edges[[cell.last + 1 for cell in cells]]
