"""Texts as vectors: which of them are near one another, and which prompts are the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from holdfast.rows.text import words

_CHUNK = 512  # rows whose similarities to all others are held at once


def prompt_key(prompt: str) -> str:
    """Return what prompts are taken to be the same by: their words in alphabetical order.

    Case, punctuation, spacing and order make no difference; the folds never part such prompts.
    """
    return " ".join(sorted(words(prompt))) or prompt.strip()


@lru_cache(maxsize=1 << 16)
def _terms(text: str) -> tuple[str, ...]:
    """Return words and pairs of neighbouring words; scripts without blanks go by character."""
    found: list[str] = []
    for word in words(text):
        wide = any(unicodedata.east_asian_width(c) in "WF" for c in word)
        found += list(word) if wide else [word]
    # A text without a single word still is somewhere: in a corner of its own.
    found = found or [f"({text.strip()})"]
    return (*found, *(f"{a} {b}" for a, b in zip(found, found[1:], strict=False)))


class Vectors:
    """TF-IDF of words and pairs of words, learned from some texts.

    Vectors have length 1, of which the terms that the texts lack take their part: a text of
    strange words is near to nothing, rather than near to whatever shares its only known word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.tfidf = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, norm=None).fit(texts)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a sparse (n, V) float64 matrix."""
        from scipy.sparse import diags

        found = self.tfidf.transform(texts)
        known = self.tfidf.vocabulary_
        strange = np.array([len({t for t in _terms(x) if t not in known}) for x in texts])
        squares = np.asarray(found.multiply(found).sum(axis=1)).ravel()
        return diags(1 / np.sqrt(squares + strange * self.tfidf.idf_.max() ** 2)) @ found


def nearest(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Return the cosine between each text and the nearest of the others, (n,) in [0, 1]."""
    vectors = Vectors([*texts, *others])
    similarity, _ = neighbours(vectors(texts), vectors(others), count=1)
    return similarity[:, 0]


def neighbours(
    rows: Any, others: Any, *, count: int, same: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and positions of the nearest others, each (n, count), nearest first.

    Args:
        rows: Sparse (n, V).
        others: Sparse (m, V), m >= count.
        count: How many.
        same: (n,) and (m,) labels; others of a row's own label are no neighbours (similarity -1).
    """
    similarities, positions = [], []
    for start in range(0, rows.shape[0], _CHUNK):
        found = (rows[start : start + _CHUNK] @ others.T).toarray()
        if same is not None:
            found[same[0][start : start + _CHUNK, None] == same[1][None, :]] = -1.0
        order = np.argsort(-found, axis=1, kind="stable")[:, :count]
        similarities.append(np.take_along_axis(found, order, axis=1))
        positions.append(order)
    return np.concatenate(similarities), np.concatenate(positions)
