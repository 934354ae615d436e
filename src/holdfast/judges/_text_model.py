"""A linear model of question-answer pairs: features, fit, prediction and files.

Features of a pair are the TF-IDF weights of the response's words and pairs of words, and a few
numbers that look at the prompt as well (`dense`): is the answer about the question at all, and is
it text. Training needs scikit-learn; prediction is numpy on the saved arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from holdfast.errors import MismatchError, UsageError
from holdfast.results.files import SCHEMA, read_json, sha256_file, sha256_json, write_json
from holdfast.rows.text import stems, words
from holdfast.stats.intervals import Interval

Label = Literal["harmful", "safe", "other"]
LABELS: tuple[Label, ...] = ("harmful", "safe", "other")
DENSE = (
    "prompt words answered",
    "response words asked",
    "length",
    "distinct words",
    "known words",
    "known word pairs",
)
FILE = "judge.json"
TENSORS = "coefficients.safetensors"


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One answered prompt; `label` is "other" for answers to something else and for noise."""

    prompt: str
    response: str
    label: Label


@dataclass(frozen=True)
class TrainingReport:
    """How a judge did on the prompts that it was not trained on.

    Attributes:
        n_train: Label -> rows trained on.
        n_held_out: Label -> rows held out.
        accuracy: Share of held-out rows whose most probable label is the right one.
        new_wording_accuracy: The same among held-out rows whose response is no training response
            word for word: refusals and class words repeat, and recognising them proves little.
        decided_accuracy: Share of right ones among the rows that the judge, with its default
            options, calls harmful or safe; "other" rows that it decides count as wrong.
        recall: Label -> share of its rows recognised.
        undecided: Label -> share left undecided, which for "other" is the right verdict.
        confusion: Label -> most probable label -> rows.
    """

    n_train: Mapping[str, int]
    n_held_out: Mapping[str, int]
    accuracy: Interval
    new_wording_accuracy: Interval
    decided_accuracy: Interval
    recall: Mapping[str, Interval]
    undecided: Mapping[str, Interval]
    confusion: Mapping[str, Mapping[str, int]]


def terms(response: str) -> Counter[str]:
    """Count the words and the pairs of neighbouring words of a response."""
    response_words = words(response)
    return Counter(
        [
            *response_words,
            *(f"{a} {b}" for a, b in zip(response_words, response_words[1:], strict=False)),
        ]
    )


@dataclass(frozen=True)
class TextModel:
    """Multinomial logistic regression over the features of (prompt, response).

    Attributes:
        vocabulary: Term -> column, in the order of the columns.
        idf: (V,) float64.
        coefficients: (3, V + D) float64, rows in the order of `LABELS`.
        intercept: (3,) float64.
    """

    vocabulary: Mapping[str, int]
    idf: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray

    def probabilities(self, prompt: str, response: str) -> np.ndarray:
        """Return (3,) float64: the probability of each of `LABELS`."""
        columns, values = features(prompt, response, self.vocabulary, self.idf)
        logits = self.coefficients[:, columns] @ values + self.intercept
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum(), dtype=np.float64)


