"""Conversion of a GGUF file to a folder with the full model, in float32.

What is measured and trained is the dequantized model: its arithmetic is in floating point, so its
answers can differ from those of llama.cpp, which computes with the quantized weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import UsageError
from holdfast.models import gguf_rules
from holdfast.models.endings import stop_tokens
from holdfast.models.gguf_files import GgufHeader, gguf_package, read_header
from holdfast.models.load_checks import check_numbers, check_report, reading
from holdfast.models.memory import check_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_END_SETTINGS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id")


def convert(file: Path, name: str, folder: Path) -> None:
    """Write the model of a GGUF file to a folder: weights, tokenizer, template and end tokens.

    Args:
        file: The GGUF file.
        name: The model in messages.
        folder: Folder to write; it is not there yet.

    Raises:
        UsageError: The file is damaged, or it is of a kind that is not read, see `gguf_rules`.
    """
    header = read_header(file, name)
    gguf_rules.check_header(header, name)
    gguf_rules.check_tokenizer(header, name)
    check_memory(4 * header.parameters, name)
    # Only a progress bar is written there, which nothing switches off.
    with reading(name, "a GGUF file"), contextlib.redirect_stderr(io.StringIO()):
        model = _model(file, header, name)
        tokenizer = _tokenizer(file, header)
    check_numbers(model, name)
    if tokenizer.eos_token_id is not None:
        _set_ends(model, tokenizer, header)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _model(file: Path, header: GgufHeader, name: str) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    config: Any = AutoConfig.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    gguf_rules.check_settings(header, config, name)
    factors = _rope_factors(file, header, name)
    if factors is not None:
        config.rope_parameters = gguf_rules.stretched_rotation(factors, config, name)
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to name the weights in one message; they are refused
    )
    check_report(report, name, model.config)
    _check_all_used(model, header, name)
    # What general.name says stands in the hash of the model, and nothing else depends on it.
    model.config._name_or_path = ""
    model.config.__dict__.pop("_model_name_or_path", None)
    return cast("PreTrainedModel", model)


def _rope_factors(file: Path, header: GgufHeader, name: str) -> Any:
    """Return the factors of rotary wave lengths that a file holds, or None."""
    import numpy as np

    for tensor in header.tensors:
        if tensor.name == gguf_rules.ROPE_FACTORS:
            with file.open("rb") as opened:
                opened.seek(tensor.start)
                content = np.frombuffer(opened.read(tensor.size), np.uint8)
            gguf = gguf_package(name)
            kind = gguf.GGMLQuantizationType(tensor.kind)
            typed = content.view({"F32": "<f4", "F16": "<f2"}.get(kind.name, "u1"))
            return gguf.dequantize(typed, kind).astype(np.float64).reshape(-1)
    return None


def _check_all_used(model: PreTrainedModel, header: GgufHeader, name: str) -> None:
    """Refuse a file with tensors that transformers silently leaves out.

    No weight of the model is missing, so its weights are as many as the file's unless some were
    left out.
    """
    weights = {weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}
    in_model = sum(weights.values())
    expected = sum(
        math.prod(tensor.shape)
        for tensor in header.tensors
        if tensor.name != gguf_rules.ROPE_FACTORS
    )
    if in_model != expected:
        raise UsageError(
            f"{name}: holds {expected:,} weights, but {type(model).__name__} has a place for "
            f"{in_model:,}, so the model would answer differently; give the directory that the "
            "file was converted from"
        )


def _tokenizer(file: Path, header: GgufHeader) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        convert_gguf_tokenizer,
        get_gguf_tokenizer,
    )

    architecture, vocabulary, settings = get_gguf_tokenizer(str(file))
    converted: Any = convert_gguf_tokenizer(architecture, vocabulary)[0]
    backend = _without_additions(converted, len(vocabulary["tokens"]))
    split = header.settings.get("tokenizer.ggml.pre")
    if vocabulary["tokenizer_type"] == "gpt2":
        if split in gguf_rules.DIGIT_SPLITS:
            digits = pre_tokenizers.Digits(individual_digits=True)
            words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        backend.model.ignore_merges = split in gguf_rules.WHOLE_WORDS
    elif header.settings.get("tokenizer.ggml.add_space_prefix") is False:
        if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
            backend.pre_tokenizer.prepend_scheme = "never"
    return cast(
        "PreTrainedTokenizerBase",
        PreTrainedTokenizerFast(tokenizer_object=backend, **settings),
    )


def _without_additions(backend: Any, n_tokens: int) -> Any:
    """Return a tokenizer without the special tokens of GPT-2 or Llama that are not in its file.

    transformers adds them behind the vocabulary, where the model has no embedding.
    """
    from tokenizers import Tokenizer

    description = json.loads(backend.to_str())
    added = description["added_tokens"]
    description["added_tokens"] = [token for token in added if token["id"] < n_tokens]
    return Tokenizer.from_str(json.dumps(description))


def _set_ends(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, header: GgufHeader
) -> None:
    """Put all end tokens into the generation settings, which is where other tools look for them."""
    from transformers import GenerationConfig

    declared = [header.settings[key] for key in _END_SETTINGS if key in header.settings]
    model.generation_config = GenerationConfig(eos_token_id=declared or None)
    ends = stop_tokens(model, tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=ends,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
