"""Group DRO: what a step is made of, its sampler, and that it goes together with other methods."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import TrainingError, UsageError
from holdfast.methods._group_sampler import SmoothedSampler
from holdfast.methods._together import method
from holdfast.methods.base import AlignmentData
from holdfast.methods.group_dro import Control, GroupDroOptions, controlled
from holdfast.results.artifacts import Groups, Scores

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
MIXED = {"batch": "mixed", "sampler": "smoothed"}


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


def test_the_smoothed_sampler_by_hand() -> None:
    sampler = SmoothedSampler(2, step_size=0.5, floor=0.0, memory=0.5)
    sampler.observe({1: 3.0})
    # Nothing is known of group 0, and group 1 is the mean of what is known: nobody moves.
    assert sampler.probs == pytest.approx([0.5, 0.5])
    sampler.observe({0: 1.0})
    # Losses 1 and 3, mean 2: half below and half above it, so the odds grow by exp(0.5).
    odds = math.exp(0.5)
    assert sampler.probs == pytest.approx([1 / (1 + odds), odds / (1 + odds)])
    sampler.observe({1: 1.0})
    # Group 1 is remembered as (3 + 1) / 2 = 2, mean 1.5: minus and plus a third.
    odds *= math.exp(0.5 * 2 / 3)
    assert sampler.probs == pytest.approx([1 / (1 + odds), odds / (1 + odds)])


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_smoothed_sampler_knows_no_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    one, other = (SmoothedSampler(3, step_size=0.2) for _ in range(2))
    for _ in range(50):
        group, loss = int(rng.integers(3)), float(rng.exponential())
        one.observe({group: loss})
        other.observe({group: scale * loss})
    np.testing.assert_allclose(one.probs, other.probs)


def test_the_smoothed_sampler_leans_to_the_worse_group_and_moves_less_than_exp3() -> None:
    from holdfast.methods._group_sampler import GroupSampler

    rng = np.random.default_rng(1)
    courses: dict[str, list[float]] = {"exp3": [], "smoothed": []}
    exp3 = GroupSampler(2, step_size=0.1, seed=0)
    smoothed = SmoothedSampler(2, step_size=0.1, seed=0)
    for _ in range(200):
        for name, sampler in (("exp3", exp3), ("smoothed", smoothed)):
            group = sampler.draw()
            before = sampler.probs[1]
            sampler.observe({group: float(rng.exponential(2.0 if group else 1.0))})
            courses[name].append(abs(sampler.probs[1] - before))
    assert smoothed.probs[1] > 0.8
    assert np.mean(courses["smoothed"]) < np.mean(courses["exp3"])


def test_the_smoothed_sampler_refuses_what_is_not_finite_and_goes_on_from_a_checkpoint() -> None:
    sampler = SmoothedSampler(2, step_size=0.2)
    with pytest.raises(TrainingError, match="group 1: loss nan is not finite"):
        sampler.observe({1: math.nan})
    sampler.observe({0: 1.0})
    again = SmoothedSampler(2, step_size=0.2)
    again.load_state_dict(sampler.state_dict())
    for one in (sampler, again):
        one.observe({1: 4.0})
        one.observe({0: 2.0})
    np.testing.assert_array_equal(sampler.probs, again.probs)
    with pytest.raises(UsageError, match="memory=1 must lie in"):
        SmoothedSampler(2, step_size=0.1, memory=1)


def test_mixed_batches_follow_the_distribution(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("group_dro", model, **MIXED)
    trainer.sampler._probs = np.array([0.3, 0.7])
    counts = []
    for _ in range(300):
        (batch,) = trainer.draw_batches(iter(()), 1)
        groups = batch["group"].tolist()
        assert groups.count(-1) == int((~batch["is_safety"]).sum()) == 5
        counts.append(groups.count(1))
    # Three safety rows: 2.1 of the vulnerable in the mean, and never off by one or more.
    assert set(counts) == {2, 3}
    assert np.mean(counts) == pytest.approx(2.1, abs=3 * 0.3 / math.sqrt(300))


def test_mixed_batches_see_every_groups_loss(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("group_dro", model, max_steps=2, **MIXED)
    trainer.train()
    logged = [e for e in trainer.state.log_history if "safety_loss" in e]
    assert len(logged) == 2
    for entry in logged:
        assert {"loss_vulnerable", "loss_invulnerable", "q_vulnerable"} <= entry.keys()
        assert "group" not in entry


def test_mixed_batches_have_sfts_gradient(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    mine = make_trainer("group_dro", model.double(), **MIXED)
    plain = make_trainer("sft", copy.deepcopy(model))
    (batch,) = mine.draw_batches(iter(()), 1)
    found = []
    for trainer in (mine, plain):
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.zero_grad()
        trainer.accumulate(trainer.model, batch, 40)
        found.append([p.grad.clone() for p in trainer.model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_batches_without_a_safety_row_are_refused(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    few = data.safety.select([0, 1])
    groups = Groups(few.ids, np.array([0, 1]), ("a", "b"), "hand", "", few.hash)
    with pytest.raises(UsageError, match=r"an update of 1 rows holds 1 safety and 0 benign rows"):
        make_trainer(
            "group_dro",
            model,
            replace(data, safety=few, groups=groups),
            per_device_train_batch_size=1,
        )


def test_small_batches_have_their_share_of_benign_rows_over_an_update(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        "group_dro", model, per_device_train_batch_size=1, gradient_accumulation_steps=7
    )
    batches = trainer.draw_batches(iter([]), 7)
    # Four of seven rows of the data are benign.
    assert [bool(batch["is_safety"]) for batch in batches].count(False) == 4
    assert sum(benign for _, benign in trainer.mixes(14)) == 8
    # What is left of a pass over the rows has a safety row all the same.
    assert all(sum(safety for safety, _ in trainer.mixes(n)) >= 1 for n in range(1, 8))
    trainer.train()


@pytest.mark.parametrize(("option", "value"), [("step_size", -1), ("step_size", math.nan)])
def test_the_adversarys_step_is_a_size(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{option}={value} must be a number, at least 0"):
        GroupDroOptions(**{option: value})


# --------------------------------------------------------------------- together with other methods

TOGETHER = ("sam", "vaccine", "t_vaccine", "repnoise", "booster", "tar")


@pytest.mark.parametrize("name", TOGETHER)
def test_another_method_on_the_groups_batches(
    name: str,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    weights_of: Callable[..., Any],
    same: Callable[..., bool],
) -> None:
    options = {
        **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.02},
        **({"inner_steps": 2, "every": 1} if name == "tar" else {}),
    }
    start = copy.deepcopy(model)
    trainer = make_trainer(f"{name}+group_dro", model, step_size=0.3, **options)
    trainer.train()
    steps = [e for e in trainer.state.log_history if "group" in e]
    assert len(steps) == 4
    assert all(e["safety_loss"] > 0 for e in steps)
    assert steps[-1]["q_vulnerable"] != 0.5
    again = make_trainer(f"{name}+group_dro", start, step_size=0.3, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-2"))
    assert again.method_state() == trainer.method_state()
    assert same(weights_of(again.model), weights_of(model))


@pytest.mark.parametrize("name", TOGETHER)
def test_neutral_options_leave_the_groups_gradient(
    name: str, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    both = method(f"{name}+group_dro")
    mine = make_trainer(f"{name}+group_dro", model, **both.neutral)
    plain = make_trainer("group_dro", copy.deepcopy(model))
    found = []
    for trainer in (mine, plain):
        trainer.state.max_steps = 3
        trainer.current_gradient_accumulation_steps = 1
        (batch,) = trainer.draw_batches(iter(()), 1)
        trainer.model.zero_grad()
        trainer.accumulate(trainer.model, batch, torch.tensor(40))
        found.append([p.grad.clone() for p in trainer.model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vaa+group_dro", "sam+vaccine", "sam+vaccine+group_dro"])
def test_what_does_not_go_together_is_said(name: str) -> None:
    with pytest.raises(UsageError, match="only one method and group_dro can be combined"):
        method(name)


def test_the_options_are_those_of_both_and_are_checked() -> None:
    options = method("sam+group_dro").Options
    made = options(rho=0.2, sampler="smoothed")
    assert (made.rho, made.sampler, made.floor) == (0.2, "smoothed", 0.1)
    for wrong in ({"rho": -1.0}, {"sampler": "best"}):
        with pytest.raises(UsageError):
            options(**wrong)


# ------------------------------------------------------------------------------------ soft weights


def test_tilt_draws_the_vulnerable_of_a_group_more_often(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    ids, n = data.safety.ids, len(data.safety)
    values = np.arange(n, dtype=float)
    values[0] = np.nan
    scores = Scores(ids, values, "hand", data.safety.hash, "")
    trainer = make_trainer("group_dro", model, replace(data, scores=scores), tilt=2.0)
    stream = trainer.streams["group 1"]  # rows 0, 3, 6, ... 21; 0 has no score
    taken = np.bincount(stream.take(20_000), minlength=n)
    ranks = {0: 0.5, **{3 * i: (i - 1) / 6 for i in range(1, 8)}}
    wanted = np.array([math.exp(2 * ranks[p]) for p in stream.positions])
    found = taken[stream.positions] / 20_000
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.012)


def test_tilt_needs_scores(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    with pytest.raises(UsageError, match="tilt weights rows by their scores"):
        make_trainer("group_dro", model, tilt=1.0)
    with pytest.raises(UsageError, match="tilt=nan"):
        GroupDroOptions(tilt=math.nan)


# ----------------------------------------------------------------------------------- controls


def test_controls_take_away_what_the_groups_say() -> None:
    labels, names = np.repeat([0, 1, 2], [60, 30, 10]), ("low", "mid", "high")

    def found(control: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return controlled(labels, names, control, seed=0)

    assert found("")[0].tolist() == labels.tolist()
    assert found("ungrouped")[1] == ("all",)
    assert set(found("ungrouped")[0]) == {0}
    shuffled, kept = found("shuffled")
    assert kept == names
    assert np.bincount(shuffled).tolist() == [60, 30, 10]
    # A permutation leaves a label in place with the chance of its own share.
    expected = sum(share**2 for share in (0.6, 0.3, 0.1))
    assert abs((shuffled == labels).mean() - expected) < 4 * np.sqrt(0.25 / 100)
    assert (found("noisy")[0] != labels).sum() == 10
    assert set(found("noisy")[0]) <= {0, 1, 2}
    assert found("only_last")[1] == ("high",)
    assert np.flatnonzero(found("only_last")[0] == 0).tolist() == list(range(90, 100))
    assert np.flatnonzero(found("only_first")[0] == 0).tolist() == list(range(60))


@pytest.mark.parametrize("control", get_args(Control)[1:])
def test_a_control_is_trained_on_its_rows(
    control: str, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("group_dro", model, control=control)
    trained = set()
    for _ in range(40):
        (batch,) = trainer.draw_batches(iter(()), 1)
        trained |= set(batch["group"].tolist())
        trainer.training_step(model, batch)
    assert trained - {-1} == set(range(len(trainer.names)))
    assert len(trainer.names) == (2 if control in ("shuffled", "noisy") else 1)
