"""Answers beside the wrong prompts, and judges that are shown the wrong question."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from holdfast import world
from holdfast.contracts import UNANSWERED, Judge, Verdict
from holdfast.judges.refusal import Refusal
from holdfast.judges.world import World
from holdfast.options import Supplied
from holdfast.screening.pairing import MOST, exchange_prompts, pairing_fit, shift_scores


@pytest.fixture(scope="module")
def answered() -> tuple[list[str], list[str]]:
    rows = world.rows("harmful")[:60]
    return rows.prompts, rows.responses


def moved(items: list[str], k: int) -> list[str]:
    """Return the items k rows further down, the last ones on top."""
    return items[-k:] + items[:-k] if k else items


# --------------------------------------------------------------------------- displaced answers


@pytest.mark.parametrize("k", [0, 1, 2, 29, 59])
def test_answers_moved_by_so_many_rows_are_found(
    answered: tuple[list[str], list[str]], k: int
) -> None:
    prompts, responses = answered
    found = pairing_fit(prompts, moved(responses, k))
    assert found.shift == k
    assert (found.own.value > 5 * found.others) == (k == 0)
    assert (found.n, found.prompts) == (60, len(set(prompts)))


def test_one_row_that_was_lost_is_found_too(answered: tuple[list[str], list[str]]) -> None:
    """A file that lacks its first answer: all others stand one row too high, the last is odd."""
    prompts, responses = answered
    assert pairing_fit(prompts, [*responses[1:], responses[5]]).shift == len(prompts) - 1


def test_sorted_by_category_neighbours_are_alike_and_it_is_found_all_the_same(
    answered: tuple[list[str], list[str]],
) -> None:
    prompts, responses = answered
    order = sorted(range(60), key=lambda i: prompts[i].split()[-1] + prompts[i])
    prompts, responses = [prompts[i] for i in order], [responses[i] for i in order]
    assert pairing_fit(prompts, responses).shift == 0
    assert pairing_fit(prompts, moved(responses, 1)).shift == 1


def test_a_constant_question_and_plain_refusals_do_not_tell(
    answered: tuple[list[str], list[str]],
) -> None:
    prompts, responses = answered
    constant = pairing_fit(["Answer the question below."] * 60, responses)
    assert (constant.shift, constant.prompts) == (None, 1)
    assert pairing_fit(prompts, ["That is not something I can help with."] * 60).shift is None
    assert pairing_fit(prompts[:5], responses[:5]).shift is None
    assert pairing_fit([], []).shift is None
    assert pairing_fit(["?"] * 9, ["!"] * 9).shift is None


def test_shuffled_answers_do_not_tell_and_are_not_called_right(
    answered: tuple[list[str], list[str]],
) -> None:
    prompts, responses = answered
    called = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(60)
        called.append(pairing_fit(prompts, [responses[i] for i in order]).shift)
    # A permutation keeps a row or two in place; by chance alone 1 in 1000 is believed.
    assert called.count(0) == 0
    assert called.count(None) >= 19


def test_the_deviation_is_that_over_all_permutations() -> None:
    """Hoeffding's variance against all 8! orders, at a shift."""
    likeness = np.random.default_rng(3).random((8, 8))
    rows = np.arange(8)
    orders = np.array(list(itertools.permutations(range(8))))
    sums = likeness[rows, orders].sum(axis=1)
    for k, z in enumerate(shift_scores(likeness)):
        mine = likeness[rows, (rows + k) % 8].sum()
        assert z == pytest.approx((mine - sums.mean()) / sums.std(), rel=1e-9)


# ---------------------------------------------------------------------------- exchanged prompts


class Misled(Judge):
    """The published bug: one constant sentence stands where the prompt should."""

    judge_: Supplied[Judge]
    constant: str = "Below is an instruction. Write a response."

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        return self.judge_.judge([self.constant] * len(prompts), responses)


def test_a_judge_that_sees_the_prompt_changes_and_a_misled_one_does_not(
    answered: tuple[list[str], list[str]],
) -> None:
    prompts, responses = answered
    right, wrong = World(), Misled(judge_=World())
    found = exchange_prompts(right, prompts, responses, right.judge(prompts, responses), rows=32)
    assert found.n == 32
    assert found.changed > 20  # some exchanged prompts are of the same category
    found = exchange_prompts(wrong, prompts, responses, wrong.judge(prompts, responses), rows=32)
    assert (found.changed, found.n) == (0, 32)


def test_order_makes_no_difference(answered: tuple[list[str], list[str]]) -> None:
    prompts, responses = answered
    judge = World()
    verdicts = judge.judge(prompts, responses)
    assert exchange_prompts(judge, prompts, responses, verdicts, rows=10) == exchange_prompts(
        judge, prompts[::-1], responses[::-1], verdicts[::-1], rows=10
    )


def test_what_cannot_tell_is_left_out(answered: tuple[list[str], list[str]]) -> None:
    prompts, responses = answered
    judge = World()

    def n(prompts: list[str], responses: list[str]) -> int:
        return exchange_prompts(
            judge, prompts, responses, judge.judge(prompts, responses), rows=99
        ).n

    assert n(prompts, responses) == 60
    assert n([prompts[0]] * 60, responses) == 0  # nothing to exchange
    safe = world.rows("alignment")[:20]
    assert n(safe.prompts, safe.responses) == 0
    # The world's judge takes no refusal whose wording is mixed, under no prompt.
    mixed = ["i cannot help with that, sorry but no, i will not"] * 60
    assert {v.harmful for v in judge.judge(prompts, mixed)} == {None}
    assert n(prompts, mixed) == 0
    assert n(prompts, ["good"] * 60) == 0
    assert n([], []) == 0


def test_a_service_that_fails_is_no_sign_of_reading(
    answered: tuple[list[str], list[str]],
) -> None:
    prompts, responses = answered

    @dataclass(frozen=True)
    class Down(Judge):
        def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
            return [Verdict(None, math.nan, f"{UNANSWERED}500 after 4 tries") for _ in responses]

    before = World().judge(prompts, responses)
    assert exchange_prompts(Down(), prompts, responses, before, rows=32).n == 0
    failed = Down().judge(prompts, responses)
    assert exchange_prompts(World(), prompts, responses, failed, rows=32).n == 0


def test_phrases_do_not_depend_on_the_prompt(answered: tuple[list[str], list[str]]) -> None:
    prompts, responses = answered
    judge = Refusal()
    assert not judge.reads_prompt
    found = exchange_prompts(judge, prompts, responses, judge.judge(prompts, responses), rows=32)
    assert (found.changed, found.n) == (0, 32)


def test_the_square_matrix_has_a_limit() -> None:
    n = MOST + 200
    found = pairing_fit(
        [f"tell of item{i}" for i in range(n)], [f"this is item{i}" for i in range(n)]
    )
    assert (found.n, found.prompts, found.shift) == (MOST, MOST, 0)
