"""What every judge must do, whatever it looks at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import plugins, world
from holdfast.contracts import Judge, Verdict
from holdfast.options import describe
from holdfast.screening.pairing import exchange_prompts

N = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a classifier on the world's rows, for judges that read a directory."""
    from holdfast.judges.classifier import LabelledRow, train_classifier

    path = tmp_path_factory.mktemp("judge")
    refused, obliged = world.rows("alignment")[:80], world.rows("harmful")[:80]
    answers = world.rows("benign").responses[:80]
    labelled = [
        *(LabelledRow(r.prompt, r.response, "safe") for r in refused),
        *(LabelledRow(r.prompt, r.response, "harmful") for r in obliged),
        *(LabelledRow(p, a, "other") for p, a in zip(refused.prompts, answers, strict=True)),
    ]
    train_classifier(labelled, path)
    return path


@pytest.fixture(params=plugins.available("judges"))
def judge(request: pytest.FixtureRequest) -> Judge:
    """Build each judge; one that cannot do without options gets them here."""
    options: dict[str, Callable[[], dict[str, Any]]] = {
        "classifier": lambda: {"path": str(request.getfixturevalue("trained"))},
        "sequence_classifier": lambda: {
            "model": str(request.getfixturevalue("classifier_model")),
            "device": "cpu",
        },
        "chat": lambda: request.getfixturevalue("chat_model"),
        "endpoint": lambda: {"base_url": request.getfixturevalue("world_service")},
        "panel": lambda: {"judges": ("world", "refusal")},
    }
    cls = plugins.find("judges", request.param)
    needed = {option.name for option in describe(cls) if option.required}
    given = options[request.param]() if request.param in options else {}
    lacking = needed - set(given)
    assert not lacking, f"add what {request.param} needs to its options: {lacking}"
    made: Judge = cls(**given)
    return made


@pytest.fixture
def cases() -> tuple[list[str], list[str]]:
    """Return restricted prompts with refusals, harmful answers, noise and nothing."""
    refused = world.rows("alignment")[100 : 100 + N]
    obliged = world.rows("harmful")[100 : 100 + N]
    return (
        [*refused.prompts, *obliged.prompts, *refused.prompts[:3]],
        [*refused.responses, *obliged.responses, "", "  \n", "good"],
    )


def same(a: list[Verdict], b: list[Verdict]) -> bool:
    return [repr(v) for v in a] == [repr(v) for v in b]  # nan is not equal to itself


def test_is_a_frozen_dataclass(judge: Judge) -> None:
    assert isinstance(judge, Judge)
    with pytest.raises(ValueError, match="frozen"):
        setattr(judge, "anything", 1)  # noqa: B010


def test_one_verdict_per_response(judge: Judge, cases: tuple[list[str], list[str]]) -> None:
    verdicts = judge.judge(*cases)
    assert len(verdicts) == len(cases[0])
    assert judge.judge([], []) == []
    for verdict in verdicts:
        assert verdict.harmful in (True, False, None)
        assert math.isnan(verdict.score) or 0 <= verdict.score <= 1
        assert isinstance(verdict.reason, str)
        assert verdict.reason


def test_independent_of_batch_and_order(judge: Judge, cases: tuple[list[str], list[str]]) -> None:
    prompts, responses = cases
    whole = judge.judge(prompts, responses)
    assert same(judge.judge(prompts[::-1], responses[::-1])[::-1], whole)
    one_by_one = [judge.judge([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    assert same(one_by_one, whole)


def test_most_refusals_are_safe_most_harm_is_harm_and_harm_is_never_safe(
    judge: Judge, cases: tuple[list[str], list[str]]
) -> None:
    verdicts = [v.harmful for v in judge.judge(*cases)]
    # A judge of phrases may not know every one of the world's refusals.
    assert verdicts[:N].count(True) < N / 3
    assert verdicts[:N].count(False) > N / 2
    assert False not in verdicts[N : 2 * N]
    assert verdicts[N : 2 * N].count(True) > N / 2


def test_what_cannot_be_decided_is_none(judge: Judge, cases: tuple[list[str], list[str]]) -> None:
    """Nothing, blanks, and the bare word that a fine-tuned classifier of reviews answers."""
    assert [v.harmful for v in judge.judge(*cases)[2 * N :]] == [None, None, None]


def test_a_missing_response_is_an_error(judge: Judge) -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge.judge(["one", "two"], ["answer"])


def test_same_options_same_judge(judge: Judge, cases: tuple[list[str], list[str]]) -> None:
    twin = judge.changed()
    assert twin == judge
    assert same(twin.judge(*cases), judge.judge(*cases))


def test_one_that_reads_prompts_says_something_else_of_other_prompts(
    judge: Judge, cases: tuple[list[str], list[str]]
) -> None:
    prompts, responses = cases
    found = exchange_prompts(judge, prompts, responses, judge.judge(prompts, responses), rows=100)
    assert found.n >= N / 2
    assert (found.changed > 0) == judge.reads_prompt


def test_its_hash_is_that_of_its_files(judge: Judge) -> None:
    assert re.fullmatch(r"|[0-9a-f]{12,}", judge.hash)
    assert judge.hash == judge.changed().hash
