"""Hold against its equation written out, and what each of its options says it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import models
from holdfast.batches import Batch, answer_tokens
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.losses import kept_rows
from holdfast.methods.base import AlignmentData
from holdfast.methods.hold import HoldOptions, densest
from recorded_steps import nll

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
HARMFUL = {"attack_rows": "harmful", "growth": "constant", "every": 0, "comply": 0.0}


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer)).double()


def drawn(trainer: Any, inner: int | None = None) -> Batch:
    """Draw a step's batch as training does, with an attack of this length."""
    trainer.state.max_steps = trainer.args.max_steps
    trainer.current_gradient_accumulation_steps = 1
    (batch,) = trainer.draw_batches(iter(()), 1)
    if inner is not None:
        trainer.inner = inner
    return dict(batch)


def gradient(trainer: Any, batch: Batch) -> list[Tensor]:
    trainer.model.zero_grad()
    trainer.accumulate(trainer.model, batch, torch.tensor(answer_tokens(batch)))
    return [p.grad.clone() for p in trainer.trainable_parameters()]


# ---------------------------------------------------------------------------- against a slow twin

STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "soft": lambda g: g / (g.abs() + g.abs().mean() + 1e-7),
}


@pytest.mark.parametrize("geometry", [*STEPS, "l2"])
@pytest.mark.parametrize(("clean", "benign"), [(0.0, 1.0), (0.25, 2.0)])
def test_a_step_equals_the_equation(
    geometry: str,
    clean: float,
    benign: float,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
) -> None:
    options = {"geometry": geometry, "clean": clean, "benign": benign, "first": 0}
    options |= {"reach": 0.01, "inner_steps": 3}
    trainer = make_trainer("hold", model, **options, **HARMFUL)
    twin: Any = copy.deepcopy(model).train()
    batch = drawn(trainer, inner=3)
    safe, total = batch["is_safety"], answer_tokens(batch)
    attacker = copy.deepcopy(trainer.streams["attack"])
    parameters = list(twin.parameters())
    start = [p.detach().clone() for p in parameters]
    wanted = [
        (clean * s + benign * b) / total
        for s, b in zip(
            torch.autograd.grad(nll(twin, batch, safe), parameters),
            torch.autograd.grad(nll(twin, batch, ~safe), parameters),
            strict=True,
        )
    ]
    for _ in range(3):
        rows = [trainer.attack[i] for i in attacker.take(int(safe.sum()))]
        attack = models.collate(rows, trainer.pad)
        down = torch.autograd.grad(twin(**attack).loss, parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in down))  # type: ignore[arg-type]
        with torch.no_grad():
            for p, g in zip(parameters, down, strict=True):
                p -= 0.01 * (STEPS[geometry](g) if geometry in STEPS else g / norm)
    there = torch.autograd.grad(nll(twin, batch, safe) / total, parameters)
    wanted = [w + (1 - clean) * t for w, t in zip(wanted, there, strict=True)]
    found = gradient(trainer, batch)
    for p, old in zip(parameters, start, strict=True):
        p.data.copy_(old)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)
    for p, old in zip(model.parameters(), start, strict=True):
        assert torch.equal(p, old)


def test_the_attack_lowers_the_attackers_loss_and_raises_the_safety_loss(
    make_trainer: MakeTrainer, refusing: Any, data: AlignmentData
) -> None:
    """Where there is something to lose: on a model that refuses, from its base's own answers."""
    pair = refusing("llama")
    base = make_trainer("hold", copy.deepcopy(pair.base), growth="constant")
    trainer = make_trainer("hold", copy.deepcopy(pair.model), **HARMFUL, reach=2e-3, clean=0.0)
    for attack in (trainer.attack, base.attack):
        trainer.attack = attack
        trainer.streams["attack"].positions = list(range(len(attack)))
        batch = drawn(trainer, inner=4)
        rows = models.collate(attack, trainer.pad)

        def losses(
            trainer: Any = trainer, rows: Any = rows, batch: Any = batch
        ) -> tuple[float, ...]:
            with torch.no_grad():
                safe = batch["is_safety"]
                return trainer.model(**rows).loss.item(), nll(trainer.model, batch, safe).item()

        before = losses()
        with trainer.perturbation(trainer.model, batch, 1):
            after = losses()
        assert after[0] < before[0]
        assert after[1] > before[1]


# ---------------------------------------------------------------------------------- attack's rows


