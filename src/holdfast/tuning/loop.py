"""The fine-tuning loop with checkpoints that customers and attackers run."""

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
from holdfast.models.encoding import (
    Encoded,
    collate,
    encode,
    encode_rows_that_fit,
    parts_by_length,
    usable_length,
)
from holdfast.models.head_loss import answer_loss
from holdfast.models.heads import has_own_loss
from holdfast.models.modes import isolate_rng
from holdfast.models.precision import attention_in_float32, autocast, computing
from holdfast.models.weights import all_finite, replace_values, trainable, weights_not_finite
from holdfast.results.attacks import Schedule
from holdfast.runtime import progress
from holdfast.runtime.interrupt import Interrupt, deferred_interrupt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Hooks:
    """Hooks into fine-tuning, called in this order; by default they do nothing.

    The guards in `holdfast.guards` override them.
    """

    def rows(self, rows: Examples, *, seed: int) -> Examples:
        """Return the rows to train on instead of the customer's."""
        del seed
        return rows

    def begin(self, tuning: Tuning) -> None:
        """Prepare before the first step; what the guard needs later goes into `tuning.memory`."""

    def extra(self, tuning: Tuning) -> Iterable[Examples]:
        """Yield rows for extra steps before the customer's next step; these are not counted."""
        del tuning
        return ()

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a step; default: the mean over the batch's answer tokens."""
        return answer_loss(tuning.model, batch)

    def repair(self, tuning: Tuning) -> Iterable[tuple[nn.Parameter, Tensor]]:
        """Yield parameters and the values they are measured and released with.

        After a checkpoint the trained values are restored. Each parameter is replaced before the
        next pair is generated, so a value must be computed before the parameters it depends on are
        replaced.
        """
        del tuning
        return ()


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tuning run.

    Attributes:
        learning_rate: Learning rate of AdamW at the first step.
        steps: Number of optimizer steps.
        batch_size: Rows per step.
        max_length: Maximum number of tokens per row.
        clip: Maximum global gradient norm.
        seed: Random seed of the row order (and of dropout, if the model has any).
        every: Steps to the first checkpoint and between checkpoints; the last step is always a
            checkpoint.
        spacing: Factor by which the distance between checkpoints grows each time; 1 for constant.
        guard: The guard's hooks.
        schedule: Learning rate over all steps: constant, linear or cosine.
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
        progress_share = done / self.steps
        factors = {
            "constant": 1.0,
            "linear": 1 - progress_share,
            "cosine": (1 + math.cos(math.pi * progress_share)) / 2,
        }
        return self.learning_rate * factors[self.schedule]

    def checkpoints(self) -> frozenset[int]:
        """Return the steps after which there is a checkpoint."""
        steps = [self.steps]
        gap = float(self.every)
        position = gap
        while position < self.steps:
            steps.append(round(position))
            gap *= self.spacing
            position += gap
        return frozenset(steps)


@dataclass
class Tuning:
    """The state of a fine-tuning run in progress.

    Attributes:
        model: The model, in training mode.
        tokenizer: Its tokenizer.
        config: Settings.
        parameters: The parameters that training changes.
        done: Number of finished steps, without extra steps of the guard.
        memory: Tensors the guard keeps, e.g. one per parameter. They are saved with the state of
            an interrupted run. A guard itself is immutable, so all of its state is here.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: FinetuneConfig
    parameters: list[nn.Parameter]
    done: int = 0
    memory: dict[str, list[Tensor]] = field(default_factory=dict)


Snapshot = Callable[[int, float], bool | None]
"""Called at a checkpoint with the finished steps and the mean training loss since the last one.