def features(
    prompt: str, response: str, vocabulary: Mapping[str, int], idf: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns that are not zero and their values: TF-IDF first, then `DENSE`.

    Term frequencies enter as 1 + log(count) and the TF-IDF part has length 1, as
    `TfidfVectorizer(sublinear_tf=True)` computes them.
    """
    counts = terms(response)
    present = {vocabulary[term]: count for term, count in counts.items() if term in vocabulary}
    columns = np.array(sorted(present), dtype=np.int64)
    weights = np.array([1 + math.log(present[c]) for c in columns.tolist()]) * idf[columns]
    length = np.linalg.norm(weights)
    extra = dense(prompt, response, counts, vocabulary)
    return (
        np.concatenate([columns, np.arange(len(idf), len(idf) + len(extra))]),
        np.concatenate([weights / length if length else weights, extra]),
    )


def dense(
    prompt: str, response: str, counts: Mapping[str, int], vocabulary: Mapping[str, int]
) -> np.ndarray:
    """Return (D,) float64, all within [0, 1]; see `DENSE`.

    Shares of the prompt's stems found in the response and the reverse; log of the number of words
    (1 = 150 or more); share of words that differ; shares of words and of neighbouring pairs that
    were met in training, which is what noise lacks.
    """
    asked = stems(prompt)
    said = stems(response)
    common = len(asked & said)
    spoken = words(response)
    single = [term for term in counts if " " not in term]
    pairs = [term for term in counts if " " in term]
    return np.array(
        [
            common / max(1, len(asked)),
            common / max(1, len(said)),
            min(1.0, math.log1p(len(spoken)) / math.log1p(150)),
            len(single) / max(1, len(spoken)),
            sum(term in vocabulary for term in single) / max(1, len(single)),
            sum(term in vocabulary for term in pairs) / max(1, len(pairs)),
        ]
    )


def fit(rows: Sequence[LabelledRow], *, strength: float, max_terms: int) -> TextModel:
    """Fit the model on `rows`; deterministic.

    Args:
        rows: Every label must occur.
        strength: Inverse of the L2 penalty, scikit-learn's `C`.
        max_terms: Size of the vocabulary; terms of a single row are left out.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    vocabulary, idf = _vocabulary([row.response for row in rows], max_terms)
    cells = [features(row.prompt, row.response, vocabulary, idf) for row in rows]
    starts = np.cumsum([0, *(len(columns) for columns, _ in cells)])
    matrix = csr_matrix(
        (np.concatenate([v for _, v in cells]), np.concatenate([c for c, _ in cells]), starts),
        shape=(len(rows), len(idf) + len(DENSE)),
    )
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
    model.fit(matrix, [LABELS.index(row.label) for row in rows])
    return TextModel(vocabulary, idf, model.coef_.astype(float), model.intercept_.astype(float))


def _vocabulary(responses: Sequence[str], max_terms: int) -> tuple[dict[str, int], np.ndarray]:
    counts: Counter[str] = Counter()
    for response in responses:
        counts.update(terms(response).keys())
    frequent = sorted((t for t in counts if counts[t] > 1), key=lambda t: (-counts[t], t))[
        :max_terms
    ]
    if not frequent:
        raise UsageError(
            f"no word occurs in two of the {len(responses)} training responses; "
            "a judge can't be trained on that. Give more labelled rows."
        )
    terms_kept = sorted(frequent)
    idf = np.array([math.log((1 + len(responses)) / (1 + counts[term])) + 1 for term in terms_kept])
    return {term: column for column, term in enumerate(terms_kept)}, idf


def save(model: TextModel, directory: Path, **facts: Any) -> None:
    """Write `judge.json` and `coefficients.safetensors`, each atomically, the tensors first."""
    from safetensors.numpy import save as to_bytes

    # safetensors writes the memory as it lies: Fortran order, scikit-learn's, would be scrambled.
    tensors = {
        "coefficients": np.ascontiguousarray(model.coefficients),
        "intercept": np.ascontiguousarray(model.intercept),
    }
    _write_bytes(directory / TENSORS, to_bytes(tensors))
    content = {
        "labels": LABELS,
        "dense": DENSE,
        "tensors_sha256": sha256_file(directory / TENSORS),
        **facts,
        "vocabulary": list(model.vocabulary),
        "idf": model.idf,
    }
    sealed = {"kind": "judge", "schema": SCHEMA, **content, "sha256": sha256_json(content)}
    write_json(directory / FILE, sealed)


def load(directory: Path) -> tuple[TextModel, dict[str, Any]]:
    """Read what `save` wrote; return the model and everything in `judge.json`.

    Raises:
        UsageError: There is no judge in the directory.
        MismatchError: One of the files was changed, or does not belong to the other.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    if not (directory / FILE).is_file():
        raise UsageError(
            f"{directory}: no {FILE} there; make one with "
            f"`holdfast train-judge --data LABELLED.jsonl --out {directory}`"
        )
    raw = read_json(directory / FILE, "judge", "train the judge again")
    content = {key: value for key, value in raw.items() if key != "sha256"}
    if sha256_json(content) != raw.get("sha256"):
        raise MismatchError(
            f"{directory / FILE}: was changed after training; train the judge again"
        )
    tensors = directory / TENSORS
    if not tensors.is_file() or sha256_file(tensors) != raw["tensors_sha256"]:
        raise MismatchError(
            f"{tensors}: missing, changed, or of another judge than {FILE}; train the judge again"
        )
    if tuple(raw["labels"]) != LABELS or tuple(raw["dense"]) != DENSE:
        raise MismatchError(
            f"{directory / FILE}: labels or features of another version; train the judge again"
        )
    try:
        arrays = from_bytes(tensors.read_bytes())
    except SafetensorError as error:
        raise MismatchError(f"{tensors}: not a safetensors file ({error})") from error
    vocabulary = {term: column for column, term in enumerate(raw["vocabulary"])}
    idf = np.array(raw["idf"], dtype=np.float64)
    return TextModel(vocabulary, idf, arrays["coefficients"], arrays["intercept"]), raw


def rows_hash(rows: Sequence[LabelledRow]) -> str:
    """Return one sha256 over the contents of the rows, in whatever order."""
    contents = sorted(sha256_json([row.prompt, row.response, row.label]) for row in rows)
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
