"""Ratios of times under the same attack, some of them censored."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from holdfast.errors import UsageError
from holdfast.stats.intervals import Interval, cluster_ids, geometric_ratio
from holdfast.stats.survival import Time

Bound = Literal["", "lower", "upper", "unknown"]
"""What a value bounds: "" if it is an estimate, "unknown" if it bounds nothing."""
Outcome = Literal["longer", "shorter", "unclear"]
EQUAL = 1e-9
"""Log ratios with a smaller standard deviation are equal up to rounding."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The times of two models under the same attack.

    Attributes:
        a: Time of the first.
        b: Time of the second, the baseline.
        seed: Seed of both models; None if unknown, then every pair counts as independent.
    """

    a: Time
    b: Time
    seed: Hashable = None


@dataclass(frozen=True)
class Ratio:
    """How many times longer the first of each pair lasts than the second.

    Attributes:
        interval: The geometric mean ratio; an end may be infinite.
        bound: What the value bounds, where too few times are uncensored to estimate one. The
            interval is open on that side.
        used: Pairs that carry information.
        censored: Pairs among these with a censored time.
        fitted: Whether censored pairs entered the fit as censored (there may be none); if not, they
            stand at their bounds.
        p: Two-sided, that the ratio is 1: by the interval's rule; by the sign test over the pairs
            whose order is known where nothing could be fitted; or by the seeds if that is larger;
            nan if none of them is defined.
        spread: Standard deviation of the pairs' log ratios; nan if not estimated.
        seeds: Number of seeds, 0 if unknown. With one the interval says nothing about other seeds.
    """

    interval: Interval
    bound: Bound
    used: int
    censored: int
    fitted: bool = True
    p: float = math.nan
    spread: float = math.nan
    seeds: int = 0

    @property
    def outcome(self) -> Outcome:
        """Which lasts longer: by the interval, or by the sign test without one."""
        low = self.interval.low
        high = self.interval.high
        equal = math.isnan(low)  # all ratios alike: no spread, and no interval
        if equal:
            low = high = self.interval.value
        if (self.bound or equal) and not self.p <= 1 - self.interval.level:
            return "unclear"
        if low > 1:
            return "longer"
        return "shorter" if high < 1 else "unclear"


@dataclass(frozen=True)
class _LogRatios:
    """Differences d = log a - log b of the pairs that carry information.

    Attributes:
        d: (n,) log ratios.
        sides: (n,) 1 where the true one lies above d (a censored), -1 where below (b censored), 0
            where it is d.
    """

    d: np.ndarray
    sides: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        return np.asarray(self.d[self.sides == 0])

    @property
    def above(self) -> np.ndarray:
        return np.asarray(self.d[self.sides == 1])

    @property
    def below(self) -> np.ndarray:
        return np.asarray(self.d[self.sides == -1])

    @property
    def grouped(self) -> np.ndarray:
        """(n,) exact ones first, then those above, then those below."""
        return np.concatenate([self.exact, self.above, self.below])


def censored_ratio(pairs: Sequence[Pair], level: float = 0.95) -> Ratio:
    """Return the geometric mean of a / b over pairs, some of which are only known to be larger.

    The differences d = log a - log b are modelled as normal, d ~ N(mu, sigma), and fitted by
    maximum likelihood (Tobit): an exact pair counts with its density, a pair whose a is censored
    with P(D > d), one whose b is censored with P(D < d), and one with both not at all. The interval
    holds every mu with

        2 [l(mu_hat, sigma_hat) - max over sigma of l(mu, sigma)] <= n log(1 + t^2 / (n - 1)),

    t the quantile of Student's t at n - 1: without censoring that is the t interval exactly, so the
    result is then `geometric_ratio`'s. With fewer than two exact pairs sigma cannot be estimated,
    and the value is the ratio with every censored time at its bound: a lower bound if some a are
    censored, an upper one if some b are, and neither with both.

    Attacks on one seed's model share it, so they are not independent. With two or more seeds the
    interval is the wider of the one above and

        mu +- t(S - 1) sqrt(V),   V = S / (S - 1) [H^-1 (sum over seeds of u_s u_s^T) H^-1]_mu,

    u_s the sum of a seed's scores at the maximum and H the likelihood's Hessian (White 1982, by
    cluster). Without censoring, and with the same number of attacks on every seed, that is the t
    interval over the seeds' means.

    Args:
        pairs: A censored time stands at the step at which the attack ended. With a time of 0 there
            are no logarithms, and the result is `geometric_ratio`'s.
        level: Confidence level.

    Raises:
        UsageError: A negative time.
    """
    times = [time for pair in pairs for time in (pair.a, pair.b)]
    if any(time.value < 0 for time in times):
        raise UsageError(
            f"times {[time.value for time in times]}: a time to an event is not negative"
        )
    if any(time.value == 0 for time in times):
        return _with_zeros(pairs, level)
    informative = [pair for pair in pairs if _carries_information(pair)]
    ratios = _LogRatios(
        d=np.array([math.log(pair.a.value) - math.log(pair.b.value) for pair in informative]),
        sides=np.array([int(pair.a.censored) - int(pair.b.censored) for pair in informative]),
    )
    independent = _independent_pairs(ratios, level)
    seeds = [pair.seed for pair in informative]
    if not informative or all(seed is None for seed in seeds):
        return independent
    return _over_seeds(independent, ratios, cluster_ids(seeds))


def _carries_information(pair: Pair) -> bool:
    unknown = math.isnan(pair.a.value) or math.isnan(pair.b.value)
    return not unknown and not (pair.a.censored and pair.b.censored)


def _with_zeros(pairs: Sequence[Pair], level: float) -> Ratio:
    interval = geometric_ratio(
        [pair.a.value for pair in pairs], [pair.b.value for pair in pairs], level
    )
    above = sum(pair.a.censored for pair in pairs)
    below = sum(pair.b.censored for pair in pairs)
    gaps = [pair.a.value - pair.b.value for pair in pairs]
    p = _sign_p([gap for gap in gaps if not math.isnan(gap)])
    fitted = not above and not below
    return Ratio(interval, _bound(above > 0, below > 0), interval.n, above, fitted, p)


def _independent_pairs(ratios: _LogRatios, level: float) -> Ratio:
    """Return the ratio if every pair is an observation of its own."""
    n = len(ratios.d)
    exact = ratios.exact
    if len(exact) == n or len(exact) < 2 or exact.std() <= EQUAL:
        return _unfitted(ratios, level)
    fit = _fitted(ratios, level)
    interval = Interval(math.exp(fit.value), math.exp(fit.low), _exp(fit.high), n, level)
    return Ratio(interval, "", n, n - len(exact), p=fit.p, spread=fit.spread)


def _over_seeds(independent: Ratio, ratios: _LogRatios, seeds: np.ndarray) -> Ratio:
    """Return the ratio with the interval over seeds, where that is the wider one."""
    from scipy import stats

    interval = independent.interval
    n = int(seeds.max()) + 1
    ratio = replace(independent, seeds=n)
    if n < 2 or math.isnan(interval.low) or ratios.d.std() <= EQUAL:
        return ratio
    sigma = independent.spread
    if independent.bound or not independent.censored:
        # Nothing was fitted: every d counts as exact, bounds in place of what they bound.
        ratios = replace(ratios, sides=np.zeros_like(ratios.sides))
        sigma = float(ratios.d.std())
    mu = math.log(interval.value)
    error = math.sqrt(_sandwich_variance(mu, sigma, ratios, seeds))
    half = float(stats.t.ppf(0.5 + interval.level / 2, n - 1)) * error
    wider = replace(
        interval,
        low=min(interval.low, math.exp(mu - half)),
        high=max(interval.high, _exp(mu + half)),
    )
    p = 2 * float(stats.t.sf(abs(mu) / error, n - 1)) if error else independent.p
    return replace(ratio, interval=wider, p=max(independent.p, p))


def _sandwich_variance(mu: float, sigma: float, ratios: _LogRatios, seeds: np.ndarray) -> float:
    """Return the variance of mu by seed: V of `censored_ratio`."""
    from scipy import stats

    d = ratios.d
    sides = ratios.sides

    def scores(parameters: np.ndarray) -> np.ndarray:
        """Return (n, 2), the derivatives of each log likelihood by mu and by log sigma.

        With z = (d - mu) / sigma an exact pair has z / sigma and z^2 - 1. A censored one has the
        hazard h = s phi(z) / Phi(-s z), s its side, in place of z: h / sigma and z h.
        """
        z = (d - parameters[0]) / math.exp(parameters[1])
        hazard = sides * np.exp(stats.norm.logpdf(z) - stats.norm.logsf(sides * z))
        by_mu = np.where(sides == 0, z, hazard) / math.exp(parameters[1])
        by_log_sigma = np.where(sides == 0, z**2 - 1, z * hazard)
        return np.stack([by_mu, by_log_sigma], axis=1)

    maximum = np.array([mu, math.log(sigma)])
    # H by central differences of the scores, one column per parameter.
    columns = []
    for nudge in 1e-5 * np.eye(2):
        gap = scores(maximum + nudge) - scores(maximum - nudge)
        columns.append(gap.sum(axis=0) / 2e-5)
    hessian = np.stack(columns, axis=1)
    # u_s, (S, 2).
    seed_scores = np.stack([np.bincount(seeds, column) for column in scores(maximum).T], axis=1)
    # The mu row of H^-1 u_s for each seed; its squares sum to the sandwich's mu entry.
    influence = np.linalg.solve(hessian, seed_scores.T)[0]
    n = len(seed_scores)
    return float((influence**2).sum() * n / (n - 1))


def _unfitted(ratios: _LogRatios, level: float) -> Ratio:
    """Return the ratio with every censored time at its bound."""
    exact = ratios.exact
    above = ratios.above
    below = ratios.below
    n = len(ratios.d)
    censored = len(above) + len(below)
    interval = geometric_ratio([math.exp(d) for d in ratios.grouped], [1.0] * n, level)
    if censored or len(exact) < 2:
        # Longer than a bound at or above 0 is longer; longer than one below 0 may be either.
        longer = [d + 1 for d in above if d >= 0]
        shorter = [d - 1 for d in below if d <= 0]
        p = _sign_p([*exact, *longer, *shorter])
        interval = replace(
            interval,
            low=0.0 if len(below) else interval.low,
            high=math.inf if len(above) else interval.high,
        )
        bound = _bound(len(above) > 0, len(below) > 0)
        return Ratio(interval, bound, n, censored, not censored, p)
    if exact.std() <= EQUAL:
        # A few equal ratios do not show that there is no spread.
        interval = replace(interval, low=math.nan, high=math.nan)
        return Ratio(interval, "", n, 0, p=_sign_p(exact.tolist()))
    from scipy import stats

    spread = float(exact.std(ddof=1))
    t = abs(float(exact.mean())) / spread * math.sqrt(n)
    return Ratio(interval, "", n, 0, p=2 * float(stats.t.sf(t, n - 1)), spread=spread)


def _bound(above: bool, below: bool) -> Bound:
    if above and below:
        return "unknown"
    if above:
        return "lower"
    return "upper" if below else ""


def _sign_p(differences: Sequence[float]) -> float:
    """Return the p value of the sign test; pairs without a difference say nothing."""
    from scipy import stats

    positive = sum(d > 0 for d in differences)
    negative = sum(d < 0 for d in differences)
    if not positive + negative:
        return math.nan
    return float(stats.binomtest(positive, positive + negative).pvalue)


@dataclass(frozen=True)
class _Fit:
    """A fit of `censored_ratio`: mu and the ends of its interval in logarithms, p, and sigma."""

    value: float
    low: float
    high: float
    p: float
    spread: float


def _fitted(ratios: _LogRatios, level: float) -> _Fit:
    """Fit mu and sigma by maximum likelihood; an end of the interval may be infinite."""
    from scipy import optimize, stats

    n = len(ratios.d)
    exact = ratios.exact
    above = ratios.above
    below = ratios.below
    exact_spread = max(float(exact.std()), 1e-6)

    def deficit(mu: float, log_sigma: float) -> float:
        """Return the negative log likelihood."""
        sigma = math.exp(log_sigma)
        likelihood = stats.norm.logpdf(exact, mu, sigma).sum()
        likelihood += stats.norm.logsf(above, mu, sigma).sum()
        likelihood += stats.norm.logcdf(below, mu, sigma).sum()
        return -float(likelihood)

    def best_sigma(mu: float) -> tuple[float, float]:
        """Return the smallest deficit over sigma, and the log sigma that has it."""
        bounds = math.log(exact_spread) - 7, math.log(exact_spread) + 7
        minimum = optimize.minimize_scalar(lambda s: deficit(mu, s), bounds=bounds)
        return float(minimum.fun), float(minimum.x)

    def profile(mu: float) -> float:
        return best_sigma(mu)[0]

    # Ten times what the data span holds the maximum and any finite end.
    width = 10 * (float(np.ptp(ratios.d)) + exact_spread)
    middle = float(ratios.grouped.mean())
    minimum = optimize.minimize_scalar(profile, bounds=(middle - width, middle + width))
    mu = float(minimum.x)
    least = float(minimum.fun)
    quantile = float(stats.t.ppf(0.5 + level / 2, n - 1))
    allowed = n * math.log1p(quantile**2 / (n - 1)) / 2

    def excess(other: float) -> float:
        return profile(other) - least - allowed

    def end(direction: int) -> float:
        far = mu + direction * width
        if excess(far) <= 0:
            return direction * math.inf
        return float(optimize.brentq(excess, mu, far, xtol=1e-8))

    # p: the quantile at which the interval would just end at 0, a ratio of 1. The inequality of
    # `censored_ratio` solved for t; 700 keeps the exponential finite.
    gap = min(700.0, 2 * max(0.0, profile(0.0) - least) / n)
    t = math.sqrt((n - 1) * math.expm1(gap))
    p = 2 * float(stats.t.sf(t, n - 1))
    return _Fit(mu, end(-1), end(1), p, math.exp(best_sigma(mu)[1]))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
