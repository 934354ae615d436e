"""What the tests of perturbing methods share: steps of a run, done again slowly and in the open."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.methods._batches import Batch, answer_tokens

Gradient = Callable[[Any, Callable[[], Tensor]], list[Tensor]]
"""Takes a model and a loss of it, returns what a method trains with instead of the gradient."""


def micro_batch(trainer: Any, *, benign: bool = True) -> Batch:
    """Return five safety rows, and three benign ones."""
    rows = [*range(5), *range(trainer.n_safety, trainer.n_safety + 3)]
    batch: Batch = trainer.collate_positions(rows if benign else rows[:5])
    return batch


def accumulated(trainer: Any, batch: Batch, *, keep: bool = False) -> list[Any]:
    """Return every `.grad` after one micro-batch, from none unless they are to be kept."""
    trainer.current_gradient_accumulation_steps = 1
    if not keep:
        trainer.model.zero_grad()
    trainer.accumulate(trainer.model, batch, torch.tensor(answer_tokens(batch)))
    return [p.grad if p.grad is None else p.grad.clone() for p in trainer.trainable_parameters()]


def nll(model: Any, batch: Batch, rows: Tensor) -> Tensor:
    """Return the sum of the answer tokens' losses over some rows."""
    logits = model(
        input_ids=batch["input_ids"][rows], attention_mask=batch["attention_mask"][rows]
    ).logits
    labels = batch["labels"][rows]
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def plain(model: Any, loss: Callable[[], Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss(), list(model.parameters())))


def drifted(model: Any, loss: Callable[[], Tensor], *, rho: float, layers: Any = None) -> Any:
    """Return the gradient with e_l + eps_l in some layers of a Llama, all if none are named."""
    modules = [layer.self_attn for layer in model.model.layers]
    modules = modules if layers is None else [modules[i] for i in layers]
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
        for module in modules
    ]
    up = torch.autograd.grad(loss(), outputs)
    norm = math.sqrt(sum(float((g**2).sum()) for g in up))
    eps = [rho * g / (norm + 1e-7) for g in up]
    handles += [
        module.register_forward_hook(
            lambda _module, _args, output: (output[0] + eps.pop(0), *output[1:])
        )
        for module in modules
    ]
    there = plain(model, loss)
    for handle in handles:
        handle.remove()
    return there


def assert_trains_with(trainer: Any, gradient: Gradient, rate: float = 0.1) -> None:
    """Train, and do every step of it again: `gradient` on safety rows, the plain one on benign."""
    theirs, steps = copy.deepcopy(trainer.model).train(), list[list[Batch]]()
    draw = trainer.draw_batches

    def recording(iterator: Any, n: int) -> list[Batch]:
        steps.append(draw(iterator, n))
        return [dict(batch) for batch in steps[-1]]

    trainer.draw_batches = recording
    trainer.train()
    for batches in steps:
        total = sum(map(answer_tokens, batches))
        step = [torch.zeros_like(p) for p in theirs.parameters()]
        for batch in batches:
            safe = batch["is_safety"]
            assert 0 < int(safe.sum()) < len(safe)
            for rows, kind in ((safe, gradient), (~safe, plain)):
                part = kind(theirs, lambda b=batch, r=rows, n=total: nll(theirs, b, r) / n)
                step = [a + b for a, b in zip(step, part, strict=True)]
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), step, strict=True):
                p -= rate * g
    for p, wanted in zip(trainer.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, rtol=0, atol=1e-8)
