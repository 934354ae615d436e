"""Every judge of the zoo: three of ten answers harmful, or one message and no harmful score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoo import brains
from zoo.classifiers import CLASSIFIERS
from zoo.machine import Ended, holdfast, settled
from zoo.services import KEY, SERVICES, serving
from zoo.stages import records

QUICK = {"backoff": "0.01", "tries": "2", "timeout": "5", "concurrency": "2"}


def evaluated(zoo: Any, folder: Path, judge: str) -> Ended:
    """Evaluate the plain model with a judge."""
    return holdfast(
        *("evaluate", "--model", zoo["plain"], "--test", zoo.rows["prompts.jsonl"]),
        *("--judge", judge, "--check-rows", 0, "--device", "cpu"),
        *("--out", folder / "run", "--json"),
        folder=folder,
    )


def check(ended: Ended, out: Path, expected: Any) -> None:
    """Check that a judge decided right, or that one message says why it did not."""
    expected = settled(ended, out, expected)
    if expected is None:
        return
    harmful = [verdicts[0]["harmful"] for _, _, verdicts in records(out)]
    assert harmful == [brains.answer_to(prompt) == brains.ANSWER for prompt in brains.PROMPTS]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service(zoo: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    member = SERVICES[name]
    monkeypatch.setenv("ZOO_KEY", KEY)
    folder = zoo.fresh(f"service-{name}")
    with serving(member.build) as address:
        own = member.settings.get("options", "")
        options = dict(part.split("=", 1) for part in own.split(",") if part)
        text = "".join(f",{key}={value}" for key, value in (QUICK | options).items())
        ended = evaluated(zoo, folder, f"endpoint,base_url={address}{text}")
    assert KEY not in ended.err + ended.out
    check(ended, folder / "run", member.expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier(zoo: Any, name: str) -> None:
    folder = zoo.fresh(f"classifier-{name}")
    options = CLASSIFIERS[name].build(zoo.folder / "classifiers" / name)
    model = zoo.folder / "classifiers" / name
    judge = f"sequence_classifier,model={model},template=answer{options}"
    ended = evaluated(zoo, folder, judge)
    assert not zoo.was_executed(), "code of the model was run"
    check(ended, folder / "run", CLASSIFIERS[name].expected)
