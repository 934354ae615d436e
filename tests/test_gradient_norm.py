"""Per-example gradients against a plain loop, and against what the theory says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.estimators.gradient_norm import GradientNorm, last_parameters
from holdfast.models import adapters, encoding
from holdfast.models.cost import measure_cost
from holdfast.models.losses import QUANTITIES, refusal_tokens

Make = Callable[..., PreTrainedModel]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
FEW = 5


def plain(model: Any, row: encoding.Encoded, quantity: str, tokens: Tensor) -> Tensor:
    """One row's loss from the model's own (transformers counts labels as -100 elsewhere)."""
    ids = torch.tensor([row.ids])
    if quantity == "loss":
        labels = ids.clone()
        labels[:, : row.start] = -100
        found: Tensor = model(input_ids=ids, labels=labels).loss
        return found
    logp: Tensor = model(input_ids=ids).logits[0, row.start - 1].float().log_softmax(0)
    if quantity == "first_token":
        return -logp[row.ids[row.start]]
    outside = [v for v in range(len(logp)) if v not in tokens.tolist()]
    return logp[outside].max() - logp[tokens].exp().sum().log()


def slow(
    model: Any, row: encoding.Encoded, quantity: str, tokens: Tensor, rho: float
) -> list[float]:
    """Norm and gap from `.backward()` and weights moved by hand."""
    model.zero_grad()
    loss = plain(model, row, quantity, tokens)
    loss.backward()
    moved = [p for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in moved))
    kept = [p.detach().clone() for p in moved]
    with torch.no_grad():
        for p in moved:
            p += rho * p.grad / norm
        gap = float(plain(model, row, quantity, tokens) - loss)
        for p, old in zip(moved, kept, strict=True):
            p.copy_(old)
    model.zero_grad()
    return [norm, gap]


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt", "gpt_neox", "lora"])
def test_norm_and_gap_equal_a_plain_loop(
    architecture: str,
    quantity: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    lora = architecture == "lora"
    model: Any = make_model("llama" if lora else architecture, vocab=len(tokenizer))
    model = adapters.add_lora(model, 2, seed=0) if lora else model
    model.eval()
    few = rows.safety[:FEW]
    encoded = encoding.encode(tokenizer, few, 256)
    tokens = refusal_tokens(encoded)
    expected = [slow(model, row, quantity, tokens, 0.1) for row in encoded]
    for kind, column in zip(("norm", "sam_gap"), zip(*expected, strict=True), strict=True):
        found = GradientNorm(kind=kind, quantity=quantity, rho=0.1).score(
            model, tokenizer, few, seed=0
        )
        assert found.values == pytest.approx(list(column), rel=1e-3, abs=1e-4)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert found.facts["parameters"] == trained


def test_bfloat16_says_about_the_same(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer)).bfloat16()
    half = GradientNorm().score(model, tokenizer, rows.safety[:FEW], seed=0)
    full = GradientNorm().score(model.float(), tokenizer, rows.safety[:FEW], seed=0)
    # The weights are the same; activations and gradients have 8 bits instead of 24.
    assert half.values == pytest.approx(full.values, rel=0.05)


def test_the_gap_is_rho_times_the_norm_for_small_steps(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer)).double()  # so that a difference of losses has digits
    few = rows.safety[:FEW]
    norm = GradientNorm().score(model, tokenizer, few, seed=0).values
    errors = []
    for rho in (1e-2, 1e-3):
        gap = GradientNorm(kind="sam_gap", rho=rho).score(model, tokenizer, few, seed=0).values
        errors.append(np.abs(gap / rho / norm - 1).max())
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_a_step_uphill_costs_something(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    for quantity in QUANTITIES:
        found = GradientNorm(kind="sam_gap", quantity=quantity).score(
            aligned, tokenizer, rows.safety, seed=0
        )
        assert (found.values > 0).all()


def test_one_backward_pass_for_each_example(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    few = rows.safety[:FEW]
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tokens = sum(len(row.ids) for row in encoding.encode(tokenizer, few, 256))
    with measure_cost(model) as cost:
        GradientNorm().score(model, tokenizer, few, seed=0)
    assert (cost.forward_tokens, cost.backward_tokens) == (tokens, tokens)
    with measure_cost(model) as cost:
        GradientNorm(kind="sam_gap").score(model, tokenizer, few, seed=0)
    assert (cost.forward_tokens, cost.backward_tokens) == (2 * tokens, tokens)
    handle.remove()
    assert set(sizes) == {1}


@pytest.mark.parametrize("kind", ["norm", "sam_gap"])
def test_nothing_is_drawn_and_nothing_is_left_behind(
    kind: str,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    model = aligned.bfloat16().train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, state = weights_of(model), torch.get_rng_state()
    few = rows.safety[:FEW]
    with torch.no_grad():  # a caller's habit, which must not matter
        found = [
            GradientNorm(kind=kind).score(model, tokenizer, few, seed=s).values for s in (0, 1)
        ]
    np.testing.assert_array_equal(found[0], found[1])
    assert same(weights_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())


# -------------------------------------------------------------------------------------- last block


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt", "gpt_neox", "lora"])
def test_last_is_the_part_of_the_norm_that_belongs_to_the_last_block(
    architecture: str, make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    lora = architecture == "lora"
    model: Any = make_model("llama" if lora else architecture, vocab=len(tokenizer))
    model = adapters.add_lora(model, 2, seed=0) if lora else model
    model.eval()
    few = rows.safety[:2]
    # Two blocks: number 1 is the last. OPT ties its head to the embedding, the others do not.
    names = ["layers.1.", *(["lm_head", "embed_out"] if architecture != "opt" else [])]
    chosen = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and any(part in name for part in names)
    }
    assert len(chosen) > 1
    expected = []
    for row in encoding.encode(tokenizer, few, 256):
        model.zero_grad()
        plain(model, row, "loss", torch.tensor([0])).backward()
        squares = [float(p.grad.square().sum()) for p in chosen.values() if p.grad is not None]
        expected.append(math.sqrt(sum(squares)))
    model.zero_grad()
    found = GradientNorm(layers="last").score(model, tokenizer, few, seed=0)
    assert found.values == pytest.approx(expected, rel=1e-4)
    assert {id(p) for p in last_parameters(model)} == {id(p) for p in chosen.values()}
    whole = GradientNorm().score(model, tokenizer, few, seed=0)
    assert (found.values < whole.values).all()


def test_the_backward_pass_ends_at_the_last_block(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model: Any = make_model(vocab=len(tokenizer), depth=3)
    reached: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.mlp.down_proj.weight.register_hook(lambda g, n=number: reached.append(n))
    GradientNorm(layers="last").score(model, tokenizer, rows.safety[:2], seed=0)
    assert reached == [2, 2]
    reached.clear()
    GradientNorm().score(model, tokenizer, rows.safety[:2], seed=0)
    assert reached == [2, 1, 0] * 2


def test_a_model_without_a_list_of_blocks(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    model.config.num_hidden_layers = 7
    with pytest.raises(UsageError, match=r"LlamaForCausalLM does not keep its 7 .* layers=all"):
        GradientNorm(layers="last").score(model, tokenizer, rows.safety, seed=0)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "grand"}, "kind='grand' must be one of 'norm', 'sam_gap'"),
        ({"layers": "first"}, "layers='first' must be one of 'all', 'last'"),
        ({"quantity": "x"}, "quantity='x' must be one of 'loss', 'first_token', 'margin'"),
        ({"kind": "sam_gap", "rho": 0.0}, "rho=0.0 must be a number, above 0"),
    ],
)
def test_bad_options(
    options: dict[str, Any],
    message: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    with pytest.raises(UsageError, match=message):
        GradientNorm(**options).score(
            make_model(vocab=len(tokenizer)), tokenizer, rows.safety, seed=0
        )


def test_a_model_of_which_nothing_may_be_trained(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer)).requires_grad_(False)
    with pytest.raises(UsageError, match="layers=all: no parameter there is trainable"):
        GradientNorm().score(model, tokenizer, rows.safety, seed=0)
    with pytest.raises(UsageError, match="1 cannot be ranked"):
        GradientNorm().score(model, tokenizer, rows.safety[:1], seed=0)