True ends the training there; None and False continue it.
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

    Checkpoints see the model as its guard would release it, and training leaves it that way.

    Args:
        model: Changed in place; in evaluation mode afterwards.
        tokenizer: Its tokenizer.
        rows: Rows to train on.
        config: Settings.
        on_snapshot: Called at checkpoints; may read the model and end the training.
        resume: State file. If it exists, training continues from it. It is written when a
            checkpoint fails or the user interrupts, and is not deleted at the end.

    Raises:
        UsageError: There are no rows, or none fits.
        TrainingError: A loss, a gradient or a weight is not finite.
        KeyboardInterrupt: The user interrupted; the state is in `resume`.
    """
    if rows:
        rows = config.guard.rows(rows, seed=config.seed)
    encoded = encode_rows_that_fit(model, tokenizer, rows, config.max_length)
    loop = _Loop(Tuning(model, tokenizer, config, trainable(model)), on_snapshot, resume)
    with deferred_interrupt() as interrupt, isolate_rng(config.seed):
        try:
            if not loop.start():
                loop.train(encoded, interrupt)
            _release(loop.tuning)
        finally:
            model.eval()


class _Loop:
    """Steps and checkpoints of one fine-tuning run.

    Attributes:
        tuning: The run's state.
        optimizer: AdamW over the tuned parameters.
        losses: Training losses since the last checkpoint.
    """

    def __init__(self, tuning: Tuning, on_snapshot: Snapshot | None, resume: Path | None) -> None:
        rate = tuning.config.learning_rate
        self.tuning = tuning
        self.optimizer = torch.optim.AdamW(
            tuning.parameters, lr=rate, weight_decay=0.0, fused=can_fuse(tuning.parameters)
        )
        self.losses: list[float] = []
        self._on_snapshot = on_snapshot
        self._resume = resume
        self._checkpoints = tuning.config.checkpoints() if on_snapshot else frozenset()

    def start(self) -> bool:
        """Load the saved state or prepare the guard; return whether training has ended already.

        The state of a run whose checkpoint failed still has the losses that lead up to it: that
        checkpoint is repeated, and may end the training.
        """
        if self._resume is None or not self._resume.exists():
            self.tuning.config.guard.begin(self.tuning)
            return False
        self.losses = _load_state(self._resume, self.tuning, self.optimizer)
        return bool(self.losses) and self._checkpoint()

    def train(self, encoded: Sequence[Encoded], interrupt: Interrupt) -> None:
        """Take the remaining steps, until the last one or until a checkpoint ends the training.

        Raises:
            KeyboardInterrupt: The user interrupted; the state is saved.
        """
        config = self.tuning.config
        self.tuning.model.train()
        batches = _batches(len(encoded), config)
        for indices in islice(batches, self.tuning.done, config.steps):
            rows = [encoded[i] for i in indices]
            self.losses.append(_advance(self.tuning, rows, self.optimizer))
            stopped = self._checkpoint()
            progress.report("fine-tuning", self.tuning.done, config.steps)
            # An interrupt now would be lost: the resumed run would not know that it had ended.
            if stopped:
                return
            if interrupt.requested:
                self._save()
                raise KeyboardInterrupt

    def _checkpoint(self) -> bool:
        """Show the guarded model at a checkpoint; return whether this ends the training.

        If the checkpoint fails, the state is saved and the error raised again.
        """
        tuning = self.tuning
        if self._on_snapshot is None or tuning.done not in self._checkpoints:
            return False
        loss = sum(self.losses) / len(self.losses)
        try:
            with replace_values(tuning.config.guard.repair(tuning)):
                stopped = bool(self._on_snapshot(tuning.done, loss))
        except BaseException:
            # The error of the checkpoint matters more than one while saving.
            with suppress(OSError, SafetensorError):
                self._save()
            raise
        self.losses.clear()
        tuning.model.train()
        return stopped

    def _save(self) -> None:
        if self._resume is not None:
            _save_state(self._resume, self.tuning, self.losses, self.optimizer)


@torch.no_grad()
def _release(tuning: Tuning) -> None:
    """Leave the model as its guard releases it."""
    for parameter, value in tuning.config.guard.repair(tuning):
        parameter.copy_(value)


def _advance(tuning: Tuning, rows: Sequence[Encoded], optimizer: torch.optim.Optimizer) -> float:
    """Take the guard's extra steps and one of the customer's; return the loss of the latter."""
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
    value = 0.0
    with attention_in_float32(tuning.model.device, autocast=computing() == "bfloat16"):
        for loss in _losses(tuning, rows):
            value += float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {tuning.done + 1}, so training cannot continue. "
                    "Lower the learning rate, or check for rows with an empty response."
                    f"{weights_not_finite(tuning.model)}"
                )
            loss.backward()
    # A finite loss can have a gradient that is not, and clipping would spread it over all weights.
    norm = clip_grad_norm_(tuning.parameters, tuning.config.clip)
    if not torch.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"the gradient is not finite at step {tuning.done + 1}, though the loss is "
            f"{value:.4g}, so training cannot continue. Lower the learning rate, or load the model "
            "in bfloat16 or float32."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not all_finite([p.detach() for p in tuning.parameters]):
        raise TrainingError(
            f"the weights are not finite after step {tuning.done + 1}, so training cannot "
            f"continue. Lower the learning rate.{weights_not_finite(tuning.model)}"
        )
    return value


def _losses(tuning: Tuning, rows: Sequence[Encoded]) -> Iterator[Tensor]:
    """Yield losses that add up to that of the rows, each to be differentiated before the next.

    The mean over answer tokens is computed in parts of rows of a like length. A guard's loss may
    have terms that do not add up, and is computed at once.
    """
    model, guard = tuning.model, tuning.config.guard
    pad = cast(int, tuning.tokenizer.pad_token_id)
    parts = parts_by_length([len(row.ids) for row in rows])
    if len(parts) == 1 or type(guard).loss is not Hooks.loss or has_own_loss(model):
        with autocast(model.device):
            loss = guard.loss(tuning, collate(rows, pad, model.device))
        yield loss
        return
    # The first token of a row is never predicted.
    n_tokens = sum(len(row.ids) - max(row.learned_from, 1) for row in rows)
    for part in parts:
        with autocast(model.device):
            batch = collate([rows[i] for i in part], pad, model.device)
            loss = answer_loss(model, batch, n_tokens)
        yield loss


def can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether AdamW can update all parameters in one pass over memory."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def _home(name: str, parameter: nn.Parameter) -> torch.device:
    """Return the device of a tensor of the state of the optimizer."""
    is_count = name.endswith("step") and not can_fuse([parameter])
    return torch.device("cpu") if is_count else parameter.device


def _batches(n: int, config: FinetuneConfig) -> Iterator[list[int]]:
    """Yield batches endlessly; each epoch is shuffled anew and keeps its last, shorter batch."""
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        order = torch.randperm(n, generator=generator).tolist()
        for start in range(0, n, config.batch_size):
            yield order[start : start + config.batch_size]


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
    for name, values in tuning.memory.items():
        tensors[f"memory.{name}"] = torch.tensor(len(values))
        for i, value in enumerate(values):
            tensors[f"kept.{name}.{i}"] = value.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    try:
        save_file({k: v.clone() for k, v in tensors.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def steps_done(path: Path) -> int:
    """Return the number of finished steps in a state file."""
    with safe_open(path, "pt") as file:
        return int(file.get_tensor("done"))


def _load_state(path: Path, tuning: Tuning, optimizer: torch.optim.Optimizer) -> list[float]:
    """Restore weights, optimizer, memory and random state; return the losses since a checkpoint."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    parameters = tuning.parameters
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(tensors[f"parameter.{i}"])
            prefix = f"optimizer.{i}."
            optimizer.state[p] = {
                name.removeprefix(prefix): value.to(_home(name, p))
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
    torch.set_rng_state(tensors["rng"])
    if "cuda_rng" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_rng"], parameters[0].device)
    tuning.done = int(tensors["done"])
    device = parameters[0].device
    for name in [key.removeprefix("memory.") for key in tensors if key.startswith("memory.")]:
        count = int(tensors[f"memory.{name}"])
        tuning.memory[name] = [tensors[f"kept.{name}.{i}"].to(device) for i in range(count)]
    return cast("list[float]", tensors["losses"].tolist())
