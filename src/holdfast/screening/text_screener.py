"""Predict the vulnerability of new examples from their text and a scored set, without a model.

The target is the rank of the score among the scored rows, midrank / n in (0, 1], which does not
depend on an estimator's unit. The interval of a guess has its stated coverage for rows like the
scored ones, whether or not text is informative. If it is not, the intervals are as wide as
ignorance and `HeldOutAccuracy` says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.results.files import Artifact, Number
from holdfast.rows.similarity import prompt_key
from holdfast.screening.crossfit import FOLDS, CrossFit, Regression, ScoredTexts
from holdfast.stats.intervals import Interval, bootstrap, clustered, wilson
from holdfast.stats.ranks import rankable, spearman

Basis = Literal["scored", "text", "probe"]


def _with_nan(interval: Any) -> Any:
    if not isinstance(interval, dict):
        return interval
    return {key: math.nan if value is None else value for key, value in interval.items()}


SavedInterval = Annotated[Interval, BeforeValidator(_with_nan)]
"""An interval; unknown ends are null in the file."""

FEWEST_ROWS = 20
FEWEST_PROMPTS = 10
UNLIKE = "unlike anything scored: run the probe"


# ------------------------------------------------------------------------------------- artifact


@dataclass(frozen=True, slots=True)
class ScreenedRow:
    """What is known or predicted about one new example.

    Attributes:
        id: Its content id.
        rank: Rank among the scored rows, in [0, 1]; 1 = forgotten first; nan = unknown.
        low: Lower end of its interval.
        high: Upper end.
        basis: "scored": this row has a score; "text": guessed from its text; "probe": the
            estimator was run on it.
        note: A remark, e.g. that the row is unlike anything scored.
        vulnerable: Probability of the vulnerable group; nan if there are no groups or for "probe".
    """

    id: str
    rank: Number
    low: Number
    high: Number
    basis: Basis
    note: str = ""
    vulnerable: Number = math.nan


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracy of the guesses on scored rows with held-out prompts.

    Attributes:
        features: Text that was read: "prompt and response", or "prompt".
        spearman: Correlation of guess and score, out of fold; bootstrap over the prompts, widened
            by half because the regressions of different folds share rows.
        coverage: Share of the out-of-fold scores inside their intervals.
        aim: Target coverage.
        width: Mean width of these intervals on the rank scale; about `aim` if nothing is known,
            less where many scores are equal.
        rows: Number of scored rows.
        prompts: Number of distinct prompts among them.
        not_scored: Number of rows of the scored data without a score, left out.
    """

    features: str
    spearman: SavedInterval
    coverage: SavedInterval
    aim: float
    width: Number
    rows: int
    prompts: int
    not_scored: int = 0

    @property
    def informative(self) -> bool:
        """Whether the guesses order held-out rows better than chance."""
        return self.spearman.low > 0

    def __str__(self) -> str:
        lost = f" {self.not_scored} rows without a score were left out." if self.not_scored else ""
        held = (
            f"{self.coverage.value:.0%} of held-out scores lay in their {self.aim:.0%} "
            f"intervals [{self.coverage.low:.2f}, {self.coverage.high:.2f}], n={self.coverage.n}; "
            f"mean width {self.width:.2f} of the rank scale."
        )
        if self.informative:
            return (
                f"Text ({self.features}) predicts vulnerability here: out-of-fold Spearman "
                f"{self.spearman} prompts. {held}{lost}"
            )
        return (
            f"Text ({self.features}) does not predict vulnerability here: out-of-fold Spearman "
            f"{self.spearman} prompts. The ranks are guesses, and their intervals are as wide as "
            f"ignorance; run the probe. {held}{lost}"
        )


