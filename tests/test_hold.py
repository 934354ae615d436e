"""Hold against its equation written out, and what each of its options says it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.methods._batches import Batch, answer_tokens
from holdfast.methods.base import AlignmentData
from holdfast.methods.hold import HoldOptions
from holdfast.models import encoding
from recorded_steps import nll

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
HARMFUL = {"attack_rows": "harmful", "every": 0, "attack_share": 1.0}
HARMFUL |= {"mixture": "both", "comply": 0.0, "refuse": 0.0}


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer)).double()


def drawn(trainer: Any, inner: int | None = None) -> Batch:
    """Draw a step's batch as training does late in a run, with an attack of this length."""
    trainer.state.max_steps = trainer.args.max_steps
    trainer.current_gradient_accumulation_steps = 1
    trainer._longest_attack = lambda: trainer.options.inner_steps
    (batch,) = trainer.draw_batches(iter(()), 1)
    if inner is not None:
        trainer.attack_steps = inner
    return dict(batch)


def gradient(trainer: Any, batch: Batch) -> list[Tensor]:
    trainer.model.zero_grad()
    trainer.accumulate(trainer.model, batch, torch.tensor(answer_tokens(batch)))
    return [p.grad.clone() for p in trainer.trainable_parameters()]


# ---------------------------------------------------------------------------- against a slow twin


@pytest.mark.parametrize(("clean", "benign"), [(0.0, 1.0), (0.25, 2.0)])
def test_a_step_equals_the_equation(
    clean: float,
    benign: float,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
) -> None:
    options = {"clean": clean, "benign": benign, "reach": 0.01, "inner_steps": 3}
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
        attack = encoding.collate(rows, trainer.pad)
        down = torch.autograd.grad(twin(**attack).loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, down, strict=True):
                p -= 0.01 * torch.sign(g)
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
    base = make_trainer("hold", copy.deepcopy(pair.base))
    trainer = make_trainer("hold", copy.deepcopy(pair.model), **HARMFUL, reach=2e-3, clean=0.0)
    for attack in (trainer.attack, base.attack):
        trainer.attack = attack
        trainer.streams["attack"].positions = list(range(len(attack)))
        batch = drawn(trainer, inner=4)
        rows = encoding.collate(attack, trainer.pad)

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
    from holdfast.models.generation import generate

    pair = refusing("llama")
    trainer = make_trainer("hold", copy.deepcopy(pair.base))
    prompts = trainer.data.safety.prompts
    answers = generate(pair.base, tokenizer, prompts, max_new_tokens=8)
    said = {p: a for p, a in zip(prompts, answers, strict=True) if a}
    rows = Examples([Example(p, a) for p, a in said.items()])
    expected = encoding.encode(tokenizer, rows, 256)
    assert sorted(trainer.attack, key=str) == sorted(expected, key=str)
    with pytest.raises(UsageError, match=r"already begins \d+ of \d+ answers .* before its align"):
        make_trainer("hold", copy.deepcopy(pair.model))


@pytest.mark.parametrize(
    ("lacking", "options", "message"),
    [
        ("groups", {}, "Hold needs --groups"),
        ("harmful", {"attack_rows": "harmful"}, "attack_rows=harmful needs --harmful"),
        ("benign", {"attack_rows": "mismatched"}, "attack_rows=mismatched needs --benign"),
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


def answers_at(batch: Batch, rows: Tensor) -> list[tuple[int, int]]:
    """Return each row with the position that predicts the first token of its answer."""
    labels = batch["labels"]
    chosen = torch.nonzero(rows).flatten().tolist()
    return [(i, int((labels[i] != encoding.IGNORE).nonzero()[0]) - 1) for i in chosen]


def log_chances(model: Any, batch: Batch) -> Tensor:
    asked = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    found: Tensor = model(**asked).logits.log_softmax(2)
    return found


def opening_nll(model: Any, batch: Batch, rows: Tensor, refusals: Tensor) -> Tensor:
    """Return the sum of -log p(S) at rows' first answer tokens, of benign rows of -log(1 - p(S)).

    A row counts as often as its answer has tokens.
    """
    chances = log_chances(model, batch).exp()
    found = []
    for i, j in answers_at(batch, rows):
        own = int(batch["labels"][i, j + 1])
        theirs = set(refusals.tolist()) | {own}
        if not batch["is_safety"][i]:
            theirs = (set(range(chances.shape[2])) - theirs) | {own}
        missed = -torch.log(chances[i, j, sorted(theirs)].sum())
        found.append(int((batch["labels"][i][1:] != encoding.IGNORE).sum()) * missed)
    return torch.stack(found).sum()


@pytest.mark.parametrize("mixture", ["both", "coin"])
def test_a_lasting_attack_with_openings_equals_the_equation(
    mixture: str, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"reach": 0.01, "inner_steps": 2, "clean": 0.25, "benign": 2.0, "refuse": 5.0}
    options |= {"mixture": mixture, "every": 1, "comply": 3.0}
    trainer = make_trainer("hold", model, **{**HARMFUL, **options})
    trainer.draws = Coins([0.9])
    batch = drawn(trainer)
    safe, total = batch["is_safety"], answer_tokens(batch)
    i, j = answers_at(batch, ~safe)[0]  # a benign answer that begins as some refusals do
    trainer.refusals = torch.unique(torch.cat([trainer.refusals, batch["labels"][i, j + 1 :][:1]]))
    parameters = trainer.trainable_parameters()
    assert trainer.attack_steps
    theta = [p.detach().clone() for p in parameters]
    steps = trainer.lasting.steps(parameters, 1.0)  # each weight of this model is one piece
    walk = [step.view_as(p) for step, p in zip(steps, parameters, strict=True)]
    twin: Any = copy.deepcopy(model).train()

    def at(reach: float, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for p, old, w in zip(twin.parameters(), theta, walk, strict=True):
                p.copy_(old + reach * w)
        return torch.autograd.grad(loss(), list(twin.parameters()))

    def part(rows: Tensor, weight: float) -> Tensor:
        opening = opening_nll(twin, batch, rows, trainer.refusals)
        return (nll(twin, batch, rows) + weight * opening) / total

    clean = 0.25 if mixture == "both" else 0.0  # heads: this update is under the attack
    wanted = [
        at(0.01, lambda: (1 - clean) * part(safe, 5.0)),
        at(0.0, lambda: clean * part(safe, 5.0)),
        at(0.0, lambda: 2.0 * part(~safe, 3.0)),
    ]
    for found, *parts in zip(gradient(trainer, batch), *wanted, strict=True):
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-8)
    assert all(torch.equal(p, old) for p, old in zip(parameters, theta, strict=True))


def test_a_coin_takes_some_updates_at_theta(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"mixture": "coin", "clean": 0.25, "every": 1, "reach": 0.01}
    trainer = make_trainer("hold", model, **{**HARMFUL, **options})
    trainer.draws = Coins([0.2, 0.3])
    batch = drawn(trainer)
    theta = [p.detach().clone() for p in trainer.trainable_parameters()]
    with trainer.perturbation(model, batch, 1):
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), theta, strict=True))
    assert trainer.rewards({0: 5.0}) == {}  # an attack that is not there costs no group anything
    drawn(trainer)
    assert trainer.attack_steps == 2  # the attack went on meanwhile
    assert trainer.rewards({0: 5.0}) == {0: 5.0}


