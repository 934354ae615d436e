"""The EXP3 sampler: against published numbers, a slow twin, and what the theory says."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import MismatchError, TrainingError, UsageError
from holdfast.methods._group_sampler import GroupSampler


def twin(q: Sequence[float], group: int, loss: float, eta: float, floor: float) -> list[float]:
    """One EXP3 step, written out; the floor is found by bisection instead of in rounds."""
    weights = [p * math.exp(eta * loss / p) if i == group else p for i, p in enumerate(q)]
    # q = max(floor, c w) for the one c at which it adds up to 1.
    low, high = 0.0, 1.0 / min(weights)
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if sum(max(floor, c * w) for w in weights) < 1 else (low, c)
    return [max(floor, high * w) for w in weights]


def test_agrees_with_the_published_update(shared: Path) -> None:
    path = shared / "fixtures" / "sampler.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set HOLDFAST_SHARED")
    reference = json.loads(path.read_text())
    assert reference["clip"] == [0.1, 0.9]
    for sequence in reference["sequences"]:
        p = sequence["p0"]
        sampler = GroupSampler(2, step_size=sequence["p_lr"], start=[1 - p, p])
        for step in sequence["steps"]:
            sampler.update(int(step["is_vulnerable"]), step["loss"])
            assert sampler.probs[1] == pytest.approx(step["p_after"], abs=1e-9)


@pytest.mark.parametrize(("n", "floor"), [(2, 0.1), (2, 0.0), (3, 0.1), (5, 0.15), (4, 0.25)])
def test_agrees_with_the_twin(n: int, floor: float) -> None:
    rng = np.random.default_rng(n)
    eta = 0.3 if floor else 0.003  # without a floor, exp(eta loss / q) overflows in the twin
    sampler = GroupSampler(n, step_size=eta, floor=floor)
    q = [1 / n] * n
    for _ in range(60):
        group, loss = int(rng.integers(n)), float(rng.exponential())
        sampler.update(group, loss)
        q = twin(q, group, loss, eta, floor)
        assert sampler.probs == pytest.approx(q, abs=1e-9)


def test_one_update_by_hand() -> None:
    sampler = GroupSampler(2, step_size=0.5, floor=0.0)
    sampler.update(1, math.log(2))
    # q1 exp(0.5 ln 2 / 0.5) = 2 q1, so the odds become 2 to 1.
    assert sampler.probs == pytest.approx([1 / 3, 2 / 3])


def test_floor_for_more_than_two_groups_shares_the_rest_in_proportion() -> None:
    sampler = GroupSampler(4, step_size=1.0, floor=0.1, start=[0.4, 0.3, 0.2, 0.1])
    sampler.update(0, 0.4 * math.log(7))
    # The weights 2.8, 0.3, 0.2, 0.1 over 3.4 leave the last three below 0.1.
    assert sampler.probs == pytest.approx([0.7, 0.1, 0.1, 0.1])
    sampler = GroupSampler(3, step_size=1.0, floor=0.2, start=[0.5, 0.25, 0.25])
    sampler.update(2, 0.25 * math.log(0.4))
    # The weights 0.5, 0.25, 0.1 over 0.85: the last is raised to 0.2, the others keep 2 to 1.
    assert sampler.probs == pytest.approx([0.8 * 2 / 3, 0.8 / 3, 0.2])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_raises_and_leaves_the_state(loss: float) -> None:
    sampler = GroupSampler(2, step_size=0.04)
    sampler.update(1, 2.0)
    before = sampler.state_dict()
    with pytest.raises(TrainingError, match="not finite"):
        sampler.update(0, loss)
    assert sampler.state_dict() == before


@pytest.mark.parametrize("loss", [1e6, 1e300, sys.float_info.max])
def test_a_huge_loss_ends_on_the_bound(loss: float) -> None:
    sampler = GroupSampler(3, step_size=0.5)
    sampler.update(1, loss)
    assert sampler.probs == pytest.approx([0.1, 0.8, 0.1])
    sampler.update(1, -loss)
    assert sampler.probs == pytest.approx([0.45, 0.1, 0.45])


def test_probs_is_a_copy() -> None:
    sampler = GroupSampler(2, step_size=0.1)
    sampler.probs[0] = 9.0
    assert sampler.probs.tolist() == [0.5, 0.5]


def test_resume_gives_the_same_draws_and_distribution() -> None:
    def walk(sampler: GroupSampler, steps: int) -> list[tuple[int, list[float]]]:
        seen = []
        for _ in range(steps):
            group = sampler.draw()
            sampler.update(group, 1.0 + group)
            seen.append((group, sampler.probs.tolist()))
        return seen

    whole = walk(GroupSampler(3, step_size=0.1, seed=5), 40)
    first = GroupSampler(3, step_size=0.1, seed=5)
    walk(first, 15)
    state = json.loads(json.dumps(first.state_dict()))
    second = GroupSampler(3, step_size=0.1, seed=99)
    second.load_state_dict(state)
    assert walk(second, 25) == whole[15:]


def test_a_state_of_other_groups_is_refused() -> None:
    state = GroupSampler(2, step_size=0.1).state_dict()
    with pytest.raises(MismatchError, match="2 groups, this run 3"):
        GroupSampler(3, step_size=0.1).load_state_dict(state)


def test_draws_follow_the_distribution() -> None:
    sampler = GroupSampler(2, step_size=0.1, start=[0.2, 0.8])
    share = np.mean([sampler.draw() for _ in range(4000)])
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 4000))


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {}, "at least one"),
        (3, {"floor": 0.4}, "exceeds 1"),
        (2, {"floor": -0.1}, "floor"),
        (2, {"start": [0.5, 0.6]}, "add up to 1"),
        (2, {"start": [1.0]}, "2 shares"),
        (2, {"start": [1.5, -0.5]}, "add up to 1"),
    ],
)
def test_bad_options(n: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GroupSampler(n, step_size=0.1, **options)  # type: ignore[arg-type]


def _final(losses: tuple[float, float], runs: int = 30) -> float:
    ends = []
    for seed in range(runs):
        sampler = GroupSampler(2, step_size=0.007, seed=seed)
        for _ in range(1250):
            group = sampler.draw()
            sampler.update(group, losses[group])
        ends.append(sampler.probs[1])
    return float(np.mean(ends))


def test_equal_losses_leave_the_groups_even() -> None:
    # One run ends with a standard deviation of about 0.12, the mean of 30 of 0.022.
    assert _final((1.0, 1.0)) == pytest.approx(0.5, abs=0.07)


def test_a_ten_percent_larger_loss_is_found() -> None:
    # About 0.69, standard deviation of a run 0.11.
    assert _final((1.0, 1.1)) > 0.6


def test_no_group_begins_below_the_floor() -> None:
    sampler = GroupSampler(2, step_size=0.1, floor=0.1, start=[0.98, 0.02])
    assert sampler.probs.tolist() == pytest.approx([0.9, 0.1])
