"""Reading the weights of full models with transformers: nothing is drawn at random or left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import UsageError
from holdfast.models.endings import end_settings
from holdfast.models.folders import weight_files
from holdfast.models.load_checks import check_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_language_model(folder: Path, dtype: torch.dtype, source: str) -> PreTrainedModel:
    """Read a causal language model on the CPU.

    Raises:
        UsageError: It is another kind of model, or a weight is missing, left over or of another
            size.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        _check_architecture(config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], source)
    # With settings given, those of the folder are not read, so that none of them can fail either.
    settings = end_settings(folder)
    return _read(AutoModelForCausalLM, folder, dtype, source, generation_config=settings)


def read_classifier(folder: Path, dtype: torch.dtype, source: str) -> PreTrainedModel:
    """Read a sequence classifier on the CPU.

    Raises:
        UsageError: A weight is missing, left over or of another size.
    """
    from transformers import AutoModelForSequenceClassification

    return _read(AutoModelForSequenceClassification, folder, dtype, source)


def _check_architecture(config: Any, expected: Any, source: str) -> None:
    classes = expected if isinstance(expected, tuple) else (expected,)
    names = {cls.__name__.lower() for cls in classes}
    architectures = config.architectures or ()
    declared = [architectures] if isinstance(architectures, str) else list(map(str, architectures))
    if not declared:
        return
    for name in declared:
        # Sharded training saves the name of the class that it wraps models in.
        if name.lower().removeprefix("fsdp") in names:
            return
        if name.endswith("ForConditionalGeneration") and not config.is_encoder_decoder:
            return
    raise UsageError(
        f"{source}: is not a causal language model: its config.json says it is a {declared[0]}, "
        f"not a {classes[0].__name__}; give a model that generates text"
    )


def _read(
    loader: Any, folder: Path, dtype: torch.dtype, source: str, **options: Any
) -> PreTrainedModel:
    from transformers import AutoConfig

    check_tensors(weight_files(folder), source)
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # A kernel that config.json asks for may be missing here, or give other numbers.
    config._attn_implementation = None
    model, report = loader.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to name the weights in one message; they are refused
        **options,
    )
    check_report(report, source, model.config)
    _return_by_name(model.config)
    _settle_tying(model)
    return cast("PreTrainedModel", model)


def _return_by_name(config: Any) -> None:
    """Undo settings of a config.json that change what a forward pass returns."""
    config.return_dict = True
    config.output_attentions = False
    config.output_hidden_states = False


def _settle_tying(model: Any) -> None:
    """Let the configuration say what was read: transformers unties a head with values of its own.

    Resizing or saving would otherwise tie the two again.
    """
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        declare_untied(model)


def declare_untied(model: Any) -> None:
    """Record in a model and its configuration that its output layer has weights of its own."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied:
        head = model.get_output_embeddings().weight
        for name, weight in model.named_parameters(remove_duplicate=False):
            if weight is head:
                tied.pop(name, None)


def check_tensors(files: Sequence[Path], source: str) -> None:
    """Refuse files in which a weight occurs twice or is not stored as a floating-point number.

    Raises:
        UsageError: There is such a weight.
        SafetensorError: A file is damaged.
    """
    homes: dict[str, Path] = {}
    for file, name, dtype, _ in _tensors(files):
        if name in homes:
            raise UsageError(
                f"{source}: {name} is both in {homes[name].name} and in {file.name}, and which of "
                "them is meant cannot be known; save the model again"
            )
        homes[name] = file
        if name.endswith("weight") and dtype not in _FLOATS:
            raise UsageError(
                f"{source}: {name} is stored as {dtype} in {file.name}, which is a quantized "
                "format; give the model that it was quantized from"
            )


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """Return the type in which most weights are stored; float32 for float64."""
    import torch

    sizes: Counter[str] = Counter()
    for _, _, code, size in _tensors(files):
        if code in _FLOATS:
            sizes[code] += size
    most = max(sizes, key=lambda code: sizes[code], default="F32")
    dtype: torch.dtype = torch.float32 if most == "F64" else getattr(torch, _FLOATS[most])
    return dtype


def _tensors(files: Sequence[Path]) -> Iterator[tuple[Path, str, str, int]]:
    """Yield file, name, stored type and number of elements of every tensor, from the headers."""
    from math import prod

    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                piece = opened.get_slice(name)
                yield file, name, piece.get_dtype(), prod(piece.get_shape())


def to_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the parameters; buffers such as the rotary frequencies keep their precision."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config.dtype = dtype


def weight_count(files: Sequence[Path]) -> int:
    """Return the number of weights in a model's files, from their headers."""
    return sum(size for _, _, _, size in _tensors(files))
