"""What generation costs beyond the model's forward passes, and an attack beyond both.

Generation and bare forward passes of the same shapes (the prompts once, then one token at a time
with the cache) take turns in one process, so that whatever slows the machine slows both. An attack
is run once per seed with clocks around training steps and generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import Row, folder, main, parser, write
from holdfast import world
from holdfast.models import checkpoints, generation
from holdfast.stages import attack
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stats.intervals import bootstrap
from holdfast.tuning import loop

NOTES = (
    "generation: seconds of generate over those of bare forward passes of the same shapes, in "
    "turns; median ratio of turns, bootstrap over turns. attack: share of a cell's seconds outside "
    "training steps and generation (loading, judging, encoding, saving), one cell per seed after "
    "one that is not counted; bootstrap over cells; low and high are unknown for one. Seconds are "
    "processor time of one thread, which other processes do not lengthen."
)
NEW_TOKENS = 20


Pass = tuple[int, int, int]
"""Rows, new tokens, and tokens in the cache of a forward pass."""


def bare(model: Any, passes: list[Pass]) -> None:
    """Run forward passes of the same shapes as those of a generation."""
    name = _cache_name(model)
    cache: Any = None
    with torch.no_grad():
        for rows, new, past in passes:
            if not past:
                cache = None
            elif rows < cache.layers[0].keys.shape[0]:
                cache.batch_select_indices(torch.arange(rows))
            output = model(
                input_ids=torch.ones((rows, new), dtype=torch.long, device=model.device),
                attention_mask=torch.ones((rows, past + new), dtype=torch.long),
                use_cache=True,
                logits_to_keep=torch.tensor([new - 1]),
                **{name: cache},
            )
            cache = output[name]


def _cache_name(model: Any) -> str:
    """Return what this version of transformers calls the cache."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


@contextmanager
def replaced(place: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Put something else in a function's place."""
    kept = getattr(place, name)
    setattr(place, name, make(kept))
    try:
        yield
    finally:
        setattr(place, name, kept)


def passes_of(model: Any, call: Callable[[], object]) -> list[Pass]:
    """Return the shapes of the forward passes of a generation."""
    passes: list[Pass] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows, new = kwargs["input_ids"].shape
        cache = kwargs.get(_cache_name(model))
        passes.append((rows, new, 0 if cache is None else cache.get_seq_length()))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    call()
    hook.remove()
    return passes


def generation_rows(turns: int, count: int) -> Iterator[Row]:
    """Yield a row for greedy answers and one for each way to sample."""
    loaded = checkpoints.load("world", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    prompts = [*world.rows("test").prompts, *world.rows("benign").prompts][:count]
    for name, sampling in (
        ("greedy", generation.GREEDY),
        ("sampled", generation.Sampling(temperature=1.0)),
        ("sampled, top_p", generation.Sampling(temperature=1.0, top_p=0.9)),
    ):

        def whole(sampling: generation.Sampling = sampling) -> None:
            generation.generate(
                model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, sampling=sampling
            )

        passes = passes_of(model, whole)
        bare(model, passes)
        times = np.empty((turns, 2))
        for turn in range(turns):
            for column, call in ((0, whole), (1, lambda passes=passes: bare(model, passes))):
                start = time.process_time()
                call()
                times[turn, column] = time.process_time() - start
        ratio = bootstrap(lambda t: float(np.median(t[:, 0] / t[:, 1])), times)
        yield {
            "what": f"generation, {name}",
            **ratio.fields("ratio"),
            "seconds": float(np.median(times[:, 0])),
            "passes": len(passes),
            "n": turns,
        }


def attack_row(seeds: int, quick: bool) -> Row:
    """Return the share of attack cells' time outside training steps and generation."""
    spent = 0.0

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent += time.process_time() - start

        return timed

    shares, whole = [], 0.0
    steps = 10 if quick else 120
    with folder(None) as out:  # what is imported and built once is no cell's
        attack.attack(_cell(out, 0, 1))
    for seed in range(seeds):
        with (
            folder(None) as out,
            replaced(loop, "_step", clocked),
            replaced(generation, "respond", clocked),
        ):
            start, spent = time.process_time(), 0.0
            attack.attack(_cell(out, seed, steps))
            whole = time.process_time() - start
        shares.append(1 - spent / whole)
    values = np.array(shares)
    known = len(values) > 1
    share = bootstrap(lambda v: float(v.mean()), values).fields("ratio") if known else {}
    return {
        "what": "attack, share outside",
        "ratio": float(values.mean()),
        "ratio_low": float("nan"),
        "ratio_high": float("nan"),
        **share,
        "seconds": whole,
        "passes": steps,
        "n": len(values),
    }


def _cell(out: Path, seed: int, steps: int) -> AttackConfig:
    return AttackConfig(
        models=["world"],
        tasks=["world_sentiment"],
        harmful="world:harmful",
        test="world:test",
        judges=["world", "refusal"],
        learning_rates=[5e-5],
        steps=[steps],
        max_length=64,
        max_new_tokens=NEW_TOKENS,
        seeds=[seed],
        device="cpu",
        out=out,
    )


def run_benchmark() -> None:
    """Measure, write."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    turns, count = (2, 12) if options.quick else (9, 128)
    seeds = 1 if options.quick else options.seeds
    rows = [*generation_rows(turns, count), attack_row(seeds, options.quick)]
    facts = {"quick": options.quick, "seeds": seeds, "prompts": count, "notes": NOTES}
    write(options.json, "generation", facts, rows)


if __name__ == "__main__":
    main(run_benchmark)
