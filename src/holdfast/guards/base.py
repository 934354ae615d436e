"""What every guard shares: hooks on one fine-tuning, and the mechanisms that two of them need.

A guard is a plug-in: its annotated fields are its options. It overrides the hooks that it changes,
usually one or two; what changes while a model is tuned lies in `Tuning.memory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.contracts import Plugin
from holdfast.errors import UsageError
from holdfast.models.modes import evaluation_mode
from holdfast.tuning.loop import Hooks, Tuning


class Guard(Plugin, Hooks):
    """Base of all guards; as it is, no guard.

    Attributes:
        needs: What `holdfast attack` must hand over as fields of the same name, a subset of
            {"safety", "harmful", "base" (how to load the model before its alignment)}. The harmful
            rows are the provider's, never the attacker's.
        neutral: Option values at which the tuned weights must equal those without a guard, bit for
            bit.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Any]] = {}


def copies(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the values of parameters as they are now."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def at(tuning: Tuning, values: Sequence[Tensor], **inputs: Any) -> Any:
    """Return the model's output at other values of its trainable parameters, without dropout.

    The weights themselves are not touched, so it may be called between forward and backward.
    """
    names = [name for name, p in tuning.model.named_parameters() if p.requires_grad]
    with evaluation_mode(tuning.model):
        return functional_call(tuning.model, dict(zip(names, values, strict=True)), kwargs=inputs)


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer, with or without a LoRA adapter on it.

    Attributes:
        name: Its name in the model without adapters.
        module: What is called in a forward pass.
        weight: (out, in); with an adapter on it, the layer's own part, which is frozen.
        lora_a: (r, in), None without an adapter.
        lora_b: (out, r), None without an adapter.
        scale: The layer works as weight + scale * lora_b @ lora_a.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter
    lora_a: nn.Parameter | None = None
    lora_b: nn.Parameter | None = None
    scale: float = 0.0


def linear_layers(model: nn.Module) -> list[Linear]:
    """Return all linear layers in the model's order; not the one that makes the logits.

    Raises:
        UsageError: The model has matrices that are in none of them (Conv1D, fused experts): a guard
            would leave those as they are and be taken for one of the whole model.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    layers: list[Linear] = []
    inside = None  # the adapted layer whose parts are being walked over
    for name, module in inner.named_modules():
        if module is inner.get_output_embeddings() or (inside and name.startswith(inside)):
            continue
        if hasattr(module, "lora_A"):
            inside, (key, *_) = f"{name}.", module.active_adapters
            a = module.lora_A[key].weight
            b = module.lora_B[key].weight
            if isinstance(module.base_layer, nn.Linear):
                weight = cast(nn.Parameter, module.base_layer.weight)
                layers.append(Linear(name, module, weight, a, b, module.scaling[key]))
        elif isinstance(module, nn.Linear):
            layers.append(Linear(name, module, cast(nn.Parameter, module.weight)))
    _check_all(inner, layers)
    return layers


def _check_all(model: Any, layers: Sequence[Linear]) -> None:
    covered = {id(layer.weight) for layer in layers}
    makers = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    covered |= {id(m.weight) for m in [*makers, model.get_output_embeddings()] if m is not None}
    for name, p in model.named_parameters():
        if p.ndim > 1 and id(p) not in covered and ".lora_" not in name:
            raise UsageError(
                f"{type(model).__name__}: {name} is a matrix in no nn.Linear, which are all that "
                "this guard changes; take another guard (safe_instr, ewc, ldifs)"
            )
