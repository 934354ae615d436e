"""One plain fine-tuning loop with checkpoints in between: what a customer or an attacker runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from holdfast.errors import TrainingError
from holdfast.examples import Examples
from holdfast.models.encoding import Encoded, collate, encode, encode_rows_that_fit, usable_length
from holdfast.models.modes import isolate_rng
from holdfast.models.weights import replace_values, trainable
from holdfast.results.attacks import Schedule
from holdfast.runtime import progress
from holdfast.runtime.interrupt import deferred_interrupt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Hooks:
    """What may be done about a fine-tuning besides its steps; as it is, nothing.

    The hooks are called in this order. `holdfast.guards` is what overrides them.
    """

    def rows(self, rows: Examples, *, seed: int) -> Examples:
        """Return the rows to train on in place of the customer's."""
        del seed
        return rows

    def begin(self, tuning: Tuning) -> None:
        """See the model before its first step, and note in `tuning.memory` what is to be kept."""

    def extra(self, tuning: Tuning) -> Iterable[Examples]:
        """Yield the rows of steps that are taken before the customer's next one, not as his."""
        del tuning
        return ()

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a step; default: the mean over the batch's answer tokens."""
        return cast(Tensor, tuning.model(**batch).loss)

    def repair(self, tuning: Tuning) -> Iterable[tuple[nn.Parameter, Tensor]]:
        """Yield parameters with the values that they are to be measured and released at.

        The tuned ones are put back after a checkpoint. Each parameter is replaced before the next
        pair is asked for, so what a value depends on must be read before that is overwritten.
        """
        del tuning
        return ()


@dataclass(frozen=True)
class FinetuneConfig:
    """How the fine-tuning is done.

    Attributes:
        learning_rate: Of AdamW, at the first step.
        schedule: How it goes from there, over all steps: constant, linear or cosine.
        steps: Optimizer steps.
        batch_size: Rows per step.
        max_length: Tokens kept per row.
        clip: Largest global gradient norm.
        seed: Order of the rows (and dropout, where the model has any).
        every: Steps to the first checkpoint, and between them; the last step is always one.
        spacing: By how much the distance between checkpoints grows each time; 1 keeps it.
        guard: What is done about it.
    """

    learning_rate: float = 1e-4
    steps: int = 100
    batch_size: int = 16
    max_length: int = 256
    clip: float = 1.0
    seed: int = 0
    every: int = 10
    spacing: float = 1.0
    guard: Hooks = Hooks()
    schedule: Schedule = "constant"

    def rate(self, done: int) -> float:
        """Return the learning rate of the step after `done` steps."""
        share = done / self.steps
        falls = {
            "constant": 1.0,
            "linear": 1 - share,
            "cosine": (1 + math.cos(math.pi * share)) / 2,
        }
        return self.learning_rate * falls[self.schedule]

    def checkpoints(self) -> frozenset[int]:
        """Return the steps after which the model is looked at."""
        found = [self.steps]
        place = 0.0
        gap = float(self.every)
        while (place := place + gap) < self.steps:
            found.append(round(place))
            gap *= self.spacing
        return frozenset(found)


@dataclass
class Tuning:
    """A fine-tuning in progress.

    Attributes:
        model: In training mode.
        tokenizer: Its tokenizer.
        config: How it is tuned.
        parameters: What training changes.
        done: Steps of the customer's that are done.
        memory: What the guard keeps, e.g. one tensor per parameter. It is part of the state of an
            interrupted run, and all of a guard that changes: a guard is an immutable value.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: FinetuneConfig
    parameters: list[nn.Parameter]
    done: int = 0
    memory: dict[str, list[Tensor]] = field(default_factory=dict)


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

    Checkpoints see the model as its guard would release it, and so it is left at the end.

    Args:
        model: Changed in place.
        tokenizer: Its tokenizer.
        rows: What to train on.
        config: How.
        on_snapshot: Called at checkpoints; may read the model and end the training.
        resume: State file, written when a checkpoint fails or the user interrupts; kept at the end.

    Raises:
        TrainingError: The loss is not finite.
        KeyboardInterrupt: The user interrupted; the state is in `resume`.
    """
    guard = config.guard
    rows = guard.rows(rows, seed=config.seed) if rows else rows
    encoded = encode_rows_that_fit(model, tokenizer, rows, config.max_length)
    tuning = Tuning(model, tokenizer, config, trainable(model))
    optimizer = torch.optim.AdamW(tuning.parameters, lr=config.learning_rate, weight_decay=0.0)
    batches = _batches(len(encoded), config)
    losses = list[float]()
    looking = enough = False
    checkpoints = config.checkpoints() if on_snapshot else frozenset()

    def look() -> bool:
        nonlocal looking
        looking = True
        with replace_values(guard.repair(tuning)):
            stop = bool(on_snapshot and on_snapshot(tuning.done, sum(losses) / len(losses)))
        losses.clear()
        looking = False
        model.train()
        return stop

    with deferred_interrupt() as interrupt, isolate_rng(config.seed):
        try:
            if resume is not None and resume.exists():
                losses = _load_state(resume, tuning, optimizer)
                # A checkpoint that was looked at has no losses left.
                enough = bool(losses) and tuning.done in checkpoints and look()
            else:
                guard.begin(tuning)
            model.train()
            for indices in () if enough else islice(batches, tuning.done, config.steps):
                losses.append(_advance(tuning, [encoded[i] for i in indices], optimizer))
                enough = tuning.done in checkpoints and look()
                progress.report("fine-tuning", tuning.done, config.steps)
                if enough:  # an interrupt is too late here: it would be forgotten on resuming
                    break
                if interrupt.requested:
                    if resume is not None:
                        _save_state(resume, tuning, losses, optimizer)
                    raise KeyboardInterrupt
            _release(tuning)
        finally:
            if looking and resume is not None:
                _try_to_save(resume, tuning, losses, optimizer)
            model.eval()


