"""LoRA adapters: adding them to a model and merging them into its weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, rank: int, *, seed: int) -> PreTrainedModel:
    """Freeze a model and add LoRA adapters to all its linear layers (peft).

    Args:
        model: Changed in place.
        rank: Rank of the adapters; their alpha is twice the rank.
        seed: Seed of the adapters' initial weights.

    Returns:
        A `PeftModel`; `merge` folds the adapters into the weights.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), without_peft_warning():
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return cast("PreTrainedModel", get_peft_model(model, config))


@contextlib.contextmanager
def without_peft_warning() -> Iterator[None]:
    """Hide the warning that peft still reads an attribute transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Fold LoRA adapters into the weights; return a model without adapters unchanged."""
    fold: Callable[[], PreTrainedModel] | None = getattr(model, "merge_and_unload", None)
    return model if fold is None else fold()
