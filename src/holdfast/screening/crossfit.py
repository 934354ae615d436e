"""Regression of a rank on text, cross-fitted by prompt, with CV+ intervals.

Prompts are never split between folds: the prediction for a row comes from regressions fitted
without that row and without any other answer to its prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.examples import Example
from holdfast.rows.similarity import Vectors, neighbours
from holdfast.rows.text import count_words

FOLDS = 5
INNER_FOLDS = 3
NEIGHBOURS = 5
PENALTIES = (0.3, 1.0, 3.0, 10.0, 1e4)
"""Candidate ridge penalties; the largest one leaves only the mean."""


@dataclass(frozen=True)
class ScoredTexts:
    """Scored rows.

    Attributes:
        rows: The examples.
        y: Rank of each row's score, (n,).
        keys: Prompt key of each row, (n,); equal for equal prompts.
        columns: Text columns that the regression reads.
    """

    rows: tuple[Example, ...]
    y: np.ndarray
    keys: np.ndarray
    columns: tuple[str, ...]

    def select(self, mask: np.ndarray) -> ScoredTexts:
        """Return the rows where `mask`, (n,) bool, is True."""
        rows = tuple(self.rows[i] for i in np.flatnonzero(mask))
        return ScoredTexts(rows, self.y[mask], self.keys[mask], self.columns)


def folds_of(keys: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, (n,); it depends on the prompt, not on the position."""
    shuffled = sorted(
        set(keys.tolist()), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest()
    )
    fold_of = {key: i % folds for i, key in enumerate(shuffled)}
    return np.array([fold_of[key] for key in keys.tolist()])


