"""Effect sizes against pair counts, corrections against scipy, planted factors, false findings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from holdfast.analyses.factors import Factors
from holdfast.charts.figures import DotPlot
from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import RunDir
from holdfast.screening.effects import (
    Effect,
    Factor,
    cliffs_delta,
    describe,
    effects,
    p_value,
    rarity,
)
from holdfast.stats.intervals import Interval

NAN = math.nan

# ------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("seed", range(20))
def test_cliffs_delta_is_a_pair_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 6, rng.integers(1, 12)).astype(float) for _ in range(2))
    pairs = [np.sign(x - y) for x, y in itertools.product(a.tolist(), b.tolist())]
    assert cliffs_delta(a, b) == pytest.approx(np.mean(pairs))


def test_cliffs_delta_of_nothing_is_unknown() -> None:
    assert math.isnan(cliffs_delta(np.array([]), np.array([1.0])))
    assert math.isnan(cliffs_delta(np.array([1.0]), np.array([])))


def test_permutation_p_agrees_with_all_permutations() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 4, 3, 6, 5])
    observed = abs(stats.spearmanr(x, y).statistic)
    as_extreme = [
        abs(stats.spearmanr(x, y[list(order)]).statistic) >= observed - 1e-9
        for order in itertools.permutations(range(6))
    ]
    # 4999 draws: three standard errors are 3 sqrt(p (1 - p) / 4999) < 0.013.
    assert p_value(x, y, is_level=False) == pytest.approx(np.mean(as_extreme), abs=0.013)


def test_p_of_levels_and_of_many_rows_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=600), rng.normal(size=600)
    assert p_value(x, y, is_level=False) == pytest.approx(stats.spearmanr(x, y).pvalue)
    member = (x > 1).astype(float)
    expected = stats.mannwhitneyu(y[x > 1], y[x <= 1]).pvalue
    assert p_value(member, y, is_level=True) == pytest.approx(expected)
    assert math.isnan(p_value(np.ones(600), y, is_level=True))


# ------------------------------------------------------------------------------------ properties


def by_label(factors: list[Factor]) -> dict[str, Factor]:
    return {factor.label: factor for factor in factors}


def test_describe_by_hand() -> None:
    rows = [
        Example("How do I bake bread?", "I can't bake bread.", {"category": "food"}),
        Example("How do I fly", "Sorry, no. I would be happy to talk about birds instead."),
        Example("of the", "I can't bake that.", {"category": "other"}),
    ]
    found = by_label(describe(rows, [Example("how do i fly", "flap")]))
    assert found["prompt length"].values.tolist() == [5, 4, 2]
    assert found["response length"].values.tolist() == [4, 11, 4]
    # Content words: {bake, bread}, both taken up; {fly}, not; none, so unknown.
    np.testing.assert_array_equal(found["request repeated"].values, [1.0, 0.0, NAN])
    np.testing.assert_array_equal(found["category: food"].values, [1, NAN, 0])
    assert found["prompt begins: how do"].values.tolist() == [1, 1, 0]
    assert found["response begins: i can't bake"].values.tolist() == [1, 0, 1]
    assert found["response: offers help"].values.tolist() == [0, 1, 0]
    near = found["nearest benign prompt"].values
    assert near[1] == pytest.approx(1.0)
    assert 0 < near[0] < 1
    assert near[2] == 0
    assert "nearest benign prompt" not in by_label(describe(rows))


def test_only_the_most_frequent_beginnings_are_levels() -> None:
    rows = [Example(f"{'ask' if i < 3 else f'word{i}'} me {i}", "no") for i in range(20)]
    labels = [f.level for f in describe(rows) if f.name == "prompt begins"]
    assert len(labels) == 10
    assert labels[0] == "ask me"


def test_rarity_by_hand() -> None:
    # In three texts: a; in one: b, c (tied at ranks 2 and 3, of 3 words).
    found = rarity(["a b", "a a", "a c", "!"])
    np.testing.assert_allclose(found, [(1 + 2.5) / 2 / 3, 1 / 3, (1 + 2.5) / 2 / 3, NAN])


def made(n: int, seed: int) -> tuple[list[Example], np.ndarray]:
    """Make rows whose words, category and response have nothing to do with the score."""
    rng = np.random.default_rng(seed)
    rows = [
        Example(
            " ".join(
                rng.choice(["tell", "how", "give", "me", "the", "red", "cat"], rng.integers(3, 9))
            )
            + f" {i}",
            " ".join(rng.choice(["no", "sorry", "never", "cat", "red"], rng.integers(2, 8))),
            {"category": str(rng.choice(["a", "b", "c"]))},
        )
        for i in range(n)
    ]
    return rows, rng.normal(size=n)


def test_a_planted_factor_is_found_and_noise_is_not() -> None:
    rows, noise = made(200, 0)
    member = np.array([row.provenance["category"] == "b" for row in rows])
    found = effects(noise + 1.5 * member, describe(rows), resamples=50)
    standing = [e for e in found if e.stands_out()]
    # Fewer "b" elsewhere makes "a" and "c" less vulnerable than the rest: no noise factor.
    assert {e.factor.name for e in standing} == {"category"}
    top = max(standing, key=lambda e: e.interval.value)
    assert top.factor.level == "b"
    assert top.members == member.sum()
    scores = noise + 1.5 * member
    assert top.interval.value == pytest.approx(cliffs_delta(scores[member], scores[~member]))
    assert top.interval.low > 0.4
    assert "of category 'b' score as more vulnerable than the rest" in top.sentence()
    assert f"n={member.sum()} of 200" in top.sentence()


def test_false_findings_are_as_rare_as_stated() -> None:
    """Nothing but noise: a run with any finding has a chance of 0.05 at most."""
    runs = 60
    false = 0
    for seed in range(runs):
        rows, noise = made(60, 100 + seed)
        found = effects(noise, describe(rows), resamples=2)
        assert sum(not math.isnan(e.p) for e in found) >= 6
        false += any(e.stands_out(alpha=0.05, smallest=0.0) for e in found)
    # P(more than 7 of 60 at 0.05) = 0.01.
    assert stats.binom.sf(7, runs, 0.05) < 0.02
    assert false <= 7


def test_rare_levels_and_rows_without_scores_are_left_out() -> None:
    scores = np.arange(40.0)
    scores[:10] = NAN
    few, enough = np.zeros(40), np.zeros(40)
    few[8:14], enough[20:25] = 1, 1  # of the six, two have no score
    constant = Factor("length", "", np.ones(40), "")
    found = effects(
        scores, [Factor("f", "few", few, ""), Factor("f", "enough", enough, ""), constant]
    )
    assert [e.factor.label for e in found] == ["f: enough", "length"]
    assert found[0].interval.n == 30
    assert math.isnan(found[1].p)
    assert math.isnan(found[1].corrected)
    assert not found[1].stands_out()
    assert found[0].corrected == pytest.approx(found[0].p)  # the only test


def test_a_number_in_plain_words() -> None:
    factor = Factor("prompt length", "", np.arange(3.0), "with longer prompts")
    effect = Effect(factor, "Spearman", Interval(-0.31, -0.4, -0.2, 90), None, 1e-6, 1e-5)
    assert effect.sentence() == (
        "Examples with longer prompts score as less vulnerable: rank correlation -0.31 "
        "[-0.40, -0.20], n=90, corrected p < 0.001."
    )


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0] * 10 + [2.0] * 9 + [NAN], r"19 scored rows \(of 20\): .*needs at least 20"),
        ([3.0] * 25, "all 25 scores equal 3"),
    ],
)
def test_bad_scores(scores: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        effects(np.array(scores), [])


# -------------------------------------------------------------------------------------- analysis


def recorded(
    tmp_path: Path, rows: list[Example], scores: np.ndarray, benign: list[Example] | None = None
) -> RunDir:
    """Write rows and scores as the stage `score` leaves them."""
    used = {"data": Examples(rows)}
    if benign is not None:
        used["benign"] = Examples(benign)
    run = RunDir(tmp_path / "run")
    with run.job("score", "toy", config={}, inputs={}, rows=used) as job:
        examples = Examples(rows)
        path = run.path("scores", "toy.json")
        Scores(examples.ids, scores, "toy", examples.hash, "").save(path)
        job.outputs.append(path)
    return run


def test_the_analysis_says_what_stands_out(tmp_path: Path) -> None:
    rows, scores = made(100, 1)
    scores += 2 * np.array([row.provenance["category"] == "b" for row in rows])
    scores[0] = NAN
    run = recorded(tmp_path, rows, scores, [Example("red cat", "yes")])
    section = Factors(resamples=50).run(run)
    assert any("'b' score as more" in sentence for sentence in section.findings)
    table = next(iter(section.tables.values())).frame
    assert "nearest benign prompt" in set(table["factor"])
    assert table["effect"].dropna().abs().is_monotonic_decreasing
    lengths = table[table["factor"] == "prompt length"]
    assert lengths["with it"].tolist() == [""]  # every row has a length
    assert (table["p"] < 0.001).any()  # planted; and never a plain 0
    assert 0 not in {*table["p"], *table["corrected p"]}
    assert "Correlation is not cause" in section.note
    assert "1 rows without a score" in section.note
    assert "1 rows of toy" in section.note
    for figure in section.figures.values():
        assert isinstance(figure, DotPlot)
        assert len(figure.rows) > 3


def test_the_analysis_says_when_nothing_does(tmp_path: Path) -> None:
    rows, scores = made(40, 2)
    section = Factors(resamples=50).run(recorded(tmp_path, rows, scores))
    assert len(section.findings) == 1
    assert section.findings[0].startswith("Nothing stands out among ")
    assert "n=40" in section.findings[0]
    assert "the run has no benign rows" in section.note


@pytest.mark.parametrize(
    ("scores", "why"),
    [(np.arange(12.0), "12 scored rows"), (np.ones(30), "all 30 scores equal 1")],
)
def test_too_little_is_unknown(tmp_path: Path, scores: np.ndarray, why: str) -> None:
    rows, _ = made(len(scores), 3)
    section = Factors().run(recorded(tmp_path, rows, scores))
    assert "unknown" in section.findings[0]
    assert why in section.findings[0]


@pytest.mark.parametrize("label", ["data", "benign"])
def test_rows_that_were_changed_or_are_missing_are_errors(tmp_path: Path, label: str) -> None:
    rows, scores = made(30, 4)
    run = recorded(tmp_path, rows, scores, [Example("red cat", "yes")])
    (entry,) = run.entries("score")
    path = run.path("rows", f"{entry.rows[label]['file']}.jsonl")
    path.write_text(path.read_text().replace("yes", "no").replace("a", "b"))
    with pytest.raises(DataError, match=r"was changed after the run stored its rows"):
        Factors().run(run)
    path.unlink()
    with pytest.raises(DataError, match="no such file, but the results of the run"):
        Factors().run(run)
