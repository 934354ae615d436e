"""What a step costs on an accelerator: Llamas of 0.5, 1.5 and 7 billion random weights, in bf16.

Speed does not depend on what the weights are, so nothing is downloaded. Rows are random words of
the embedded world's vocabulary, all of one length, so that no time goes into padding. The smallest
model has every method, the others VAA and Hold. Whatever does not fit into the memory is a row that
says so, and the results are written after every block, so a run that ends early has lost little.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from sys import stderr
from typing import cast

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import step_time as st
from common import Row, main, parser, write
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.methods.base import AlignmentData
from holdfast.methods.hold import HoldOptions
from holdfast.models import checkpoints

NOTES = (
    "tokens_per_second: trained tokens over wall clock; a perturbation's own pass is not "
    "counted as work done. matmul_share: 6 N tokens (1 + extra passes) / seconds, attention "
    "included, as a share of the measured rate of one 8192 x 8192 bf16 product; extra passes are "
    "the expected number, unknown for the other methods. Peak memory is the allocator's "
    "(max_memory_allocated). fits: whether a step ran without the memory running out."
)
MAIN = ("vaa", "hold")
SIDE = 8192
"""Of the matrices whose product is the chip's peak."""
SHORT_SIDE = 512
"""Of those with --quick."""


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


SIZES = {
    "0.5b": Shape(),
    "1.5b": Shape(hidden=1536, inner=8960, heads=12),
    "7b": Shape(hidden=4096, inner=11008, layers=32, heads=32),
}
QUICK = Shape(hidden=256, inner=512, layers=2, heads=4, vocabulary=1000, batch=4, length=64)


def build(shape: Shape, device: str) -> PreTrainedModel:
    """Return the model in bf16, made on its device: elsewhere 7 billion weights take minutes."""
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
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return cast(PreTrainedModel, made)


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


def bench(shape: Shape, *, device: str, steps: int, lora: bool, name: str = "") -> st.Bench:
    """Return what is measured."""
    tokenizer = checkpoints.load("world", device="cpu").tokenizer
    safety = random_rows(tokenizer, 256, shape.length, seed=0, name="safety")
    harmful = random_rows(tokenizer, 64, shape.length, seed=1, name="harmful")
    rows = AlignmentData(safety=safety, harmful=harmful, groups=st.halves(safety))
    return st.Bench(
        name=name or f"llama-{shape.hidden}x{shape.layers}",
        model=build(shape, device),
        tokenizer=tokenizer,
        data=rows,
        steps=steps,
        lora=lora,
        batch_size=shape.batch,
        max_length=shape.length,
    )


def matmul_rate(device: str, size: int) -> float:
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


def passes(variant: st.Variant, steps: int) -> float:
    """Return how many forward and backward passes a step of it takes on average.

    nan for methods whose passes are not all alike (they differentiate less or more of the model).
    """
    if variant.plugin == "hold":
        options = HoldOptions(**variant.options)
        if not options.every:
            # An attack has 1 ... k_t steps, and k_t grows from 1 to inner_steps over the run.
            length = (options.inner_steps + 3) / 4
            return 1 + (1 - options.clean) * length * options.attack_share
        both = options.clean if options.mixture == "both" else 0.0
        return 1 + both + options.attack_share / options.every
    if variant.plugin == "vaa":
        return 1 + (1.0 if variant.mode == "always" else (steps - 1) / (2 * steps))
    return {"sft": 1.0, "group_dro": 1.0, "sam": 2.0}.get(variant.plugin, math.nan)


def peaks_that_fit(measured: st.Bench, variants: Sequence[st.Variant]) -> dict[st.Variant, st.Turn]:
    """Return the peak memory of a step of each variant that has room for one.

    Plain fine-tuning is the first; where that has no room nothing else has.
    """
    found: dict[st.Variant, st.Turn] = {}
    for variant in variants:
        try:
            found |= st.peaks_of(measured, (variant,))
        except torch.OutOfMemoryError:
            name = f"{variant.method} {variant.mode}".strip()
            _say(f"{measured.name} {measured.parameters}: no room for {name}")
        # What an error held on to is gone by now, and the next one needs it all.
        gc.collect()
        torch.cuda.empty_cache()
        if st.SFT not in found:
            break
    return found