class Regression:
    """Ridge regression of the rank on TF-IDF, lengths, category and the ranks of neighbours."""

    def __init__(self, data: ScoredTexts, seed: int) -> None:
        self.data = data
        self.mean = float(data.y.mean())
        self.vectors = {c: Vectors([getattr(r, c) for r in data.rows]) for c in data.columns}
        self.matrix = self._vectors(data.rows)
        self.categories = sorted({r.provenance.get("category") or "" for r in data.rows} - {""})
        # Rows with the same prompt do not count as neighbours: a new prompt has none of those.
        self.own, around = self._around(self.matrix, (data.keys, data.keys))
        lengths = self._lengths(data.rows)
        self.centre = lengths.mean(axis=0)
        self.scale = lengths.std(axis=0)
        # If all lengths are equal, their deviation is only rounding error; do not divide by it.
        self.scale[self.scale < 1e-9] = 1.0
        folds = folds_of(data.keys, INNER_FOLDS, seed)
        self.ridge = _best_ridge(self._features(data.rows, self.matrix, around), data.y, folds)

    def predict(self, rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """Return unbounded predictions and the similarity to the nearest row, (n,) each."""
        matrix = self._vectors(rows)
        similarity, around = self._around(matrix)
        predicted = self.ridge.predict(self._features(rows, matrix, around))
        return np.asarray(predicted, dtype=np.float64), similarity

    def _vectors(self, rows: Sequence[Example]) -> Any:
        from scipy.sparse import hstack

        parts = [self.vectors[c]([getattr(r, c) for r in rows]) for c in self.data.columns]
        return hstack(parts, format="csr") / math.sqrt(len(parts))

    def _around(
        self, matrix: Any, same: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the similarity to the nearest row and the nearest rows' mean rank, (n,) each."""
        count = min(NEIGHBOURS, len(self.data.y))
        similarity, positions = neighbours(matrix, self.matrix, count=count, same=same)
        real = similarity > 0
        total = np.where(real, self.data.y[positions], 0.0).sum(axis=1)
        number = real.sum(axis=1)
        means = np.where(number > 0, total / np.maximum(number, 1), self.mean)
        return np.maximum(similarity[:, 0], 0.0), means

    def _lengths(self, rows: Sequence[Example]) -> np.ndarray:
        return np.array(
            [[math.log1p(count_words(getattr(r, c))) for c in self.data.columns] for r in rows]
        )

    def _features(self, rows: Sequence[Example], matrix: Any, around: np.ndarray) -> Any:
        from scipy.sparse import csr_matrix, hstack

        lengths = (self._lengths(rows) - self.centre) / self.scale
        # All zeros for an unseen or missing category.
        category = [
            [float(r.provenance.get("category") == name) for name in self.categories] for r in rows
        ]
        dense = np.column_stack([lengths, around - self.mean, np.array(category)])
        return hstack([math.sqrt(len(self.vectors)) * matrix, csr_matrix(dense)], format="csr")


def _best_ridge(features: Any, y: np.ndarray, folds: np.ndarray) -> Any:
    """Return a ridge regression with the penalty that does best on held-out folds."""
    from sklearn import config_context
    from sklearn.linear_model import Ridge

    # RidgeCV gives the same result, but its checks take ten times as long on a hundred rows.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        losses = []
        for penalty in PENALTIES:
            loss = 0.0
            for fold in np.unique(folds):
                training = folds != fold
                model = Ridge(alpha=penalty, solver="sparse_cg").fit(
                    features[training], y[training]
                )
                loss += float(((model.predict(features[~training]) - y[~training]) ** 2).sum())
            losses.append(loss)
        best = PENALTIES[int(np.argmin(losses))]
        return Ridge(alpha=best, solver="sparse_cg").fit(features, y)


def weighted_quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """Return the smallest value with at least `level` of the weight at or below it, or inf.

    Args:
        values: (n,).
        weights: (n,); if they add up to less than 1, the rest lies at infinity.
        level: In (0, 1).
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) >= level - 1e-12
    return float(values[order][np.argmax(reached)]) if reached.any() else math.inf


def prompt_weights(keys: np.ndarray) -> np.ndarray:
    """Return weights (n,) that count every prompt once, and the new prompt once at infinity."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(1 / (counts[inverse] * (len(counts) + 1)))


def cv_plus(
    guesses: np.ndarray, residuals: np.ndarray, weights: np.ndarray, coverage: float
) -> tuple[float, float]:
    """Return a CV+ interval (Barber, Candes, Ramdas, Tibshirani 2021), clipped to [0, 1].

    Args:
        guesses: (n,); i is the prediction for the new row by the regression without scored row i.
        residuals: (n,); i is |rank - guess| of scored row i by the same regression.
        weights: (n,).
        coverage: Target coverage.
    """
    high = weighted_quantile(guesses + residuals, weights, coverage)
    low = -weighted_quantile(residuals - guesses, weights, coverage)
    return min(1.0, max(0.0, low)), max(0.0, min(1.0, high))


@dataclass(frozen=True)
class CrossFit:
    """Regressions that each leave out one fold, and their predictions for that fold.

    Attributes:
        data: The scored rows.
        fold: (n,) fold of each row.
        without: Fold -> the regression fitted without it.
        guesses: (n,) prediction for each row by the regression without its fold.
        coverage: Target coverage of the intervals.
    """

    data: ScoredTexts
    fold: np.ndarray
    without: Mapping[int, Regression]
    guesses: np.ndarray
    coverage: float

    @property
    def centred(self) -> np.ndarray:
        """Guesses minus the mean rank that each regression was fitted to, (n,).

        Leaving out a fold of high ranks lowers the mean of the rest, so with uninformative text the
        raw guesses would correlate negatively with the scores.
        """
        means = np.array([self.without[k].mean for k in range(FOLDS)])
        return np.asarray(self.guesses - means[self.fold])

    @classmethod
    def fit(cls, data: ScoredTexts, seed: int, coverage: float) -> CrossFit:
        """Fit one regression without each fold; the order of the rows does not matter."""
        fold = folds_of(data.keys, FOLDS, seed)
        without = {k: Regression(data.select(fold != k), seed) for k in range(FOLDS)}
        guesses = np.empty(len(data.y))
        for k, regression in without.items():
            guesses[fold == k], _ = regression.predict(data.select(fold == k).rows)
        return cls(data, fold, without, guesses, coverage)

    def intervals(self, rows: Sequence[Example]) -> np.ndarray:
        """Return the CV+ intervals of new rows, (m, 2)."""
        by_fold = np.stack([self.without[k].predict(rows)[0] for k in range(FOLDS)], axis=1)
        residuals = np.abs(self.data.y - self.guesses)
        weights = prompt_weights(self.data.keys)
        return np.array(
            [cv_plus(guess[self.fold], residuals, weights, self.coverage) for guess in by_fold]
        )

    def held_out(self, seed: int) -> np.ndarray:
        """Return intervals of the scored rows, (n, 2), each computed from the other folds alone.

        This repeats CV+ on the data without the row's fold, so every regression leaves out two
        folds. Residuals of regressions fitted to the row would overstate the coverage.
        """
        predictions = np.empty((len(self.data.y), 2))
        pairs = {
            (a, b): Regression(self.data.select((self.fold != a) & (self.fold != b)), seed)
            for a in range(FOLDS)
            for b in range(a)
        }
        for k in range(FOLDS):
            inside = self.fold == k
            targets = self.data.select(inside).rows
            guesses = []
            residuals = []
            keys = []
            for other in (f for f in range(FOLDS) if f != k):
                regression = pairs[max(k, other), min(k, other)]
                rest = self.data.select(self.fold == other)
                residuals.append(np.abs(rest.y - regression.predict(rest.rows)[0]))
                guesses.append(np.repeat(regression.predict(targets)[0][:, None], len(rest.y), 1))
                keys.append(rest.keys)
            weights = prompt_weights(np.concatenate(keys))
            pooled = np.concatenate(residuals)
            predictions[inside] = [
                cv_plus(row, pooled, weights, self.coverage) for row in np.hstack(guesses)
            ]
        return predictions