def test_the_bases_own_words(refusing: Any, make_trainer: MakeTrainer, tokenizer: Any) -> None:
    from holdfast.generate import generate

    pair = refusing("llama")
    trainer = make_trainer("hold", copy.deepcopy(pair.base))
    prompts = trainer.data.safety.prompts
    answers = generate(pair.base, tokenizer, prompts, max_new_tokens=8)
    said = {p: a for p, a in zip(prompts, answers, strict=True) if a}
    rows = Examples([Example(p, a) for p, a in said.items()])
    expected = models.encode(tokenizer, rows, 256)
    assert sorted(trainer.attack, key=str) == sorted(expected, key=str)
    with pytest.raises(UsageError, match=r"already begins \d+ of \d+ answers .* before its align"):
        make_trainer("hold", copy.deepcopy(pair.model))


@pytest.mark.parametrize(
    ("lacking", "options", "message"),
    [
        ("groups", {}, "Hold needs --groups"),
        ("harmful", {"attack_rows": "harmful"}, "attack_rows=harmful needs --harmful"),
        ("benign", {"attack_rows": "mismatched"}, "attack_rows=mismatched needs --benign"),
        ("benign", {**HARMFUL, "over_refusal": 0.1}, "over_refusal is watched on benign rows"),
    ],
)
def test_what_is_lacking_is_named(
    lacking: str,
    options: dict[str, Any],
    message: str,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    data: AlignmentData,
) -> None:
    with pytest.raises(UsageError, match=message):
        make_trainer("hold", model, replace(data, **{lacking: None}), **options)  # type: ignore[arg-type]


# ----------------------------------------------------------------------- rows that are trained on


def test_kept_rows() -> None:
    losses = torch.tensor([0.1, 2.0, 1.0, 0.5])
    assert kept_rows(losses, cap=0.0, worst=1.0).tolist() == [1, 1, 1, 1]
    assert kept_rows(losses, cap=0.5, worst=1.0).tolist() == [0, 1, 1, 1]
    assert kept_rows(losses, cap=0.0, worst=0.5).tolist() == [0, 2, 2, 0]
    assert kept_rows(losses, cap=1.5, worst=0.5).tolist() == [0, 2, 0, 0]
    assert kept_rows(losses, cap=0.0, worst=0.01).tolist() == [0, 4, 0, 0]


