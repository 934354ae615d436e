"""Base class of the guards: hooks on one fine-tuning, and code that several guards share.

A guard is a plug-in whose annotated fields are its options. It overrides the hooks it needs,
usually one or two, and keeps its state in `Tuning.memory`.
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
    """Base class of all guards; on its own, it changes nothing.

    Attributes:
        needs: What `holdfast attack` must supply as fields of the same name, a subset of {"safety",
            "harmful", "base"}; "base" is the path or id of the model before its alignment. The
            harmful rows are the provider's, never the attacker's.
        neutral: Option values at which the tuned weights equal those without a guard, bit for bit.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Any]] = {}


def copies(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return copies of the parameters' current values."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def at(tuning: Tuning, values: Sequence[Tensor], **inputs: Any) -> Any:
    """Return the model's output at other values of its trainable parameters, without dropout.

    The weights are left alone, so this may be called between forward and backward.
    """
    names = [name for name, p in tuning.model.named_parameters() if p.requires_grad]
    with evaluation_mode(tuning.model):
        return functional_call(tuning.model, dict(zip(names, values, strict=True)), kwargs=inputs)


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer, with or without a LoRA adapter on it.

    Attributes:
        name: Its name in the model without adapters.
        module: The module called in the forward pass.
        weight: (out, in); with an adapter, the frozen weight beneath it.
        lora_a: (r, in); None without an adapter.
        lora_b: (out, r); None without an adapter.
        scale: The effective weight is weight + scale * lora_b @ lora_a.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter
    lora_a: nn.Parameter | None = None
    lora_b: nn.Parameter | None = None
    scale: float = 0.0


def linear_layers(model: nn.Module) -> list[Linear]:
    """Return all linear layers in the model's order, except the output layer.

    Raises:
        UsageError: The model has matrices outside its linear layers (Conv1D, fused experts), which
            a guard would silently leave unguarded.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    layers: list[Linear] = []
    inside = None  # prefix of the adapted layer whose parts follow
    for name, module in inner.named_modules():
        if module is inner.get_output_embeddings() or (inside and name.startswith(inside)):
            continue
        if hasattr(module, "lora_A"):
            inside = f"{name}."
            key = module.active_adapters[0]
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
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    outer = [*embeddings, model.get_output_embeddings()]
    covered |= {id(module.weight) for module in outer if module is not None}
    for name, p in model.named_parameters():
        if p.ndim > 1 and id(p) not in covered and ".lora_" not in name:
            raise UsageError(
                f"{type(model).__name__}: this guard only changes nn.Linear layers, and the matrix "
                f"{name} is in none; use another guard (safe_instr, ewc, ldifs)"
            )
