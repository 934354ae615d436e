"""Every cut against a slow twin; doubt, stability and advice against what is known of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats

from holdfast.errors import UsageError
from holdfast.groups import Rule, doubt, find_cuts, otsu, recommend, sensitivity, stability
from holdfast.groups.recommend import valley
from holdfast.groups.stability import threshold_jaccard
from holdfast.groups.thresholds import Mixture, cut_between, fit_mixture, knee, levels, otsu_cuts

NAN = math.nan
some_values = arrays(
    np.float64, st.integers(6, 30), elements=st.integers(-30, 30).map(lambda k: k / 4)
)


def spread(x: np.ndarray, cuts: tuple[float, ...]) -> float:
    """Sum of squares within the classes, which Otsu's criterion makes smallest."""
    edges = (-math.inf, *cuts, math.inf)
    parts = [x[(x > low) & (x <= high)] for low, high in itertools.pairwise(edges)]
    return float(sum(((part - part.mean()) ** 2).sum() for part in parts if len(part)))


# ------------------------------------------------------------------------------------- Otsu


@pytest.mark.parametrize("seed", range(30))
def test_otsu_agrees_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rng.integers(2, 40)) ** 3
    if seed % 3 == 0:  # ties, as counts have
        x = np.round(x)
    distinct = np.unique(x)
    if len(distinct) == 1:
        pytest.skip("all values are equal")
    cuts = (distinct[1:] + distinct[:-1]) / 2
    found = otsu(rng.permutation(x))
    assert np.abs(cuts - found).min() == 0
    assert spread(x, (found,)) == pytest.approx(min(spread(x, (cut,)) for cut in cuts))


def test_otsu_by_hand() -> None:
    # Between-class variance w0 w1 d^2 (times n^2): 3 of 4 | 1: 3 x 9^2; 2 | 2: 4 x 5.5^2.
    assert otsu(np.array([10.0, 0.0, 2.0, 1.0])) == 6.0
    assert otsu(np.array([1.0, 0.0])) == 0.5
    assert otsu_cuts(np.array([0.0, 1.0, 10.0, 11.0, 30.0]), 3) == (5.5, 20.5)


def test_otsu_does_not_change_its_input() -> None:
    x = np.array([3.0, 1.0, 2.0])
    otsu(x)
    otsu_cuts(x, 3)
    assert x.tolist() == [3.0, 1.0, 2.0]


@settings(max_examples=60, deadline=None)
@given(some_values, st.integers(2, 4), st.floats(-1e6, 1e6))
def test_multi_otsu_agrees_with_brute_force(x: np.ndarray, groups: int, offset: float) -> None:
    distinct = np.unique(x)
    if len(distinct) < groups:
        return
    middles = (distinct[1:] + distinct[:-1]) / 2
    best = min(spread(x, cuts) for cuts in itertools.combinations(middles.tolist(), groups - 1))
    found = otsu_cuts(x, groups)
    assert list(found) == sorted(found)
    assert len(set(levels(x, found).tolist())) == groups
    assert spread(x, found) == pytest.approx(best, abs=1e-9)
    moved = otsu_cuts(x + offset, groups)  # far from zero, where sums of squares would cancel
    assert spread(x, tuple(cut - offset for cut in moved)) == pytest.approx(best, abs=1e-6)


# -------------------------------------------------------------------------- quantile and mass


def test_quantile_divides_the_upper_part() -> None:
    x = np.arange(11.0)  # the quantile q lies at 10 q
    assert find_cuts(x, Rule("quantile", quantile=0.6)).at == (6.0,)
    # The upper 40 % in two equal parts.
    assert find_cuts(x, Rule("quantile", quantile=0.6, groups=3)).at == pytest.approx((6.0, 8.0))


def test_mass_by_hand() -> None:
    x = np.array([0.0, 5.0, 2.0, 3.0, -7.0])  # 10 in all; scores below 0 hold none
    assert find_cuts(x, Rule("mass", mass=0.8)).at == (2.5,)  # 5 + 3 is 80 %
    assert find_cuts(x, Rule("mass", mass=0.81)).at == (1.0,)  # 5 + 3 is not 81 %
    assert find_cuts(x, Rule("mass", mass=0.5)).at == (4.0,)
    assert find_cuts(x, Rule("mass", mass=1.0)).at == (1.0,)
    # 40 % are reached by 5 alone, 80 % by 5 + 3.
    assert find_cuts(x, Rule("mass", mass=0.8, groups=3)).at == (2.5, 4.0)


