"""VAA against the equations written out, its neutral element, and what it must leave alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import MismatchError, TrainingError, UsageError
from holdfast.examples import Example, Examples
from holdfast.methods._batches import Batch, answer_tokens
from holdfast.methods.base import AlignmentData
from holdfast.methods.vaa import Vaa, VaaOptions
from holdfast.models import adapters
from holdfast.results.artifacts import Groups
from recorded_steps import nll

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
PERTURBED = {"lam": 1.0, "curriculum": "constant"}


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


@pytest.fixture
def safety_only(data: AlignmentData) -> AlignmentData:
    return replace(data, benign=None)


def grads(model: Any) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def drawn(trainer: Any, n: int = 1) -> list[Batch]:
    """Draw a step's batches as training does, before training has begun."""
    trainer.state.max_steps = trainer.args.max_steps
    trainer.current_gradient_accumulation_steps = n
    batches: list[Batch] = trainer.draw_batches(iter(()), n)
    return batches


def accumulate(trainer: Any, batch: Batch) -> list[Tensor]:
    """Return the gradient of one micro-batch."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    trainer.accumulate(trainer.model, batch, torch.tensor(answer_tokens(batch)))
    return grads(trainer.model)


# ---------------------------------------------------------------------------- against a slow twin


class Recorder:
    """Keeps the group and the batches of every step."""

    def __init__(self, trainer: Any) -> None:
        self.steps: list[tuple[int, list[Batch]]] = []
        self.draw = trainer.draw_batches
        self.trainer = trainer
        trainer.draw_batches = self

    def __call__(self, iterator: Any, n: int) -> list[Batch]:
        batches: list[Batch] = self.draw(iterator, n)
        self.steps.append((self.trainer.group, [dict(b) for b in batches]))
        return batches


def twin_step(model: Any, batches: list[Batch], rho: float) -> tuple[list[Tensor], float]:
    """Return the step's gradient and the safety loss that it saw."""
    parameters = list(model.parameters())
    total = sum(answer_tokens(b) for b in batches)
    gradient = [torch.zeros_like(p) for p in parameters]
    seen, tokens = 0.0, 0
    for batch in batches:
        safe = batch["is_safety"]
        up = torch.autograd.grad(nll(model, batch, safe) / total, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in up))
        theta = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, up, strict=True):
                p += rho * g / (norm + 1e-7)
        loss = nll(model, batch, safe)
        there = torch.autograd.grad(loss / total, parameters)
        with torch.no_grad():
            for p, old in zip(parameters, theta, strict=True):
                p.copy_(old)
        benign = torch.autograd.grad(nll(model, batch, ~safe) / total, parameters)
        gradient = [g + a + b for g, a, b in zip(gradient, there, benign, strict=True)]
        seen += loss.item()
        tokens += int((batch["labels"][safe][:, 1:] != -100).sum())
    return gradient, seen / tokens


@pytest.mark.parametrize("accumulation", [1, 2])
def test_three_steps_equal_the_equations(
    accumulation: int, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    model = model.double()
    theirs: Any = copy.deepcopy(model)
    trainer = make_trainer(
        "vaa",
        model,
        gradient_accumulation_steps=accumulation,
        rho=0.4,
        step_size=0.05,
        **PERTURBED,
    )
    recorder = Recorder(trainer)
    trainer.train()
    assert len(recorder.steps) == 3
    q, rng = [0.5, 0.5], np.random.default_rng(3)
    theirs.train()
    for (group, batches), logged in zip(
        recorder.steps, [e for e in trainer.state.log_history if "group" in e], strict=True
    ):
        assert len(batches) == accumulation
        assert group == rng.choice(2, p=q)
        gradient, loss = twin_step(theirs, batches, 0.4)
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), gradient, strict=True):
                p -= 0.1 * g
        weights = [x * math.exp(0.05 * loss / x) if i == group else x for i, x in enumerate(q)]
        q = [min(max(w / sum(weights), 0.1), 0.9) for w in weights]
        assert logged["safety_loss"] == pytest.approx(loss, rel=1e-6)
        assert (logged["group"], logged["perturbed"]) == (group, 1)
        assert [logged["q_invulnerable"], logged["q_vulnerable"]] == pytest.approx(q, rel=1e-6)
    for p, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, rtol=0, atol=1e-8)


