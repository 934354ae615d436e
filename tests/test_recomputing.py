"""The patch of transformers 5 that recomputes layers in evaluation mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from holdfast.models.recomputing import checkpointing_outside_training


class Counted(GradientCheckpointingLayer):
    """x^2, and how often it was computed."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return x * x


@pytest.fixture
def model() -> nn.Module:
    Counted.calls = 0
    layer: Any = Counted()
    layer.gradient_checkpointing = True

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
            return self.layer(x)

    return Model().eval()


def test_the_patch_is_for_transformers_5(model: nn.Module) -> None:
    """Transformers alone computes once in evaluation mode; if this fails, drop the patch."""
    assert transformers.__version__.startswith("5.")
    model(torch.tensor(3.0, requires_grad=True)).backward()
    assert Counted.calls == 1


def test_inside_the_block_a_layer_is_computed_again_for_the_gradient(model: nn.Module) -> None:
    x = torch.tensor(3.0, requires_grad=True)
    with checkpointing_outside_training(model):
        y = model(x)
        assert Counted.calls == 1
        y.backward()
    assert Counted.calls == 2
    assert x.grad is not None
    assert float(x.grad) == 6.0


def test_the_layer_is_restored_even_after_an_error(model: nn.Module) -> None:
    with pytest.raises(RuntimeError), checkpointing_outside_training(model):
        raise RuntimeError
    assert "forward" not in vars(model.layer)


def test_without_a_gradient_nothing_is_recomputed(model: nn.Module) -> None:
    with checkpointing_outside_training(model), torch.no_grad():
        model(torch.tensor(3.0))
    assert Counted.calls == 1