@settings(max_examples=60, deadline=None)
@given(some_values, st.floats(0.05, 1))
def test_mass_takes_the_fewest_that_are_enough(x: np.ndarray, mass: float) -> None:
    if x.max() <= 0 or x.min() == x.max():
        return
    (cut,) = find_cuts(x, Rule("mass", mass=mass)).at
    held = np.maximum(x, 0).sum()
    above = x[x > cut]
    assert np.maximum(above, 0).sum() >= mass * held * (1 - 1e-9)
    fewer = above[above > above.min()]
    assert np.maximum(fewer, 0).sum() < mass * held


# -------------------------------------------------------------------------------------- knee


def slow_knee(values: list[float]) -> set[float]:
    """Return the ends of the gaps in which the knee's cut may lie, by the definition."""
    s = sorted(values)
    n = len(s)
    off = [i / (n - 1) - (s[i] - s[0]) / (s[-1] - s[0]) for i in range(n)]
    far = max(abs(d) for d in off)
    cuts = set()
    for i, d in enumerate(off):
        if math.isclose(abs(d), far, abs_tol=1e-12):
            a, b = (s[i], s[i + 1]) if d > 0 else (s[i - 1], s[i])
            cuts.add((a + b) / 2)
    return cuts


def test_knee_by_hand() -> None:
    # x - y is .25, .5, .75 at the zeros and 0 at the end: the last low one is the third.
    assert knee(np.array([0.0, 10.0, 0.0, 0.0, 0.0])) == 5.0
    # Mirrored: the curve lies above the chord, and the cut is below the first high one.
    assert knee(np.array([10.0, 0.0, 10.0, 10.0, 10.0])) == 5.0


@settings(max_examples=100, deadline=None)
@given(some_values)
def test_knee_agrees_with_its_slow_twin(x: np.ndarray) -> None:
    if x.min() == x.max():
        return
    cuts = slow_knee(x.tolist())
    try:
        found = knee(x)
    except UsageError:
        assert len(np.unique(np.diff(np.sort(x)))) == 1
        return
    assert min(abs(found - cut) for cut in cuts) < 1e-12
    assert 0 < (x > found).sum() < len(x)


# ----------------------------------------------------------------------------------- mixture


def bumps(seed: int, *, sizes: tuple[int, ...], means: tuple[float, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(m, 1, n) for n, m in zip(sizes, means, strict=True)])


@pytest.mark.parametrize("means", [(0.0, 6.0), (0.0, 6.0, 15.0)])
def test_the_mixtures_cuts_are_where_sklearn_is_undecided(means: tuple[float, ...]) -> None:
    from sklearn.mixture import GaussianMixture

    x = bumps(0, sizes=(150, 80, 60)[: len(means)], means=means)
    mixture = fit_mixture(x, len(means))
    other = GaussianMixture(len(means), n_init=5, random_state=1, tol=1e-6, max_iter=1000)
    other.fit(x[:, None])
    order = np.argsort(other.means_[:, 0])
    assert mixture.means == pytest.approx(other.means_[order, 0].tolist(), abs=0.02)
    for i, cut in enumerate(mixture.cuts()):
        a, b = other.predict_proba([[cut]])[0][order][i : i + 2]
        assert a / (a + b) == pytest.approx(0.5, abs=0.02)
        assert mixture.means[i] < cut < mixture.means[i + 1]
    # Same densities by scipy, exactly equal at the cut.
    for i, cut in enumerate(mixture.cuts()):
        pair = [
            mixture.weights[j] * scipy_stats.norm.pdf(cut, mixture.means[j], mixture.deviations[j])
            for j in (i, i + 1)
        ]
        assert pair[0] == pytest.approx(pair[1], rel=1e-6)
    single = GaussianMixture(1).fit(x[:, None])
    assert mixture.bic_gain == pytest.approx(single.bic(x[:, None]) - other.bic(x[:, None]), abs=1)
    assert mixture.bic_gain > 10


