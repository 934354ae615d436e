"""Rules that cut scores into groups; each is an exact, pure function of the scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from holdfast.errors import UsageError
from holdfast.stats.ranks import quantiles, rankable

RULES = ("positive", "quantile", "mass", "otsu", "gmm", "knee")
ONE_CUT = ("positive", "knee")
"""Rules with a single cut, so two groups."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that cuts scores into groups.

    With more than two groups, "quantile" and "mass" keep the least vulnerable group of two groups
    and divide the rest into parts of equal size or equal mass; "otsu" and "gmm" find this many
    classes; "positive" and "knee" have one cut and raise an error.

    Attributes:
        name: One of `RULES`.
        quantile: For "quantile": share of the examples in the least vulnerable group.
        mass: For "mass": share of the sum of positive scores in the other groups.
        groups: Number of groups, two or more.
    """

    name: str = "otsu"
    quantile: float = 0.6
    mass: float = 0.8
    groups: int = 2


@dataclass(frozen=True, slots=True)
class Cuts:
    """The cuts of a rule.

    Attributes:
        at: (groups - 1,) ascending; the number of cuts below an example's score is the index of
            its group.
        facts: Further numbers, such as the mixture's gain in BIC.
    """

    at: tuple[float, ...]
    facts: Mapping[str, float] = field(default_factory=dict)


def levels(values: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Return how many cuts each value exceeds, (n,) int64; `values` (n,) without nan."""
    return np.searchsorted(np.asarray(at), values, side="left").astype(np.int64)


def finite_scores(values: np.ndarray) -> np.ndarray:
    """Return the finite values.

    Raises:
        UsageError: There are fewer than two, or all are equal.
    """
    return rankable(values, purpose="grouping", fewest=2)


def find_cuts(values: np.ndarray, rule: Rule) -> Cuts:
    """Return the cuts of a rule.

    Args:
        values: (n,) scores in any order; those that are not finite are ignored.
        rule: The rule and its options.

    Raises:
        UsageError: There are too few distinct values, an option is out of range, or the rule does
            not fit these values.
    """
    if rule.name not in RULES:
        raise UsageError(f"--rule {rule.name!r} is none of {', '.join(RULES)}, auto")
    x = finite_scores(values)
    check_groups(x, rule)
    if rule.name == "positive":
        return Cuts((0.0,))
    if rule.name == "quantile":
        return Cuts(_quantiles(x, rule))
    if rule.name == "mass":
        return Cuts(_masses(x, rule))
    if rule.name == "knee":
        return Cuts((knee(x),))
    if rule.name == "otsu":
        return Cuts(otsu_cuts(x, rule.groups))
    mixture = fit_mixture(x, rule.groups)
    return Cuts(
        mixture.cuts(), {"bic_gain": mixture.bic_gain, "separation": min(mixture.separations)}
    )


def check_groups(x: np.ndarray, rule: Rule) -> None:
    """Reject a number of groups that the rule or the scores do not allow.

    Raises:
        UsageError: There are fewer than two groups, or more than the rule or the distinct scores
            allow.
    """
    if rule.groups < 2:
        raise UsageError(f"--groups {rule.groups}: there must be two at least")
    if rule.groups > 2 and rule.name in ONE_CUT:
        others = ", ".join(name for name in RULES if name not in ONE_CUT)
        raise UsageError(
            f"--rule {rule.name} makes one cut, so 2 groups and not {rule.groups}; "
            f"rules for more are {others}"
        )
    distinct = len(np.unique(x))
    if rule.groups > distinct:
        raise UsageError(
            f"--groups {rule.groups}: the {len(x)} scores have only {distinct} different values; "
            "ask for fewer groups"
        )


def cut_between(low: float, high: float) -> float:
    """Return a cut between two values: the midpoint, or `low` if the midpoint rounds to one."""
    middle = low / 2 + high / 2
    # Between neighbouring floats the midpoint rounds to one of them.
    return float(middle if low <= middle < high else low)


# ------------------------------------------------------------------------------ quantile and mass


def _quantiles(x: np.ndarray, rule: Rule) -> tuple[float, ...]:
    if not 0 < rule.quantile < 1:
        raise UsageError(f"--quantile {rule.quantile} must lie between 0 and 1")
    parts = np.arange(rule.groups - 1) / (rule.groups - 1)
    shares = rule.quantile + (1 - rule.quantile) * parts
    return tuple(quantiles(x, shares).tolist())


