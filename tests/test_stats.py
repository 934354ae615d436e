"""Every statistic against a count by hand, or against scikit-learn or scipy."""

import math
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn import metrics

from holdfast.errors import UsageError
from holdfast.stats import corrections, differences, intervals, overlap, ranks, raters
from holdfast.stats.intervals import Interval
from holdfast.stats.survival import Time, time_to

NAN = math.nan

# Few distinct scores, so that ties are the rule.
LABELLED = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40)


# ------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.5234, 0.4512, 0.5949, 200), "0.52 [0.45, 0.59], n=200"),
        (Interval(0.5, NAN, NAN, 1), "0.50 [unknown], n=1"),
        (Interval(NAN, 0.0, 1.0, 0), "unknown, n=0"),
    ],
)
def test_interval_text(interval: Interval, text: str) -> None:
    assert str(interval) == text


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize(("successes", "n"), [(0, 5), (1, 1), (3, 10), (117, 200), (200, 200)])
def test_wilson_equals_scipy(successes: int, n: int, level: float) -> None:
    expected = scipy_stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    found = intervals.wilson(successes, n, level)
    assert found.value == successes / n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found.n, found.level) == (n, level)


def test_wilson_touches_its_bounds_exactly_and_knows_nothing_of_nothing() -> None:
    assert intervals.wilson(0, 7).low == 0.0
    assert intervals.wilson(7, 7).high == 1.0
    nothing = intervals.wilson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n) == (0.0, 1.0, 0)