def test_one_gaussian_is_told_from_two() -> None:
    one = find_mixture_facts(bumps(0, sizes=(300,), means=(0.0,)))
    two = find_mixture_facts(bumps(0, sizes=(200, 100), means=(0.0, 6.0)))
    assert one is None or one["bic_gain"] < 10
    assert two is not None
    # Means 6 apart with deviations of 1: D = sqrt(2) 6 / sqrt(2), give or take the sample's.
    assert two["separation"] == pytest.approx(6, abs=1)


def find_mixture_facts(x: np.ndarray) -> dict[str, float] | None:
    try:
        return dict(find_cuts(x, Rule("gmm")).facts)
    except UsageError:
        return None


def test_the_mixture_does_not_care_for_units() -> None:
    x = bumps(3, sizes=(80, 60), means=(0.0, 5.0))
    (cut,) = find_cuts(x, Rule("gmm")).at
    for scale, offset in ((1e-6, 0.0), (1e4, -3e5)):
        (moved,) = find_cuts(x * scale + offset, Rule("gmm")).at
        assert (moved - offset) / scale == pytest.approx(cut, abs=1e-4)


# ------------------------------------------------------------------------------------- all


@settings(max_examples=40, deadline=None)
@given(some_values, st.sampled_from(["quantile", "mass", "otsu", "knee"]), st.randoms())
def test_order_does_not_matter_and_nan_is_left_out(
    x: np.ndarray, name: str, random: object
) -> None:
    try:
        expected = find_cuts(x, Rule(name)).at
    except UsageError:
        return
    shuffled = [*x.tolist(), NAN, NAN]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert find_cuts(np.array(shuffled), Rule(name)).at == pytest.approx(expected, abs=1e-12)


def test_levels_count_the_cuts_exceeded() -> None:
    assert levels(np.array([0.0, 1.0, 1.5, 2.0, 9.0]), (1.0, 2.0)).tolist() == [0, 0, 1, 1, 2]


def test_a_cut_parts_neighbouring_floats() -> None:
    low = 1.0
    high = float(np.nextafter(low, 2))
    assert low <= cut_between(low, high) < high


