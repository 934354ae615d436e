"""Step time of VAA on an accelerator: a 0.5-billion-parameter Llama with random weights, in bf16.

Speed does not depend on what the weights are, so nothing is downloaded. Rows are random words of
the embedded world's vocabulary, all of one length, so that no time goes into padding.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from sys import stderr

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

import step_time as st
from common import Row, main, parser, write
from holdfast import models
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.methods.base import AlignmentData

NOTES = (
    "tokens_per_second: trained tokens over wall clock; the perturbation's own pass is not "
    "counted as work done. matmul_share: 6 N tokens (1 + extra passes) / seconds, attention "
    "included, as a share of the measured rate of one 8192 x 8192 bf16 product; extra passes are "
    "the expected number. Peak memory is the allocator's (max_memory_allocated)."
)


@dataclass(frozen=True)
class Shape:
    """Size of the model and of a step."""

    hidden: int = 1024
    inner: int = 4096
    layers: int = 28
    heads: int = 16
    vocabulary: int = 32_000
    batch: int = 16
    length: int = 256


QUICK = Shape(hidden=256, inner=512, layers=2, heads=4, vocabulary=1000, batch=4, length=64)


def build(shape: Shape, device: str) -> LlamaForCausalLM:
    """Return the model in bf16 on a device; the default shape has 0.50 billion parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.length,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    nn.Module.to(model, device=device, dtype=torch.bfloat16)
    return model


def random_rows(
    tokenizer: PreTrainedTokenizerBase, n: int, length: int, *, seed: int, name: str
) -> Examples:
    """Return n rows that fill `length` tokens, half of them prompt."""
    special = set(tokenizer.all_special_ids)
    vocabulary = sorted(w for w, i in tokenizer.get_vocab().items() if i not in special)
    rng = np.random.default_rng(seed)

    def text(words: int) -> str:
        return " ".join(rng.choice(vocabulary, words))

    # The template adds three tokens: who asks, who answers, the end.
    half = (length - 3) // 2
    return Examples((Example(text(half), text(length - 3 - half)) for _ in range(n)), name=name)


def bench(shape: Shape, *, device: str, steps: int, lora: bool) -> st.Bench:
    """Return what is measured."""
    tokenizer = models.load("world", device="cpu").tokenizer
    safety = random_rows(tokenizer, 256, shape.length, seed=0, name="safety")
    harmful = random_rows(tokenizer, 64, shape.length, seed=1, name="harmful")
    rows = AlignmentData(safety=safety, harmful=harmful, groups=st.halves(safety))
    return st.Bench(
        name=f"llama-{shape.hidden}x{shape.layers}",
        model=build(shape, device),
        tokenizer=tokenizer,
        data=rows,
        steps=steps,
        lora=lora,
        batch_size=shape.batch,
        max_length=shape.length,
    )


def matmul_rate(device: str, size: int = 8192) -> float:
    """Return the operations per second of a bf16 product of two square matrices."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    taken = []
    for _ in range(12):
        started = time.perf_counter()
        a @ b
        if a.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(taken[2:])


def step_operations(shape: Shape, parameters: int) -> float:
    """Return the operations of one forward and backward pass over a step's tokens.

    Six per parameter and token, and causal attention: per layer and token two products of
    length / 2 x hidden on average, two operations each, backward twice forward.
    """
    attention = 6 * shape.layers * shape.hidden * shape.length
    return (6 * parameters + attention) * shape.batch * shape.length


def rows(
    shape: Shape,
    measured: st.Bench,
    taken: Mapping[st.Variant, Sequence[st.Turn]],
    peaks: Mapping[st.Variant, st.Turn],
    rate: float,
) -> list[Row]:
    """Return SFT's row and one for each variant with its ratios to SFT."""
    ratios = {(r["method"], r["mode"]): r for r in st.rows(measured, taken, peaks)}
    parameters = sum(p.numel() for p in measured.model.parameters())
    found = []
    for variant, turns in taken.items():
        seconds = statistics.mean(t.seconds for t in turns) / measured.steps
        half = (measured.steps - 1) / (2 * measured.steps)
        passes = 1 + {"always": 1.0, "linear": half}.get(variant.mode, 0.0)
        operations = step_operations(shape, parameters) * passes
        plain: Row = {
            "method": variant.method,
            "mode": variant.mode,
            "parameters": measured.parameters,
        }
        found.append(
            {
                **ratios.get((variant.method, variant.mode), plain),
                "step_seconds": seconds,
                "tokens_per_second": shape.batch * shape.length / seconds,
                "peak_gib": peaks[variant].peak_bytes / 2**30,
                # With adapters the frozen weights need no gradient: a third of the work less.
                "matmul_share": operations * (2 / 3 if measured.lora else 1) / seconds / rate,
            }
        )
    return found


def run_benchmark() -> None:
    """Measure and write; needs an accelerator."""
    chosen = parser(__doc__, seeds=10).parse_args()
    # With several devices in sight the Trainer would split each batch over them.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if not torch.cuda.is_available():
        raise UsageError(
            "this machine has no accelerator that torch can use; benchmarks/step_time.py measures "
            "the same on a CPU"
        )
    shape, steps = (QUICK, 3) if chosen.quick else (Shape(), 20)
    rounds = 2 if chosen.quick else chosen.seeds
    rate = matmul_rate("cuda")
    found: list[Row] = []
    for lora in (False, True):
        measured = bench(shape, device="cuda", steps=steps, lora=lora)
        peaks = st.peaks_of(measured, st.VARIANTS)
        taken = st.take_turns(
            measured, st.VARIANTS, rounds, progress=lambda text: print(text, file=stderr)
        )
        found += rows(shape, measured, taken, peaks, rate)
    facts = {
        "setting": "gpu",
        "quick": chosen.quick,
        "turns": rounds,
        "steps": steps,
        "shape": vars(shape),
        "matmul_operations_per_second": rate,
        "notes": NOTES + " " + st.NOTES,
    }
    write(chosen.json, "step_time", facts, found)


if __name__ == "__main__":
    main(run_benchmark)