def test_the_perturbation_matters(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("vaa", model, rho=0.4, **PERTURBED)
    (batch,) = drawn(trainer)
    assert trainer.perturb
    there = accumulate(trainer, batch)
    trainer.perturb = False
    here = accumulate(trainer, batch)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(there, here, strict=True))


# ------------------------------------------------------------------------------- neutral element


def test_without_rho_the_gradient_is_sfts_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer, safety_only: AlignmentData
) -> None:
    mine = make_trainer("vaa", model, safety_only, rho=0.0, **PERTURBED)
    plain = make_trainer("sft", copy.deepcopy(model), safety_only)
    (batch,) = drawn(mine)
    assert not mine.perturb
    for a, b in zip(accumulate(mine, batch), accumulate(plain, batch), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("accepts", [True, False])
def test_without_rho_benign_rows_weigh_as_in_sft(
    accepts: bool, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    """Some architectures divide by the tokens of what they are given, whatever the step has."""
    mine = make_trainer("vaa", model.double(), rho=0.0)
    plain = make_trainer("sft", copy.deepcopy(model))
    for trainer in (mine, plain):
        trainer.model_accepts_loss_kwargs = accepts
    (batch,) = drawn(mine)
    assert 0 < int(batch["is_safety"].sum()) < len(batch["is_safety"])
    for a, b in zip(accumulate(mine, batch), accumulate(plain, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_sampler_sees_the_mean_loss_per_safety_token(
    accumulation: int, accepts: bool, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        "vaa", model, rho=0.0, max_steps=1, gradient_accumulation_steps=accumulation
    )
    before = copy.deepcopy(model)
    trainer.model_accepts_loss_kwargs = accepts
    recorder = Recorder(trainer)
    trainer.train()
    ((_, batches),) = recorder.steps
    with torch.no_grad():
        total = sum(float(nll(before, b, b["is_safety"])) for b in batches)
    tokens = sum(int((b["labels"][b["is_safety"]][:, 1:] != -100).sum()) for b in batches)
    (logged,) = [entry for entry in trainer.state.log_history if "group" in entry]
    assert logged["safety_loss"] == pytest.approx(total / tokens, rel=1e-4)


# ------------------------------------------------------------------------ what must not be touched


@pytest.mark.parametrize("perturbation", ["own_loss", "random"])
def test_accumulate_changes_nothing_but_the_gradient(
    perturbation: str,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    weights_of: Weights,
    same: Same,
) -> None:
    trainer = make_trainer("vaa", model, perturbation=perturbation, **PERTURBED)
    (batch,) = drawn(trainer)
    before = weights_of(model)
    first = accumulate(trainer, batch)
    assert same(weights_of(model), before)
    # A second micro-batch adds to the first one's gradient.
    trainer.accumulate(model, batch, torch.tensor(answer_tokens(batch)))
    assert same(weights_of(model), before)
    if perturbation == "own_loss":
        for p, g in zip(model.parameters(), first, strict=True):
            torch.testing.assert_close(p.grad, 2 * g)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_weights_come_back_when_the_forward_raises(
    nth: int,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    weights_of: Weights,
    same: Same,
) -> None:
    """Forward 1 finds the direction, 2 is at the perturbed weights, 3 is the benign rows'."""
    trainer = make_trainer("vaa", model, **PERTURBED)
    (batch,) = drawn(trainer)
    before = weights_of(model)
    calls = []

    def boom(*args: object) -> None:
        calls.append(same(weights_of(model), before))
        if len(calls) == nth:
            raise RuntimeError("boom")

    handle = model.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        accumulate(trainer, batch)
    handle.remove()
    assert calls == [True, False, True][:nth]
    assert same(weights_of(model), before)


def test_lora_leaves_the_base_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights
) -> None:
    adapted = adapters.add_lora(model, 2, seed=0)
    before = weights_of(adapted)
    trainer = make_trainer("vaa", adapted, rho=0.4, learning_rate=1.0, **PERTURBED)
    trainer.train()
    moved = {n for n, value in weights_of(adapted).items() if not torch.equal(value, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_sampler(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("vaa", model, **PERTURBED)
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    with pytest.raises(TrainingError, match=r"loss is nan at step 1.*Lower the learning rate"):
        trainer.train()
    assert trainer.sampler.probs.tolist() == [0.5, 0.5]


def skip_steps(monkeypatch: pytest.MonkeyPatch, skipped: list[bool]) -> None:
    """Let accelerate's optimizer say of each step whether fp16's loss scaler skipped it."""
    steps = iter(skipped)

    def step(optimizer: AcceleratedOptimizer, closure: object = None) -> None:
        del closure
        optimizer._is_overflow = next(steps)

    monkeypatch.setattr(AcceleratedOptimizer, "step", step)


def test_training_whose_every_step_is_skipped_is_an_error(
    model: PreTrainedModel, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_steps(monkeypatch, [True, True, True])
    with pytest.raises(TrainingError, match="all 3 steps were skipped .* no weight has moved"):
        make_trainer("sft", model).train()


def test_skipped_steps_are_counted(
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    skip_steps(monkeypatch, [True, False, False])
    make_trainer("sft", model).train()
    assert "1 of 3 steps were skipped because their gradients overflowed in fp16" in caplog.text


# ------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("mixture", ["coin", "both"])
def test_resume_equals_the_uninterrupted_run(
    mixture: str,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    weights_of: Weights,
    same: Same,
) -> None:
    options = {
        "max_steps": 6,
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 3,
        "mixture": mixture,
        "lam": 0.5,
        "curriculum": "constant",
        "step_size": 0.3,
    }
    start = copy.deepcopy(model)
    whole = make_trainer("vaa", model, **options)
    seen = Recorder(whole)
    whole.train()
    again = make_trainer("vaa", start, **options)
    resumed = Recorder(again)
    again.train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-3"))
    assert len(resumed.steps) == 3
    for (g1, b1), (g2, b2) in zip(resumed.steps, seen.steps[3:], strict=True):
        assert g1 == g2
        assert all(same(x, y) for x, y in zip(b1, b2, strict=True))
    assert again.method_state() == whole.method_state()
    assert same(weights_of(start), weights_of(model))
    perturbed = [e["perturbed"] for e in whole.state.log_history if "group" in e]
    # The coin was really in play.
    assert sum(perturbed) == 6 if mixture == "both" else 0 < sum(perturbed) < 6


# ------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("accumulation", [1, 3])
def test_no_step_mixes_groups(
    accumulation: int, model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    trainer = make_trainer("vaa", model)
    group_of = {
        row.ids: int(label)
        for row, label in zip(trainer.rows[: trainer.n_safety], data.groups.labels, strict=True)  # type: ignore[union-attr]
    }
    visited: list[tuple[int, ...]] = []
    for _ in range(12):
        update = drawn(trainer, accumulation)
        benign = [int((~batch["is_safety"]).sum()) for batch in update]
        # 32 of 56 rows are benign: 4.57 of 8, 13.71 of 24, rounded.
        assert (sum(benign), set(benign) <= {4, 5}) == ({1: 5, 3: 14}[accumulation], True)
        for batch in update:
            for ids, mask, safe in zip(
                batch["input_ids"].tolist(),
                batch["attention_mask"].tolist(),
                batch["is_safety"].tolist(),
                strict=True,
            ):
                row = tuple(ids[: sum(mask)])
                if safe:
                    assert group_of[row] == trainer.group
                    visited.append(row)
    assert {group_of[row] for row in visited} == {0, 1}


def test_streams_visit_every_row_once_a_round() -> None:
    from holdfast.methods._batches import Stream

    stream = Stream([4, 7, 9], seed=0)
    taken = stream.take(2) + stream.take(5) + stream.take(2)
    assert [sorted(taken[i : i + 3]) for i in (0, 3, 6)] == [[4, 7, 9]] * 3


def test_start_proportional_to_the_groups(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("vaa", model, start="proportional")
    assert trainer.sampler.probs == pytest.approx([16 / 24, 8 / 24])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.0, 0.2, 0.4, 0.6]),
        ("constant", [0.8] * 4),
        ("cosine", [0.0, 0.4 * (1 - math.sqrt(0.5)), 0.4, 0.4 * (1 + math.sqrt(0.5))]),
    ],
)
def test_the_curriculum(
    kind: str, expected: list[float], model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("vaa", model, lam=0.8, max_steps=4, curriculum=kind)
    trainer.state.max_steps = 4
    found = []
    for step in range(4):
        trainer.state.global_step = step
        found.append(trainer.curriculum())
    assert found == pytest.approx(expected)


def test_the_curriculum_follows_the_safety_loss(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        "vaa", model, lam=0.8, max_steps=30, curriculum="safety", learning_rate=1.0
    )
    trainer.train()
    logged = [e for e in trainer.state.log_history if "lambda" in e]
    first = smooth = logged[0]["safety_loss"]
    assert logged[0]["lambda"] == 0.0
    for before, now in zip(logged, logged[1:], strict=False):
        if before is not logged[0]:
            smooth = 0.9 * smooth + 0.1 * before["safety_loss"]
        assert now["lambda"] == pytest.approx(0.8 * max(1 - smooth / first, 0.0))
    assert logged[-1]["lambda"] > 0.1  # it has learnt something


# ------------------------------------------------------------------- what is ours, not the paper's


def test_both_is_the_mixture_written_out(
    model: PreTrainedModel, make_trainer: MakeTrainer, safety_only: AlignmentData
) -> None:
    """Against two runs: all of the gradient at theta, all of it at theta + eps."""
    options = {"curriculum": "constant", "rho": 0.4}
    model = model.double()
    made = {
        "clean": make_trainer("vaa", model, safety_only, **{**options, "rho": 0.0}),
        "there": make_trainer("vaa", model, safety_only, **options),
        "both": make_trainer("vaa", model, safety_only, lam=0.3, mixture="both", **options),
    }
    batch = [drawn(trainer)[0] for trainer in made.values()][0]
    clean, there, both = (accumulate(trainer, batch) for trainer in made.values())
    for c, t, found in zip(clean, there, both, strict=True):
        torch.testing.assert_close(found, 0.7 * c + 0.3 * t)
    # So is the loss that is logged, and that the adversary is paid.
    items = torch.tensor(answer_tokens(batch))
    losses = [trainer.accumulate(model, batch, items).item() for trainer in made.values()]
    assert losses[2] == pytest.approx(0.7 * losses[0] + 0.3 * losses[1])
    assert losses[1] > losses[0]


def test_random_has_the_length_of_the_ascent_and_differs_every_time(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    found = []
    for _ in range(2):
        trainer = make_trainer("vaa", model, perturbation="random", rho=0.3, **PERTURBED)
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(2):
            (batch,) = drawn(trainer)
            with trainer.perturbation(model, batch, 40):
                found.append(
                    torch.cat(
                        [(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]
                    ).detach()
                )
    for step in found:
        assert step.norm().item() == pytest.approx(0.3, rel=1e-4)
    assert torch.equal(found[0], found[2])  # the seed's
    assert torch.equal(found[1], found[3])
    assert abs(torch.cosine_similarity(found[0], found[1], dim=0).item()) < 0.1


@pytest.mark.parametrize("mixture", ["coin", "both"])
def test_per_update_accumulation_equals_one_large_batch(
    mixture: str, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    def made(per: str) -> Any:
        return make_trainer(
            "vaa", model.double(), rho=0.4, per=per, mixture=mixture, curriculum="constant", lam=0.6
        )

    def gradient(trainer: Any, parts: list[Batch], total: int) -> list[Tensor]:
        trainer.lam, trainer.perturb, trainer.update_batches = 0.6, True, parts
        trainer.current_gradient_accumulation_steps = len(parts)
        model.zero_grad()
        for part in parts:
            trainer.accumulate(model, part, torch.tensor(total))
        trainer.before_update(torch.zeros(1))
        return grads(model)

    whole = made("update")
    (batch,) = drawn(whole)
    parts = [{k: v[i::2] for k, v in batch.items()} for i in range(2)]
    wanted = gradient(whole, [batch], answer_tokens(batch))
    found = gradient(made("update"), parts, answer_tokens(batch))
    each = gradient(made("micro_batch"), parts, answer_tokens(batch))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert any(not torch.allclose(a, b) for a, b in zip(each, wanted, strict=True))


def test_the_perturbation_gap_is_what_the_perturbation_costs(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("vaa", model.double(), rho=0.4, max_steps=1, **PERTURBED)
    before: Any = copy.deepcopy(model)
    recorder = Recorder(trainer)
    trainer.train()
    ((_, (batch,)),) = recorder.steps
    safe = batch["is_safety"]
    here = nll(before, batch, safe).item()
    tokens = int((batch["labels"][safe][:, 1:] != -100).sum())
    (logged,) = [e for e in trainer.state.log_history if "perturbation_gap" in e]
    assert logged["perturbation_gap"] == pytest.approx(
        logged["safety_loss"] - here / tokens, rel=1e-4
    )
    assert logged["perturbation_gap"] > 0


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curriculum": "cubic"}, "curriculum='cubic' must be one of 'linear', 'cosine', "),
        ({"start": "even"}, "start='even' must be one of 'uniform', 'proportional'"),
        ({"perturbation": "none"}, "perturbation='none' must be one of 'own_loss', 'random'"),
        ({"sampler": "exp4"}, "sampler='exp4' must be one of 'exp3', 'smoothed'"),
        (
            {"batch": "mixed"},
            "batch=mixed observes the loss of every group, but exp3 divides",
        ),
        (
            {"mixture": "both", "perturbation": "random"},
            "mixture=both needs the gradient of the perturbation, but a random one",
        ),
        ({"per": "step"}, "per='step' must be one of 'micro_batch', 'update'"),
        ({"lam": 1.5}, r"lam=1\.5 must be a number from 0 to 1"),
        ({"lam": math.nan}, "lam=nan must be a number from 0 to 1"),
        ({"rho": -0.1}, r"rho=-0\.1 must be a number, at least 0"),
        ({"rho": math.nan}, "rho=nan must be a number, at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VaaOptions(**options)


def test_groups_are_needed(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    with pytest.raises(UsageError, match="Vaa needs --groups"):
        make_trainer("vaa", model, replace(data, groups=None))


def test_groups_of_other_rows_are_refused(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    other = Examples([*data.safety, Example("brew tea", "no")])
    with pytest.raises(MismatchError, match="groups lack 1 of 25"):
        make_trainer("vaa", model, replace(data, safety=other))


def test_an_empty_group_is_named(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    groups: Any = data.groups
    labels = np.zeros_like(groups.labels)
    empty = Groups(groups.ids, labels, groups.names, "none", "", groups.data_hash)
    with pytest.raises(UsageError, match="group 'vulnerable' is empty"):
        make_trainer("vaa", model, replace(data, groups=empty))


def test_published_defaults() -> None:
    options = VaaOptions()
    found = (options.rho, options.lam, options.curriculum, options.step_size, options.floor)
    assert found == (0.4, 1.0, "linear", 0.007, 0.1)
    assert Vaa.neutral == {"rho": 0.0}