@pytest.mark.parametrize(
    ("values", "rule", "message"),
    [
        ([0, 1], Rule("median"), "'median' is none of positive, quantile, mass, otsu"),
        ([1.0], Rule(), "1 scored rows"),
        ([NAN, NAN], Rule(), "0 scored rows"),
        ([2.0, 2.0, 2.0], Rule("gmm"), "all 3 scores equal 2"),
        ([0, 1, 2], Rule(groups=1), "--groups 1"),
        ([0, 1, 1, 0], Rule(groups=3), "only 2 different values"),
        ([0, 1, 2], Rule("positive", groups=3), "one cut, so 2 groups and not 3"),
        ([0, 1, 2], Rule("knee", groups=3), "quantile, mass, otsu, gmm"),
        ([0, 1, 2], Rule("knee"), "straight line from 0 to 2"),
        ([0, 1, 2], Rule("quantile", quantile=0.0), "--quantile 0.0 must lie between 0 and 1"),
        ([0, 1, 2], Rule("quantile", quantile=NAN), "between 0 and 1"),
        ([0, 1, 2], Rule("mass", mass=0.0), "--mass 0.0"),
        ([0, 1, 2], Rule("mass", mass=NAN), "--mass nan"),
        ([0, -1, -2], Rule("mass"), "no score is above 0"),
        ([0, 1, 2, 3], Rule("gmm"), "4 different scores cannot bear a mixture of 2"),
    ],
)
def test_bad_inputs(values: list[float], rule: Rule, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_cuts(np.array(values, float), rule)


def test_gaussians_that_no_score_parts_are_refused() -> None:
    narrow = Mixture((0.01, 0.99), (0.0, 0.1), (1.0, 1.0), 0.0)  # the second wins everywhere
    with pytest.raises(UsageError, match="no score between their means"):
        narrow.cuts()


# ------------------------------------------------------------------------------------- doubt


def test_doubt_is_the_normal_tail_beyond_the_threshold() -> None:
    values = np.array([0.0, 1.0, 3.0, 3.0, NAN, 3.0, 2.0, 3.0])
    errors = np.array([1.0, 2.0, 0.5, NAN, 1.0, 0.0, 1.0, -1.0])
    low = np.where(values > 2, 2.0, -math.inf)
    high = np.where(values > 2, math.inf, 2.0)
    found = doubt(values, errors, low, high)
    assert found is not None
    for i in (0, 1, 2):
        expected = scipy_stats.norm.cdf(-abs(values[i] - 2) / errors[i])
        assert found[i] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(found).tolist() == [False, False, False, True, True, False, False, True]
    assert found[5] == 0  # measured without error
    assert found[6] == pytest.approx(0.5)  # on the threshold
    assert doubt(values, None, low, high) is None


def test_doubt_between_two_thresholds_counts_both_sides() -> None:
    found = doubt(np.array([0.0]), np.array([1.0]), np.array([-1.0]), np.array([2.0]))
    inside = scipy_stats.norm.cdf(2) - scipy_stats.norm.cdf(-1)
    assert found is not None
    assert found[0] == pytest.approx(1 - inside, rel=1e-12)


# --------------------------------------------------------------------------------- stability


def test_stability_agrees_with_a_plain_loop() -> None:
    x = bumps(1, sizes=(30, 20), means=(0.0, 3.0))
    values = np.concatenate([[NAN], x])
    found = stability(values, Rule("otsu"), resamples=40, seed=5)
    rng = np.random.default_rng(5)
    mine = {i for i, v in enumerate(x) if v > otsu(x)}
    cuts, agreements, flips = [], [], np.zeros(len(x))
    for _ in range(40):
        cut = otsu(x[rng.integers(0, len(x), len(x))])
        other = {i for i, v in enumerate(x) if v > cut}
        cuts.append(cut)
        agreements.append(len(mine & other) / len(mine | other))
        for i in mine ^ other:
            flips[i] += 1 / 40
    (cut_interval,) = found.cuts
    assert cut_interval.value == otsu(x)
    assert (cut_interval.low, cut_interval.high) == tuple(np.quantile(cuts, [0.025, 0.975]))
    assert found.jaccard.value == pytest.approx(np.mean(agreements))
    assert found.jaccard.n == 50
    assert math.isnan(found.flips[0])
    assert found.flips[1:] == pytest.approx(flips)
    assert found.unstable_share == pytest.approx(np.mean(flips > 0.05))
    assert (found.failed, found.resamples) == (0, 40)


def test_far_peaks_are_stable_and_one_peak_is_less_so() -> None:
    apart = stability(bumps(0, sizes=(60, 60), means=(0.0, 50.0)), Rule(), resamples=50)
    together = stability(bumps(0, sizes=(120,), means=(0.0,)), Rule(), resamples=50)
    assert apart.jaccard.value == 1
    assert apart.unstable_share == 0
    assert together.jaccard.value < 1
    assert together.unstable_share > 0


def test_resamples_that_cannot_be_cut_are_counted() -> None:
    # Both values are drawn with probability 1 - 2 (1/2)^2: half of the resamples are all equal.
    found = stability(np.array([0.0, 1.0]), Rule(), resamples=200, seed=0)
    assert 60 < found.failed < 140
    assert found.jaccard.value == 1


def test_a_fixed_threshold_is_stable_by_construction() -> None:
    found = stability(np.array([0.0, 0.0, 1.0, 2.0, 0.0]), Rule("positive"), resamples=20)
    assert (found.cuts[0].low, found.cuts[0].high, found.jaccard.value) == (0, 0, 1)


def test_sensitivity_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0, NAN])
    found = sensitivity(x, 2.5, thresholds=[3.5, 0.5, 2.5, 0.5])
    assert found["threshold"].tolist() == [0.5, 2.5, 3.5]
    assert found["vulnerable"].tolist() == [4, 2, 1]
    assert found["share"].tolist() == [1, 0.5, 0.25]
    assert found["jaccard"].tolist() == [0.5, 1, 0.5]
    grid = sensitivity(np.arange(101.0), 50)
    assert grid["threshold"] == pytest.approx(np.arange(5.0, 100, 5))
    assert grid["vulnerable"].tolist() == list(range(95, 0, -5))


