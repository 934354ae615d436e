"""RepNoise against its equations, and against what was wrong in the published code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.methods import repnoise
from holdfast.methods._batches import Batch
from holdfast.methods.repnoise import RepNoiseOptions, answer_places, final_norm, mmd
from holdfast.models import adapters, encoding

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma3_text", "opt", "gpt_neox", "phi")


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer), depth=3)


def drawn(trainer: Any, n: int = 1) -> Batch:
    """Return an alignment batch outside of training, as one of n micro-batches."""
    trainer.current_gradient_accumulation_steps = n
    batch: Batch = trainer.collate_positions(range(0, len(trainer.rows), 7))
    return batch


def accumulated(trainer: Any, batch: Batch, seed: int = 0) -> list[Tensor]:
    trainer.model.zero_grad()
    torch.manual_seed(seed)
    trainer.accumulate(trainer.model, batch, None)
    return [p.grad.clone() for p in trainer.model.parameters()]


# ------------------------------------------------------------------------------------------- MMD


def test_two_points_by_hand() -> None:
    """Squared distance 1, so the mean over the two pairs is 1: widths 1/4, 1/2, 1, 2, 4."""
    across = sum(math.exp(-1 / w) for w in (0.25, 0.5, 1.0, 2.0, 4.0))
    found = mmd(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    assert float(found) == pytest.approx(5 + 5 - 2 * across, rel=1e-6)


def naive_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Every difference of every pair, and the three means of the definition."""

    def squares(us: Tensor, vs: Tensor) -> Tensor:
        return ((us[:, None] - vs[None]) ** 2).sum(2)

    both = torch.cat([x, y]).detach()
    width = squares(both, both).sum() / (len(both) ** 2 - len(both))

    def mean(us: Tensor, vs: Tensor) -> Tensor:
        return sum(torch.exp(-squares(us, vs) / (width * 2.0**i)).mean() for i in range(-2, 3))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_mmd_and_its_gradient_equal_every_pair_by_itself(far: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator).requires_grad_()
    y = torch.randn(4, 3, generator=generator)
    wanted = naive_mmd(x.double(), y.double())
    found = mmd(x + far, y + far)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-3 if far else 1e-6)
    (slope,), (right,) = torch.autograd.grad(found, x), torch.autograd.grad(wanted, x)
    torch.testing.assert_close(slope, right, rtol=0, atol=1e-3 if far else 1e-6)


def test_mmd_tells_noise_from_what_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    noise, more = torch.randn(2, 200, 4, generator=generator)
    assert float(mmd(noise, noise)) == pytest.approx(0, abs=1e-5)
    assert 0 < float(mmd(noise, more)) < 0.1 * float(mmd(noise + 1, more))
    assert float(mmd(noise, more)) < 0.1 * float(mmd(3 * noise, more))


# -------------------------------------------------------------------------------------- the tokens


def test_only_answer_tokens_count_and_token_zero_does() -> None:
    ignore = encoding.IGNORE
    labels = torch.tensor([[ignore, ignore, 0, 5], [ignore, 0, 7, ignore], [3, ignore, ignore, 0]])
    rows, columns = answer_places(labels, 9)
    found = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert found == {(0, 2), (0, 3), (1, 1), (1, 2), (2, 3)}  # (2, 0) has nothing before it


def test_a_draw_of_tokens_is_bounded_seeded_and_changes() -> None:
    labels = torch.zeros(4, 50, dtype=torch.long)
    draws = []
    torch.manual_seed(0)
    for _ in range(2):
        rows, columns = answer_places(labels, 10)
        draws.append(list(zip(rows.tolist(), columns.tolist(), strict=True)))
        assert len(set(draws[-1])) == 10
    assert draws[0] != draws[1]
    torch.manual_seed(0)
    assert [list(map(int, p)) for p in zip(*answer_places(labels, 10), strict=True)] == [
        list(p) for p in draws[0]
    ]


# --------------------------------------------------------------------------- against a slow twin