def _masses(x: np.ndarray, rule: Rule) -> tuple[float, ...]:
    """Cut off the fewest highest scores that make up a share of the sum of positive scores.

    Zero must mean "not vulnerable at all", as it does for counts: scores up to zero have no mass.
    Equal scores stay together.
    """
    if not 0 < rule.mass <= 1:
        raise UsageError(f"--mass {rule.mass} must lie above 0 and not exceed 1")
    distinct, counts = np.unique(x, return_counts=True)
    masses = np.cumsum((np.maximum(distinct, 0) * counts)[::-1])
    if masses[-1] == 0:
        raise UsageError(
            f"--rule mass: no score is above 0 (the highest is {distinct[-1]:.3g}), so there is "
            "no mass to share out. Use --rule quantile or otsu."
        )
    cuts = []
    for part in range(1, rule.groups):
        share = rule.mass * part / (rule.groups - 1)
        # The tolerance keeps rounding of the sum from missing a share that is met exactly.
        count = int(np.argmax(masses >= share * masses[-1] * (1 - 1e-12)))
        lowest = len(distinct) - 1 - count
        below = distinct[lowest - 1] if lowest else np.nextafter(distinct[0], -math.inf)
        cuts.append(cut_between(float(below), float(distinct[lowest])))
    return tuple(reversed(cuts))


# --------------------------------------------------------------------------------------- Otsu


def otsu(values: np.ndarray) -> float:
    """Return the cut that best splits values in two, by Otsu's criterion, exactly.

    It maximizes the between-class variance w0 w1 (mu0 - mu1)^2 over all cuts between distinct
    values (Otsu 1979), without a histogram: it is the best one-dimensional 2-means.

    Args:
        values: (n,) finite, not all equal.

    Returns:
        The midpoint between the two values around the best cut.
    """
    x = np.sort(values)
    n = len(x)
    below = np.arange(1, n)
    sums = np.cumsum(x)[:-1]
    gap = sums / below - (x.sum() - sums) / (n - below)
    variance = below * (n - below) * gap**2
    variance[x[1:] == x[:-1]] = -np.inf
    best = int(np.argmax(variance))
    return cut_between(float(x[best]), float(x[best + 1]))


def otsu_cuts(values: np.ndarray, groups: int) -> tuple[float, ...]:
    """Return the cuts that best split values into groups, by Otsu's criterion, exactly.

    The between-class variance is, up to a constant, the sum over classes of
    (sum of x - mean)^2 / size. Its best value for the lowest i distinct values in k classes is the
    maximum over j < i of the best for j values in k - 1 classes plus the term of the class j..i:
    dynamic programming, O(groups x distinct^2) with prefix sums.

    Args:
        values: (n,) finite, with at least `groups` different values.
        groups: Number of classes, two or more.
    """
    if groups == 2:
        return (otsu(values),)
    distinct, counts = np.unique(values, return_counts=True)
    n = len(distinct)
    # Centred, because differences of large sums would cancel.
    size = np.concatenate([[0.0], np.cumsum(counts)])
    total = np.concatenate([[0.0], np.cumsum(counts * (distinct - values.mean()))])
    best = np.full(n + 1, -np.inf)
    best[1:] = total[1:] ** 2 / size[1:]
    splits = []
    for k in range(2, groups + 1):
        now = np.full(n + 1, -np.inf)
        split = np.zeros(n + 1, np.int64)
        for i in range(k, n + 1) if k < groups else (n,):
            part = slice(k - 1, i)
            gain = best[part] + (total[i] - total[part]) ** 2 / (size[i] - size[part])
            split[i] = k - 1 + int(np.argmax(gain))
            now[i] = gain.max()
        best = now
        splits.append(split)
    cuts = []
    end = n
    for split in reversed(splits):
        end = int(split[end])
        cuts.append(cut_between(float(distinct[end - 1]), float(distinct[end])))
    return tuple(reversed(cuts))


# --------------------------------------------------------------------------------------- knee


def knee(values: np.ndarray) -> float:
    """Return the cut at the knee of the sorted values (Kneedle, Satopaa et al. 2011).

    With x_i = i / (n - 1) and y_i = (s_i - s_0) / (s_(n-1) - s_0) over the ascending values s, the
    knee is where |x_i - y_i| is largest: the point of the curve furthest from its chord. Where the
    curve lies below the chord (few high values) the knee is the last low one; where it lies above
    (few low values), the first high one. No smoothing, so no sensitivity parameter; of several
    equal maxima the lowest is taken, which makes the vulnerable group larger.

    Args:
        values: (n,) finite, not all equal.

    Raises:
        UsageError: The sorted values lie on a straight line.
    """
    s = np.sort(values)
    span = s[-1] - s[0]
    distance = np.linspace(0, 1, len(s)) - (s - s[0]) / span
    if np.abs(distance).max() < 1e-9:
        raise UsageError(
            f"--rule knee: the {len(s)} sorted scores lie on a straight line from {s[0]:.3g} to "
            f"{s[-1]:.3g}, which has no knee. Use --rule otsu or quantile."
        )
    if distance.max() >= -distance.min():
        last_low = int(np.argmax(distance))
    else:
        last_low = int(np.argmin(distance)) - 1
    return cut_between(float(s[last_low]), float(s[last_low + 1]))