@settings(max_examples=50, deadline=None)
@given(some_values, st.floats(-9, 9), st.floats(-9, 9))
def test_nested_is_the_jaccard_index(x: np.ndarray, a: float, b: float) -> None:
    from holdfast.stats.overlap import jaccard

    one, two = (set(np.flatnonzero(x > cut).tolist()) for cut in (a, b))
    assert threshold_jaccard(x, a, b) == pytest.approx(jaccard(one, two), nan_ok=True)


# -------------------------------------------------------------------------------------- advice


def test_counts_with_zeros_are_cut_at_zero() -> None:
    found = recommend(np.array([0] * 70 + [1] * 10 + [4] * 20, float))
    assert (found.rule.name, found.at, found.threshold) == ("positive", (0.0,), 0.0)
    assert "30% of the 100 above zero" in found.reason


def test_counts_that_are_nearly_all_positive_are_not() -> None:
    found = recommend(np.array([0] * 5 + [1] * 50 + [9] * 45, float))
    assert found.rule.name == "otsu"
    assert found.at == (5.0,)
    assert "95% of the 100 above zero, which is not between 5.0% and 60%" in found.reason


def test_two_peaks_get_a_mixture() -> None:
    x = bumps(0, sizes=(100, 60), means=(0.0, 8.0))
    found = recommend(x)
    assert found.rule.name == "gmm"
    assert found.at == find_cuts(x, Rule("gmm")).at
    assert "BIC" in found.reason
    assert "2 clear peaks" in found.reason


def test_the_valley_is_counted_in_the_scores() -> None:
    # Within 1/2 of the cut at 5: one score; of the peaks at 0 and 10: four and two.
    x = np.array([0.0, 0.1, -0.1, 0.5, 5.4, 6.0, 10.0, 10.5, 11.0])
    assert valley(x, Mixture((0.5, 0.5), (0.0, 10.0), (1.0, 1.0), 0.0)) == 0.5
    assert valley(x, Mixture((0.5, 0.5), (-8.0, 18.0), (1.0, 1.0), 0.0)) == math.inf


def test_a_stable_otsu_comes_next() -> None:
    # Two Gaussians fit a uniform distribution far better than one does, but there is no valley.
    found = recommend(np.linspace(-1, 1, 400))
    assert found.rule.name == "otsu"
    assert found.at == pytest.approx((0.0,), abs=0.01)
    assert "not 2 clear peaks" in found.reason
    assert found.reason.endswith(": stable")


def test_else_the_highest_by_convention() -> None:
    rng = np.random.default_rng(0)
    x = rng.pareto(0.7, 200)  # a few values so large that Otsu parts a handful
    found = recommend(x)
    assert found.rule == Rule("quantile")
    assert found.at == (float(np.quantile(x, 0.6)),)
    assert "convention" in found.reason


def test_ties_that_leave_no_quantile() -> None:
    # Not counts, since below zero; 3 % at 0, the rest at -1 and the 60 % quantile with them.
    found = recommend(np.array([0.0] * 97 + [-1.0] * 3))
    assert found.rule.name == "otsu"
    assert found.at == (-0.5,)
    assert "tied scores" in found.reason


def test_advice_for_three_groups() -> None:
    x = bumps(0, sizes=(60, 60, 60), means=(0.0, 10.0, 20.0))
    found = recommend(x, groups=3)
    assert found.rule == Rule("gmm", groups=3)
    assert len(found.at) == 2
    counts = np.array([0] * 60 + [1] * 20 + [8] * 20, float)
    assert recommend(counts, groups=3).rule.name == "otsu"


def test_advice_is_the_same_every_time() -> None:
    x = np.random.default_rng(2).normal(size=80)
    assert recommend(x, seed=1) == recommend(x, seed=1)


def test_no_advice_for_scores_that_say_nothing() -> None:
    with pytest.raises(UsageError, match="all 4 scores equal 1"):
        recommend(np.ones(4))


@pytest.mark.parametrize("groups", [0, 1])
def test_less_than_two_groups_are_not_recommended(groups: int) -> None:
    with pytest.raises(UsageError, match=f"--groups {groups}: there must be two at least"):
        recommend(np.arange(40.0), groups=groups)