def test_the_gap_of_a_coin_is_that_of_two_running_means(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("hold", model, **{**HARMFUL, "mixture": "coin", "every": 1})
    told: list[dict[str, float]] = []
    trainer.note = told.append
    for inner, loss in ((0, 1.0), (3, 2.0), (4, 4.0), (0, 2.0)):
        trainer.attack_steps = inner
        trainer._observed[0] = (loss, 1.0)
        trainer.before_update(torch.tensor(0.0))
    gaps = [entry["perturbation_gap"] for entry in told if "perturbation_gap" in entry]
    # There 2, then 0.9 * 2 + 0.1 * 4; here 1, then 0.9 + 0.1 * 2.
    assert gaps == pytest.approx([2 - 1, 2.2 - 1, 2.2 - 1.1])


class Coins:
    """Throws the coins that it is given; attacks are as long as can be."""

    def __init__(self, coins: list[float]) -> None:
        self.coins = coins

    def integers(self, low: int, high: int) -> int:
        return high - 1

    def random(self) -> float:
        return self.coins.pop(0)


@pytest.mark.parametrize(("options", "paid"), [({}, "gap"), ({"mixture": "coin"}, "loss")])
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
        most.append(trainer._longest_attack())
    assert most == [1, 1, 1, 2, 2, 3, 3, 4, 4]  # ceil(4 step / 8), one at least


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


def test_or_by_the_loss(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("hold", model, **HARMFUL, clean=0.0)
    assert trainer.rewards({1: 0.3}) == {1: 0.3}


# ------------------------------------------------------------------------------------------- lean


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
            loss = twin(**encoding.collate(rows, trainer.pad)).loss
            found = torch.autograd.grad(loss, list(twin.parameters()))
            walk = [w - g.sign() for w, g in zip(walk, found, strict=True)]
        assert trainer.attack_steps == (1, 1, 2, 2, 1, 1)[step]
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
        options = {**HARMFUL, "every": 1, "attack_share": share}
        trainer = make_trainer("hold", model, **options)
        seen = []
        collate = trainer.collate_rows
        monkeypatch.setattr(
            trainer, "collate_rows", lambda r, c=collate, s=seen: s.append(len(r)) or c(r)
        )
        drawn(trainer)
        assert seen[0] == rows


LEAN = {"every": 3, "attack_share": 0.5, "mixture": "coin"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lean": LEAN,
    "anew": {"every": 0},
    "ungrouped": {"control": "ungrouped"},
    "full": {"mixture": "both", "every": 1},
    "shuffled": {"control": "shuffled", "every": 0},
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


def test_sharded_weights_are_refused_when_training_begins(
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer("hold", model, **{**HARMFUL, "every": 1})
    monkeypatch.setattr("holdfast.methods.hold.is_sharded", lambda parameters: True)
    with pytest.raises(UsageError, match="needs whole weights: train with DDP, or use every=0"):
        drawn(trainer)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack_rows": "all"}, "attack_rows='all' must be one of 'base', 'mismatched', "),
        ({"control": "all"}, "control='all' must be one of "),
        ({"reach": -1.0}, r"reach=-1\.0 must be a number, at least 0"),
        ({"clean": 1.0}, r"clean=1\.0 must be a number, at least 0 and below 1"),
        ({"attack_share": 1.5}, r"attack_share=1\.5 must be a number, above 0 and at most 1"),
        ({"inner_steps": 0}, "inner_steps=0 must be a whole number from 1 to 127"),
        ({"benign": 0.0}, r"benign=0\.0 must be a number, above 0"),
        ({"refuse": -1.0}, r"refuse=-1\.0 must be a number, at least 0"),
        ({"mixture": "half"}, "mixture='half' must be one of 'coin', 'both'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HoldOptions(**options)
