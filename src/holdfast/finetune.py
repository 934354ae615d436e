"""One plain fine-tuning loop with checkpoints in between: what a customer or an attacker runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from holdfast import progress
from holdfast.errors import TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.interrupt import deferred_interrupt
from holdfast.models import collate, encode, preserved_rng
from holdfast.weights import trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FinetuneConfig:
    """How the fine-tuning is done.

    Attributes:
        learning_rate: Of AdamW, constant.
        steps: Optimizer steps.
        batch_size: Rows per step.
        max_length: Tokens kept per row.
        clip: Largest global gradient norm.
        seed: Order of the rows (and dropout, where the model has any).
        every: Steps between checkpoints; the last step is always one.
    """

    learning_rate: float = 1e-4
    steps: int = 100
    batch_size: int = 16
    max_length: int = 256
    clip: float = 1.0
    seed: int = 0
    every: int = 10


Snapshot = Callable[[int, float], bool | None]
"""Called at a checkpoint with the steps done and the mean training loss since the last one.

True ends the training there; None and False let it go on.
"""


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    config: FinetuneConfig,
    *,
    on_snapshot: Snapshot | None = None,
    resume: Path | None = None,
) -> None:
    """Train the model's trainable parameters in place on the rows' responses.

    Args:
        model: Changed in place.
        tokenizer: Its tokenizer.
        rows: What to train on.
        config: How.
        on_snapshot: Called at every checkpoint; may read the model, must not change it; may end
            the training.
        resume: File for the state of an interrupted run. It is written when the user interrupts
            and continued from when it exists; the caller deletes it when all is done.

    Raises:
        TrainingError: The loss is not finite.
        KeyboardInterrupt: The user interrupted; the state is in `resume`.
    """
    encoded = encode(tokenizer, rows, config.max_length)
    if not encoded:
        raise UsageError(f"{rows.name}: no rows to train on")
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    batches = _batches(len(encoded), config)
    pad = cast(int, tokenizer.pad_token_id)
    first, losses = 0, list[float]()
    with deferred_interrupt() as interrupt, preserved_rng(config.seed):
        if resume is not None and resume.exists():
            first, losses = _load_state(resume, parameters, optimizer)
        model.train()
        try:
            for step, indices in zip(range(config.steps), batches, strict=False):
                if step < first:
                    continue
                losses.append(
                    _step(model, collate([encoded[i] for i in indices], pad, model.device),
                          optimizer, parameters, config.clip, step)
                )  # fmt: skip
                done, enough = step + 1, False
                if on_snapshot and (done % config.every == 0 or done == config.steps):
                    enough = bool(on_snapshot(done, sum(losses) / len(losses)))
                    losses.clear()
                    model.train()
                progress.report("fine-tuning", done, config.steps)
                if interrupt.requested:
                    if resume is not None:
                        _save_state(resume, done, losses, parameters, optimizer)
                    raise KeyboardInterrupt
                if enough:
                    break
        finally:
            model.eval()


def _step(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    clip: float,
    step: int,
) -> float:
    loss = model(**batch).loss
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {step + 1}: training cannot go on. "
            "Lower the learning rate, or look for rows with an empty response."
        )
    loss.backward()
    clip_grad_norm_(parameters, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _batches(n: int, config: FinetuneConfig) -> Iterator[list[int]]:
    """Yield batches without end: every epoch is a new shuffle, the last short batch is kept."""
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        order = torch.randperm(n, generator=generator).tolist()
        for start in range(0, n, config.batch_size):
            yield order[start : start + config.batch_size]


def _save_state(
    path: Path,
    done: int,
    losses: Sequence[float],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    from safetensors.torch import save_file

    tensors = {
        "done": torch.tensor(done),
        "losses": torch.tensor(losses, dtype=torch.float64),
        "rng": torch.get_rng_state(),
    }
    if parameters[0].is_cuda:
        tensors["cuda_rng"] = torch.cuda.get_rng_state(parameters[0].device)
    for i, p in enumerate(parameters):
        tensors[f"parameter.{i}"] = p.detach().contiguous()
        for name, value in optimizer.state[p].items():
            tensors[f"optimizer.{i}.{name}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file({k: v.clone() for k, v in tensors.items()}, temporary)
    temporary.replace(path)


def _load_state(
    path: Path, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Put weights, optimizer and random state back; return the steps done and losses since."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(tensors[f"parameter.{i}"])
            prefix = f"optimizer.{i}."
            optimizer.state[p] = {
                name.removeprefix(prefix): value.to("cpu" if name.endswith("step") else p.device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
    torch.set_rng_state(tensors["rng"])
    if "cuda_rng" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_rng"], parameters[0].device)
    return int(tensors["done"]), tensors["losses"].tolist()