def twin_terms(model: Any, batch: Batch) -> Tensor:
    """Return the harmful terms, row by row and layer by layer; noise in the layers' order."""
    found = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
    )
    mask = batch["labels"] != encoding.IGNORE
    distances, losses = [], []
    for states in found.hidden_states[1:]:
        answers = torch.cat([h[m] for h, m in zip(states, mask, strict=True)])
        distances.append(naive_mmd(answers, torch.randn_like(answers)))
    for layer in range(1, len(found.hidden_states)):
        logits = found.logits
        if layer < len(found.hidden_states) - 1:
            logits = model.lm_head(model.model.norm(found.hidden_states[layer]))
        told = [
            F.cross_entropy(row[:-1], wanted[1:], reduction="none")[wanted[1:] != encoding.IGNORE]
            for row, wanted in zip(logits, batch["labels"], strict=True)
        ]
        losses.append(torch.cat(told).mean())
    distance, loss = torch.stack(distances).mean(), torch.stack(losses).mean()
    return 0.5 * distance - 0.7 * torch.log(1 + loss)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_gradient_equals_the_equation(
    micro_batches: int, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("repnoise", model, alpha=0.7, beta=0.5)
    batch = {k: v[:3] for k, v in drawn(trainer, micro_batches).items()}
    chosen = copy.deepcopy(trainer.stream).take(3)
    harmful = encoding.collate([trainer.harmful[i] for i in chosen], trainer.pad)
    found = accumulated(trainer, batch)
    inputs = {k: v for k, v in batch.items() if k != "is_safety"}
    torch.manual_seed(0)
    loss = model(**inputs).loss + twin_terms(model, harmful) / micro_batches
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_checkpointing_and_lora_give_the_same_terms(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    found = []
    for on in (False, True):
        adapted: Any = adapters.add_lora(copy.deepcopy(model), 2, seed=0)
        trainer = make_trainer("repnoise", adapted, beta=0.5)
        if on:
            inner = adapted.get_base_model()
            # Its name depends on the version of transformers.
            enable = getattr(inner, "activation_checkpointing_enable", None)
            (enable or inner.gradient_checkpointing_enable)()
        adapted.train().zero_grad()
        torch.manual_seed(0)
        trainer.accumulate(adapted, drawn(trainer), None)
        found.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert any(g.abs().max() > 0 for g in found[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------ properties


def test_harmful_answers_are_lost_and_turn_to_noise(
    aligned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"max_steps": 12, "learning_rate": 2e-3, "optim": "adamw_torch"}
    found = []
    for method, own in (("sft", {}), ("repnoise", {"beta": 1.0})):
        trainer = make_trainer(method, copy.deepcopy(aligned), **own, **options)
        trainer.train()
        judge = make_trainer("repnoise", trainer.model)
        torch.manual_seed(0)
        with torch.no_grad():
            batch = encoding.collate(judge.harmful, judge.pad)
            found.append([float(x) for x in judge.harmful_terms(trainer.model, batch)])
    (noise, loss), (my_noise, my_loss) = found
    assert my_noise < 0.9 * noise
    assert my_loss > loss + 0.5


def test_without_weights_it_is_sft_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights, same: Same
) -> None:
    again = copy.deepcopy(model)
    make_trainer("sft", model).train()
    make_trainer("repnoise", again, alpha=0.0, beta=0.0).train()
    assert same(weights_of(model), weights_of(again))


def test_no_hook_stays(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("repnoise", model)
    batch = drawn(trainer)
    trainer.accumulate(model, batch, None)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    trainer.accumulate(model, batch, None)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_no_more_tokens_than_asked_for(
    model: PreTrainedModel, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def noting(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return states.float().square().mean()

    monkeypatch.setattr(repnoise, "mmd_to_noise", noting)
    trainer = make_trainer("repnoise", model, tokens=5)
    trainer.harmful_terms(model, trainer.harmful_batch(8))
    assert sizes == [5, 5, 5]  # three layers


# --------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_read_by_the_lens_gives_the_logits(
    architecture: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    make_trainer: MakeTrainer,
) -> None:
    model: Any = make_model(architecture, vocab=len(tokenizer))
    met: list[tuple[Tensor, Tensor]] = []
    handle = final_norm(model).register_forward_hook(lambda _, x, y: met.append((x[0], y)))
    with torch.no_grad():
        found = model(torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    handle.remove()
    ((before, after),) = met
    torch.testing.assert_close(found.hidden_states[-1], after)
    torch.testing.assert_close(model.get_output_embeddings()(after), found.logits)
    trainer = make_trainer("repnoise", model, max_steps=1)
    lens = trainer.lens(before[0, :-1], torch.tensor([6, 7]))
    own = F.cross_entropy(found.logits[0, :-1], torch.tensor([6, 7]))
    torch.testing.assert_close(lens, own)
    weights = [p.detach().clone() for p in model.parameters()]
    trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert any(not torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_a_model_without_a_final_norm_is_refused(
    make_trainer: MakeTrainer, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = AutoConfig.for_model(
        "opt",
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    )
    with pytest.raises(UsageError, match="'opt' as configured has no single final norm"):
        make_trainer("repnoise", AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, r"alpha=-1\.0 must be a number, at least 0"),
        ({"beta": math.nan}, "beta=nan must be a number, at least 0"),
        ({"tokens": 0}, "tokens=0 must be a whole number, at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        RepNoiseOptions(**options)
