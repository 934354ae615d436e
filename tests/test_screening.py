"""The text screener: ranks, folds, CV+ against its formula, coverage by simulation, accuracy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.rows.similarity import Vectors, nearest, prompt_key
from holdfast.screening.crossfit import (
    CrossFit,
    ScoredTexts,
    cv_plus,
    folds_of,
    prompt_weights,
    weighted_quantile,
)
from holdfast.screening.text_screener import (
    UNLIKE,
    HeldOutAccuracy,
    Screen,
    ScreenedRow,
    TextScreener,
    place_among_scored,
    ranks,
    screen_text,
)
from holdfast.stats.intervals import Interval

NAN = math.nan
WORDS = [f"w{i}" for i in range(12)]
WEAK = set(WORDS[:6])


def made(n: int, seed: int, *, planted: bool = True) -> tuple[Examples, np.ndarray]:
    """Make rows of four random words; planted, the score is the number of weak words plus noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        chosen = rng.choice(WORDS, 4, replace=False).tolist()
        rows.append(Example(" ".join([*chosen, f"n{seed}x{i}"]), f"no {rng.choice(WORDS)}"))
    weak = np.array([len(WEAK & set(row.prompt.split())) for row in rows], float)
    return Examples(rows), (weak if planted else 0 * weak) + 0.5 * rng.normal(size=n)


@pytest.fixture(scope="module")
def planted() -> TextScreener:
    rows, values = made(80, 0)
    return TextScreener(rows, values, vulnerable=values > np.quantile(values, 0.6))


# ------------------------------------------------------------------------------------- building


def test_ranks_by_hand() -> None:
    # Sorted 1, 2, 2, 5: ranks 1, 2.5, 2.5, 4 of 4.
    found = ranks(np.array([2.0, 5.0, NAN, 1.0, 2.0]))
    np.testing.assert_allclose(found, [2.5 / 4, 1.0, NAN, 0.25, 2.5 / 4])


def test_the_same_prompt_whatever_its_case_punctuation_and_order() -> None:
    assert prompt_key("How do I bake, Ana?") == prompt_key("ana how do I  BAKE")
    assert prompt_key("How do I bake") != prompt_key("How do I bake it")
    assert prompt_key(" ??? ") == "???"


def test_vectors_have_length_one_and_strange_words_take_their_part() -> None:
    vectors = Vectors(["red cat", "red dog", "blue"])
    known = vectors(["red cat", "blue"]).toarray()
    np.testing.assert_allclose(np.linalg.norm(known, axis=1), 1.0)
    # Strange: "owl", "blue owl", each at the weight of the rarest terms, which "blue" is one of.
    strange = vectors(["blue owl"]).toarray()
    assert np.linalg.norm(strange) == pytest.approx(1 / math.sqrt(3))
    assert np.linalg.norm(vectors(["..."]).toarray()) == 0.0


def test_nearest() -> None:
    found = nearest(["red cat", "green owl", "猫が好き"], ["blue", "red cat", "犬が好き"])
    assert found[0] == pytest.approx(1.0)
    assert found[1] == 0.0
    assert 0 < found[2] < 1  # shared characters count where no blanks part the words


def test_folds_keep_prompts_together_and_do_not_depend_on_order() -> None:
    keys = np.array([f"prompt {i % 23}" for i in range(60)])
    fold = folds_of(keys, 5, seed=3)
    by_key = {key: set(fold[keys == key].tolist()) for key in keys.tolist()}
    assert all(len(found) == 1 for found in by_key.values())
    sizes = np.bincount([next(iter(f)) for f in by_key.values()])
    assert sizes.tolist() == [5, 5, 5, 4, 4]  # 23 prompts
    order = np.random.default_rng(0).permutation(60)
    assert (folds_of(keys[order], 5, seed=3) == fold[order]).all()
    assert (folds_of(keys, 5, seed=4) != fold).any()


# ----------------------------------------------------------------------------------- uncertainty


def test_weighted_quantile_by_hand() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([0.25, 0.25, 0.25])
    assert weighted_quantile(values, weights, 0.25) == 1.0
    assert weighted_quantile(values, weights, 0.26) == 2.0
    assert weighted_quantile(values, weights, 0.75) == 3.0
    assert weighted_quantile(values, weights, 0.76) == math.inf  # the missing quarter lies there


