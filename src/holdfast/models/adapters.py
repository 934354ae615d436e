"""Adapters: adding LoRA to a model, reading stored adapters, and merging them into the weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import HoldfastError, UsageError
from holdfast.models.folders import ADAPTER, read_settings
from holdfast.models.load_checks import check_numbers
from holdfast.models.reading import declare_untied

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

OF_EFFECT, OF_LOGITS = 1e-3, 1e-5
"""Error that merging may make: this share of the adapter's effect and this share of the logits."""

_DECOMPOSED = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Ways to start LoRA that change the base by what cannot be computed again from the base."""


def add_lora(model: PreTrainedModel, rank: int, *, seed: int) -> PreTrainedModel:
    """Freeze a model and add LoRA adapters to all its linear layers (peft).

    Args:
        model: Changed in place.
        rank: Rank of the adapters; their alpha is twice the rank.
        seed: Seed of the adapters' initial weights.

    Returns:
        A `PeftModel`; `merge` folds the adapters into the weights.

    Raises:
        UsageError: See `refuse_adapted`.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    refuse_adapted(model, "LoRA")
    with torch.random.fork_rng(devices=[]), without_peft_warning():
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return cast("PreTrainedModel", get_peft_model(model, config))


def refuse_adapted(model: PreTrainedModel, purpose: str) -> None:
    """Refuse a model with adapters beside its weights.

    Raises:
        UsageError: There are some: new adapters would hide them, and training would leave all
            other weights as they are.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UsageError(
            f"{purpose}: the model has adapters already, which would be hidden or trained alone; "
            "merge them first with model.merge_and_unload()"
        )


@contextlib.contextmanager
def without_peft_warning() -> Iterator[None]:
    """Hide the warning that peft still reads an attribute transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def apply(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Read an adapter and merge it into its base.

    Args:
        model: The base in float32, changed in place.
        folder: Folder of the adapter.

    Raises:
        UsageError: The adapter is of a kind that cannot be merged, does not fit the base, or
            changes the model when it is merged.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    classes: dict[Any, type[Any]] = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    settings = read_settings(folder / ADAPTER)
    kind = str(settings.get("peft_type"))
    if kind not in classes:
        raise UsageError(f"{folder}: peft has no adapters of type {kind!r}; update peft")
    _check_settings(folder, kind, settings, classes[kind])
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or not hasattr(
        PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "merge_and_unload"
    ):
        raise UsageError(
            f"{folder}: adapters of type {kind} cannot be merged into the weights; give a full "
            "model, or an adapter that changes weights, such as LoRA"
        )
    base_logits = _Answers.of(model)
    adapted = _read(model, config, folder)
    try:
        merged = _merge(adapted, base_logits)
    except HoldfastError as error:
        raise UsageError(f"{folder}: {error}") from error
    merged.requires_grad_(True)  # peft froze all weights
    return merged


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Fold LoRA adapters into the weights; return a model without adapters unchanged.

    The merged model is in float32 on the CPU: half precision would round away part of what the
    adapters learned.

    Raises:
        HoldfastError: The merged model gives other logits than the adapted one.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    adapted: Any = model
    adapted.to("cpu").float()
    with adapted.disable_adapter():
        base = _Answers.of(adapted)
    return _merge(adapted, base)


# --------------------------------------------------------------------------------------- reading


def _check_settings(folder: Path, kind: str, settings: dict[str, Any], cls: type[Any]) -> None:
    task = settings.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UsageError(
            f"{folder}: the adapter was trained for {task}, not for a causal language model; give "
            "an adapter of task_type CAUSAL_LM"
        )
    own = {field.name for field in fields(cls)} | {"auto_mapping", "peft_version"}
    if unknown := sorted(key for key in settings.keys() - own if settings[key]):
        raise UsageError(
            f"{folder}: peft does not know the setting {unknown[0]} of this {kind} adapter, and "
            "without it the model would be another; update peft"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_DECOMPOSED):
        raise UsageError(
            f"{folder}: the adapter was started by {start}, which also changed its base, so it "
            "does not fit the base as stored; save it with path_initial_model_for_weight_conversion"
        )


def _read(model: PreTrainedModel, config: Any, folder: Path) -> Any:
    """Return the base with the adapter, every tensor of which has found its place."""
    from peft import PeftModel, PeftModelForCausalLM
    from peft.utils import get_peft_model_state_dict

    cls = PeftModelForCausalLM if config.task_type else PeftModel
    config.inference_mode = True
    try:
        adapted = cls(model, config)
        report = adapted.load_adapter(str(folder), "default", torch_device="cpu")
    except KeyError as error:
        raise UsageError(
            f"{folder}: the adapter's file lacks {error.args[0]}, which its settings say was "
            "trained; save the adapter again"
        ) from error
    missing = list(report.missing_keys)
    if getattr(config, "bias", "none") != "none":
        stored = set(_stored_names(folder))
        own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        missing += [name for name in own if name.endswith("bias") and name not in stored]
    if missing:
        raise UsageError(
            f"{folder}: the adapter's file lacks {missing[0]} ({len(missing)} missing in all), "
            "which would be drawn at random; give the base and the settings it was trained with"
        )
    if report.unexpected_keys:
        left = report.unexpected_keys
        raise UsageError(
            f"{folder}: the base model has no place for {left[0]} ({len(left)} such tensors in "
            "all) of the adapter; give the base and the settings it was trained with"
        )
    _check_shared(adapted, folder)
    check_numbers(cast("PreTrainedModel", adapted), str(folder))
    return adapted.eval()


def _check_shared(adapted: Any, folder: Path) -> None:
    """Refuse two stored values of one weight, such as a tied embedding and output layer."""
    import torch
    from safetensors import safe_open

    from holdfast.models.folders import ADAPTER_WEIGHTS

    weights = dict(adapted.named_parameters(remove_duplicate=False))
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        for name in set(file.keys()) & weights.keys():
            weight = weights[name]
            if not torch.equal(weight, file.get_tensor(name).to(weight.dtype)):
                raise UsageError(
                    f"{folder}: the adapter stores a value of its own for {name}, which the base "
                    "shares with another weight; merge it where it was trained, and give the "
                    "merged model"
                )


def _stored_names(folder: Path) -> list[str]:
    from safetensors import safe_open

    from holdfast.models.folders import ADAPTER_WEIGHTS

    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        return list(file.keys())


# --------------------------------------------------------------------------------------- merging


@dataclass(frozen=True)
class _Answers:
    """What a model computes: logits of a few texts, and the embedding of every token.

    Attributes:
        logits: (2, 16, V) of random tokens.
        embedded: (V, d).
    """

    logits: torch.Tensor
    embedded: torch.Tensor

    @classmethod
    def of(cls, model: Any) -> _Answers:
        """Ask a model, in evaluation mode."""
        import torch

        embeddings = model.get_input_embeddings()
        size = int(embeddings.weight.shape[0])
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(size, (2, 16), generator=generator)
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, use_cache=False).logits
            return cls(logits.double(), embeddings(torch.arange(size)))

    def differ(self, other: _Answers, base: _Answers) -> float:
        """Return the error of these in units of what merging may change; above 1 is too much."""

        def error(mine: torch.Tensor, others: torch.Tensor, before: torch.Tensor) -> float:
            effect = (others - before).norm() if others.shape == before.shape else others.norm()
            allowed = OF_EFFECT * effect + OF_LOGITS * others.norm()
            difference = (mine - others).norm()
            return float(difference / allowed) if float(difference) else 0.0

        return max(
            error(self.logits, other.logits, base.logits),
            error(self.embedded, other.embedded, base.embedded),
        )