def test_answers_to_one_prompt_are_one_observation() -> None:
    """100 of 200 answers to 20 prompts: the interval of 10 of 20."""
    found, twenty = intervals.clustered(100, 200, 20), intervals.wilson(10, 20)
    assert (found.value, found.low, found.high) == (0.5, twenty.low, twenty.high)
    assert found.n == 200
    assert intervals.clustered(7, 40, 40) == intervals.wilson(7, 40)
    assert intervals.clustered(1, 200, 2).low == 0.0  # rounded to none of two
    assert math.isnan(intervals.clustered(0, 0, 0).value)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses(successes: int, n: int) -> None:
    with pytest.raises(UsageError, match=f"successes={successes}, n={n}"):
        intervals.wilson(successes, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_probability(level: float) -> None:
    with pytest.raises(UsageError, match="level="):
        intervals.wilson(1, 2, level)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = intervals.bootstrap(lambda x: float(x.mean()), values, seed=3, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    # The ends of 4000 resamples scatter by about 3 % of the half width.
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.n == 400


def test_bootstrap_is_seeded_and_keeps_rows_together() -> None:
    a = np.arange(10.0)

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.abs(x - y).max())

    assert intervals.bootstrap(difference, a, a + 2).high == 2.0  # never a pair from two rows
    first, again, other = (
        intervals.bootstrap(lambda x: float(x.mean()), a, seed=seed, resamples=50)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_bootstrap_drops_undefined_resamples() -> None:
    # Of 2 rows a resample has 2 equal ones half the time: AUROC is undefined there, else 1.
    found = intervals.bootstrap(ranks.auroc, np.array([0, 1]), np.array([0.1, 0.9]), resamples=50)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_bootstrap_of_an_undefined_statistic_is_unknown() -> None:
    found = intervals.bootstrap(ranks.auroc, np.ones(5), np.arange(5.0), resamples=10)
    assert str(found) == "unknown, n=5"


@pytest.mark.parametrize("arrays", [(), (np.ones(1),), (np.ones(3), np.ones(4))])
def test_bootstrap_refuses(arrays: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(UsageError, match="equal length, 2 or more"):
        intervals.bootstrap(lambda *x: 0.0, *arrays)


@pytest.mark.parametrize("statistic", [ranks.auroc, ranks.auprc, ranks.spearman])
def test_a_thousand_resamples_of_a_thousand_rows_take_under_3_s(statistic) -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(1000) < 0.3, rng.random(1000)
    start = time.perf_counter()
    intervals.bootstrap(statistic, labels, scores)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_equals_scipy(level: float) -> None:
    values = [1.0, 2.5, 3.0, 7.0]
    low, high = scipy_stats.t.interval(level, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    found = intervals.mean_interval(values, level)
    assert (found.value, found.low, found.high) == pytest.approx((13.5 / 4, low, high))
    assert found.n == 4


def test_mean_interval_of_one_seed_and_of_none() -> None:
    one = intervals.mean_interval([NAN, 2.0])  # the nan is not a seed
    assert (one.value, one.n) == (2.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert str(intervals.mean_interval([NAN])) == "unknown, n=0"


def test_geometric_ratio_by_hand() -> None:
    # Ratios 2 and 8: logs ln2 and 3 ln2, mean 2 ln2 = ln4; sd sqrt(2) ln2, so the standard error
    # of two is ln2, and the ends are 4 * 2^(-t) and 4 * 2^t with t of 1 degree of freedom,
    # which is tan(0.475 pi).
    t = math.tan(0.475 * math.pi)
    found = intervals.geometric_ratio([20, 80, NAN], [10, 10, 5])
    assert found.value == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx((4 * 2**-t, 4 * 2**t))
    assert found.n == 2


def test_geometric_ratio_turns_over() -> None:
    a, b = [3.0, 5.0, 4.0], [1.0, 2.0, 3.0]
    there, back = intervals.geometric_ratio(a, b), intervals.geometric_ratio(b, a)
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)


def test_geometric_ratio_at_the_edges() -> None:
    one = intervals.geometric_ratio([6], [2])
    assert one.value == pytest.approx(3)
    assert math.isnan(one.low)
    assert intervals.geometric_ratio([0, 5], [5, 5]).value == 0
    assert intervals.geometric_ratio([5, 5], [0, 5]).value == math.inf
    assert math.isnan(intervals.geometric_ratio([0, 5], [5, 0]).value)
    assert str(intervals.geometric_ratio([0], [0])) == "unknown, n=1"
    assert str(intervals.geometric_ratio([NAN], [1])) == "unknown, n=0"
    # exp(12.7 * 500) is beyond a double: an end may be infinite, the call may not fail
    wide = intervals.geometric_ratio([1e-300, 1e300], [1, 1])
    assert (wide.value, wide.low, wide.high) == (pytest.approx(1), 0.0, math.inf)
    with pytest.raises(UsageError, match="negative"):
        intervals.geometric_ratio([-1], [1])
    with pytest.raises(UsageError, match="equal length"):
        intervals.geometric_ratio([1], [1, 2])


# ----------------------------------------------------------------------------- rank statistics


@given(LABELLED)
@settings(max_examples=60, deadline=None)
def test_auroc_and_auprc_equal_sklearn(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([p for p, _ in pairs]), np.array([s for _, s in pairs])
    if labels.any():
        assert ranks.auprc(labels, scores) == pytest.approx(
            metrics.average_precision_score(labels, scores)
        )
    if labels.any() and not labels.all():
        assert ranks.auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))


@given(LABELLED)
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_ordered_pairs(pairs: list[tuple[bool, int]]) -> None:
    wins = [
        (p > n) + 0.5 * (p == n) for yes, p in pairs if yes for no, n in pairs if not no
    ]  # the slow, obvious definition
    found = ranks.auroc([p for p, _ in pairs], [s for _, s in pairs])
    assert found == pytest.approx(np.mean(wins) if wins else NAN, nan_ok=True)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40))
@settings(max_examples=60, deadline=None)
def test_spearman_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(ranks.spearman(a, b))
    else:
        assert ranks.spearman(a, b) == pytest.approx(scipy_stats.spearmanr(a, b).statistic)


def test_rank_statistics_on_ties_by_hand() -> None:
    # Positives at 3 and 1, negatives at 2 and 1: pairs 3>2, 3>1, 1<2, 1=1, so (1+1+0+0.5)/4.
    labels, scores = [1, 0, 1, 0], [3, 2, 1, 1]
    assert ranks.auroc(labels, scores) == 2.5 / 4
    # Threshold 3: recall 1/2 at precision 1; threshold 1 (both tied rows): recall 1 at 2/4.
    assert ranks.auprc(labels, scores) == 0.5 * 1 + 0.5 * 0.5


def test_nan_pairs_are_left_out() -> None:
    labels, scores = [1, 0, 1, 0, NAN], [3, 2, 1, NAN, 9]
    assert ranks.auroc(labels, scores) == ranks.auroc([1, 0, 1], [3, 2, 1]) == 0.5
    assert ranks.auprc(labels, scores) == ranks.auprc([1, 0, 1], [3, 2, 1])
    assert ranks.spearman([1, 2, NAN, 3], [1, 2, 0, NAN]) == pytest.approx(1.0)


def test_infinite_scores_are_ranks_like_others() -> None:
    labels, scores = [1, 1, 0, 0], [math.inf, math.inf, 0, -math.inf]
    assert ranks.auroc(labels, scores) == 1.0
    assert ranks.auprc(labels, scores) == 1.0
    assert ranks.spearman(scores, [4, 4, 2, 1]) == pytest.approx(1.0)


def test_rank_statistics_are_nan_when_undefined() -> None:
    undefined = [
        ranks.auroc([1, 1], [1, 2]),
        ranks.auroc([], []),
        ranks.auroc([1, 0], [NAN, 1]),
        ranks.auprc([0, 0], [1, 2]),
        ranks.auprc([], []),
        ranks.spearman([1], [1]),
        ranks.spearman([2, 2], [1, 3]),
    ]
    assert all(math.isnan(value) for value in undefined)
    assert ranks.auprc([1, 1], [1, 2]) == 1.0  # every threshold is precise


def test_rank_statistics_refuse() -> None:
    with pytest.raises(UsageError, match="label 2"):
        ranks.auroc([0, 2], [1, 2])
    with pytest.raises(UsageError, match=r"\(1,\) and \(2,\)"):
        ranks.spearman([1], [1, 2])


# ------------------------------------------------------------------------------------ half-life


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.0, 0.2, 0.6, 1.0], 17.5),  # 10 + (0.5 - 0.2) / (0.6 - 0.2) * 10
        ([0.0, 0.5, 0.2, 0.9], 10.0),  # the first crossing counts, exactly on a checkpoint
        ([0.5, 0.0, 0.0, 0.0], 0.0),  # broken before the attack
        ([0.0, NAN, 1.0, 1.0], 10.0),  # halfway from 0 to 20, over the gap
        ([NAN, NAN, 0.7, 1.0], 0.0),  # when it broke is not known: the bound that flatters nobody
    ],
)
def test_half_life_by_hand(shares: list[float], expected: float) -> None:
    found = time_to([0, 10, 20, 30], shares)
    assert found == Time(pytest.approx(expected))


