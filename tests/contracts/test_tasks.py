"""What every downstream task must do, from files or from the embedded world."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import plugins
from holdfast.contracts import Task
from holdfast.errors import UsageError
from holdfast.options import describe

NOUNS = ("boat", "bread", "clock", "drum", "field", "glove", "hill", "ink")


def _tsv(path: Path, nouns: tuple[str, ...]) -> None:
    path.write_text("".join(f"a fine {n} indeed\t{i % 2}\n" for i, n in enumerate(nouns)))


def _jsonl(path: Path, nouns: tuple[str, ...]) -> None:
    """Write rows that have the columns of all the usual sets at once."""
    rows = [
        {
            "question": f"One {n} and {i} more: how many?",
            "answer": f"1 + {i} = {1 + i}\n#### {1 + i}",
            "instruction": f"Describe a {n}.",
            "input": f"Title: News. Text: The {n} was sold again.",
            "output": ("World", "Sports", "Business", "Sci/Tech")[i % 4],
            "prompt": f"Say {n}.",
            "response": n,
        }
        for i, n in enumerate(nouns)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=plugins.available("tasks"))
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    """Build each task; those that read files get the first made-up format that they can read."""
    cls = plugins.find("tasks", request.param)
    needed = {option.name for option in describe(cls) if option.required}
    assert needed <= {"train", "test"}, f"{request.param} needs {needed}: say how to fill it in"
    return next(_readable(cls, tmp_path) if needed else iter([cls()]))


def _readable(cls: type[Task], folder: Path) -> Iterator[Task]:
    for ending, write in ((".jsonl", _jsonl), (".tsv", _tsv)):
        # One training row is in the test file as well, as in real copies of the sets.
        write(folder / f"train{ending}", NOUNS[:5])
        write(folder / f"test{ending}", NOUNS[4:])
        made = cls(train=str(folder / f"train{ending}"), test=str(folder / f"test{ending}"))  # type: ignore[call-arg]
        try:
            made.load("train")
        except UsageError:
            continue
        yield made
    pytest.fail(f"{cls.__name__} reads none of the made-up files: add its format")


def test_is_a_frozen_dataclass(task: Task) -> None:
    assert isinstance(task, Task)
    with pytest.raises(ValueError, match="frozen"):
        setattr(task, "anything", 1)  # noqa: B010


def test_rows_can_be_asked_and_graded(task: Task) -> None:
    for split in ("train", "test"):
        rows = task.load(split)
        assert len(rows) > 0
        assert all(row.prompt.strip() and row.response.strip() for row in rows)
        assert len(set(rows.prompts)) == len(rows)
    assert isinstance(task.max_new_tokens, int)
    assert task.max_new_tokens > 0


def test_train_and_test_share_no_row_and_no_prompt(task: Task) -> None:
    train, test = task.load("train"), task.load("test")
    assert not set(train.ids) & set(test.ids)
    assert not set(train.prompts) & set(test.prompts)


def test_rows_are_the_same_at_every_load(task: Task) -> None:
    again = task.changed()
    for split in ("train", "test"):
        assert again.load(split).ids == task.load(split).ids


def test_a_reference_is_right_by_itself(task: Task) -> None:
    for response in task.load("test").responses:
        assert task.score(response, response) == 1.0


@pytest.mark.parametrize("garbage", ["", " ", "???", "zzz qqq zzz", "i can not help with that ."])
def test_garbage_scores_nothing_or_cannot_be_graded(task: Task, garbage: str) -> None:
    for response in task.load("test").responses[:20]:
        score = task.score(garbage, response)
        assert math.isnan(score) or score == 0.0


def test_scores_are_shares(task: Task) -> None:
    answers = task.load("test").responses[:20]
    for other in answers:
        score = task.score(other, answers[0])
        assert math.isnan(score) or 0.0 <= score <= 1.0
