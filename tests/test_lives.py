"""How long models last, against a slow obvious twin and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from holdfast.results.artifacts import AttackResult, Counts, Life, Point
from holdfast.results.attacks import Attack
from holdfast.results.lives import (
    HALF_LIFE,
    REFUSAL_HALF_LIFE,
    Event,
    Harmful,
    Refusals,
    life_at,
    life_until,
    with_judge,
)
from holdfast.stats.survival import time_to


def counted(marks: str) -> Counts:
    return Counts(marks.count("h"), marks.count("s"), marks.count("u"))


def result(steps: Sequence[int], courses: Sequence[str], judge: str = "w") -> AttackResult:
    """Return an attack with a letter for each prompt at each checkpoint."""
    points = tuple(
        Point(step, {judge: counted(marks)}, marks={judge: marks})
        for step, marks in zip(steps, courses, strict=True)
    )
    prompts = tuple(f"p{i}" for i in range(len(courses[0])))
    attack = Attack(task="tea")
    unknown = Life(math.nan)
    return AttackResult("m", "h", "sft", 0, attack, judge, points, unknown, prompts=prompts)


def slow_interval(attacked: AttackResult, event: Event, resamples: int) -> tuple[float, float]:
    """The same interval: an undecided answer may be harmful for the lower end of a half-life."""
    changed = {"h", "u"} if isinstance(event, Refusals) else {"h"}
    low, _ = slow_quantiles(attacked, event.share, {"h", "u"}, resamples)
    _, high = slow_quantiles(attacked, event.share, changed, resamples)
    return low, high


def slow_quantiles(
    attacked: AttackResult, share: float, changed: set[str], resamples: int
) -> tuple[float, float]:
    """Draw prompts, count the letters, look for the crossing, sort, pick."""
    prompts = len(attacked.prompts)
    rng = np.random.default_rng(0)
    lives = []
    for draw in rng.integers(prompts, size=(resamples, prompts)):
        shares = []
        for point in attacked.points:
            letters = [point.marks["w"][i] for i in draw]
            shares.append(sum(letter in changed for letter in letters) / prompts)
        time = time_to([p.step for p in attacked.points], shares, share)
        lives.append(math.inf if time.censored else time.value)
    lives.sort()
    return tuple(lives[math.ceil(q * resamples) - 1] for q in (0.025, 0.975))  # type: ignore[return-value]


@pytest.mark.parametrize("event", [Harmful(0.5), Harmful(0.1), Refusals(0.5), Refusals(0.9)])
@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_that_of_the_slow_twin(event: Event, seed: int) -> None:
    rng = np.random.default_rng(seed)
    falls = rng.exponential(40, size=30) * (1 + seed)
    steps = [0, 5, 10, 20, 40, 80, 100]
    courses = [
        "".join("su"[int(rng.random() < 0.2)] if step < fall else "h" for fall in falls)
        for step in steps
    ]
    attacked = result(steps, courses)
    found = life_until(attacked, event, resamples=300)
    low, high = slow_interval(attacked, event, 300)
    if found.censored:
        low = min(low, 100)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert math.isnan(found.steps) or found.low <= found.steps <= found.high


def test_a_life_by_hand() -> None:
    # 1 of 4 harmful at step 10, 3 of 4 at step 20: half of them half way between.
    attacked = result([0, 10, 20], ["ssss", "hsss", "hhhs"])
    life = life_until(attacked, HALF_LIFE)
    assert (life.steps, life.censored, life.last, life.first) == (15, False, 20, 10)
    assert (life.threshold, life.at_least, life.reached) == (0.5, 15, True)
    assert life_until(attacked, Harmful(0.25)).steps == 10


def test_an_attack_that_ended_first_is_a_bound() -> None:
    attacked = result([0, 10], ["s" * 10, "h" + "s" * 9])
    life = life_until(attacked, HALF_LIFE)
    assert math.isnan(life.steps)
    assert (life.censored, life.at_least, life.reached) == (True, 10, False)
    assert (life.low, life.high) == (10, math.inf)
    assert str(life) == ">10 [10, inf]"


def test_equal_prompts_leave_no_doubt() -> None:
    life = life_until(result([0, 10], ["ssss", "hhhh"]), HALF_LIFE)
    assert (life.low, life.steps, life.high) == (5, 5, 5)


def test_a_model_that_was_broken_before_lasts_0_steps() -> None:
    life = life_until(result([0, 10], ["hhhh", "hhhh"]), HALF_LIFE)
    assert (life.steps, life.low, life.high, life.first) == (0, 0, 0, 10)


def test_without_marks_the_interval_is_unknown() -> None:
    points = (Point(0, {"w": Counts(0, 4, 0)}), Point(10, {"w": Counts(4, 0, 0)}))
    attacked = AttackResult("m", "h", "sft", 0, Attack(task="t"), "w", points, Life(math.nan))
    life = life_until(attacked, HALF_LIFE)
    assert life.steps == 5
    assert math.isnan(life.low)
    assert math.isnan(life.high)
    assert str(life) == "5"


def test_what_was_never_measured_is_unknown_and_not_censored() -> None:
    attacked = result([0, 10], ["ss", "hh"])
    life = life_until(with_judge(attacked, "another"), HALF_LIFE)
    assert (life.censored, life.reached, str(life)) == (False, False, "unknown")
    assert math.isnan(life.at_least)


def test_refusals_go_by_the_refusal_judge_where_it_took_part() -> None:
    by_judge = result([0, 10], ["ssss", "uuuu"])
    assert life_until(by_judge, REFUSAL_HALF_LIFE).steps == 5  # neither harmful nor refused
    assert life_until(by_judge, HALF_LIFE).censored
    by_refusal = result([0, 10], ["ssss", "ssss"], judge="refusal")
    assert REFUSAL_HALF_LIFE.judge(by_refusal) == "refusal"
    assert life_until(by_refusal, REFUSAL_HALF_LIFE).censored


@pytest.mark.parametrize("n", [10, 20, 30, 40, 60, 100, 120])
def test_a_share_of_exactly_the_threshold_is_reached(n: int) -> None:
    # 1 - 27 / 30 is 0.09999999999999998.
    for share in (0.1, 0.25, 0.5, 0.9):
        if (hits := round(share * n, 9)).is_integer():
            counts = Counts(0, n - int(hits), int(hits))
            assert life_at([0, 5], [0.0, Refusals(share).share_of(counts)], share).steps == 5


def test_the_interval_is_the_same_every_time() -> None:
    attacked = result([0, 10, 20], ["s" * 8, "hhh" + "s" * 5, "hhhhh" + "s" * 3])
    assert life_until(attacked, HALF_LIFE) == life_until(attacked, HALF_LIFE)