def test_half_life_at_another_level() -> None:
    assert time_to([0, 10], [0.0, 0.4], level=0.1).value == pytest.approx(2.5)


def test_half_life_that_never_comes_is_censored_and_without_measurement_unknown() -> None:
    never = time_to([0, 10], [0.0, 0.49])
    assert never == Time(10.0, censored=True)
    assert time_to([0, 10, 20], [0.0, 0.49, NAN]) == Time(10.0, censored=True)
    for shares in ([], [NAN, NAN]):
        unknown = time_to(range(len(shares)), shares)
        assert math.isnan(unknown.value)
        assert not unknown.censored


@pytest.mark.parametrize(
    ("steps", "shares"), [([0], [0.1, 0.2]), ([0, 0], [0, 1]), ([5, 1], [0, 1])]
)
def test_half_life_refuses(steps: list[int], shares: list[float]) -> None:
    with pytest.raises(UsageError, match="steps increasing"):
        time_to(steps, shares)


# ------------------------------------------------------------------------------------ agreement


def test_a_quantile_that_falls_on_a_value_is_that_value() -> None:
    # By hand: 0.55 x 100 and 0.29 x 100 are whole numbers, their float products are not.
    assert (0.55 * 100, 0.29 * 100) == (55.00000000000001, 28.999999999999996)
    assert ranks.quantiles(np.arange(101.0)[::-1], [0.29, 0.55]).tolist() == [29.0, 55.0]
    for n in range(2, 130):
        for hundredths in range(1, 100):
            place = Fraction(hundredths, 100) * (n - 1)
            value = ranks.quantiles(np.arange(float(n)), hundredths / 100).item()
            assert value == place if place.denominator == 1 else abs(value - place) < 1e-9


