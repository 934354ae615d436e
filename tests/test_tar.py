"""TAR against its equations, what it promises, and that no attack is left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.methods import tar
from holdfast.methods._batches import Batch
from holdfast.methods.base import AlignmentData
from holdfast.methods.tar import TarOptions, drift, negative_entropy, tamper_weights
from holdfast.models import encoding

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma3_text", "opt", "gpt_neox", "phi")
SHORT = {"inner_steps": 4, "every": 2}


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


@pytest.fixture
def config() -> Callable[..., TarOptions]:
    return TarOptions


# ----------------------------------------------------------------------------------- the equations


def test_entropy_by_hand() -> None:
    """Uniform over four, and one half twice; the prompt's and the last position do not count."""
    even, halves = [0.0] * 4, [0.0, 0.0, -100.0, -100.0]
    logits = torch.tensor([[[9.0, 0, 0, 0], even, halves, [0, 9.0, 0, 0]]])
    labels = torch.tensor([[encoding.IGNORE, encoding.IGNORE, 2, 1]])
    wanted = -(math.log(4) + math.log(2)) / 2
    assert float(
        negative_entropy(logits[:, :-1][labels[:, 1:] != encoding.IGNORE])
    ) == pytest.approx(wanted, rel=1e-6)


def test_looks_and_their_weights(config: Callable[..., TarOptions]) -> None:
    found = tamper_weights(config(inner_steps=7, every=3, schedule=0.5))
    a, b = math.exp(0.5 * -4), math.exp(0.5 * -1)  # after steps 3 and 6 of 7
    assert found == pytest.approx({3: a / (a + b), 6: b / (a + b)})
    assert tamper_weights(config(**SHORT, schedule=0.0)) == {2: 0.5, 4: 0.5}


class Recorder:
    """Keeps the alignment batches of every step."""

    def __init__(self, trainer: Any) -> None:
        self.steps: list[list[Batch]] = []
        self.draw = trainer.draw_batches
        trainer.draw_batches = self

    def __call__(self, iterator: Any, n: int) -> list[Batch]:
        batches: list[Batch] = self.draw(iterator, n)
        self.steps.append([{k: v for k, v in b.items() if k != "is_safety"} for b in batches])
        return batches


def twin_attack(model: Any, attacks: list[Batch], unseen: Batch, rate: float) -> list[Tensor]:
    """Return the weighted gradient after steps 2 and 4 of an AdamW that is written out."""
    theta = [p.detach().clone() for p in model.parameters()]
    m, v = ([torch.zeros_like(p) for p in theta] for _ in range(2))
    total = [torch.zeros_like(p) for p in theta]
    raw = {2: math.exp(0.1 * -2), 4: 1.0}
    for k, batch in enumerate(attacks, start=1):
        grads = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(model.parameters(), grads, strict=True)):
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g**2
                unbiased = m[i] / (1 - 0.9**k), v[i] / (1 - 0.999**k)
                p -= rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        if k in raw:
            inputs = {k: v for k, v in unseen.items() if k != "labels"}
            probs = model(**inputs).logits[:, :-1].float().softmax(-1)
            entropy = -(probs * probs.log()).sum(-1)[unseen["labels"][:, 1:] != -100].mean()
            found = torch.autograd.grad(-entropy, list(model.parameters()))
            total = [t + raw[k] / sum(raw.values()) * g for t, g in zip(total, found, strict=True)]
    with torch.no_grad():
        for p, old in zip(model.parameters(), theta, strict=True):
            p.copy_(old)
    return total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_equal_the_equation(
    accumulation: int,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tar, "SPAN", 1.0)  # one learning rate
    model = model.double()
    theirs: Any = copy.deepcopy(model).train()
    trainer = make_trainer(
        "tar",
        model,
        max_steps=2,
        gradient_accumulation_steps=accumulation,
        tamper=3.0,
        retain=0.5,
        schedule=0.1,
        attack_lr=1e-3,
        **SHORT,
    )
    seen, unseen = copy.deepcopy(trainer.stream), copy.deepcopy(trainer.held_out)
    recorder = Recorder(trainer)
    trainer.train()

    def collated(positions: list[int]) -> Batch:
        return encoding.collate([trainer.harmful[i] for i in positions], trainer.pad)

    for batches in recorder.steps:
        counts = [int((b["labels"][:, 1:] != -100).sum()) for b in batches]
        retain = sum(
            theirs(**b).loss * n / sum(counts) for b, n in zip(batches, counts, strict=True)
        )
        gradient = torch.autograd.grad(retain, list(theirs.parameters()))
        held = collated(unseen.take(8))
        tamper = twin_attack(theirs, [collated(seen.take(8)) for _ in range(4)], held, 1e-3)
        with torch.no_grad():
            for p, r, t in zip(theirs.parameters(), gradient, tamper, strict=True):
                p -= 0.1 * (0.5 * r + 3.0 * t)
    assert len(recorder.steps) == 2
    for p, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------- the attack