@pytest.mark.parametrize("seed", range(10))
def test_cv_plus_is_the_published_formula(seed: int) -> None:
    """With one row a prompt: the ceil(coverage (n + 1))-th smallest, from either side."""
    rng = np.random.default_rng(seed)
    n, coverage = int(rng.integers(20, 50)), 0.8
    guesses, residuals = rng.uniform(0.4, 0.6, n), rng.uniform(0, 0.3, n)
    k = math.ceil(coverage * (n + 1) - 1e-9)
    high = sorted((guesses + residuals).tolist())[k - 1]
    low = sorted((guesses - residuals).tolist(), reverse=True)[k - 1]
    weights = prompt_weights(np.arange(n).astype(str))
    assert cv_plus(guesses, residuals, weights, coverage) == pytest.approx((low, high))


def test_every_prompt_weighs_the_same() -> None:
    # Three prompts and the new one: a quarter each; "a" has two rows.
    assert prompt_weights(np.array(["a", "b", "a", "c"])).tolist() == [1 / 8, 1 / 4, 1 / 8, 1 / 4]


def test_too_few_prompts_for_the_coverage_say_nothing() -> None:
    weights = prompt_weights(np.array(["a", "b", "c"]))
    assert cv_plus(np.full(3, 0.5), np.zeros(3), weights, 0.9) == (0.0, 1.0)


def test_coverage_by_simulation() -> None:
    """New rows from the same source fall into their intervals as often as is stated."""
    inside = []
    for seed in range(4):
        rows, values = made(260, seed)
        target, train = ranks(values[:60]), rows[:60]
        data = ScoredTexts(train.rows, target, np.array(train.prompts), ("prompt",))
        ends = CrossFit.fit(data, 0, 0.8).intervals(rows[60:].rows)
        # The place of a new row among the sixty, as the screener means it.
        new = np.searchsorted(np.sort(values[:60]), values[60:]) / 60
        inside += ((ends[:, 0] <= new) & (new <= ends[:, 1])).tolist()
    # Four draws of sixty training rows: each one's coverage has a standard deviation of about
    # sqrt(0.8 * 0.2 / 60) = 0.05, their mean 0.026; the test rows add 0.014. Three of them: 0.09.
    assert np.mean(inside) == pytest.approx(0.8, abs=0.09)


# --------------------------------------------------------------------------------------- accuracy


def test_a_planted_word_effect_is_found(planted: TextScreener) -> None:
    accuracy = planted.accuracy
    assert accuracy.informative
    assert accuracy.spearman.low > 0.1
    assert (accuracy.rows, accuracy.prompts, accuracy.not_scored) == (80, 80, 0)
    assert accuracy.coverage.low < 0.9 < accuracy.coverage.high + 0.1
    assert "predicts vulnerability" in str(accuracy)
    new, values = made(60, 99)
    found = planted.predict(new.rows)
    weak = [row.rank for row, prompt in zip(found, new.prompts, strict=True) if most(prompt)]
    strong = [row.rank for row, prompt in zip(found, new.prompts, strict=True) if not most(prompt)]
    assert np.mean(weak) > np.mean(strong) + 0.1
    assert all(0 <= row.low <= row.rank <= row.high <= 1 for row in found)
    assert {row.basis for row in found} == {"text"}


def most(prompt: str) -> bool:
    return len(WEAK & set(prompt.split())) >= 2


def test_the_probability_rises_with_the_guess(planted: TextScreener) -> None:
    new, _ = made(30, 98)
    found = sorted(planted.predict(new.rows), key=lambda row: row.rank)
    chances = [row.vulnerable for row in found]
    assert all(0 < chance < 1 for chance in chances)
    assert chances[-1] > chances[0]


def test_ignorance_is_admitted_and_as_wide_as_that() -> None:
    rows, values = made(60, 1, planted=False)
    vulnerable = np.arange(60) < 15
    screener = TextScreener(rows, values, vulnerable=vulnerable)
    assert not screener.accuracy.informative
    assert "does not predict vulnerability here" in str(screener.accuracy)
    assert "as wide as ignorance" in str(screener.accuracy)
    new, _ = made(10, 97)
    found = screener.predict(new.rows)
    # Without knowledge, 90 % of a uniform rank needs 90 % of the scale.
    assert np.mean([row.high - row.low for row in found]) > 0.8
    assert {row.vulnerable for row in found} == {0.25}  # the share, nothing better is known


def test_equal_prompts_do_not_leak() -> None:
    """Every prompt twice, scores random by prompt: a leak would foretell them perfectly."""
    rows, values = made(40, 2, planted=False)
    twice = [*rows, *(Example(row.prompt.upper() + "!", "never") for row in rows)]
    screener = TextScreener(twice, np.tile(values, 2))
    assert screener.accuracy.prompts == 40
    assert not screener.accuracy.informative
    assert screener.accuracy.coverage.value > 0.75


