"""Small GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ("<|text|>", "<|start|>", "<|end|>", "<|turn|>")
TEXT, START, END, TURN = range(4)
CONTROL, NORMAL = 3, 1
HEADS, KEY_HEADS, LAYERS, WIDTH = 4, 2, 2, 64


def vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens and merges of a byte-level vocabulary: bytes, two blanks, a few pairs."""
    alphabet = list(bytes_to_unicode().values())
    space = bytes_to_unicode()[ord(" ")]
    pairs = [f"{space} {space}", *(f"{space} {letter}" for letter in string.ascii_lowercase)]
    tokens = [*SPECIAL, *alphabet, *(pair.replace(" ", "") for pair in pairs)]
    return tokens, pairs


def tiny_llama(seed: int = 0, *, tied: bool = False) -> LlamaForCausalLM:
    """Return a random Llama with two layers for this vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()[0]),
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=TEXT,
        eos_token_id=TEXT,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    """Return a Llama's weights under llama.cpp's names, queries and keys in its order of rows."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    for layer in range(model.config.num_hidden_layers):
        for name, short in names.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            if short in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if short == "attn_q" else KEY_HEADS)
            tensors[f"blk.{layer}.{short}.weight"] = weight
    return tensors


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorder rows as llama.cpp rotates them: the two halves of each head alternate."""
    size = weight.shape[0] // heads
    rows = [
        head * size + half * (size // 2) + row
        for head in range(heads)
        for row in range(size // 2)
        for half in range(2)
    ]
    return weight[rows]


def write_gguf(
    path: Path,
    model: LlamaForCausalLM | None = None,
    *,
    kind: Kind = Kind.F32,
    architecture: str = "llama",
    settings: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    more: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """Write a GGUF file of a Llama.

    Args:
        path: The file.
        model: The model; a random one if None.
        kind: Type of the matrices; norms are float32, as llama.cpp writes them.
        architecture: What the file says it is.
        settings: Further settings, or other values; None leaves a setting out.
        without: Names of tensors to leave out.
        more: Further tensors.
    """
    model = model or tiny_llama()
    writer = gguf.GGUFWriter(path, architecture)
    everything = {**_settings(model, architecture), **(settings or {})}
    for key, value in everything.items():
        _add(writer, key, value)
    tensors = {**gguf_tensors(model), **(more or {})}
    for name, weight in tensors.items():
        if name in without:
            continue
        own = kind if weight.ndim > 1 else Kind.F32
        stored = gguf.quantize(np.ascontiguousarray(weight, dtype=np.float32), own)
        writer.add_tensor(name, stored, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _settings(model: LlamaForCausalLM, architecture: str) -> dict[str, Any]:
    config = model.config
    tokens, merges = vocabulary()
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": 10000.0,
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }
    return {
        "general.type": "model",
        **{f"{architecture}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": TEXT,
        "tokenizer.ggml.eos_token_id": TEXT,
        "tokenizer.ggml.eot_token_id": TURN,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