# ------------------------------------------------------------------------------------ mixture


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of Gaussians in one dimension, components in the order of their means.

    Attributes:
        weights: Shares, which add up to 1.
        means: In units of the scores.
        deviations: Standard deviations, same units.
        bic_gain: BIC of a single Gaussian minus that of the mixture; above 0 speaks for the
            mixture, above 10 strongly (Kass and Raftery 1995).
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    bic_gain: float

    @property
    def separations(self) -> tuple[float, ...]:
        """Ashman's D of each pair of neighbours: sqrt(2) |m1 - m2| / sqrt(v1 + v2); 2 is clear."""
        pairs = range(len(self.means) - 1)
        return tuple(
            math.sqrt(2)
            * (self.means[i + 1] - self.means[i])
            / math.hypot(self.deviations[i], self.deviations[i + 1])
            for i in pairs
        )

    def cuts(self) -> tuple[float, ...]:
        """Return where neighbouring components are equally likely, between their means.

        Raises:
            UsageError: One component is more likely everywhere between two means.
        """
        from scipy.optimize import brentq

        crossings = []
        for i in range(len(self.means) - 1):
            low = self.means[i]
            high = self.means[i + 1]
            if self._odds(low, i) <= 0 or self._odds(high, i) >= 0:
                raise UsageError(
                    f"--rule gmm: the Gaussians around {low:.3g} and {high:.3g} overlap so much "
                    "that no score between their means parts them. Use --rule otsu or quantile."
                )
            # A quadratic that changes its sign has exactly one root in between.
            crossings.append(
                float(brentq(self._odds, low, high, args=(i,), xtol=1e-12 * (high - low)))
            )
        return tuple(crossings)

    def _odds(self, x: float, i: int) -> float:
        """Return log p(component i | x) - log p(component i + 1 | x)."""
        logs = [
            math.log(self.weights[j] / self.deviations[j])
            - ((x - self.means[j]) / self.deviations[j]) ** 2 / 2
            for j in (i, i + 1)
        ]
        return logs[0] - logs[1]


def fit_mixture(values: np.ndarray, groups: int = 2) -> Mixture:
    """Fit a mixture of Gaussians by EM, starting from Otsu's classes, so deterministically.

    Values are standardized first, and no component is narrower than a thousandth of their standard
    deviation. With many equal values the likelihood rewards such spikes, and the BIC says little.

    Args:
        values: (n,) finite.
        groups: Number of components.

    Raises:
        UsageError: There are too few distinct values for 3 groups - 1 parameters, or EM does not
            converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    distinct = len(np.unique(values))
    if distinct < 3 * groups:
        raise UsageError(
            f"--rule gmm: {distinct} different scores cannot bear a mixture of {groups} Gaussians, "
            f"which has {3 * groups - 1} parameters. Use --rule otsu or quantile."
        )
    centre = values.mean()
    scale = values.std()
    x = (values - centre) / scale
    start = levels(x, otsu_cuts(x, groups))
    classes = [x[start == k] for k in range(groups)]
    mixture = GaussianMixture(
        groups,
        tol=1e-4,
        max_iter=1000,
        weights_init=[len(part) / len(x) for part in classes],
        means_init=[[part.mean()] for part in classes],
        # A class of one value must not start as a spike, because EM could not widen it again.
        precisions_init=[[[1 / max(part.var(), 1e-2)]] for part in classes],
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x[:, None])
    if not mixture.converged_:
        raise UsageError(
            "--rule gmm: the mixture did not converge in 1000 steps, as happens when its Gaussians "
            "overlap. Use --rule otsu or quantile."
        )
    # BIC of a single Gaussian on standardized values: -2 log likelihood plus two parameters.
    single = len(x) * (math.log(2 * math.pi) + 1) + 2 * math.log(len(x))
    order = np.argsort(mixture.means_[:, 0])
    return Mixture(
        weights=tuple(mixture.weights_[order].tolist()),
        means=tuple((centre + scale * mixture.means_[order, 0]).tolist()),
        deviations=tuple((scale * np.sqrt(mixture.covariances_[order, 0, 0])).tolist()),
        bic_gain=float(single - mixture.bic(x[:, None])),
    )
