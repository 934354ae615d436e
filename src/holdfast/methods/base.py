"""What every alignment method shares: a Trainer with four hooks, and the rows it trains on.

A method is a subclass that overrides the hooks it changes, usually one. The hooks are a mixin over
`transformers.Trainer`; its training loop is never overridden.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from holdfast import progress
from holdfast.artifacts import Groups, to_json, write_json
from holdfast.errors import HoldfastError, TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.interrupt import Interrupt
from holdfast.models import IGNORE, Encoded, collate, encode
from holdfast.weights import trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState

Batch = dict[str, Tensor]
STATE_FILE = "method_state.json"


@dataclass(frozen=True)
class AlignmentData:
    """The rows of an alignment run.

    Attributes:
        safety: Restricted prompts with the answers that are wanted.
        benign: Ordinary requests with answers, mixed in to keep the model useful.
        groups: Partition of `safety`; only group-aware methods need it.
        harmful: Restricted prompts answered harmfully; only some methods use it.
    """

    safety: Examples
    benign: Examples | None = None
    groups: Groups | None = None
    harmful: Examples | None = None


@dataclass
class AlignConfig(TrainingArguments):
    """Options of an alignment run: all of TrainingArguments, and these."""

    max_length: int = field(default=256, metadata={"help": "Tokens kept per row."})

    def __post_init__(self) -> None:
        # Rows carry marks (is_safety) that the Trainer would prune as unknown to the model.
        self.remove_unused_columns = False
        super().__post_init__()  # type: ignore[no-untyped-call]


class AlignmentTrainer(Trainer):
    """Base of all methods; as it is, plain supervised fine-tuning.

    Attributes:
        Config: The method's options.
        needs: Subset of {"groups", "harmful"}; checked before the model loads.
        neutral: Option values at which the gradient must equal plain supervised fine-tuning's.
    """

    Config: ClassVar[type[AlignConfig]] = AlignConfig
    needs: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        model: PreTrainedModel,
        config: AlignConfig,
        data: AlignmentData,
        tokenizer: PreTrainedTokenizerBase,
        *,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        for need in sorted(self.needs):
            if getattr(data, need) is None:
                raise UsageError(f"{type(self).__name__} needs --{need}")
        if config.world_size > 1:
            raise UsageError(
                f"{config.world_size} processes: alignment runs on one process in this version; "
                "start it without torchrun"
            )
        self.data, self.tokenizer = data, tokenizer
        self.rows = encode(tokenizer, data.safety, config.max_length)
        self.n_safety = len(self.rows)
        if data.benign is not None:
            self.rows += encode(tokenizer, data.benign, config.max_length)
        self.pad = cast(int, tokenizer.pad_token_id)
        self._micro_losses: list[Tensor] = []
        super().__init__(
            model=model,
            args=config,
            train_dataset=_Positions(len(self.rows)),
            processing_class=tokenizer,
            data_collator=self.collate_positions,
            callbacks=[*(callbacks or []), _Progress()],
        )
        self.remove_callback(PrinterCallback)

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Return the micro-batches of the next optimizer step; default: the loader's next n."""
        batches = []
        for _ in range(n):
            batch = next(epoch_iterator, None)
            if batch is not None:
                batches.append(batch)
        return batches

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Tensor | int | None) -> Tensor:
        """Run forward and backward of one micro-batch; return its detached loss.

        The loss is scaled so that the micro-batches of a step add up to the step's mean.
        """
        loss = self.scaled_loss(model, batch, num_items)
        self.accelerator.backward(loss)
        return loss.detach()

    def before_update(self, losses: Tensor) -> None:
        """See the losses (n_micro,) of a step before the optimizer moves; default: nothing."""

    def method_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the Trainer's own state, as JSON."""
        return {}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""

    # ------------------------------------------------------------------------ for the hooks

    def scaled_loss(self, model: nn.Module, batch: Batch, num_items: Tensor | int | None) -> Tensor:
        """Return the micro-batch's part of the step's mean loss over answer tokens.

        `batch` may be a part of a micro-batch. With `num_items` None it is the batch's own mean.
        """
        inputs = {k: v for k, v in batch.items() if k != "is_safety"}
        with self.compute_loss_context_manager():
            loss = cast(Tensor, self.compute_loss(model, inputs, num_items_in_batch=num_items))
        if num_items is not None and not self.model_accepts_loss_kwargs:
            # Such a model divides by the tokens of what it was given, whatever the step has.
            loss = loss * (answer_tokens(batch) / num_items)
        return loss

    def check_finite(self, loss: Tensor) -> None:
        """Raise TrainingError where a loss is nan or infinite, before the optimizer moves."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: training cannot "
                "go on. Lower the learning rate or the size of the method's own steps (rho, alpha, "
                "attack_lr). The last checkpoint is kept."
            )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training changes."""
        return trainable(cast(nn.Module, self.model))

    def add_gradient(self, grads: Sequence[Tensor], weight: float) -> None:
        """Add weight * grads, one tensor per trainable parameter, to what the optimizer will see.

        What `accelerator.backward` has left there carries fp16's loss scale, so this must too.
        """
        scaler = self.accelerator.scaler
        weight = weight if scaler is None else weight * scaler.get_scale()
        for p, g in zip(self.trainable_parameters(), grads, strict=True):
            p.grad = g * weight if p.grad is None else p.grad.add_(g, alpha=weight)

    def collate_positions(self, positions: Sequence[int]) -> Batch:
        """Build a batch from row positions, with `is_safety` (B,) beside the model's inputs."""
        batch = collate([self.rows[i] for i in positions], self.pad)
        batch["is_safety"] = torch.tensor([i < self.n_safety for i in positions])
        return batch

    def collate_rows(self, rows: Sequence[Encoded]) -> Batch:
        """Build a batch of other rows (an attacker's) on the training device."""
        return collate(rows, self.pad, self.args.device)

    @property
    def benign_per_batch(self) -> int:
        """Benign rows in a batch whose mix follows the data's."""
        benign = len(self.rows) - self.n_safety
        return round(self.args.train_batch_size * benign / len(self.rows))

    # --------------------------------------------------------------- where Trainer calls us

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        """Draw a step's batches and count their answer tokens.

        The count is taken on the batches really used: counted on the loader's own, a method that
        draws elsewhere would see its loss scaled by the wrong number.
        """
        batches = self.draw_batches(epoch_iterator, num_batches)
        count = self._get_num_items_in_batch(batches, device)
        return batches, sum(map(answer_tokens, batches)) if count is None else count

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Accumulate one micro-batch; on the last one, let the method see the losses."""
        model.train()
        loss = self.accumulate(model, self._prepare_inputs(inputs), num_items_in_batch)
        self.check_finite(loss)
        self._micro_losses.append(loss)
        if self.accelerator.sync_gradients:
            losses = torch.stack(self._micro_losses)
            self._micro_losses.clear()
            self.before_update(losses)
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
            # Written last: a checkpoint without it was cut off and is not continued from.
            write_json(folder / STATE_FILE, to_json(self.method_state()))
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise HoldfastError(
                f"{folder}: the checkpoint could not be written ({error}). Is the disk full? "
                "What is finished is kept; make room and give the same command again."
            ) from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint, STATE_FILE)
            self.load_method_state(json.loads(path.read_text(encoding="utf-8")))


class HarmfulTrainer(AlignmentTrainer):
    """Base of the methods that see harmful rows: an endless shuffle, kept in every checkpoint."""

    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rows, config = cast(Examples, self.data.harmful), cast(AlignConfig, self.args)
        self.harmful = encode(self.tokenizer, rows, config.max_length)
        if not self.harmful:
            raise UsageError(f"{rows.name}: no harmful rows; {type(self).__name__} needs some")
        self.stream = Stream(range(len(self.harmful)), config.seed)

    def harmful_batch(self, n: int) -> Batch:
        """Return the next n harmful rows on the training device."""
        return self.collate_rows([self.harmful[i] for i in self.stream.take(n)])

    def method_state(self) -> dict[str, Any]:
        """Return the stream of harmful rows."""
        return {"stream": self.stream.state_dict()}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        self.stream.load_state_dict(state["stream"])


def answer_tokens(batch: Batch) -> int:
    """Count the tokens of a batch that its loss is a mean of; the first is never predicted."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())


class _Positions(Dataset[int]):
    """The dataset is the row positions; the collator looks the rows up."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


class _Progress(TrainerCallback):
    """Reports progress to the command line."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        progress.report("aligning", state.global_step, state.max_steps)


class StopOnInterrupt(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once the user has asked to."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and stop."""
        if self.interrupt.requested:
            control.should_save = True
            control.should_training_stop = True


class Stream:
    """An endless shuffle of positions: each round visits all of them once, in a new order."""

    def __init__(self, positions: Sequence[int], seed: int) -> None:
        self.positions = list(positions)
        self.rng = np.random.default_rng(seed)
        self.order: list[int] = []

    def take(self, n: int) -> list[int]:
        """Return the next n positions."""
        taken: list[int] = []
        while len(taken) < n:
            if not self.order:
                self.order = [self.positions[i] for i in self.rng.permutation(len(self.positions))]
            wanted = n - len(taken)
            taken += self.order[:wanted]
            self.order = self.order[wanted:]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"rng": self.rng.bit_generator.state, "order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rng.bit_generator.state = state["rng"]
        self.order = list(state["order"])