def test_cap_and_worst_weigh_the_rows_of_the_safety_loss(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"reach": 0.0, "worst": 0.5, "cap": 0.2, "benign": 1.0}
    trainer = make_trainer("hold", model, **options, **HARMFUL)
    batch = drawn(trainer)
    safe, total = batch["is_safety"], answer_tokens(batch)
    parameters = list(model.parameters())
    model.train()
    every = [nll(model, batch, torch.arange(len(safe)) == i) for i in range(len(safe))]
    tokens = (batch["labels"][:, 1:] != models.IGNORE).sum(1)
    means = torch.tensor([float(loss.detach()) for loss in every]) / tokens
    kept = torch.zeros(len(safe))
    kept[safe] = kept_rows(means[safe], cap=0.2, worst=0.5)
    kept[~safe] = 1.0
    loss = sum(w * one for w, one in zip(kept.tolist(), every, strict=True)) / total
    wanted = torch.autograd.grad(loss, parameters)  # type: ignore[arg-type]
    for a, b in zip(gradient(trainer, batch), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def answers_at(batch: Batch, rows: Tensor) -> list[tuple[int, int]]:
    """Return each row with the position that predicts the first token of its answer."""
    labels = batch["labels"]
    chosen = torch.nonzero(rows).flatten().tolist()
    return [(i, int((labels[i] != models.IGNORE).nonzero()[0]) - 1) for i in chosen]


def log_chances(model: Any, batch: Batch) -> Tensor:
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    found: Tensor = model(**asked).logits.log_softmax(2)
    return found


def opening_nll(model: Any, batch: Batch, n: int) -> Tensor:
    """Return the sum over the safety rows of -log p of the first n answer tokens."""
    chances = log_chances(model, batch)
    parts = [
        -chances[i, j, batch["labels"][i, j + 1]]
        for i, start in answers_at(batch, batch["is_safety"])
        for j in range(start, start + n)
    ]
    return torch.stack(parts).sum()


def refused_nll(model: Any, batch: Batch, refusals: Tensor) -> Tensor:
    """Return the mean over the benign rows of -log(1 - p(S)) at the first answer token."""
    chances = log_chances(model, batch).exp()
    rows = answers_at(batch, ~batch["is_safety"])
    return torch.stack([-torch.log1p(-chances[i, j, refusals].sum()) for i, j in rows]).mean()


def test_of_a_lasting_attack_the_first_tokens_are_held_and_whole_answers_at_theta(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"reach": 0.01, "inner_steps": 2, "clean": 0.25, "benign": 2.0, "first": 2}
    options["weight"] = 4.0
    trainer = make_trainer("hold", model, **{**HARMFUL, **options, "every": 1, "comply": 3.0})
    batch = drawn(trainer)
    safe, total = batch["is_safety"], answer_tokens(batch)
    parameters = trainer.trainable_parameters()
    assert trainer.inner
    theta = [p.detach().clone() for p in parameters]
    walk = list(trainer.lasting.steps(parameters, 1.0))
    twin: Any = copy.deepcopy(model).train()

    def at(reach: float, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for p, old, w in zip(twin.parameters(), theta, walk, strict=True):
                p.copy_(old + reach * w)
        return torch.autograd.grad(loss(), list(twin.parameters()))

    def opening() -> Tensor:
        return opening_nll(twin, batch, 2)

    def benign() -> Tensor:
        share = int((batch["labels"][~safe][:, 1:] != models.IGNORE).sum()) / total
        refused = refused_nll(twin, batch, trainer.refusals)
        return nll(twin, batch, ~safe) / total + 3.0 * share * refused

    wanted = [
        at(0.01, lambda: 4.0 * 0.75 * opening() / total),
        at(0.0, lambda: 0.25 * nll(twin, batch, safe) / total),
        at(0.0, lambda: 2.0 * benign()),
    ]
    for found, *parts in zip(gradient(trainer, batch), *wanted, strict=True):
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-8)
    assert all(torch.equal(p, old) for p, old in zip(parameters, theta, strict=True))
    # What the attack adds is told over the same tokens here and there: two of each safety row.
    losses = []
    for reach in (0.01, 0.0):
        at(reach, opening)
        losses.append(opening().item() / (2 * int(safe.sum())))
    assert trainer.gap() == pytest.approx(losses[0] - losses[1], abs=1e-5)


@pytest.mark.parametrize(("options", "paid"), [({}, "gap"), ({"cap": 0.1}, "loss")])
def test_the_adversary_is_paid_by_the_gap_where_it_is_known(
    options: dict[str, Any], paid: str, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("hold", model, **{**HARMFUL, **options, "every": 1, "reach": 0.05})
    gradient(trainer, drawn(trainer))
    rewards = trainer.rewards({0: 5.0})
    expected = {"gap": max(trainer.gap(), 1e-6), "loss": 5.0}[paid]
    assert rewards == {0: expected}


# ---------------------------------------------------------------------- how far the attack reaches


def test_the_attack_grows_with_the_run(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("hold", model, attack_rows="harmful", inner_steps=4, max_steps=9)
    trainer.state.max_steps = 9
    most = []
    for step in range(9):
        trainer.state.global_step = step
        trainer._grow(step)
        most.append(trainer._most())
    assert most == [1, 1, 1, 2, 2, 3, 3, 4, 4]  # ceil(4 step / 8), one at least


def test_the_attack_grows_while_benign_prompts_are_answered(
    model: PreTrainedModel, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        "hold", model, attack_rows="harmful", inner_steps=6, over_refusal=0.1, max_steps=40
    )
    trainer.state.max_steps = 40
    aside = len(trainer.watched)
    assert aside == 6  # a fifth of 32
    assert len(trainer.streams["benign"].positions) == 32 - aside
    refused = 0.0
    margins = np.linspace(-1, 1, 100)
    monkeypatch.setattr(
        trainer, "_margins", lambda rows: margins - np.quantile(margins, 1 - refused)
    )
    levels = []
    for step in range(40):
        refused = 0.0 if step < 30 else 0.5
        trainer._grow(step)
        levels.append(trainer.level)
    assert levels[23] == pytest.approx(1.0)  # 24 checks of 40, 0.6 of them
    assert trainer.level == pytest.approx(1.0 - 10 * 2 / 24)
    assert trainer._most() == round(6 * trainer.level)


def test_vulnerable_groups_are_attacked_farther(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("hold", model, spread=3.0, reach=0.01, **HARMFUL)
    found = {}
    for _ in range(20):
        batch = drawn(trainer, inner=1)
        with trainer.perturbation(model, batch, 1):
            moved = next(model.parameters()).detach().clone()
        step = (moved - next(model.parameters()).detach()).abs().max().item()
        found[trainer.group] = step
    assert found == pytest.approx({0: 0.01, 1: 0.03})


# ---------------------------------------------------------------------------- the groups' adversary


def test_the_adversary_is_paid_by_what_the_attack_adds(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("hold", model, max_steps=6, reach=5e-3, **HARMFUL)
    paid: list[dict[int, float]] = []
    observe = trainer.sampler.observe

    def noting(losses: dict[int, float]) -> None:
        paid.append(dict(losses))
        observe(losses)

    trainer.sampler.observe = noting
    trainer.train()
    logged = [e for e in trainer.state.log_history if "group" in e]
    for entry, rewards in zip(logged, paid, strict=True):
        assert rewards == {entry["group"]: max(entry["perturbation_gap"], 1e-6)}


@pytest.mark.parametrize("options", [{"signal": "loss"}, {"clean": 0.0}])
def test_or_by_the_loss(
    options: dict[str, Any], model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("hold", model, **HARMFUL, **options)
    assert trainer.rewards({1: 0.3}) == {1: 0.3}


# ---------------------------------------------------------------------------------------- regroup


def test_regrouping_follows_the_margins_under_the_attack(
    make_trainer: MakeTrainer, refusing: Any
) -> None:
    trainer = make_trainer(
        "hold", copy.deepcopy(refusing("llama").model), reach=2e-3, regroup=1, **HARMFUL
    )
    sizes = np.bincount(trainer.labels)
    trainer.state.max_steps = 3
    trainer.state.global_step = 1
    seen: list[np.ndarray] = []
    margins = trainer._margins

    def watched(rows: Any) -> np.ndarray:
        seen.append(margins(rows))
        return seen[-1]

    trainer._margins = watched
    before = margins(trainer.safety_rows)
    drawn(trainer)
    (under,) = seen
    assert (under < before).mean() > 0.5  # they were read under the attack
    np.testing.assert_array_equal(np.bincount(trainer.labels), sizes)
    assert under[trainer.labels == 1].max() <= under[trainer.labels == 0].min()
    for group in (0, 1):
        assert trainer.streams[f"group {group}"].positions == trainer.members(group)


# ------------------------------------------------------------------------------------------- lean


def test_the_densest_tensors_that_fit() -> None:
    grads = [torch.full((4,), 1.0), torch.full((8,), -3.0), torch.full((2,), 2.0)]
    assert densest(grads, 1.0) == [0, 1, 2]
    assert densest(grads, 0.6) == [1]  # 8 of 8.4 weights; nothing else fits
    assert densest(grads, 0.45) == [0, 2]  # the densest does not fit
    assert densest(grads, 0.01) == [1]  # one at least


def test_a_lasting_attack_written_out(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    """One step every second update, at the weights where the attack stands; then a new one."""
    trainer = make_trainer("hold", model, reach=0.01, inner_steps=2, **{**HARMFUL, "every": 2})
    parameters = trainer.trainable_parameters()
    theta = [p.detach().clone() for p in parameters]
    attacker = copy.deepcopy(trainer.streams["attack"])
    trainer.draws = Lengths([2, 1])
    walk = [torch.zeros_like(p) for p in parameters]
    twin: Any = copy.deepcopy(model).train()
    for step in range(6):
        trainer.state.global_step = step
        batch = drawn(trainer)
        if step == 4:  # two steps were taken: the next attack begins
            walk = [torch.zeros_like(p) for p in parameters]
        if step % 2 == 0:
            rows = [trainer.attack[i] for i in attacker.take(3)]
            with torch.no_grad():
                for p, old, w in zip(twin.parameters(), theta, walk, strict=True):
                    p.copy_(old + 0.01 * w)
            loss = twin(**models.collate(rows, trainer.pad)).loss
            found = torch.autograd.grad(loss, list(twin.parameters()))
            walk = [w - g.sign() for w, g in zip(walk, found, strict=True)]
        assert trainer.inner == (1, 1, 2, 2, 1, 1)[step]
        with trainer.perturbation(model, batch, 1):
            for p, old, w in zip(parameters, theta, walk, strict=True):
                torch.testing.assert_close(p.detach(), old + 0.01 * w, rtol=0, atol=1e-12)
    assert all(count.dtype is torch.int8 for count in trainer.lasting.tensors().values())
    assert all(torch.equal(p, old) for p, old in zip(parameters, theta, strict=True))


class Lengths:
    """Draws the lengths that it is given."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def integers(self, low: int, high: int) -> int:
        return self.lengths.pop(0)


def test_a_step_of_a_lean_attack_is_made_of_that_share_of_the_rows(
    model: PreTrainedModel, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share, rows in ((1.0, 3), (0.5, 2), (0.01, 1)):  # of three safety rows
        trainer = make_trainer("hold", model, attack_share=share, **{**HARMFUL, "every": 1})
        seen = []
        collate = trainer.collate_rows
        monkeypatch.setattr(
            trainer, "collate_rows", lambda r, c=collate, s=seen: s.append(len(r)) or c(r)
        )
        drawn(trainer)
        assert seen[0] == rows


def test_only_the_chosen_tensors_move(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("hold", model, layers=0.4, reach=0.01, **HARMFUL)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = drawn(trainer, inner=2)
    with trainer.perturbation(model, batch, 1):
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
    assert moved == set(trainer._chosen)
    total = sum(w.numel() for w in weights.values())
    assert 0.1 < sum(weights[n].numel() for n in moved) / total <= 0.4


LEAN = {"every": 3, "layers": 0.5, "attack_share": 0.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lean": LEAN,
    "anew": {"every": 0},
    "watched": {"over_refusal": 0.5, "every": 0},
    "regrouped": {"regroup": 2, "spread": 2.0},
    "mixed": {"batch": "mixed"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_resume_equals_the_uninterrupted_run(
    name: str,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    weights_of: Weights,
    same: Same,
) -> None:
    options = {
        "attack_rows": "harmful",
        "max_steps": 6,
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 4,
        **OPTIONS[name],
    }
    start = copy.deepcopy(model)
    whole = make_trainer("hold", model, **options)
    whole.train()
    again = make_trainer("hold", start, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-4"))
    assert again.method_state() == whole.method_state()
    assert same(weights_of(start), weights_of(model))


def test_the_optimizers_own_geometry(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        "hold", model, geometry="adam", reach=0.01, optim="adamw_torch", max_steps=2, **HARMFUL
    )
    parameters = trainer.trainable_parameters()
    ones = [torch.full_like(p, 2.0) for p in parameters]
    first = trainer._preconditioned([g.clone() for g in ones], 0.01)
    assert all(torch.equal(step, torch.full_like(step, -0.01)) for step in first)  # the sign
    trainer.train()
    small = [torch.full_like(p, 1e-6) for p in parameters]
    later = trainer._preconditioned([g.clone() for g in small], 0.01)
    for p, step in zip(parameters, later, strict=True):
        v = trainer.optimizer.state[p]["exp_avg_sq"]
        torch.testing.assert_close(step, -0.01 * (1e-6 / (v.sqrt() + 1e-8)).clamp(-1, 1))


@pytest.mark.parametrize("options", [{"every": 1}, {"layers": 0.5}])
def test_sharded_weights_are_refused_when_training_begins(
    options: dict[str, Any],
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("hold", model, **{**HARMFUL, **options})
    monkeypatch.setattr("holdfast.methods.hold.is_sharded", lambda parameters: True)
    with pytest.raises(UsageError, match="need whole weights; train with DDP, not FSDP2"):
        drawn(trainer)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack_rows": "all"}, "attack_rows='all' must be one of base, mismatched"),
        ({"geometry": "l1"}, "geometry='l1' must be one of sign, soft"),
        ({"growth": "fast"}, "growth='fast' must be one of linear"),
        ({"reach": -1.0}, "reach=-1.0 must not be negative"),
        ({"clean": 1.0}, r"clean=1.0 and over_refusal=0.0 are shares in \[0, 1\)"),
        ({"worst": 0.0}, r"worst=0.0 must be a share in \(0, 1\]"),
        ({"attack_share": 1.5}, r"attack_share=1.5 must be a share in \(0, 1\]"),
        ({"inner_steps": 0}, "inner_steps=0 must lie between 1 and 127"),
        ({"benign": 0.0}, "benign=0.0 must be above 0"),
        ({"every": 2, "geometry": "l2"}, "every=2 counts signs: it needs geometry=sign"),
        ({"first": -1}, "first=-1 must not be negative"),
        ({"regroup": 5, "control": "noisy"}, "regroup would undo control=noisy"),
        ({"spread": 2.0, "batch": "mixed"}, "spread attacks each group on its own"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HoldOptions(**options)