def test_the_order_of_the_rows_makes_no_difference() -> None:
    rows, values = made(40, 3)
    order = np.random.default_rng(0).permutation(40)
    new, _ = made(5, 96)
    one = TextScreener(rows, values, responses=False).predict(new.rows)
    two = TextScreener(rows.select(order.tolist()), values[order], responses=False)
    for a, b in zip(one, two.predict(new.rows), strict=True):
        assert (a.rank, a.low, a.high) == pytest.approx((b.rank, b.low, b.high), abs=1e-3)


# --------------------------------------------------------------------------------- the whole set


def test_every_kind_of_row() -> None:
    rows, values = made(40, 4)
    values[3] = NAN
    values[5] = np.nanmax(values) + 1
    strange = Example("zebra quokka lemur", "maybe yes")
    again = Example(rows[7].prompt, "another answer")
    bare = Example("w1 w2 w3")
    new = Examples([strange, rows[5], rows[3], again, bare])
    vulnerable = np.arange(40) < 10
    found, accuracy = screen_text(new, rows, values, vulnerable=vulnerable)
    assert [row.id for row in found] == list(new.ids)
    assert [row.basis for row in found] == ["text", "scored", "text", "text", "text"]
    assert UNLIKE in found[0].note
    assert (found[1].rank, found[1].low, found[1].high, found[1].vulnerable) == (1, 1, 1, 1)
    assert "without a score" in found[2].note
    assert "its prompt was scored with another response" in found[3].note
    assert UNLIKE not in found[3].note
    assert "no response" in found[4].note
    assert [one.features for one in accuracy] == ["prompt and response", "prompt"]
    assert [one.not_scored for one in accuracy] == [1, 1]
    assert "1 rows without a score were left out" in str(accuracy[0])


def test_scored_rows_need_no_guess() -> None:
    rows, values = made(30, 5)
    found, accuracy = screen_text(rows[:2], rows, values)
    assert accuracy == ()
    assert [row.rank for row in found] == ranks(values)[:2].tolist()
    assert math.isnan(found[0].vulnerable)


@pytest.mark.parametrize(
    ("values", "coverage", "message"),
    [
        (
            [float(i) for i in range(19)] + [NAN] * 6,
            0.9,
            r"19 scored rows \(of 25\).*needs at least 20",
        ),
        ([NAN] * 25, 0.9, r"0 scored rows"),
        ([2.0] * 25, 0.9, "all 25 scores equal 2"),
        ([float(i) for i in range(25)], 1.0, "--coverage 1.0 must lie between"),
    ],
)
def test_bad_scores(values: list[float], coverage: float, message: str) -> None:
    rows, _ = made(25, 6)
    with pytest.raises(UsageError, match=message):
        screen_text(rows[:1], rows, np.array(values), coverage=coverage)


def test_too_few_prompts() -> None:
    rows = Examples(Example(f"prompt {i % 4}", f"no {i}") for i in range(24))
    with pytest.raises(UsageError, match="4 distinct prompts among 24"):
        screen_text(rows[:1], rows, np.arange(24.0))


# ------------------------------------------------------------------------------ probe and files


def test_place_by_hand() -> None:
    sample = np.array([1.0, 2.0, 2.0, 3.0])
    found = place_among_scored(np.array([2.0, 0.0, 9.0, NAN]), sample, 0.9)
    assert found[:, 0].tolist()[:3] == [0.5, 0.0, 1.0]  # (1 + 3) / 2 of 4, none, all
    assert np.isnan(found[3]).all()
    # Wilson's interval at 0 of 4, z = 1.6449: from 0 to z^2 / (4 + z^2).
    assert found[1, 1] == 0.0
    assert found[1, 2] == pytest.approx(1.6449**2 / (4 + 1.6449**2), abs=1e-3)


def test_round_trip_and_order(tmp_path: Path) -> None:
    accuracy = HeldOutAccuracy(
        "prompt", Interval(NAN, NAN, NAN, 30), Interval(0.9, 0.8, 1.0, 30), 0.9, 1.0, 30, 9
    )
    rows = (
        ScreenedRow("a", 0.2, 0.1, 0.9, "text", "note"),
        ScreenedRow("b", NAN, NAN, NAN, "probe"),
        ScreenedRow("c", 0.8, 0.8, 0.8, "scored", vulnerable=1.0),
    )
    made_here = Screen(rows, 0.9, "n", "d", "s", (accuracy,), {"sample": 3})
    made_here.save(tmp_path / "screen.json")
    loaded = Screen.load(tmp_path / "screen.json")
    assert str(loaded) == str(made_here)  # nan included
    assert [position for position, _ in loaded.ranked] == [2, 0, 1]
    assert loaded.counts == {"probe": 1, "scored": 1, "text": 1}
    assert not loaded.accuracy[0].informative
    assert "Spearman unknown" in str(loaded.accuracy[0])
