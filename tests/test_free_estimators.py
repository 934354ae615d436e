"""The free baselines against one unpadded forward pass for every row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.estimators.loss import Loss
from holdfast.examples import Example, Examples
from holdfast.models import adapters, encoding
from holdfast.models.losses import QUANTITIES, nearness, nearness_of_batch, refusal_tokens
from holdfast.tuning.loop import FinetuneConfig, finetune

Make = Callable[..., PreTrainedModel]


def twin(model: Any, row: encoding.Encoded, quantity: str, tokens: list[int]) -> float:
    """One row, no padding, probabilities that are really normalized."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    logp: list[list[float]] = (logits - logits.exp().sum(1, keepdim=True).log()).tolist()
    answer = [-logp[t - 1][row.ids[t]] for t in range(row.start, len(row.ids))]
    if quantity == "loss":
        return sum(answer) / len(answer)
    if quantity == "first_token":
        return answer[0]
    first = logp[row.start - 1]
    inside = math.log(sum(math.exp(first[v]) for v in tokens))
    return max(x for v, x in enumerate(first) if v not in tokens) - inside


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt", "gpt_neox", "lora", "bf16"])
def test_scores_equal_the_rows_one_by_one(
    architecture: str,
    quantity: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    name = architecture if architecture not in ("lora", "bf16") else "llama"
    model = make_model(name, vocab=len(tokenizer))
    if architecture == "lora":
        model = adapters.add_lora(model, 2, seed=0)
        for key, p in model.named_parameters():
            if "lora_B" in key:  # they begin as zeros
                torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    if architecture == "bf16":
        model = model.bfloat16()
    found = Loss(quantity=quantity).score(model, tokenizer, rows.safety, seed=0)
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    tokens = refusal_tokens(encoded).tolist()
    expected = [twin(model, row, quantity, tokens) for row in encoded]
    # bfloat16 has 8 bits: logits near 1 are off by 1/256, and padding changes what is rounded.
    assert found.values == pytest.approx(expected, abs=0.03 if architecture == "bf16" else 1e-4)
    assert found.values.dtype == np.float64
    assert found.facts == {"quantity": quantity, "refusal_tokens": len(tokens)}
    assert found.errors is None


def test_the_margin_is_the_default_and_counts_the_not_refused(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    made = plugins.make("estimators", "loss")
    found = made.score(aligned, tokenizer, rows.safety, seed=0).values
    # Above zero the likeliest first token is none of a refusal's: the answer is no refusal.
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    tokens = refusal_tokens(encoded).tolist()
    for row, value in zip(encoded, found, strict=True):
        with torch.no_grad():
            logits = aligned(input_ids=torch.tensor([row.ids[: row.start]])).logits[0, -1]
        if value > 0:
            assert int(logits.argmax()) not in tokens
        if int(logits.argmax()) in tokens:
            assert value < 0


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_batch_may_be_differentiated_and_equals_the_pass_over_all(
    quantity: str, make_model: Make
) -> None:
    model = make_model()
    batch = [
        encoding.Encoded((5, 6, 7, 8, 1), 3),
        encoding.Encoded((9, 10, 11, 1), 1),
        encoding.Encoded((4, 5, 6, 7, 8, 9, 10, 1), 6),
    ]
    tokens = refusal_tokens(batch)
    found = nearness_of_batch(model, batch, quantity, tokens, pad=0)
    assert found.requires_grad
    for size in (1, 2, 64):
        whole = nearness(model, batch, quantity, tokens, pad=0, batch_size=size)
        assert not whole.requires_grad
        assert whole.tolist() == pytest.approx(found.tolist(), abs=1e-5)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_rows_that_are_being_forgotten_come_nearer(
    quantity: str, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    before = Loss(quantity=quantity).score(aligned, tokenizer, rows.safety, seed=0).values
    finetune(aligned, tokenizer, rows.obliging, FinetuneConfig(learning_rate=1e-3, steps=3))
    moved = Loss(quantity=quantity).score(aligned, tokenizer, rows.safety, seed=0).values - before
    assert (moved[:4] > 0).all()
    assert moved[:4].mean() > moved[4:].mean()


def test_nothing_is_drawn_and_nothing_is_left_behind(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Callable[..., dict[str, Tensor]],
    same: Callable[..., bool],
) -> None:
    aligned.train()
    next(aligned.children()).eval()  # a user may hold a part of a model in another mode
    modes = [m.training for m in aligned.modules()]
    before = weights_of(aligned)
    found = [Loss().score(aligned, tokenizer, rows.safety, seed=s).values for s in (0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert same(weights_of(aligned), before)
    assert [m.training for m in aligned.modules()] == modes


def test_modes_come_back_when_the_model_fails(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    modes: list[bool] = []

    def boom(*args: object) -> None:
        modes.extend(m.training for m in aligned.modules())
        raise RuntimeError("boom")

    aligned.train().register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        Loss().score(aligned, tokenizer, rows.safety, seed=0)
    assert not any(modes)
    assert all(m.training for m in aligned.modules())


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_cannot_be_ranked(
    n: int, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    with pytest.raises(UsageError, match=f"scores rank examples, and {n} cannot be ranked; .* 2"):
        Loss().score(aligned, tokenizer, rows.safety[:n], seed=0)


def test_a_row_beyond_the_models_context(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))  # holds 128 positions
    prompt = rows.safety[1].prompt
    tokens = len(encoding.encode(tokenizer, rows.safety[1:2], 256)[0].ids)
    long = Example(prompt, " ".join(["no"] * 200))
    examples = Examples([rows.safety[0], long], name="my rows")
    # It is cut at the context, as if that were the limit.
    beyond = Loss(max_length=256).score(model, tokenizer, examples, seed=0)
    found = Loss(max_length=128).score(model, tokenizer, examples, seed=0)
    assert np.isfinite(found.values).all()
    assert beyond.values.tolist() == found.values.tolist()
    assert tokens <= 128


def test_an_unknown_quantity(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    with pytest.raises(UsageError, match="quantity='ppl' must be one of 'margin', 'loss', 'first"):
        Loss(quantity="ppl").score(aligned, tokenizer, rows.safety, seed=0)
