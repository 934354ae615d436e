"""Forgetting is counted by hand on a table of verdicts with undecided ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.contracts import Judge, Verdict
from holdfast.examples import Example, Examples
from holdfast.stats.agreement import first_half
from holdfast.tuning.forgetting import ForgettingTracker, first_half_is_stable, verdict_array

U = math.nan
TABLE = [
    # checkpoint 0, 1, 2, 3, 4   harmful_steps  transitions
    ((0, 0, 0, 0, 0), 0, 0),
    ((0, 1, 1, 1, 1), 4, 1),
    ((0, 1, 0, 1, 0), 2, 2),
    ((0, 1, U, 1, 1), 3, 1),  # undecided in between is no recovery
    ((0, 1, U, 0, 1), 2, 2),
    ((0, U, 1, U, 1), U, U),  # two to four: the undecided ones could double it
    ((0, 0, 0, 0, U), U, U),  # none or one
    ((0, U, U, U, U), U, U),  # undecided is evidence neither of forgetting nor of holding
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


def test_known_and_undecided_steps_are_the_bounds(tracker: ForgettingTracker) -> None:
    held = [verdicts[0] == 0 for verdicts, _, _ in TABLE]
    least = [verdicts[1:].count(1) for verdicts, _, _ in TABLE]
    np.testing.assert_array_equal(tracker.known_steps, np.where(held, least, U))
    unread = [sum(math.isnan(v) for v in verdicts[1:]) for verdicts, _, _ in TABLE]
    np.testing.assert_array_equal(tracker.undecided_steps, unread)


def test_transitions(tracker: ForgettingTracker) -> None:
    np.testing.assert_array_equal(tracker.transitions, [count for _, _, count in TABLE])


def test_counting_does_not_change_the_history(tracker: ForgettingTracker) -> None:
    before = np.array(tracker.history)
    assert tracker.harmful_steps is not None
    assert tracker.transitions is not None
    np.testing.assert_array_equal(np.array(tracker.history), before)


def test_undecided_is_nan_not_safe() -> None:
    found = verdict_array([Verdict(True), Verdict(False), Verdict(None)])
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


# ---------------------------------------------------------------------------------- when to stop


def course_of(*verdicts: str) -> list[np.ndarray]:
    """Counts after each checkpoint of verdicts as text: x harmful, . safe."""
    table = np.array([[c == "x" for c in row] for row in verdicts], float)
    return list(np.cumsum(table, axis=0))


@given(
    firsts=st.lists(st.integers(1, 12), min_size=2, max_size=20),
    length=st.integers(1, 10),
)
def test_what_is_settled_stays_so_if_the_forgotten_stay_forgotten(
    firsts: list[int], length: int
) -> None:
    # An example first forgotten at s has the count t - s + 1 at t >= s; s > 10 is never.
    first = np.array(firsts)
    course = [np.maximum(t - first + 1.0, 0) for t in range(1, 11)]
    if first_half_is_stable(course[:length], 1.0):
        np.testing.assert_array_equal(first_half(course[length - 1]), first_half(course[-1]))


def test_settled_at_the_first_checkpoint_that_can_show_it() -> None:
    course = course_of("x...", "xx..", "xxx.", "xxx.", "xxx.")
    # The half is {a}, {a, b}, {a, b}, {a, b}, {a, b}; Jaccard with two before: 1/2 at 3, then 1.
    assert [first_half_is_stable(course[:t], 0.9) for t in range(1, 6)] == [False] * 4 + [True]
    assert [first_half_is_stable(course[:t], 0.5) for t in range(1, 6)] == [False] * 3 + [True] * 2


def test_half_forgotten_is_not_enough() -> None:
    # Nothing moves for eight checkpoints, but the next to be forgotten may be of the half.
    assert not first_half_is_stable(course_of(*["xx.."] * 8), 0.1)
    assert first_half_is_stable(course_of(*["xxx."] * 8), 1.0)
    assert not first_half_is_stable(course_of(*["...."] * 8), 0.1)


def test_a_half_that_flickers_is_not_settled() -> None:
    # c and d overtake a and b: the half is {a, b} until 3, all four at 4 (a tie), then {c, d}.
    course = course_of("xx..", "xx..", "..xx", "..xx", "..xx", "..xx")
    assert [first_half_is_stable(course[:t], 0.9) for t in range(4, 7)] == [False, False, False]
