"""Which rule fits the scores at hand, and why, in words."""

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
    fit_mixture,
    levels,
    scored,
)

COUNTS = (0.05, 0.60)
"""Share of counts above zero within which "was forgotten at all" is a useful question."""
BIC_GAIN = 10.0
SEPARATION = 2.0
"""Above 10 is strong evidence (Kass and Raftery 1995), above 2 a clean cut (Ashman et al. 1994)."""
VALLEY = 0.5
"""Scores around a cut, as a share of those around the sparser of its peaks. It is needed beside the
two above: a uniform distribution is fitted far better by two well separated Gaussians than by one,
and has no valley. A convention."""
LEAST_SHARE = 0.05
"""A group that holds less of the examples teaches little."""
JACCARD = 0.8
"""Mean agreement between resamples from which Otsu's threshold counts as stable; a convention."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A rule for given scores.

    Attributes:
        rule: The rule with its options.
        at: Its cuts, as `Cuts.at`.
        reason: Why this one and none of those tried before it, with the numbers.
    """

    rule: Rule
    at: tuple[float, ...]
    reason: str

    @property
    def threshold(self) -> float:
        """The cut above which examples are not in the least vulnerable group."""
        return self.at[0]


def recommend(values: np.ndarray, *, groups: int = 2, seed: int = 0) -> Recommendation:
    """Choose a rule by looking at the scores alone.

    Asked in turn: are they counts of which a fair share is above zero ("positive")? Are they
    clearly several Gaussians ("gmm")? Is Otsu's threshold stable under resampling ("otsu")? If
    nothing of it holds, the highest 40 % ("quantile"), which is a convention and says so.

    Args:
        values: (n,) scores; those that are not finite are left out.
        groups: Number of groups.
        seed: Of the resampling.

    Raises:
        UsageError: Fewer than two groups, or fewer different scores than groups.
    """
    x = scored(values)
    check_groups(x, Rule(groups=groups))
    passed: list[str] = []
    for name, fits in (("positive", _counts), ("gmm", _peaks), ("otsu", _stable)):
        rule = Rule(name, groups=groups)
        good, words = fits(x, rule, seed)
        if good:
            return Recommendation(rule, find_cuts(x, rule).at, _joined(words, passed))
        passed.append(words)
    rule = Rule("quantile", groups=groups)
    at = find_cuts(x, rule).at
    if len(np.unique(levels(x, at))) == groups:
        words = f"the highest {1 - rule.quantile:.0%} are taken, by convention"
        return Recommendation(rule, at, _joined(words, passed))
    rule = Rule("otsu", groups=groups)
    words = "Otsu's threshold is taken all the same, as equal scores leave no place for a quantile"
    return Recommendation(rule, find_cuts(x, rule).at, _joined(words, passed))


def _joined(words: str, passed: list[str]) -> str:
    return "; ".join([*(p for p in passed if p), words])


def _counts(x: np.ndarray, rule: Rule, seed: int) -> tuple[bool, str]:
    del seed
    if rule.groups > 2 or (x < 0).any() or (x != np.round(x)).any():
        return False, ""  # needs no words: nobody takes them for counts
    share = float((x > 0).mean())
    low, high = COUNTS
    words = f"the scores are counts, {share:.0%} of the {len(x)} above zero"
    if low <= share <= high:
        return True, f"{words}: being counted at all parts them"
    return False, f"{words}, not within {low:.0%} to {high:.0%}"


def _peaks(x: np.ndarray, rule: Rule, seed: int) -> tuple[bool, str]:
    del seed
    distinct = len(np.unique(x))
    if distinct < 0.9 * len(x):
        return False, f"{distinct} different values in {len(x)} scores are too few for a mixture"
    try:
        mixture = fit_mixture(x, rule.groups)
        depth = valley(x, mixture)
    except UsageError:
        return False, f"no mixture of {rule.groups} Gaussians parts the {len(x)} scores"
    gain = mixture.bic_gain
    apart = min(mixture.separations)
    least = min(mixture.weights)
    words = (
        f"a mixture of {rule.groups} Gaussians gains {gain:.1f} in BIC over one, Ashman's D is "
        f"{apart:.2f}, the smallest holds {least:.0%}, the valley is at {depth:.0%} of the peak"
    )
    clear = gain > BIC_GAIN and apart > SEPARATION and depth < VALLEY
    if clear and least >= LEAST_SHARE:
        return True, f"{words}: the scores have {rule.groups} clear peaks"
    return False, f"{words}: no {rule.groups} clear peaks"


def valley(x: np.ndarray, mixture: Mixture) -> float:
    """Return the share of scores around a cut to those around its sparser peak, at the fullest cut.

    Around means within half a standard deviation of the narrowest component, and is counted in the
    scores themselves, not in the fit.

    Args:
        x: (n,) finite scores.
        mixture: Fitted to them.

    Raises:
        UsageError: See `Mixture.cuts`.
    """
    reach = min(mixture.deviations) / 2

    def around(place: float) -> int:
        return int((np.abs(x - place) <= reach).sum())

    peaks = [around(mean) for mean in mixture.means]
    pairs = zip(mixture.cuts(), itertools.pairwise(peaks), strict=True)
    return max(around(cut) / min(pair) if min(pair) else math.inf for cut, pair in pairs)


def _stable(x: np.ndarray, rule: Rule, seed: int) -> tuple[bool, str]:
    index = stability(x, rule, resamples=100, seed=seed).jaccard.value
    sizes = np.bincount(levels(x, find_cuts(x, rule).at), minlength=rule.groups)
    least = float(sizes.min()) / len(x)
    words = (
        f"Otsu's threshold gives resamples of the {len(x)} scores a mean Jaccard of {index:.2f}, "
        f"and its smallest group {least:.0%}"
    )
    if index >= JACCARD and least >= LEAST_SHARE:
        return True, f"{words}: it is stable"
    return False, f"{words}: it is not stable or too uneven"