def test_an_order_statistic_takes_no_further_value_by_rounding() -> None:
    for n in range(1, 130):
        for hundredths in range(1, 101):
            place = math.ceil(Fraction(hundredths, 100) * n) - 1
            assert ranks.order_statistic(np.arange(float(n)), hundredths / 100) == place


def test_jaccard() -> None:
    assert overlap.jaccard({1, 2, 3}, {2, 3, 4}) == 2 / 4
    assert overlap.jaccard({"a"}, set()) == 0.0
    assert math.isnan(overlap.jaccard(set(), set()))


@pytest.mark.parametrize(("n", "a", "b"), [(4, 2, 2), (5, 1, 3), (5, 4, 3), (3, 3, 2), (4, 0, 2)])
def test_jaccard_by_chance_equals_the_mean_over_all_subsets(n: int, a: int, b: int) -> None:
    from itertools import combinations

    mine = set(range(a))  # fixing one set changes nothing, by symmetry
    values = [overlap.jaccard(mine, set(other)) for other in combinations(range(n), b)]
    assert overlap.jaccard_by_chance(n, a, b) == pytest.approx(np.mean(values))


def test_jaccard_by_chance_at_the_edges() -> None:
    assert math.isnan(overlap.jaccard_by_chance(5, 0, 0))
    assert overlap.jaccard_by_chance(5, 5, 5) == pytest.approx(1)
    with pytest.raises(UsageError, match="sizes 6 and 2"):
        overlap.jaccard_by_chance(5, 6, 2)


