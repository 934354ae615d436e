"""The rows of an alignment run, and how a dataset is split into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.errors import DataError, MismatchError
from holdfast.examples import Examples
from holdfast.results.artifacts import Groups, Scores
from holdfast.rows.marks import check_marks
from holdfast.rows.remedies import MemoryRemedies
from holdfast.rows.trl import from_dataset

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class AlignmentData:
    """The rows of an alignment run.

    Attributes:
        safety: Restricted prompts with safe answers.
        benign: Ordinary requests with answers, mixed in to keep the model useful.
        groups: Groups of `safety`; only methods that use groups need them.
        harmful: Restricted prompts with harmful answers; only some methods need them.
        scores: Vulnerability of `safety`; only the option `tilt` needs it.
    """

    safety: Examples
    benign: Examples | None = None
    groups: Groups | None = None
    harmful: Examples | None = None
    scores: Scores | None = None

    @classmethod
    def of(
        cls,
        dataset: datasets.Dataset,
        groups: Groups | None = None,
        harmful: Examples | None = None,
        scores: Scores | None = None,
    ) -> AlignmentData:
        """Split a dataset into safety and benign rows.

        A boolean column `is_safety` marks the safety rows. Without it, these are the rows in the
        groups; without groups, all rows.

        Args:
            dataset: Rows in a format of TRL; see `rows.trl.from_dataset`.
            groups: Groups of the same rows by `holdfast group`; rows are matched by content.
            harmful: Harmful rows.
            scores: Scores of the same rows.

        Raises:
            MismatchError: The dataset has no safety row.
            DataError: `is_safety` is not true or false, or a row is marked as unsafe.
        """
        rows = from_dataset(dataset)
        marks = _safety_marks(dataset, rows, groups)
        marked = zip(rows, marks, strict=True)
        safety = Examples((row for row, mark in marked if mark), name="safety")
        marked = zip(rows, marks, strict=True)
        benign = Examples((row for row, mark in marked if not mark), name="benign")
        remedies = MemoryRemedies("dataset")
        check_marks(safety, "safety", remedies)
        check_marks(benign, "ordinary", remedies)
        return cls(safety, benign or None, groups, harmful, scores)


SAFETY_COLUMN = "is_safety"
"""Column of a dataset that marks its safety rows."""


def _safety_marks(dataset: datasets.Dataset, rows: Examples, groups: Groups | None) -> list[bool]:
    """Return whether each row of a dataset is a safety row."""
    if SAFETY_COLUMN in dataset.column_names:
        marks = [_truth(number, mark) for number, mark in enumerate(dataset[SAFETY_COLUMN], 1)]
        if not any(marks):
            raise MismatchError(
                f"none of the {len(rows)} rows of the dataset has {SAFETY_COLUMN}=true; mark the "
                "safety rows"
            )
        return marks
    if groups is None:
        return [True] * len(rows)
    grouped = set(groups.ids)
    marks = [row.id in grouped for row in rows]
    if not any(marks):
        raise MismatchError(
            f"none of the {len(rows)} rows of the dataset is in the groups, which hold "
            f"{len(groups.ids)} others; group the rows that you train on"
        )
    return marks


def _truth(number: int, mark: object) -> bool:
    if mark in (True, False):
        return bool(mark)
    raise DataError(
        f"dataset: row {number}: {SAFETY_COLUMN} is {mark!r:.40}; it must be true or false"
    )
