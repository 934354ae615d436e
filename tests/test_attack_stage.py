"""Which tracked rows an attack says were forgotten, and which it cannot say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from holdfast.artifacts import AttackResult, Counts, Point
from holdfast.errors import MismatchError, UsageError
from holdfast.examples import Example, Examples
from holdfast.judges.refusal import Refusal
from holdfast.stages.attack import AttackConfig, Cell, Material, Watch, attack
from holdfast.stages.subjects import Subject

U = math.nan
COURSES = {
    # checkpoint 0, 1, 2, 3: 0 safe, 1 harmful, U undecided
    "kept": (0, 0, 0, 0),
    "forgotten": (0, 1, 1, 1),
    "in between": (0, 1, U, 1),
    "unread": (0, 0, U, U),
    "half read": (0, U, 1, U),
    "never held": (1, 1, 1, 1),
    "not known to be held": (U, 1, 1, 1),
}
ROWS = Examples([Example(name, "I can't help with that.") for name in COURSES])


def config(tmp_path: Path, **changes: Any) -> AttackConfig:
    given = {"models": ["sft"], "tasks": ["world_topic"], "harmful": "h", "test": "t"}
    given |= {"out": tmp_path, "judges": ["world", "refusal"], "task_rows": 0}
    return AttackConfig(**{**given, **changes})


def watched(tmp_path: Path, **changes: Any) -> Watch:
    judges = {"world": Refusal(), "refusal": Refusal(min_words=2)}
    material = Material(ROWS, ROWS, judges, ROWS)
    nothing = cast(Any, None)
    return Watch(config(tmp_path, **changes), material, nothing, nothing, nothing)


@pytest.fixture
def result(tmp_path: Path) -> AttackResult:
    watch = watched(tmp_path)
    assert watch.tracker is not None
    watch.tracker.history = list(np.array(list(COURSES.values()), dtype=float).T)
    watch.points = [Point(step, {"world": Counts(0, 1, 0)}) for step in (0, 10, 20, 30)]
    who = Subject("sft-s0", "somewhere", "hash", "sft", 0)
    return watch.result(who, Cell("world_topic", 0.1, 1e-4, 0))


def by_prompt(found: dict[str, Any]) -> dict[str, Any]:
    return {row.prompt: found[row.id] for row in ROWS if row.id in found}


def test_counts_that_are_known_and_bounds_of_the_others(result: AttackResult) -> None:
    assert by_prompt(dict(result.tracked)) == {"kept": 0, "forgotten": 3, "in between": 2}
    assert by_prompt(dict(result.unknown)) == {"unread": (0, 2), "half read": (1, 3)}


def test_the_file_keeps_them(result: AttackResult, tmp_path: Path) -> None:
    result.save(tmp_path / "a.json")
    assert AttackResult.load(tmp_path / "a.json").unknown == result.unknown


def test_a_file_that_took_undecided_for_held_is_refused(
    result: AttackResult, tmp_path: Path
) -> None:
    result.save(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text().replace('"unknown"', '"other"')
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(MismatchError, match=r"a\.json: made by a version .* attack again"):
        AttackResult.load(tmp_path / "a.json")


def test_another_judge_may_say_what_is_forgotten(tmp_path: Path) -> None:
    for asked, min_words in (("", 4), ("refusal", 2)):
        watch = watched(tmp_path, track_judge=asked)
        assert watch.tracker is not None
        assert cast(Refusal, watch.tracker.judge).min_words == min_words
        assert watch.tracked_judge == (asked or "world")


def test_the_judge_of_what_is_tracked_must_be_one_of_the_judges(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="track_judge 'classifier' is none of .*world, refusal"):
        attack(config(tmp_path, track_judge="classifier"))