def test_common_forgotten_ratio() -> None:
    # {2, 3} is common, the smallest set has 3.
    assert overlap.common_forgotten_ratio([{1, 2, 3, 4}, {2, 3, 5}, {0, 2, 3, 9}]) == 2 / 3
    assert overlap.common_forgotten_ratio([{1}]) == 1.0
    assert math.isnan(overlap.common_forgotten_ratio([{1}, set()]))
    assert math.isnan(overlap.common_forgotten_ratio([]))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_kappa_and_mcnemar_equal_the_libraries(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    if a.any() or b.any():
        if not (a.all() and b.all()):
            assert raters.kappa(a, b) == pytest.approx(metrics.cohen_kappa_score(a, b))
    else:
        assert math.isnan(raters.kappa(a, b))
    discordant = int((a != b).sum())
    if discordant:
        expected = scipy_stats.binomtest(int((a & ~b).sum()), discordant).pvalue
        assert raters.mcnemar(a, b) == pytest.approx(expected)


def test_kappa_and_mcnemar_by_hand() -> None:
    a = np.array([True] * 6 + [False] * 4)
    b = np.array([True] + [False] * 9)
    # Agreement 5/10; by chance 0.6 * 0.1 + 0.4 * 0.9 = 0.42.
    assert raters.kappa(a, b) == pytest.approx((0.5 - 0.42) / 0.58)
    # 5 pairs differ, all one way: 2 / 2^5.
    assert raters.mcnemar(a, b) == pytest.approx(2 / 32)
    assert raters.mcnemar(a, a) == 1.0


def test_agreement_of_nothing_is_unknown_and_undecided_is_refused() -> None:
    empty = np.array([], dtype=bool)
    assert math.isnan(raters.kappa(empty, empty))
    assert math.isnan(raters.mcnemar(empty, empty))
    with pytest.raises(UsageError, match="undecided"):
        raters.kappa([True, None], [True, False])
    with pytest.raises(UsageError, match="not bool"):
        raters.mcnemar(np.array([1.0, NAN]), np.array([True, False]))
    with pytest.raises(UsageError, match="equal length"):
        raters.kappa([True], [True, False])


def test_the_standard_error_of_repetitions() -> None:
    values = [np.array([1.0, 2.0, NAN]), np.array([3.0, 2.0, 1.0]), np.array([2.0, 5.0, 1.0])]
    found = intervals.standard_error(values)
    assert found is not None
    # Deviations of 1, 2, 3 and of 2, 2, 5 are 1 and sqrt(3); over sqrt(3) repetitions.
    np.testing.assert_allclose(found, [1 / math.sqrt(3), 1.0, NAN])
    assert intervals.standard_error(values[:1]) is None


def test_the_fields_of_an_interval() -> None:
    interval = intervals.Interval(0.5, 0.4, 0.6, 10)
    assert interval.fields("auroc") == {"auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6}


# ---------------------------------------------------------------------- many tests at one time


def _rejected(p: list[float], alpha: float, *, holm: bool) -> list[bool]:
    """Both procedures as their papers have them: by a walk along the ordered p values."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    if holm:
        last = 0
        while last < len(p) and p[order[last]] <= alpha / (len(p) - last):
            last += 1
    else:
        last = max(
            (k + 1 for k in range(len(p)) if p[order[k]] <= alpha * (k + 1) / len(p)), default=0
        )
    return [i in order[:last] for i in range(len(p))]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3])
def test_corrected_p_values_reject_what_the_procedures_do(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, 1, rng.integers(1, 30)) ** 3
    p[rng.uniform(size=len(p)) < 0.2] = 0.004  # ties
    assert (corrections.holm(p) <= alpha).tolist() == _rejected(p.tolist(), alpha, holm=True)
    found = corrections.benjamini_hochberg(p) <= alpha
    assert found.tolist() == _rejected(p.tolist(), alpha, holm=False)


@pytest.mark.parametrize("correct", [corrections.holm, corrections.benjamini_hochberg])
def test_what_was_not_tested_is_not_counted(correct: Callable[[object], np.ndarray]) -> None:
    # Two tests: the smaller p twice, the larger once.
    np.testing.assert_allclose(correct([NAN, 0.5, 0.02]), [NAN, 0.5, 0.04])
    assert np.isnan(correct([NAN])).all()
    assert correct([]).size == 0


def test_holm_keeps_any_false_finding_rare() -> None:
    # Ten true nulls that share half of their noise.
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(2000, 10)) + rng.normal(size=(2000, 1))) / math.sqrt(2)
    p = 2 * scipy_stats.norm.sf(np.abs(z))
    assert np.mean([(corrections.holm(row) <= 0.05).any() for row in p]) <= 0.05


@pytest.mark.parametrize("seed", range(5))
def test_holm_equals_statsmodels(seed: int) -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(seed).uniform(0, 0.2, 12)
    np.testing.assert_allclose(corrections.holm(p), multipletests(p, method="holm")[1])


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_equals_statsmodels(seed: int) -> None:
    from statsmodels.stats import inter_rater

    counts = np.random.default_rng(seed).multinomial(5, [0.2, 0.5, 0.3], 20)
    expected = inter_rater.fleiss_kappa(counts, method="fleiss")
    assert raters.fleiss_kappa(counts) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_of_a_table_equals_statsmodels(seed: int) -> None:
    from statsmodels.stats import inter_rater

    table = np.random.default_rng(seed).integers(0, 9, (4, 4))
    expected = inter_rater.cohens_kappa(table).kappa
    assert raters.kappa_of_table(table) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_statsmodels(seed: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(seed)
    a = rng.random(60) < 0.6
    b = rng.random(60) < 0.4
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert raters.mcnemar(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_a_share_of_nothing_is_unknown() -> None:
    around = intervals.wilson_around
    for interval in (intervals.wilson(0, 0), around(0.0, 0), around(math.nan, 5)):
        assert math.isnan(interval.value)
    gap = differences.difference_of_shares([(0.0, 0)], [(1.0, 20)])
    assert math.isnan(gap.interval.value)
    assert math.isnan(gap.p)
