"""Half-lives that were not reached before an attack ended: censored, and treated as such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.errors import UsageError
from holdfast.stats import Interval, geometric_ratio


@dataclass(frozen=True)
class Ratio:
    """How many times longer one thing lasts than another.

    Attributes:
        interval: The geometric mean ratio; an end may be infinite.
        bound: The value is a lower bound, because too few half-lives were reached to estimate one.
        used: Pairs that say something.
        censored: Of these, pairs with a half-life that was not reached.
    """

    interval: Interval
    bound: bool
    used: int
    censored: int


def censored_ratio(
    a: Sequence[float],
    b: Sequence[float],
    a_censored: Sequence[bool],
    b_censored: Sequence[bool],
    level: float = 0.95,
) -> Ratio:
    """Return the geometric mean of a / b over pairs, some of which are only known to be larger.

    The differences d = log a - log b are taken for normal, d ~ N(mu, sigma), and fitted by maximum
    likelihood (Tobit): an exact pair counts with its density, a pair whose a is censored with
    P(D > d), one whose b is with P(D < d), and one with both not at all. The interval holds every
    mu with

        2 [l(mu_hat, sigma_hat) - max over sigma of l(mu, sigma)] <= n log(1 + t^2 / (n - 1)),

    t the quantile of Student's t at n - 1: without censoring that is the t interval exactly, so the
    result is then `geometric_ratio`'s. With fewer than two exact pairs sigma cannot be told, and
    the value is the ratio with every censored half-life at its bound, a lower bound if it is a
    that was not reached.

    Args:
        a: (n,) a censored one is the step at which the attack ended; with a 0 there are no
            logarithms, and the result is `geometric_ratio`'s.
        b: (n,) the same attacks on the baseline.
        a_censored: (n,) whether a was not reached.
        b_censored: (n,) whether b was not reached.
        level: Confidence level.

    Raises:
        UsageError: Different lengths, or a negative value.
    """
    if len({len(a), len(b), len(a_censored), len(b_censored)}) != 1:
        raise UsageError("half-lives and whether they were reached: give as many of each")
    if any(value < 0 for value in (*a, *b)):
        raise UsageError(f"ratio of {list(a)} and {list(b)}: a half-life is not negative")
    if 0 in (*a, *b):
        found = geometric_ratio(a, b, level)
        return Ratio(found, bound=any(a_censored), used=found.n, censored=sum(a_censored))
    rows = [
        (math.log(x) - math.log(y), ca, cb)
        for x, y, ca, cb in zip(a, b, a_censored, b_censored, strict=True)
        if not (math.isnan(x) or math.isnan(y) or (ca and cb))
    ]
    exact = np.array([d for d, ca, cb in rows if not ca and not cb])
    above = np.array([d for d, ca, _ in rows if ca])
    below = np.array([d for d, _, cb in rows if cb])
    censored = len(above) + len(below)
    if not censored or len(exact) < 2 or not exact.std() > 0:
        ones = np.ones(len(rows))
        found = geometric_ratio([math.exp(d) for d, _, _ in rows], ones.tolist(), level)
        return Ratio(found, bound=len(above) > 0, used=len(rows), censored=censored)
    value, low, high = _fitted(exact, above, below, level)
    interval = Interval(math.exp(value), math.exp(low), _exp(high), len(rows), level)
    return Ratio(interval, bound=False, used=len(rows), censored=censored)


def _fitted(
    exact: np.ndarray, above: np.ndarray, below: np.ndarray, level: float
) -> tuple[float, float, float]:
    """Return mu and the ends of its interval, in logarithms; an end may be infinite."""
    from scipy import optimize, stats

    n = len(exact) + len(above) + len(below)
    spread = max(float(exact.std()), 1e-6)

    def deficit(mu: float, log_sigma: float) -> float:
        sigma = math.exp(log_sigma)
        likelihood = stats.norm.logpdf(exact, mu, sigma).sum()
        likelihood += stats.norm.logsf(above, mu, sigma).sum()
        likelihood += stats.norm.logcdf(below, mu, sigma).sum()
        return -float(likelihood)

    def profile(mu: float) -> float:
        ends = math.log(spread) - 7, math.log(spread) + 7
        return float(optimize.minimize_scalar(lambda s: deficit(mu, s), bounds=ends).fun)

    everything = np.concatenate([exact, above, below])
    width = 10 * (float(np.ptp(everything)) + spread)
    middle = float(everything.mean())
    best = optimize.minimize_scalar(profile, bounds=(middle - width, middle + width))
    mu, least = float(best.x), float(best.fun)
    quantile = float(stats.t.ppf(0.5 + level / 2, n - 1))
    allowed = n * math.log1p(quantile**2 / (n - 1)) / 2

    def excess(other: float) -> float:
        return profile(other) - least - allowed

    def end(direction: int) -> float:
        far = mu + direction * width
        if excess(far) <= 0:
            return direction * math.inf
        return float(optimize.brentq(excess, mu, far, xtol=1e-8))

    return mu, end(-1), end(1)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
