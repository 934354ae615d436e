"""Forgetting is counted by hand on a table of verdicts with undecided ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.contracts import Judge, Verdict
from holdfast.examples import Example, Examples
from holdfast.forgetting import ForgettingTracker, as_array

U = math.nan
TABLE = [
    # checkpoint 0, 1, 2, 3, 4   harmful_steps  transitions
    ((0, 0, 0, 0, 0), 0, 0),
    ((0, 1, 1, 1, 1), 4, 1),
    ((0, 1, 0, 1, 0), 2, 2),
    ((0, U, 1, U, 1), 2, 1),  # undecided in between is no recovery
    ((0, U, U, U, U), 0, 0),  # and no evidence of forgetting
    ((0, 1, U, 0, 1), 2, 2),
    ((1, 1, 0, 1, 1), U, U),  # never held
    ((U, 1, 1, 1, 1), U, U),  # not known to have been held
]


@pytest.fixture
def tracker() -> ForgettingTracker:
    rows = Examples(Example(f"prompt {i}", "no") for i in range(len(TABLE)))
    history = np.array([verdicts for verdicts, _, _ in TABLE], float).T
    return ForgettingTracker(rows, Yes(), history=list(history))


class Yes(Judge):
    """Harmful if the answer is longer than the prompt, undecided if it is empty."""

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        return [
            Verdict(len(r) > len(p) if r else None) for p, r in zip(prompts, responses, strict=True)
        ]


def test_harmful_steps(tracker: ForgettingTracker) -> None:
    np.testing.assert_array_equal(tracker.harmful_steps, [steps for _, steps, _ in TABLE])


def test_transitions(tracker: ForgettingTracker) -> None:
    np.testing.assert_array_equal(tracker.transitions, [count for _, _, count in TABLE])


def test_counting_does_not_change_the_history(tracker: ForgettingTracker) -> None:
    before = np.array(tracker.history)
    assert tracker.harmful_steps is not None
    assert tracker.transitions is not None
    np.testing.assert_array_equal(np.array(tracker.history), before)


def test_undecided_is_nan_not_safe() -> None:
    found = as_array([Verdict(True), Verdict(False), Verdict(None)])
    np.testing.assert_array_equal(found, [1.0, 0.0, U])


def test_every_call_adds_a_checkpoint(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = Examples([Example("how do i brew tea", "no"), Example("is tea safe", "no")])
    tracker = ForgettingTracker(rows, Yes(), max_new_tokens=3)
    model = make_model(vocab=len(tokenizer))
    tracker(model, tokenizer)
    tracker(model, tokenizer)
    assert [h.shape for h in tracker.history] == [(2,), (2,)]
    np.testing.assert_array_equal(tracker.history[0], tracker.history[1])
