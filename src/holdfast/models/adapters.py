"""Loading, saving and adapting causal language models, and turning rows into tokens."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, rank: int, *, seed: int) -> PreTrainedModel:
    """Freeze a model and add LoRA adapters of a rank to all its linear layers (peft).

    The result is a `PeftModel`; `merge` folds the adapters in.
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
    """Keep from the user that peft still reads an attribute which transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Fold LoRA adapters into the weights; a model without them is returned as it is."""
    fold: Callable[[], PreTrainedModel] | None = getattr(model, "merge_and_unload", None)
    return model if fold is None else fold()
