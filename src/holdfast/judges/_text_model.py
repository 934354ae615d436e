"""A linear model of question-answer pairs: features, fit, prediction and files.

The features of a pair are the TF-IDF weights of the response's words and word pairs, and a few
numbers that also depend on the prompt (`dense`): whether the answer is about the question, and
whether it is text at all. Training needs scikit-learn; prediction needs only numpy.
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
from itertools import pairwise
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
    """Accuracy of a judge on the prompts that it was not trained on.

    Attributes:
        n_train: Label -> rows trained on.
        n_held_out: Label -> rows held out.
        accuracy: Share of held-out rows whose most probable label is correct.
        new_wording_accuracy: The same among held-out rows whose response does not occur in the
            training rows; refusals and class words repeat, and recognising them proves little.
        decided_accuracy: Share correct among the rows that the judge, with its default options,
            calls harmful or safe; "other" rows that it decides count as wrong.
        recall: Label -> share of its rows recognised.
        undecided: Label -> share left undecided, which is the right verdict for "other".
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
    singles = words(response)
    pairs = [f"{first} {second}" for first, second in pairwise(singles)]
    return Counter([*singles, *pairs])


@dataclass(frozen=True)
class TextModel:
    """Multinomial logistic regression over the features of (prompt, response).

    Attributes:
        vocabulary: Term -> column, in column order.
        idf: (V,) float64, inverse document frequency of each term.
        coefficients: (3, V + D) float64, rows in the order of `LABELS`, D = len(`DENSE`).
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
    """Return the nonzero columns and their values: TF-IDF first, then `DENSE`.

    Term frequencies enter as 1 + log(count), and the TF-IDF part is scaled to length 1, as in
    scikit-learn's `TfidfVectorizer(sublinear_tf=True)`.
    """
    counts = terms(response)
    present = {vocabulary[term]: count for term, count in counts.items() if term in vocabulary}
    columns = np.array(sorted(present), dtype=np.int64)
    weights = np.array([1 + math.log(present[c]) for c in columns.tolist()]) * idf[columns]
    length = np.linalg.norm(weights)
    if length:
        weights = weights / length
    extra = dense(prompt, response, counts, vocabulary)
    extra_columns = np.arange(len(idf), len(idf) + len(extra))
    return np.concatenate([columns, extra_columns]), np.concatenate([weights, extra])


def dense(
    prompt: str, response: str, counts: Mapping[str, int], vocabulary: Mapping[str, int]
) -> np.ndarray:
    """Return the features named in `DENSE`, (D,) float64 in [0, 1].

    In order: the share of the prompt's stems that occur in the response, and the reverse; the log
    of the number of words (1 for 150 or more); the share of distinct words; the shares of words
    and of word pairs that occur in the training rows, which are low for noise.
    """
    prompt_stems = stems(prompt)
    response_stems = stems(response)
    common = len(prompt_stems & response_stems)
    n_words = len(words(response))
    singles = [term for term in counts if " " not in term]
    pairs = [term for term in counts if " " in term]
    return np.array(
        [
            common / max(1, len(prompt_stems)),
            common / max(1, len(response_stems)),
            min(1.0, math.log1p(n_words) / math.log1p(150)),
            len(singles) / max(1, n_words),
            sum(term in vocabulary for term in singles) / max(1, len(singles)),
            sum(term in vocabulary for term in pairs) / max(1, len(pairs)),
        ]
    )


def fit(rows: Sequence[LabelledRow], *, strength: float, max_terms: int) -> TextModel:
    """Fit the model; the result is deterministic.

    Args:
        rows: Training rows; every label must occur.
        strength: Inverse of the L2 penalty, scikit-learn's `C`.
        max_terms: Largest size of the vocabulary; terms that occur in one row only are left out.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    vocabulary, idf = _vocabulary([row.response for row in rows], max_terms)
    row_features = [features(row.prompt, row.response, vocabulary, idf) for row in rows]
    columns = np.concatenate([row_columns for row_columns, _ in row_features])
    values = np.concatenate([row_values for _, row_values in row_features])
    lengths = [len(row_columns) for row_columns, _ in row_features]
    starts = np.cumsum([0, *lengths])
    shape = (len(rows), len(idf) + len(DENSE))
    matrix = csr_matrix((values, columns, starts), shape=shape)
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
    model.fit(matrix, [LABELS.index(row.label) for row in rows])
    return TextModel(vocabulary, idf, model.coef_.astype(float), model.intercept_.astype(float))


def _vocabulary(responses: Sequence[str], max_terms: int) -> tuple[dict[str, int], np.ndarray]:
    counts: Counter[str] = Counter()
    for response in responses:
        counts.update(terms(response).keys())
    repeated = [term for term in counts if counts[term] > 1]
    if not repeated:
        raise UsageError(
            f"no word occurs in two of the {len(responses)} training responses, so a judge cannot "
            "be trained on them; give more labelled rows"
        )
    most_frequent = sorted(repeated, key=lambda term: (-counts[term], term))[:max_terms]
    vocabulary = {term: column for column, term in enumerate(sorted(most_frequent))}
    idf = [math.log((1 + len(responses)) / (1 + counts[term])) + 1 for term in vocabulary]
    return vocabulary, np.array(idf)


def save(model: TextModel, directory: Path, **facts: Any) -> None:
    """Write `coefficients.safetensors`, then `judge.json`, each atomically."""
    from safetensors.numpy import save as to_bytes

    # safetensors writes the raw memory; scikit-learn's Fortran order would come back scrambled.
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
    """Read what `save` wrote; return the model and the content of `judge.json`.

    Raises:
        UsageError: The directory holds no judge.
        MismatchError: A file was changed, or the files do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    if not (directory / FILE).is_file():
        raise UsageError(
            f"{directory}: no {FILE} there; train a judge with "
            f"`holdfast train-judge --data LABELLED.jsonl --out {directory}`"
        )
    raw = read_json(directory / FILE, "judge", "train the judge again")
    content = {key: value for key, value in raw.items() if key != "sha256"}
    if sha256_json(content) != raw.get("sha256"):
        raise MismatchError(f"{directory / FILE}: changed after training; train the judge again")
    tensors = directory / TENSORS
    if not tensors.is_file() or sha256_file(tensors) != raw["tensors_sha256"]:
        raise MismatchError(
            f"{tensors}: missing, changed, or from another judge than {FILE}; train the judge again"
        )
    if tuple(raw["labels"]) != LABELS or tuple(raw["dense"]) != DENSE:
        raise MismatchError(
            f"{directory / FILE}: written by another version; train the judge again"
        )
    try:
        arrays = from_bytes(tensors.read_bytes())
    except SafetensorError as error:
        raise MismatchError(f"{tensors}: not a safetensors file ({error})") from error
    vocabulary = {term: column for column, term in enumerate(raw["vocabulary"])}
    idf = np.array(raw["idf"], dtype=np.float64)
    return TextModel(vocabulary, idf, arrays["coefficients"], arrays["intercept"]), raw


def rows_hash(rows: Sequence[LabelledRow]) -> str:
    """Return a sha256 over the contents of the rows that does not depend on their order."""
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
