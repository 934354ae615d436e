"""Attention modules are found in any decoder, and their outputs' gradients are the true ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from holdfast.errors import UsageError
from holdfast.models import adapters
from holdfast.models.attention import blocks, change_outputs, output_gradients, shift_outputs

ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text"),
    *("opt", "gpt_neox", "phi"),
)
Make = Callable[..., PreTrainedModel]
IDS = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 10, 11, 12, 13, 14]])
MASK = (IDS != 0).long()
LABELS = torch.where(MASK.bool(), IDS, -100)


def loss_of(model: Any) -> Callable[[], Tensor]:
    """Return a loss in the model's own precision (transformers takes it in float32)."""
    return lambda: F.cross_entropy(
        model(input_ids=IDS, attention_mask=MASK).logits[:, :-1].flatten(0, 1),
        LABELS[:, 1:].flatten(),
    )


def attentions(model: nn.Module) -> list[nn.Module]:
    return [block.attention for block in blocks(model)]


def checkpointing(model: Any) -> Any:
    """Switch gradient checkpointing on by whichever name this transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()
    return model.train()


# ------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_decoder_layer_has_its_attention(
    architecture: str, lora: bool, make_model: Make
) -> None:
    model = make_model(architecture, depth=3)
    wanted = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    found = blocks(adapters.add_lora(model, 2, seed=0) if lora else model)
    assert [id(block.attention) for block in found] == [id(m) for m in wanted]
    assert len(found) == 3
    for block in found:
        assert any(module is block.attention for module in block.layer.modules())


def layer(*names: str) -> nn.Module:
    """Return a layer with attention of some names, and what is named after it but is none."""
    parts: dict[str, nn.Module] = {name: nn.Sequential(nn.Linear(2, 2)) for name in names}
    return nn.ModuleDict({**parts, "post_attention_norm": nn.LayerNorm(2), "mlp": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("stacks", "message"),
    [
        ({"layers": [layer(), layer()]}, "got none;"),
        ({}, "got none;"),
        ({"a": [layer("attn")], "b": [layer("attn")]}, r"a with \[1\] and b with \[1\];"),
        ({"layers": [layer("self_attn", "encoder_attn")]}, r"got layers with \[2\];"),
        ({"layers": [layer("SelfAttention"), layer()]}, r"got layers with \[0, 1\];"),
    ],
)
def test_none_or_several_are_an_error_with_a_way_out(
    stacks: dict[str, list[nn.Module]], message: str
) -> None:
    model = nn.ModuleDict({name: nn.ModuleList(layers) for name, layers in stacks.items()})
    with pytest.raises(UsageError, match=f"ModuleDict: .*{message}.*decoder-only"):
        blocks(model)


# ----------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_outputs(architecture: str, make_model: Make) -> None:
    """The twin keeps the outputs of one plain forward pass and asks autograd for their gradient."""
    model = make_model(architecture).double()
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
        for module in attentions(model)
    ]
    value = loss_of(model)()
    wanted = torch.autograd.grad(value, outputs)
    for handle in handles:
        handle.remove()
    found = output_gradients(attentions(model), loss_of(model))
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == (2, 6, 16)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        # No answer token can see what is padded behind it.
        assert not a[0, 4:].any()


def test_gradients_predict_what_a_shift_does(make_model: Make) -> None:
    """The central difference of the loss along a random direction u is <g, u> + O(h^2)."""
    torch.manual_seed(0)
    model = make_model().double()
    found = output_gradients(attentions(model), loss_of(model))
    directions = [torch.randn_like(g) for g in found]
    values = []
    for h in (1e-4, -1e-4):
        with shift_outputs(attentions(model), [h * u for u in directions]):
            values.append(loss_of(model)().item())
    slope = sum(float((g * u).sum()) for g, u in zip(found, directions, strict=True))
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "opt", "gpt_neox", "phi"])
def test_checkpointing_changes_no_gradient(architecture: str, make_model: Make) -> None:
    torch.manual_seed(0)
    model = make_model(architecture)
    again = checkpointing(copy.deepcopy(model))
    found, shifts = [], None
    for one in (model, again):
        grads = output_gradients(attentions(one), loss_of(one))
        shifts = shifts or [3 * torch.randn_like(g) for g in grads]
        with shift_outputs(attentions(one), shifts):
            loss_of(one)().backward()
        found.append([*grads, *(p.grad for p in one.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_frozen_weights_do_not_hide_the_gradient(make_model: Make) -> None:
    model = make_model()
    wanted = output_gradients(attentions(model), loss_of(model))
    found = output_gradients(attentions(model.requires_grad_(False)), loss_of(model))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_nothing_accumulates_and_no_hook_stays(make_model: Make) -> None:
    model = make_model()
    before = loss_of(model)()
    grads = output_gradients(attentions(model), loss_of(model))
    assert all(p.grad is None for p in model.parameters())

    def boom() -> Tensor:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        output_gradients(attentions(model), boom)
    with pytest.raises(RuntimeError, match="boom"), shift_outputs(attentions(model), grads):
        boom()
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(loss_of(model)(), before)


def test_outputs_alone_or_first_of_a_tuple() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x, "weights"

    alone, first = nn.Identity(), Two()
    with change_outputs([alone, first], lambda number, output: output + 10 * (number + 1)):
        assert float(alone(torch.tensor(1.0))) == 11
        assert first(torch.tensor(1.0)) == (torch.tensor(21.0), "weights")
    assert float(alone(torch.tensor(1.0))) == 1


def test_a_layer_that_does_not_run_is_named() -> None:
    ran, skipped = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"1 of 2 attention modules did not run.*layerdrop"):
        output_gradients([ran, skipped], lambda: ran(torch.ones(2)).sum())