@torch.no_grad()
def _release(tuning: Tuning) -> None:
    for parameter, value in tuning.config.guard.repair(tuning):
        parameter.copy_(value)


def _advance(tuning: Tuning, rows: Sequence[Encoded], optimizer: torch.optim.Optimizer) -> float:
    """Do the provider's extra steps and one of the customer's; return the latter's loss."""
    config = tuning.config
    for group in optimizer.param_groups:
        group["lr"] = config.rate(tuning.done)
    length = usable_length(tuning.model, config.max_length)
    for extra in config.guard.extra(tuning):
        _step(tuning, encode(tuning.tokenizer, extra, length), optimizer)
    loss = _step(tuning, rows, optimizer)
    tuning.done += 1
    return loss


def _step(tuning: Tuning, rows: Sequence[Encoded], optimizer: torch.optim.Optimizer) -> float:
    pad = cast(int, tuning.tokenizer.pad_token_id)
    loss = tuning.config.guard.loss(tuning, collate(rows, pad, tuning.model.device))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the loss is {value} at step {tuning.done + 1}: training cannot go on. "
            "Lower the learning rate, or look for rows with an empty response."
        )
    loss.backward()
    clip_grad_norm_(tuning.parameters, tuning.config.clip)
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


def _try_to_save(
    path: Path, tuning: Tuning, losses: Sequence[float], optimizer: torch.optim.Optimizer
) -> None:
    with suppress(OSError, SafetensorError):  # what went wrong before matters more
        _save_state(path, tuning, losses, optimizer)


def _save_state(
    path: Path, tuning: Tuning, losses: Sequence[float], optimizer: torch.optim.Optimizer
) -> None:
    from safetensors.torch import save_file

    parameters = tuning.parameters
    tensors = {
        "done": torch.tensor(tuning.done),
        "losses": torch.tensor(losses, dtype=torch.float64),
        "rng": torch.get_rng_state(),
    }
    if parameters[0].is_cuda:
        tensors["cuda_rng"] = torch.cuda.get_rng_state(parameters[0].device)
    for i, p in enumerate(parameters):
        tensors[f"parameter.{i}"] = p.detach().contiguous()
        for name, value in optimizer.state[p].items():
            tensors[f"optimizer.{i}.{name}"] = value.contiguous()
    for name, tensors_of_name in tuning.memory.items():
        tensors[f"memory.{name}"] = torch.tensor(len(tensors_of_name))
        tensors |= {
            f"kept.{name}.{i}": value.contiguous() for i, value in enumerate(tensors_of_name)
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    try:
        save_file({k: v.clone() for k, v in tensors.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def steps_done(path: Path) -> int:
    """Return how far the run came whose state is in a file."""
    with safe_open(path, "pt") as file:
        return int(file.get_tensor("done"))


def _load_state(path: Path, tuning: Tuning, optimizer: torch.optim.Optimizer) -> list[float]:
    """Put weights, optimizer, memory and random state back; return the losses since."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    parameters = tuning.parameters
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
    tuning.done = int(tensors["done"])
    device = parameters[0].device
    for name in [key.removeprefix("memory.") for key in tensors if key.startswith("memory.")]:
        kept = range(int(tensors[f"memory.{name}"]))
        tuning.memory[name] = [tensors[f"kept.{name}.{i}"].to(device) for i in kept]
    return cast("list[float]", tensors["losses"].tolist())
