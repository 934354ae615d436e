"""Recommending a grouping rule for given scores, with the reason in words."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from holdfast.errors import UsageError
from holdfast.groups.stability import stability
from holdfast.groups.thresholds import (
    Mixture,
    Rule,
    check_groups,
    find_cuts,
    finite_scores,
    fit_mixture,
    levels,
)
from holdfast.texts import Text, joined

COUNTS = (0.05, 0.60)
"""Range of the share of counts above zero in which "ever forgotten" makes useful groups."""
BIC_GAIN = 10.0
SEPARATION = 2.0
"""A BIC gain above 10 is strong evidence (Kass and Raftery 1995), and Ashman's D above 2 a clean
separation (Ashman et al. 1994)."""
VALLEY = 0.5
"""Scores around a cut, relative to those around the sparser of its two peaks; a convention.

Needed in addition to the two limits above: two well separated Gaussians fit a uniform distribution
far better than one does, but it has no valley.
"""
LEAST_SHARE = 0.05
"""Smallest share of the examples in a useful group."""
JACCARD = 0.8
"""Smallest mean agreement between resamples at which Otsu's rule is stable; a convention."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A recommended rule.

    Attributes:
        rule: The rule with its options.
        at: Its cuts, as `Cuts.at`.
        reason: Why this rule, and why none of the rules tried before it, with numbers.
    """

    rule: Rule
    at: tuple[float, ...]
    reason: Text

    @property
    def threshold(self) -> float:
        """The upper end of the least vulnerable group."""
        return self.at[0]


def recommend(values: np.ndarray, *, groups: int = 2, seed: int = 0) -> Recommendation:
    """Choose a rule from the scores alone.

    The first that applies: "positive" if the scores are counts and a fair share is above zero,
    "gmm" if they clearly form several Gaussians, "otsu" if Otsu's threshold is stable under
    resampling. Otherwise the highest 40 % ("quantile"); the reason says that it is a convention.

    Args:
        values: (n,) scores; non-finite ones are left out.
        groups: Number of groups.
        seed: Random seed of the resampling.

    Raises:
        UsageError: There are fewer than two groups, or fewer distinct scores than groups.
    """
    x = finite_scores(values)
    check_groups(x, Rule(groups=groups))
    passed: list[Text] = []
    for name, fits in (("positive", _counts), ("gmm", _peaks), ("otsu", _stable)):
        rule = Rule(name, groups=groups)
        good, words = fits(x, rule, seed)
        if good and words:
            return Recommendation(rule, find_cuts(x, rule).at, _joined(words, passed))
        passed += [words] if words else []
    rule = Rule("quantile", groups=groups)
    at = find_cuts(x, rule).at
    if len(np.unique(levels(x, at))) == groups:
        words = Text(
            "by convention, the highest {share:percent} are taken", share=1 - rule.quantile
        )
        return Recommendation(rule, at, _joined(words, passed))
    rule = Rule("otsu", groups=groups)
    words = Text(
        "Otsu's threshold is taken anyway, because tied scores leave no place for a quantile"
    )
    return Recommendation(rule, find_cuts(x, rule).at, _joined(words, passed))


def _joined(words: Text, passed: list[Text]) -> Text:
    return joined([*passed, words], "semicolon")


def _counts(x: np.ndarray, rule: Rule, seed: int) -> tuple[bool, Text | None]:
    del seed
    if rule.groups > 2 or (x < 0).any() or (x != np.round(x)).any():
        return False, None  # clearly not counts, so the reason does not mention it
    share = float((x > 0).mean())
    low, high = COUNTS
    values = {"share": share, "n": len(x)}
    if low <= share <= high:
        return True, Text(
            "the scores are counts, {share:percent} of the {n:d} above zero, so whether an example "
            "was counted at all separates them",
            **values,
        )
    return False, Text(
        "the scores are counts, {share:percent} of the {n:d} above zero, which is not between "
        "{low:percent} and {high:percent}",
        **values,
        low=low,
        high=high,
    )


def _peaks(x: np.ndarray, rule: Rule, seed: int) -> tuple[bool, Text]:
    del seed
    distinct = len(np.unique(x))
    if distinct < 0.9 * len(x):
        return False, Text(
            "{distinct:d} distinct values among {n:d} scores are too few for a mixture",
            distinct=distinct,
            n=len(x),
        )
    try:
        mixture = fit_mixture(x, rule.groups)
        depth = valley(x, mixture)
    except UsageError:
        return False, Text(
            "no mixture of {k:d} Gaussians separates the {n:d} scores", k=rule.groups, n=len(x)
        )
    gain = mixture.bic_gain
    apart = min(mixture.separations)
    least = min(mixture.weights)
    words = Text(
        "a mixture of {k:d} Gaussians gains {gain:.1f} in BIC over a single one, Ashman's D is "
        "{apart:.2f}, the smallest component holds {least:percent}, and the valley is at "
        "{depth:percent} of the peak",
        k=rule.groups,
        gain=gain,
        apart=apart,
        least=least,
        depth=depth,
    )
    clear = gain > BIC_GAIN and apart > SEPARATION and depth < VALLEY
    if clear and least >= LEAST_SHARE:
        return True, Text("{words}: the scores have {k:d} clear peaks", words=words, k=rule.groups)
    return False, Text("{words}: not {k:d} clear peaks", words=words, k=rule.groups)


def valley(x: np.ndarray, mixture: Mixture) -> float:
    """Return the scores around a cut relative to its sparser peak; the largest ratio of all cuts.

    "Around" means within half a standard deviation of the narrowest component. The scores
    themselves are counted, not the fitted density.

    Args:
        x: (n,) finite scores.
        mixture: The mixture fitted to them.

    Raises:
        UsageError: See `Mixture.cuts`.
    """
    reach = min(mixture.deviations) / 2

    def around(place: float) -> int:
        return int((np.abs(x - place) <= reach).sum())

    peaks = [around(mean) for mean in mixture.means]
    pairs = zip(mixture.cuts(), itertools.pairwise(peaks), strict=True)
    return max(around(cut) / min(pair) if min(pair) else math.inf for cut, pair in pairs)


def _stable(x: np.ndarray, rule: Rule, seed: int) -> tuple[bool, Text]:
    index = stability(x, rule, resamples=100, seed=seed).jaccard.value
    sizes = np.bincount(levels(x, find_cuts(x, rule).at), minlength=rule.groups)
    least = float(sizes.min()) / len(x)
    words = Text(
        "under resampling of the {n:d} scores, Otsu's groups agree with a mean Jaccard index of "
        "{jaccard:.2f}, and the smallest holds {least:percent}",
        n=len(x),
        jaccard=index,
        least=least,
    )
    if index >= JACCARD and least >= LEAST_SHARE:
        return True, Text("{words}: stable", words=words)
    return False, Text("{words}: unstable or too uneven", words=words)
