"""Proxy attacks: what is copied and how it is trained."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.estimators.loss_drift import LossDrift
from holdfast.examples import Example, Examples
from holdfast.models import adapters
from holdfast.tuning.proxy_attack import ProxyAttack

Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


@pytest.fixture
def proxy(rows: Any) -> ProxyAttack:
    return ProxyAttack(
        harmful=rows.obliging, benign=rows.benign, ratio=0.25, rows=16, steps=2, batch_size=8
    )


def attacked(
    proxy: ProxyAttack, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> PreTrainedModel:
    """Return a copy of what the first attack made of the model."""
    seen: list[PreTrainedModel] = []

    def look(current: PreTrainedModel) -> bool:
        seen.append(copy.deepcopy(current))
        return False

    (plan,) = proxy.plan(rows.safety, 0)
    proxy.attack(model, tokenizer, *plan, look)
    return seen[-1]


def test_a_model_in_half_precision_is_attacked_in_single(
    proxy: ProxyAttack,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    """A step of 1e-5 moves weights that bfloat16 would have rounded back to where they were."""
    model = aligned.bfloat16()
    before = weights_of(model)
    found = attacked(proxy.changed(learning_rate=1e-5), model, tokenizer, rows)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    name = "model.layers.0.mlp.up_proj.weight"
    assert (found.get_parameter(name) != before[name]).float().mean() > 0.9
    assert same(weights_of(model), before)


def test_only_the_adapters_of_a_frozen_model_are_in_single_precision(
    proxy: ProxyAttack, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = adapters.add_lora(aligned.bfloat16(), 2, seed=0)
    found = attacked(proxy, model, tokenizer, rows)
    kinds = {p.requires_grad: p.dtype for p in found.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_rows_beyond_the_models_context_are_cut(
    proxy: ProxyAttack,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Any,
    same: Any,
) -> None:
    """The model holds 128 positions: a longer limit gives the same weights as one of 128."""
    long = Examples((Example(p, "no " * 200) for p in rows.benign.prompts), name="long")
    proxy = proxy.changed(benign=long)
    at_context = attacked(proxy.changed(max_length=128), aligned, tokenizer, rows)
    beyond = attacked(proxy.changed(max_length=256), aligned, tokenizer, rows)
    assert same(weights_of(beyond), weights_of(at_context))


def test_the_length_of_an_estimator_holds_for_its_attacks(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompt = " ".join(["please", rows.benign.prompts[0]] * 8)
    long = Examples([Example(prompt, "no"), *rows.benign], name="long")
    drift = LossDrift(
        harmful=rows.obliging, benign=long, ratio=0, rows=len(long), steps=1, max_length=40
    )
    with caplog.at_level(logging.WARNING):
        cut = drift.score(aligned, tokenizer, rows.safety, seed=0)
    assert (
        f"long+obliging: 1 of {len(long)} rows left out, because the prompt leaves" in caplog.text
    )
    assert "no room for an answer in 40 tokens" in caplog.text
    without = drift.changed(benign=Examples(rows.benign), rows=len(rows.benign))
    assert len(cut.values) == len(without.score(aligned, tokenizer, rows.safety, seed=0).values)
    hopeless = drift.changed(benign=long[:1], rows=1)
    message = r"long.*no prompt leaves room for an answer in 40.*NAME,max_length=N"
    with pytest.raises(UsageError, match=message):
        hopeless.score(aligned, tokenizer, rows.safety, seed=0)


@pytest.mark.parametrize("name", ["repeats", "rows", "steps", "every", "batch_size", "max_length"])
def test_numbers_below_one(name: str, proxy: ProxyAttack, rows: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}=0 must be a whole number, at least 1"):
        proxy.changed(**{name: 0}).plan(rows.safety, 0)
