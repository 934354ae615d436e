"""Otsu's threshold against brute force, the three rules, and every input that makes no groups."""

import math

import numpy as np
import pytest

from holdfast.artifacts import Scores
from holdfast.errors import MismatchError, UsageError
from holdfast.examples import Example, Examples
from holdfast.groups import group, otsu

NAN = math.nan


def scored(values: list[float]) -> tuple[Scores, Examples]:
    """Make rows with these scores; the scores lie in another order than the rows."""
    rows = Examples(Example(f"prompt {i}", "no") for i in range(len(values)))
    order = list(range(len(values)))[::-1]
    scores = Scores(
        ids=tuple(rows.ids[i] for i in order),
        values=np.array([values[i] for i in order]),
        estimator="toy",
        data_hash=rows.hash,
        model_hash="",
    )
    return scores, rows


def spread(x: np.ndarray, cut: float) -> float:
    """Sum of squares within the two classes, which Otsu's criterion makes smallest."""
    parts = (x[x <= cut], x[x > cut])
    return float(sum(((part - part.mean()) ** 2).sum() for part in parts if len(part)))


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
    assert spread(x, found) == pytest.approx(min(spread(x, cut) for cut in cuts))


def test_otsu_by_hand() -> None:
    # Between-class variance w0 w1 d^2 (times n^2): 3 of 4 | 1: 3 x 9^2; 2 | 2: 4 x 5.5^2.
    assert otsu(np.array([10.0, 0.0, 2.0, 1.0])) == 6.0
    assert otsu(np.array([1.0, 0.0])) == 0.5


def test_otsu_does_not_change_its_input() -> None:
    x = np.array([3.0, 1.0, 2.0])
    otsu(x)
    assert x.tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("rule", "values", "labels", "threshold"),
    [
        ("positive", [0, 3, 0, 1], [0, 1, 0, 1], 0.0),
        ("otsu", [0, 1, 10, 2], [0, 0, 1, 0], 6.0),
        # The 60 % quantile of 0..5 lies at 3: only what is above it is vulnerable.
        ("quantile", [5, 4, 3, 2, 1, 0], [1, 1, 0, 0, 0, 0], 3.0),
    ],
)
def test_rules(rule: str, values: list[float], labels: list[int], threshold: float) -> None:
    scores, rows = scored(values)
    groups = group(scores, rows, rule=rule)
    assert groups.labels.tolist() == labels
    assert groups.labels.dtype == np.int64
    assert groups.ids == rows.ids
    assert groups.facts == {"threshold": threshold, "not_scored": 0}
    assert groups.names == ("invulnerable", "vulnerable")
    assert (groups.scores_hash, groups.data_hash) == (scores.hash, rows.hash)
    assert "toy" in groups.rule


def test_rows_without_a_score_are_vulnerable_and_counted() -> None:
    scores, rows = scored([NAN, 0, 10, 1, NAN])
    groups = group(scores, rows)
    assert groups.labels.tolist() == [1, 0, 1, 0, 1]
    assert groups.facts["not_scored"] == 2
    assert groups.sizes == {"invulnerable": 2, "vulnerable": 3}


def test_labels_follow_the_rows_asked_for() -> None:
    scores, rows = scored([0, 1, 10, 2])
    groups = group(scores, rows)
    assert groups.aligned_to(rows.ids[::-1]).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 1], {"rule": "median"}, "'median' is none of positive, quantile, otsu"),
        ([], {}, "0 scored examples"),
        ([1.0], {}, "1 scored examples"),
        ([1.0, NAN, NAN], {}, "1 scored examples"),
        ([NAN, NAN], {}, "0 scored examples"),
        ([2.0, 2.0, 2.0], {}, "all 3 scores equal 2"),
        ([1, 2, 3], {"rule": "positive"}, "all 3 examples into the vulnerable group"),
        ([-1, -2, 0], {"rule": "positive"}, "all 3 examples into the invulnerable group"),
        ([-1, -2], {"rule": "positive"}, "--rule quantile"),
        ([0, 1, 1, 1, 1], {"rule": "quantile"}, "into the invulnerable group"),
        ([0, 1, 2], {"rule": "quantile", "quantile": 0.0}, "between 0 and 1"),
        ([0, 1, 2], {"rule": "quantile", "quantile": 1.0}, "between 0 and 1"),
        ([0, 1, 2], {"rule": "quantile", "quantile": NAN}, "between 0 and 1"),
    ],
)
def test_bad_inputs(values: list[float], options: dict[str, object], message: str) -> None:
    scores, rows = scored(values)
    with pytest.raises(UsageError, match=message):
        group(scores, rows, **options)  # type: ignore[arg-type]


def test_scores_of_other_rows_are_refused() -> None:
    scores, _ = scored([0, 1, 2])
    other = Examples([Example("another prompt", "no")])
    with pytest.raises(MismatchError, match="scores lack 1 of 1"):
        group(scores, other)