def _merge(adapted: Any, base: _Answers) -> PreTrainedModel:
    """Merge the adapters of a model in float32 on the CPU, and check that nothing else changed."""
    before = _Answers.of(adapted)
    was_tied = _untie(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the output layer is no longer tied
        merged: Any = adapted.merge_and_unload()
    if was_tied:
        _tie_if_equal(merged)
    after = _Answers.of(merged)
    if not after.differ(before, base) <= 1:
        raise HoldfastError(
            "merging the adapter changes the model: its logits differ by more than rounding from "
            "those of the base with the adapter beside it; merge it where it was trained, compare "
            "the logits, and give the merged model"
        )
    return cast("PreTrainedModel", merged)


def _untie(model: Any) -> bool:
    """Give an output layer that shares its weights with the embedding a copy of its own.

    What is merged into one of them would otherwise be merged into the other too.

    Returns:
        Whether the two were tied and an adapter changes one of them.
    """
    import torch

    layers = [model.get_output_embeddings(), model.get_input_embeddings()]
    head, embeddings = map(_inner, layers)
    if head is None or head.weight is not embeddings.weight or layers == [head, embeddings]:
        return False
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    return True


def _inner(layer: Any) -> Any:
    """Return the layer of the base inside peft's wrappers."""
    while True:
        if hasattr(layer, "base_layer"):
            layer = layer.base_layer
        elif hasattr(layer, "original_module"):
            layer = layer.original_module
        else:
            return layer


def _tie_if_equal(model: Any) -> None:
    import torch

    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings()
    if torch.equal(head.weight, embeddings.weight):
        head.weight = embeddings.weight
        model.config.tie_word_embeddings = True  # peft has just recorded that it is not
    else:
        declare_untied(model)
