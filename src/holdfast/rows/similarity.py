"""Text similarity: TF-IDF vectors, nearest neighbours, and keys of equal prompts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from holdfast.rows.text import words

_CHUNK = 512  # rows compared with all others at once, to limit memory


def prompt_key(prompt: str) -> str:
    """Return the key that equal prompts share: the prompt's words in alphabetical order.

    Case, punctuation, spacing and word order are ignored. Equal prompts stay in the same fold.
    """
    return " ".join(sorted(words(prompt))) or prompt.strip()


@lru_cache(maxsize=1 << 16)
def _terms(text: str) -> tuple[str, ...]:
    """Return words and pairs of adjacent words; characters in scripts written without spaces."""
    units: list[str] = []
    for word in words(text):
        wide = any(unicodedata.east_asian_width(c) in "WF" for c in word)
        units += list(word) if wide else [word]
    # A text without words still needs a vector: it gets a term of its own.
    units = units or [f"({text.strip()})"]
    return (*units, *(f"{a} {b}" for a, b in zip(units, units[1:], strict=False)))


class Vectors:
    """TF-IDF vectors of words and word pairs, with a vocabulary fitted to some texts.

    Terms outside the vocabulary count towards the length that vectors are divided by. A text of
    mostly unknown words is therefore similar to nothing, rather than to every text that shares its
    only known word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.tfidf = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, norm=None).fit(texts)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return a sparse (n, V) float64 matrix."""
        from scipy.sparse import diags

        weights = self.tfidf.transform(texts)
        vocabulary = self.tfidf.vocabulary_
        unknown = np.array([len({t for t in _terms(x) if t not in vocabulary}) for x in texts])
        squares = np.asarray(weights.multiply(weights).sum(axis=1)).ravel()
        return diags(1 / np.sqrt(squares + unknown * self.tfidf.idf_.max() ** 2)) @ weights


def nearest(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Return the cosine similarity of each text to its nearest other text, (n,) in [0, 1]."""
    vectors = Vectors([*texts, *others])
    similarity, _ = neighbours(vectors(texts), vectors(others), count=1)
    return similarity[:, 0]


def neighbours(
    rows: Any, others: Any, *, count: int, same: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities and positions of the nearest others, (n, count) each, nearest first.

    Args:
        rows: Sparse (n, V).
        others: Sparse (m, V), m >= count.
        count: Number of neighbours.
        same: (n,) and (m,) labels; others with the row's own label get similarity -1.
    """
    similarities, positions = [], []
    for start in range(0, rows.shape[0], _CHUNK):
        cosines = (rows[start : start + _CHUNK] @ others.T).toarray()
        if same is not None:
            cosines[same[0][start : start + _CHUNK, None] == same[1][None, :]] = -1.0
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        similarities.append(np.take_along_axis(cosines, order, axis=1))
        positions.append(order)
    return np.concatenate(similarities), np.concatenate(positions)
