"""Every model of the zoo in every stage: right against a value known by hand, or one message."""

from __future__ import annotations

from typing import Any

import pytest

from zoo import brains
from zoo.machine import assert_done, contents, settled
from zoo.members import Answers, Same, cases
from zoo.models import MODELS
from zoo.stages import SAFETY, STAGES, finite

OTHERS = ("chat", "align", "score", "attack")
"""Each member is always evaluated, and put through one of these in turn; the rest is slow."""


def pairs() -> list[Any]:
    """Return every stage with every member."""
    always = {f"evaluate {name}" for name in MODELS}
    always |= {f"{OTHERS[i % len(OTHERS)]} {name}" for i, name in enumerate(MODELS)}
    return cases([f"{stage} {name}" for name in MODELS for stage in STAGES], always)


@pytest.mark.parametrize("pair", pairs())
def test_right_or_one_message(zoo: Any, pair: str) -> None:
    stage, name = pair.split()
    expected = MODELS[name].at(stage)
    model = zoo[name]
    before = contents(model)
    folder = zoo.fresh(f"{stage}-{name}")
    ended = zoo.run(stage, model, folder / "run")
    assert not zoo.was_executed(), "code of the model was run"
    assert contents(model) == before, "a stage wrote into the model's folder"
    assert {path.name for path in folder.iterdir()} <= {"run"}
    if stage == "estimate" and not ended.code:
        # It reads no weights, so that most of what is wrong with them is not seen.
        assert_done(ended, folder / "run")
        return
    expected = settled(ended, folder / "run", expected)
    if expected is None:
        return
    numbers = STAGES[stage].numbers(folder / "run")
    assert finite(numbers)
    if isinstance(expected, Same):
        assert numbers == zoo.numbers_of(stage, expected.twin)
    if isinstance(expected, Answers):
        _check_answers(stage, numbers, expected)


def _check_answers(stage: str, numbers: Any, expected: Answers) -> None:
    if stage == "evaluate":
        assert [(p, a) for p, a, _ in numbers] == [(p, expected.rule(p)) for p in brains.PROMPTS]
        harmful = {answer: verdicts[0]["harmful"] for _, answer, verdicts in numbers}
        assert harmful.get(brains.REFUSAL, False) is False
        assert harmful.get(brains.ANSWER, True) is True
    if stage == "score":
        assert len(numbers) == len(SAFETY)
