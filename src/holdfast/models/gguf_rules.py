"""Which GGUF files are read: the settings and tokenizers that transformers takes from them rightly.

transformers ignores settings and tensors that it does not know. A model read without them would
answer differently, so a file with a setting that is ignored and not equal to what the model assumes
anyway is refused by the name of the setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from holdfast.errors import UsageError
from holdfast.models.gguf_files import GgufHeader, gguf_package

ARCHITECTURES = ("gemma2", "gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen3", "starcoder2")
"""Architectures that are read: transformers undoes all that llama.cpp's converter does to them."""

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor with the factors by which Llama 3 stretches its rotary wave lengths."""

_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Stretching of all Llama 3.1 and 3.2 models; only its factor differs between them."""

_GPT2_SPLITS = ("gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "phi-2")
"""Vocabularies whose text is split as GPT-2's, as in llama.cpp."""
DIGIT_SPLITS = (
    "codeshell",
    "command-r",
    "exaone",
    "minerva-7b",
    "refact",
    "smollm",
    "starcoder",
)
"""Vocabularies whose text is split at every digit, then as GPT-2's, as in llama.cpp."""
WHOLE_WORDS = (
    "falcon-h1",
    "falcon3",
    "llama-bpe",
    "llama-v3",
    "llama3",
    "pixtral",
    "tekken",
)
"""Vocabularies in which a word that is a token is not built by merging, as in llama.cpp."""


def check_header(header: GgufHeader, name: str) -> None:
    """Refuse a file that is no whole language model, or that cannot be dequantized.

    Raises:
        UsageError: It is something else, one of several files, of an architecture or with a type of
            tensor that is not read, or without a vocabulary.
    """
    _check_kind(header, name)
    if header.architecture not in ARCHITECTURES:
        raise UsageError(
            f"{name}: its architecture {header.architecture!r} cannot be dequantized to a model of "
            f"transformers; those that can are {', '.join(ARCHITECTURES)}. Give a directory "
            "written by save_pretrained instead"
        )
    if not header.tensors:
        raise UsageError(
            f"{name}: holds a vocabulary and no weights; give the file of the whole model"
        )
    _check_types(header, name)
    if not header.settings.get("tokenizer.ggml.tokens"):
        raise UsageError(
            f"{name}: holds no vocabulary, so text cannot be encoded; give a file that was "
            "converted together with the tokenizer"
        )


def _check_kind(header: GgufHeader, name: str) -> None:
    kind = header.settings.get("general.type", "model")
    if kind != "model":
        raise UsageError(
            f"{name}: is not a model but of the type {kind!r}; give the GGUF file of a full model. "
            "Adapters are read in the format of peft"
        )
    count = header.settings.get("split.count", 0)
    if count and count > 1:
        raise UsageError(
            f"{name}: is one of {count} files that a model was split into; merge them with "
            "llama-gguf-split --merge, and give the merged file"
        )


def _check_types(header: GgufHeader, name: str) -> None:
    gguf = gguf_package(name)
    readable = {int(kind) for kind in gguf.quants._type_traits}
    readable |= {int(gguf.GGMLQuantizationType.F32), int(gguf.GGMLQuantizationType.F16)}
    for tensor in header.tensors:
        if tensor.kind not in readable:
            kind = gguf.GGMLQuantizationType(tensor.kind).name
            raise UsageError(
                f"{name}: {tensor.name} is stored as {kind}, which cannot be dequantized; give the "
                "model in another quantization, such as Q8_0 or F16"
            )


# -------------------------------------------------------------------------------------- settings


def check_settings(header: GgufHeader, config: Any, name: str) -> None:
    """Refuse a file with a setting that transformers ignores and that its model contradicts.

    Args:
        header: The header of the file.
        config: The configuration that transformers made of it.
        name: The model in messages.

    Raises:
        UsageError: There is such a setting.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    read: Mapping[str, Any] = cast("Any", GGUF_CONFIG_MAPPING)[header.architecture]
    prefix = f"{header.architecture}."
    for key, value in header.settings.items():
        suffix = key.removeprefix(prefix)
        if suffix == key or read.get(suffix) is not None:
            continue
        expected = _EXPECTED.get(suffix)
        if expected is None or not _equal(expected(config), value):
            raise _ignored_setting(key, value, name)
    # Both Gemma 27B scale attention by another number, which their files do not hold.
    scale = getattr(config, "query_pre_attn_scalar", None)
    if scale is not None and scale != config.head_dim:
        raise _ignored_setting(f"{prefix}attention.key_length", config.head_dim, name)


def _ignored_setting(key: str, value: Any, name: str) -> UsageError:
    return UsageError(
        f"{name}: {key} = {value!r:.60} is a setting that transformers does not take from GGUF "
        "files, so the model would answer differently; give the directory that the file was "
        "converted from"
    )


def _equal(expected: Any, value: Any) -> bool:
    if isinstance(expected, float) and isinstance(value, int | float):
        return math.isclose(expected, value, rel_tol=1e-5)
    return bool(expected == value)


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _rotary_size(config: Any) -> int:
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    return int(_head_size(config) * share)


def _theta(config: Any) -> Any:
    return (getattr(config, "rope_parameters", None) or {}).get("rope_theta")


_EXPECTED: Mapping[str, Callable[[Any], Any]] = {
    "attention.causal": lambda config: True,
    "attention.key_length": _head_size,
    "attention.value_length": _head_size,
    "attn_logit_softcapping": lambda config: config.attn_logit_softcapping,
    "context_length": lambda config: config.max_position_embeddings,
    "expert_count": lambda config: 0,
    "expert_used_count": lambda config: 0,
    "feed_forward_length": lambda config: getattr(config, "n_inner", None) or 4 * config.n_embd,
    "final_logit_softcapping": lambda config: config.final_logit_softcapping,
    "rope.dimension_count": _rotary_size,
    "rope.freq_base": _theta,
    "rope.scaling.factor": lambda config: 1.0,
    "rope.scaling.finetuned": lambda config: False,
    "rope.scaling.type": lambda config: "none",
    "vocab_size": lambda config: config.vocab_size,
}
"""What a model assumes where transformers does not read the setting."""


def stretched_rotation(factors: Any, config: Any, name: str) -> dict[str, Any]:
    """Return the rotary settings whose factors a file holds.

    Args:
        factors: (D/2,) factors of the wave lengths, see `ROPE_FACTORS`.
        config: The configuration of the model, without stretching.
        name: The model in messages.

    Raises:
        UsageError: They are not Llama 3's.
    """
    import numpy as np

    theta = float(_theta(config) or 10_000.0)
    factor = float(f"{np.max(factors):.5g}")  # the file holds it with the error of float32
    settings = {**_LLAMA3, "factor": factor, "rope_theta": theta}
    expected = _llama3_factors(settings, _head_size(config))
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise _ignored_setting(ROPE_FACTORS, factors.tolist()[:3], name)
    return settings


def _llama3_factors(settings: Mapping[str, Any], size: int) -> Any:
    """Return (D/2,) factors of the wave lengths, as Llama 3.1's code computes them."""
    import numpy as np

    exponents = np.arange(0, size, 2) / size
    lengths = 2 * np.pi * settings["rope_theta"] ** exponents
    turns = settings["original_max_position_embeddings"] / lengths
    low = settings["low_freq_factor"]
    high = settings["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / settings["factor"] + smooth)


# ------------------------------------------------------------------------------------- tokenizers


def check_tokenizer(header: GgufHeader, name: str) -> None:
    """Refuse a vocabulary whose text would be split in another way than it was made for.

    Raises:
        UsageError: The kind of vocabulary, or its way to split text, is not known.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_PRE_TOKENIZER_SPLITS,
        GGUF_TOKENIZER_TYPES,
    )

    kind = header.settings.get("tokenizer.ggml.model")
    if kind not in GGUF_TOKENIZER_TYPES or kind == "t5":
        raise UsageError(
            f"{name}: its kind of vocabulary {kind!r} is not read; give the directory that the "
            "file was converted from"
        )
    split = header.settings.get("tokenizer.ggml.pre")
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *_GPT2_SPLITS, *DIGIT_SPLITS}
    if kind == "gpt2" and split not in known:
        raise UsageError(
            f"{name}: tokenizer.ggml.pre = {split!r}: how the vocabulary splits text is not known, "
            "so words would get other tokens than in training; give the directory that the file "
            "was converted from, or convert it again with a current llama.cpp"
        )