def rows(
    shape: Shape,
    measured: st.Bench,
    taken: Mapping[st.Variant, Sequence[st.Turn]],
    peaks: Mapping[st.Variant, st.Turn],
    rate: float,
) -> list[Row]:
    """Return SFT's row and one for each variant, with its ratios to SFT."""
    ratios = {(r["method"], r["mode"]): r for r in st.rows(measured, taken, peaks)}
    parameters = sum(p.numel() for p in measured.model.parameters())
    found = []
    for variant, turns in taken.items():
        seconds = statistics.mean(t.seconds for t in turns) / measured.steps
        operations = step_operations(shape, parameters) * passes(variant, measured.steps)
        found.append(
            {
                **_named(measured, variant),
                "fits": True,
                **ratios.get((variant.method, variant.mode), {}),
                "step_seconds": seconds,
                "matmul_operations_per_second": rate,
                "tokens_per_second": shape.batch * shape.length / seconds,
                "peak_gib": peaks[variant].peak_bytes / 2**30,
                # With adapters the frozen weights need no gradient: a third of the work less.
                "matmul_share": operations * (2 / 3 if measured.lora else 1) / seconds / rate,
            }
        )
    return found


def _named(measured: st.Bench, variant: st.Variant) -> Row:
    return {
        "method": variant.method,
        "mode": variant.mode,
        "parameters": measured.parameters,
        "model": measured.name,
    }


def block(
    shape: Shape, measured: st.Bench, variants: Sequence[st.Variant], rounds: int, until: float
) -> list[Row]:
    """Measure these variants, and return a row for each.

    Args:
        shape: Of the model and of a step.
        measured: What is measured.
        variants: SFT first.
        rounds: Most turns of each.
        until: When no further round begins, by time.perf_counter.
    """
    peaks = peaks_that_fit(measured, variants)
    left_out = [v for v in variants if v not in peaks]
    found: list[Row] = []
    if st.SFT in peaks:
        fit = [v for v in variants if v in peaks]
        side = SHORT_SIDE if shape == QUICK else SIDE
        rate = matmul_rate(measured.model.device.type, side)
        taken = st.take_turns(measured, fit, rounds, progress=_say, until=until)
        found = rows(shape, measured, taken, peaks, rate)
    return [*found, *({**_named(measured, v), "fits": False} for v in left_out)]


def _say(text: str) -> None:
    print(text, file=stderr)


def sizes(names: str) -> dict[str, Shape]:
    """Return the shapes of these names.

    Raises:
        UsageError: A name is not known.
    """
    if unknown := sorted(set(names.split(",")) - SIZES.keys()):
        raise UsageError(f"--sizes {', '.join(unknown)}: none of {', '.join(SIZES)}")
    return {name: SIZES[name] for name in SIZES if name in names.split(",")}


def run_benchmark() -> None:
    """Measure and write."""
    options = parser(__doc__, seeds=5)
    options.add_argument("--sizes", default=",".join(SIZES), help="names with commas")
    options.add_argument("--minutes", type=float, default=12.0, help="after which turns end")
    options.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --quick"
    )
    chosen = options.parse_args()
    shapes = {"quick": QUICK} if chosen.quick else sizes(chosen.sizes)
    # With several devices in sight the Trainer would split each batch over them.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if chosen.device == "cpu" and not chosen.quick:
        raise UsageError("--device cpu is only for --quick; use benchmarks/step_time.py on a CPU")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "this machine has no accelerator that torch can use; benchmarks/step_time.py measures "
            "the same on a CPU"
        )
    measure(shapes, chosen, device=chosen.device)


def measure(shapes: Mapping[str, Shape], chosen: argparse.Namespace, *, device: str) -> None:
    """Measure full and LoRA training of every shape, each for its share of the time."""
    steps, rounds = (3, 2) if chosen.quick else (10, chosen.seeds)
    ends = time.perf_counter() + 60 * chosen.minutes
    left = [(name, lora) for name in shapes for lora in (False, True)]
    found: list[Row] = []
    for done, (name, lora) in enumerate(left):
        shape = shapes[name]
        share = (ends - time.perf_counter()) / (len(left) - done)
        until = time.perf_counter() + share
        measured = bench(shape, device=device, steps=steps, lora=lora, name=name)
        every_method = name == "0.5b" or (name == "quick" and device == "cuda")
        variants = st.VARIANTS if every_method else st.named(",".join(MAIN))
        found += block(shape, measured, variants, rounds, until)
        del measured
        facts = {
            "setting": "gpu",
            "quick": chosen.quick,
            "most_turns": rounds,
            "steps": steps,
            "shapes": {label: asdict(one) for label, one in shapes.items()},
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "notes": NOTES + " " + st.NOTES,
        }
        write(chosen.json, "step_time", facts, found)


if __name__ == "__main__":
    main(run_benchmark)