@dataclass(frozen=True)
class Screen(Artifact):
    """New examples, screened against a scored set.

    Attributes:
        rows: In the order of the new data.
        coverage: Target coverage of the intervals.
        new_hash: `Examples.hash` of the new rows.
        data_hash: `Examples.hash` of the scored rows.
        scores_hash: `Scores.hash`.
        accuracy: One per set of features that was used; empty if no row was guessed.
        facts: About the probe, if it was run: estimator, model_hash, sample, agreement.
    """

    kind: ClassVar[str] = "screen"
    remedy: ClassVar[str] = "run `holdfast screen` to make it"

    rows: tuple[ScreenedRow, ...]
    coverage: float
    new_hash: str
    data_hash: str
    scores_hash: str
    accuracy: tuple[HeldOutAccuracy, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ranked(self) -> list[tuple[int, ScreenedRow]]:
        """Return (position in the new data, row), most vulnerable first, unknown last."""
        return sorted(
            enumerate(self.rows),
            key=lambda item: (math.isnan(item[1].rank), -item[1].rank, -item[1].low, item[0]),
        )

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by basis."""
        return dict(sorted(Counter(row.basis for row in self.rows).items()))


# ------------------------------------------------------------------------------------- screening


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the midrank / n of each value, (n,) float64 in (0, 1]; nan stays nan."""
    from scipy.stats import rankdata

    measured = np.isfinite(values)
    rank = np.full(len(values), np.nan)
    rank[measured] = rankdata(values[measured]) / max(1, measured.sum())
    return rank


class TextScreener:
    """Guesses the rank of new examples from their text.

    Ridge regression (penalty by cross-validation) on the TF-IDF of words and word pairs, separately
    for prompt and response, their lengths, the category, and the mean rank of the nearest scored
    rows. Intervals are CV+ over folds that keep equal prompts together, and every prompt has the
    same weight. For prompts drawn like the scored ones about 1 - 2 (1 - coverage) is guaranteed and
    `coverage` is reached in practice; `accuracy` has what was reached here. There is no guarantee
    for other kinds of prompts; `predict` marks those it recognises.

    Args:
        examples: The scored rows.
        values: (n,) their scores; nan = not scored, left out and counted.
        coverage: What the intervals aim at.
        vulnerable: (n,) bool, members of the vulnerable group, for probabilities.
        responses: Whether to read the responses too.
        seed: Random seed of folds and bootstrap.

    Raises:
        UsageError: Too few rows or prompts, all scores equal, or a coverage outside (0, 1).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        values: np.ndarray,
        *,
        coverage: float = 0.9,
        vulnerable: np.ndarray | None = None,
        responses: bool = True,
        seed: int = 0,
    ) -> None:
        measured = np.isfinite(values)
        rows = tuple(examples[int(i)] for i in np.flatnonzero(measured))
        keys = np.array([prompt_key(row.prompt) for row in rows], dtype=str)
        check(values, keys, coverage)
        columns = ("prompt", "response") if responses else ("prompt",)
        data = ScoredTexts(rows, ranks(values)[measured], keys, columns)
        self._fit = CrossFit.fit(data, seed, coverage)
        self._whole = Regression(data, seed)
        self._unlike = float(np.quantile(self._whole.own, 0.01))
        self.accuracy = _accuracy(self._fit, int((~measured).sum()), seed)
        self._odds = None
        self._share = math.nan
        if vulnerable is not None:
            self._odds, self._share = self._calibrate(vulnerable[measured])

    def predict(self, rows: Sequence[Example]) -> list[ScreenedRow]:
        """Predict every row; the note of a row marks it if it is too far from all scored ones."""
        if not rows:
            return []
        guesses, similarity = self._whole.predict(rows)
        intervals = self._fit.intervals(rows)
        chances = self._chances(guesses)
        scored_prompts = set(self._whole.data.keys.tolist())
        predictions = []
        for i, row in enumerate(rows):
            rank = min(1.0, max(0.0, float(guesses[i])))
            notes = [UNLIKE] if similarity[i] < self._unlike else []
            if prompt_key(row.prompt) in scored_prompts:
                notes.append("its prompt was scored with another response")
            predictions.append(
                ScreenedRow(
                    id=row.id,
                    rank=rank,
                    low=min(rank, float(intervals[i, 0])),
                    high=max(rank, float(intervals[i, 1])),
                    basis="text",
                    note="; ".join(notes),
                    vulnerable=float(chances[i]),
                )
            )
        return predictions

    def _chances(self, guesses: np.ndarray) -> np.ndarray:
        if self._odds is None:
            return np.full(len(guesses), self._share)
        centred = (guesses - self._whole.mean)[:, None]
        return np.asarray(self._odds.predict_proba(centred)[:, 1], dtype=np.float64)

    def _calibrate(self, vulnerable: np.ndarray) -> tuple[Any, float]:
        """Fit the probability of being vulnerable, given the out-of-fold guess (Platt 1999).

        Returns:
            The fitted curve, or None if the guesses are uninformative; and the share of vulnerable
            rows, which is then the probability of every row.
        """
        from sklearn.linear_model import LogisticRegression

        share = float(vulnerable.mean())
        if not self.accuracy.informative or share in (0.0, 1.0):
            return None, share
        curve = LogisticRegression(C=1e3).fit(self._fit.centred[:, None], vulnerable)
        return curve, share


def check(values: np.ndarray, keys: Collection[str], coverage: float = 0.9) -> None:
    """Check that the scores can be learned from.

    Args:
        values: Scores, nan = not scored.
        keys: `prompt_key` of the scored rows.
        coverage: Target coverage of the intervals.

    Raises:
        UsageError: Too few rows or prompts, all scores equal, or a coverage outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage {coverage} must lie between 0 and 1, e.g. 0.9")
    measured = rankable(values, purpose="screening", fewest=FEWEST_ROWS)
    if len(set(keys)) < FEWEST_PROMPTS:
        raise UsageError(
            f"{len(set(keys))} distinct prompts among {len(measured)} scored rows: screening needs "
            f"at least {FEWEST_PROMPTS}. Score rows with more prompts."
        )


def _accuracy(fit: CrossFit, not_scored: int, seed: int) -> HeldOutAccuracy:
    ends = fit.held_out(seed)
    data = fit.data
    inside = (ends[:, 0] <= data.y) & (data.y <= ends[:, 1])
    prompts = np.unique(data.keys)
    members = [np.flatnonzero(data.keys == key) for key in prompts]

    def of_prompts(drawn: np.ndarray) -> float:
        rows = np.concatenate([members[i] for i in drawn.tolist()])
        return spearman(fit.centred[rows], data.y[rows])

    return HeldOutAccuracy(
        features=" and ".join(data.columns),
        spearman=_widened(bootstrap(of_prompts, np.arange(len(prompts)), seed=seed)),
        coverage=clustered(int(inside.sum()), len(inside), len(prompts)),
        aim=fit.coverage,
        width=float((ends[:, 1] - ends[:, 0]).mean()),
        rows=len(inside),
        prompts=len(prompts),
        not_scored=not_scored,
    )


def _widened(interval: Interval) -> Interval:
    """Widen an interval for the variance of refitting, which a bootstrap of the guesses omits.

    Regressions of different folds share most of their rows, so their errors are correlated. Nadeau
    and Bengio (2003) put the variance of a cross-validated mean at 1 / K + n_test / n_train
    instead of 1 / K: 2.25 times as much for 5 folds. On random scores the spread of the
    out-of-fold correlation was measured to be larger by about that factor.
    """
    factor = math.sqrt(1 + FOLDS / (FOLDS - 1))
    ends = interval.value + factor * (np.array([interval.low, interval.high]) - interval.value)
    low, high = np.clip(ends, -1.0, 1.0).tolist()
    return replace(interval, low=low, high=high)


def screen_text(
    new: Examples,
    examples: Examples,
    values: np.ndarray,
    *,
    coverage: float = 0.9,
    vulnerable: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[list[ScreenedRow], tuple[HeldOutAccuracy, ...]]:
    """Screen new rows by their text; rows with a score keep their rank.

    Rows without a response are guessed by a screener that reads prompts only.

    Args:
        new: Rows to screen.
        examples: Scored rows.
        values: (n,) their scores; nan = not scored.
        coverage: What the intervals aim at.
        vulnerable: (n,) bool, members of the vulnerable group, for probabilities.
        seed: Of folds and bootstrap.

    Returns:
        The rows in the order of `new`, and one `HeldOutAccuracy` per set of features used.

    Raises:
        UsageError: See `check`.
    """
    check(values, {prompt_key(row.prompt) for row in examples}, coverage)
    screened = dict(_scored(new, examples, values, vulnerable))
    unscored = {examples.ids[i] for i in np.flatnonzero(~np.isfinite(values)).tolist()}
    accuracy = []
    for responses in (True, False):
        unknown = [
            row for row in new if row.id not in screened and bool(row.response.strip()) is responses
        ]
        if not unknown:
            continue
        screener = TextScreener(
            examples,
            values,
            coverage=coverage,
            vulnerable=vulnerable,
            responses=responses,
            seed=seed,
        )
        accuracy.append(screener.accuracy)
        for row in screener.predict(unknown):
            notes = ["no response: guessed from its prompt alone"] if not responses else []
            notes += ["among the scored data, but without a score"] if row.id in unscored else []
            note = "; ".join([*notes, row.note] if row.note else notes)
            screened[row.id] = replace(row, note=note)
    return [screened[identity] for identity in new.ids], tuple(accuracy)


def _scored(
    new: Examples, examples: Examples, values: np.ndarray, vulnerable: np.ndarray | None
) -> Iterator[tuple[str, ScreenedRow]]:
    new_ids = set(new.ids)
    known_ranks = ranks(values)
    for i, identity in enumerate(examples.ids):
        if identity in new_ids and not math.isnan(known_ranks[i]):
            rank = float(known_ranks[i])
            chance = math.nan if vulnerable is None else float(vulnerable[i])
            yield identity, ScreenedRow(identity, rank, rank, rank, "scored", vulnerable=chance)


def place_among_scored(values: np.ndarray, sample: np.ndarray, coverage: float) -> np.ndarray:
    """Rank probed rows among a sample of the scored rows that was probed together with them.

    Args:
        values: (m,) estimates of the new rows; nan = not scored.
        sample: (k,) estimates of scored rows, without nan; at least one.
        coverage: Coverage of the interval. It is Wilson's interval of the share of scored rows
            below, and covers the sampling, not the error of the estimator.

    Returns:
        (m, 3): rank (ties count half), low and high; nan for rows that were not scored.
    """
    places = np.full((len(values), 3), np.nan)
    for i in np.flatnonzero(np.isfinite(values)).tolist():
        below = int((sample < values[i]).sum())
        upto = int((sample <= values[i]).sum())
        low = wilson(below, len(sample), coverage)
        high = wilson(upto, len(sample), coverage)
        places[i] = [(below + upto) / 2 / len(sample), low.low, high.high]
    return places
