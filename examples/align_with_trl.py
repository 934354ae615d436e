"""Vulnerability-aware alignment in a script that trains with TRL.

    python examples/align_with_trl.py

It runs on the embedded world as it stands; with a model and a data set of your own the lines of
`main` stay the same. `VaaDpo` and `DPOConfig` do the same for preference pairs.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report every run to the hub

from datasets import Dataset
from trl import SFTConfig

import holdfast as h
from holdfast.models import checkpoints
from holdfast.trl import HarmfulScore, Sft, Vaa


def main() -> None:
    """Align plainly, find the vulnerable rows, and align so that they last."""
    safety, benign, prompts = rows("alignment", 200), rows("benign", 100), rows("test", 20)
    model, tokenizer = world("world")
    common = {"train_dataset": Dataset.from_list(safety + benign), "processing_class": tokenizer}
    plain = Sft(model, config(learning_rate=1e-3, max_steps=100), **common)
    plain.train()
    scores = h.score(plain.model, tokenizer, safety, benign=benign)
    groups = h.group(scores, safety)
    base, _ = world("world")
    watch = HarmfulScore(prompts, judge="world", every=10)
    trainer = Vaa(
        base,
        config(learning_rate=1e-3, max_steps=60),
        **common,
        groups=groups,
        rho=0.1,
        callbacks=[watch],
    )
    trainer.train()
    for step, counts in watch.counts.items():
        print(f"step {step}: harmful score {counts.harmful_score:.2f}")


def config(**settings: float) -> SFTConfig:
    """Return the training's configuration; yours as it is."""
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return SFTConfig("out", use_cpu=True, bf16=False, logging_steps=100, **quiet, **settings)


def world(source: str):  # type: ignore[no-untyped-def]
    """Return a model and its tokenizer; take your own in place of these."""
    loaded = checkpoints.load(source, device="cpu")
    return loaded.model, loaded.tokenizer


def rows(name: str, limit: int) -> list[dict[str, list[dict[str, str]]]]:
    """Return rows of the embedded world in TRL's form; take your own in place of these."""
    return [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for row in h.read(f"world:{name}")[:limit]
    ]


if __name__ == "__main__":
    main()
