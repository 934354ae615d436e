"""A process that trains or answers when it is told to, for measuring what runs side by side.

    python beside.py MODEL WHAT COUNT

It loads and warms up, writes "ready", waits for a line, works, and writes "done".
"""

from __future__ import annotations

import sys

import torch

from holdfast import world
from holdfast.models import checkpoints
from holdfast.models.generation import generate
from holdfast.tuning.loop import FinetuneConfig, finetune
from holdfast.world import train_base


def main() -> None:
    """Follow the protocol."""
    name, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    loaded = checkpoints.load("world" if name == "wide" else name, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    if name == "wide":
        torch.manual_seed(0)
        model = train_base.model(len(tokenizer), width=512, depth=4)
    rows = world.rows("alignment")

    def work(n: int) -> None:
        if what == "steps":
            finetune(model, tokenizer, rows, FinetuneConfig(learning_rate=1e-6, steps=n))
        else:
            generate(model, tokenizer, rows.prompts[: 8 * n], max_new_tokens=24)

    work(max(count // 4, 1))
    print("ready", flush=True)
    sys.stdin.readline()
    work(count)
    print("done", flush=True)


if __name__ == "__main__":
    main()