def test_the_adversary_never_sees_what_is_held_out(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("tar", model, held_out=0.3)
    seen, unseen = set(trainer.stream.positions), set(trainer.held_out.positions)
    assert not seen & unseen
    assert seen | unseen == set(range(16))
    assert len(unseen) == 5  # 0.3 x 16, rounded


def test_learning_rates_span_the_published_factor(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("tar", model, max_steps=12, inner_steps=1, every=1, attack_lr=1e-3)
    trainer.train()
    rates = [e["attack_lr"] for e in trainer.state.log_history if "attack_lr" in e]
    assert len(set(rates)) == 12
    assert all(1e-3 / 20 <= rate <= 1e-3 for rate in rates)
    assert max(rates) > 4 * min(rates)


@pytest.mark.parametrize("nth", [1, 2, 3, 6])
def test_an_interrupted_attack_leaves_weights_and_gradients(
    nth: int, model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights, same: Same
) -> None:
    """Forwards 1, 2, 4, 5 are the adversary's, 3 and 6 look at its work."""
    trainer = make_trainer("tar", model, **SHORT)
    before, moved = weights_of(model), []

    def boom(*_: object) -> None:
        moved.append(not same(weights_of(model), before))
        if len(moved) == nth:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(boom)
    with pytest.raises(KeyboardInterrupt):
        trainer.before_update(torch.zeros(1))
    handle.remove()
    assert moved == [k > 0 for k in range(nth)]
    assert same(weights_of(model), before)


def test_the_trainers_optimizer_knows_nothing_of_the_attack(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("tar", model, max_steps=2, optim="adamw_torch", **SHORT)
    trainer.train()
    states = trainer.optimizer.state_dict()["state"].values()
    assert {int(s["step"]) for s in states} == {2}


# ------------------------------------------------------------------------------------ properties


def attacked_entropy(trainer: Any, positions: list[int]) -> float:
    """Return the entropy on held-out rows after four steps of AdamW on the others."""
    model = copy.deepcopy(trainer.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    rows = trainer.encoded_harmful
    seen = [rows[i] for i in range(len(rows)) if i not in positions]
    for _ in range(4):
        model(**encoding.collate(seen, trainer.pad)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    held = encoding.collate([rows[i] for i in positions], trainer.pad)
    with torch.no_grad():
        logits = model(input_ids=held["input_ids"]).logits[:, :-1]
        return -float(negative_entropy(logits[held["labels"][:, 1:] != encoding.IGNORE]))


def test_an_attacked_model_stays_uncertain(
    aligned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"max_steps": 10, "learning_rate": 1e-3, "optim": "adamw_torch"}
    plain = make_trainer("sft", copy.deepcopy(aligned), **options)
    mine = make_trainer("tar", copy.deepcopy(aligned), attack_lr=1e-3, **SHORT, **options)
    plain.encoded_harmful = mine.encoded_harmful = mine.harmful
    for trainer in (plain, mine):
        trainer.train()
    held = mine.held_out.positions
    assert attacked_entropy(mine, held) > attacked_entropy(plain, held) + 0.3
    logged = [e["tamper_loss"] for e in mine.state.log_history if "tamper_loss" in e]
    assert logged[-1] < logged[0] < 0


def test_without_tamper_it_is_sft_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights, same: Same
) -> None:
    again = copy.deepcopy(model)
    make_trainer("sft", model).train()
    make_trainer("tar", again, tamper=0.0).train()
    assert same(weights_of(model), weights_of(again))


# ------------------------------------------------------------------------------- representations


def test_drift_by_hand(model: PreTrainedModel) -> None:
    """Embeddings moved by (3, 4, 0, ...): 5 per token in their layer; padding does not count."""
    start: Any = copy.deepcopy(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, :2] += torch.tensor([3.0, 4.0])
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    with torch.no_grad():
        pairs = [m(**batch, output_hidden_states=True).hidden_states for m in (model, start)]
        gaps = [
            sum(float((a[r, t] - b[r, t]).norm()) for r, t in ((0, 0), (0, 1), (0, 2), (1, 0))) / 4
            for a, b in zip(*pairs, strict=True)
        ]
        assert gaps[0] == pytest.approx(5, rel=1e-5)
        assert float(drift(model, start, batch)) == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)


def test_rep_holds_the_model_at_its_start(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights, same: Same
) -> None:
    original = copy.deepcopy(model)
    found = []
    for rep in (0.0, 3.0):
        trained = copy.deepcopy(model)
        trainer = make_trainer("tar", trained, tamper=0.0, rep=rep, max_steps=8, learning_rate=3e-2)
        batch = trainer.collate_positions(range(0, len(trainer.rows), 7))
        trainer.train()
        with torch.no_grad():
            found.append(float(drift(trained, original, batch)))
    assert found[1] < found[0]
    assert same(weights_of(trainer.start), weights_of(original))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_a_step(
    architecture: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    make_trainer: MakeTrainer,
) -> None:
    model = make_model(architecture, vocab=len(tokenizer))
    before = [p.detach().clone() for p in model.parameters()]
    make_trainer("tar", model, max_steps=1, rep=0.1, inner_steps=2, every=1).train()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tamper": -1.0}, r"tamper=-1\.0 must be a number, at least 0"),
        ({"attack_lr": math.nan}, "attack_lr=nan must be a number, at least 0"),
        (
            {"every": 9},
            "every=9 must be at most inner_steps=8: otherwise the loss is never evaluated",
        ),
        ({"every": 0}, "every=0 must be a whole number, at least 1"),
        ({"held_out": 1.0}, r"held_out=1\.0 must be a number, above 0 and below 1"),
    ],
)
def test_bad_options(
    options: dict[str, Any], message: str, config: Callable[..., TarOptions]
) -> None:
    with pytest.raises(UsageError, match=message):
        config(**options)


def test_the_adversary_needs_rows_of_its_own(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    assert data.harmful is not None
    with pytest.raises(UsageError, match=r"held_out=0.25 of 1 harmful rows"):
        make_trainer("tar", model, replace(data, harmful=data.harmful[:1]))
