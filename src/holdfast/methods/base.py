"""What every alignment method shares: a Trainer with four hooks, and the rows it trains on.

A method is a subclass that overrides the hooks it changes, usually one. The training loop is never
overridden, and whatever is overridden calls on to the next class, so that a method also goes before
a trainer of TRL's: `class VaaSft(Vaa, SFTTrainer)`, see `AlignmentTrainer`.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from holdfast.errors import HoldfastError, MismatchError, TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.methods import _refusals
from holdfast.methods._batches import MARKS, Batch, Items, size
from holdfast.methods._data import AlignmentData as AlignmentData
from holdfast.methods._order import ByLength, Positions
from holdfast.models import processes
from holdfast.models.encoding import Encoded, collate, encode
from holdfast.models.weights import global_norm, gradients_everywhere, trainable
from holdfast.options import Options
from holdfast.results.files import to_json, write_json
from holdfast.rows.trl import from_dataset
from holdfast.runtime import progress
from holdfast.runtime.interrupt import Interrupt

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState

STATE_FILE, TENSORS_FILE = "method_state.json", "method_state.safetensors"
LONGEST = 2**20
"""Tokens kept per row where the run sets no limit."""


@dataclass
class MethodArguments(TrainingArguments):
    """Arguments of an alignment run: all of TrainingArguments, and the length of the rows."""

    max_length: int = field(default=256, metadata={"help": "Tokens kept per row."})

    def __post_init__(self) -> None:
        # Rows carry marks (is_safety) that the Trainer would prune as unknown to the model.
        self.remove_unused_columns = False
        super().__post_init__()  # type: ignore[no-untyped-call]


class AlignmentTrainer(Trainer):
    """Base of all methods; as it is, plain supervised fine-tuning.

    On its own it trains on the rows of `data`:

        Vaa(model, MethodArguments("out"), data=data, processing_class=tokenizer)

    Before TRL's trainers the data set, its processing and its loss stay TRL's; `holdfast.trl` has
    these trainers ready made:

        class VaaSft(Vaa, SFTTrainer):
            pass

        VaaSft(model, SFTConfig("out"), train_dataset=dataset, processing_class=tokenizer,
               data=AlignmentData.of(dataset, Groups.load("groups.json")))

    Attributes:
        Options: The method's options, a model whose fields are documented.
        needs: Subset of {"groups", "harmful"}; checked before the model loads.
        neutral: Option values at which the gradient must equal plain supervised fine-tuning's.
    """

    Options: ClassVar[type[Options]] = Options
    needs: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Any]] = {}
    options: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        data: AlignmentData,
        options: Any = None,
        **kwargs: Any,
    ) -> None:
        for need in sorted(self.needs):
            if getattr(data, need) is None:
                raise UsageError(f"{type(self).__name__} needs --{need}")
        _refusals.check(args)
        self.options = self.Options() if options is None else options
        self.data = data
        self.n_safety = len(data.safety)
        self.n_rows = self.n_safety + len(data.benign or ())
        self._micro_losses: list[Tensor] = []
        self.update_batches: list[Batch] = []
        self._notes: dict[str, float] = {}
        given: datasets.Dataset | None = kwargs.pop("train_dataset", None)
        if given is None:
            kwargs |= {"train_dataset": Positions(self.n_rows)}
            kwargs |= {"data_collator": self.collate_positions}
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), _Progress()]
            super().__init__(model=model, args=args, **kwargs)
            self.remove_callback(PrinterCallback)
            parts = [data.safety, *([data.benign] if data.benign else [])]
            self.rows = [row for part in parts for row in self.encode(part)]
        else:
            super().__init__(model=model, args=args, train_dataset=given, **kwargs)
            self._adopt(given)
        self.prepare()

    def _adopt(self, given: datasets.Dataset) -> None:
        """Take over the rows that the next trainer has made of a dataset, and its collator."""
        made: Any = self.train_dataset
        if len(made) != len(given):
            raise UsageError(
                f"the trainer made {len(made)} rows of {len(given)}: a row must stay a row. Raise "
                "max_length if long ones were dropped"
            )
        places = {identity: i for i, identity in enumerate(from_dataset(given).ids)}
        own = [*self.data.safety.ids, *(self.data.benign.ids if self.data.benign else ())]
        if strange := [identity for identity in own if identity not in places]:
            raise MismatchError(
                f"{len(strange)} of the {len(own)} rows of the data are not in the dataset that is "
                "trained on; make them of it with AlignmentData.of"
            )
        self.rows = [made[places[identity]] for identity in own]
        self._collate = self.data_collator  # type: ignore[assignment, method-assign]
        self.train_dataset = Positions(self.n_rows)
        self.data_collator = self._collate_any

    # ------------------------------------------------------------------------------- hooks

    def prepare(self) -> None:
        """Set up what the method needs, before training and before a checkpoint is loaded."""

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Return the micro-batches of the next optimizer step; default: the loader's next n."""
        batches = []
        for _ in range(n):
            batch = next(epoch_iterator, None)
            if batch is not None:
                batches.append(batch)
        return batches

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
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

    def method_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold besides, as tensors by name."""
        return {}

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `method_tensors`; after `load_method_state`."""

    # ------------------------------------------------------------------------ for the hooks

    def scaled_loss(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Return the micro-batch's part of the step's mean loss over answer tokens.

        `batch` may be a part of a micro-batch. With `num_items` None it is the batch's own mean.
        """
        return self._scaled(model, batch, num_items, outputs=False)[0]

    def loss_and_logits(
        self, model: nn.Module, batch: Batch, num_items: Items
    ) -> tuple[Tensor, Tensor]:
        """Return `scaled_loss`, and the logits (B, T, V) behind it, both with their gradients.

        A loss that is not the model's own, as TRL's, makes no logits: they take another pass.
        """
        if type(self).compute_loss is Trainer.compute_loss:
            loss, outputs = self._scaled(model, batch, num_items, outputs=True)
            return loss, outputs.logits
        loss, _ = self._scaled(model, batch, num_items, outputs=False)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with self.compute_loss_context_manager():
            return loss, model(**inputs, use_cache=False).logits

    def _scaled(
        self, model: nn.Module, batch: Batch, items: Items, *, outputs: bool
    ) -> tuple[Tensor, Any]:
        inputs = {k: v for k, v in batch.items() if k not in MARKS}
        # Preference losses, and some models, give the mean of what they were given, whatever the
        # step has.
        told = self.model_accepts_loss_kwargs and "labels" in batch
        # Trainer's stub wants an int; a weighted count is none.
        given = cast("Tensor | int | None", items if told else None)
        with self.compute_loss_context_manager():
            found: Any = self.compute_loss(
                model, inputs, return_outputs=outputs, num_items_in_batch=given
            )
        loss, made = found if outputs else (found, None)
        if items is not None and not told:
            loss = loss * (size(batch) * processes.world_size() / items)
        return loss, made

    def answer_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean answer loss of rows of the method's own, whatever the run's loss is."""
        with self.compute_loss_context_manager():
            return cast(Tensor, model(**batch, use_cache=False).loss)

    def collate_rows(self, rows: Sequence[Encoded]) -> Batch:
        """Build a batch of other rows (an attacker's) on the training device."""
        return collate(rows, self.pad, self.args.device)

    def gradient_of(
        self, model: nn.Module, loss: Callable[[], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return a loss, and its gradient by the trainable parameters over all processes.

        Gradients accumulated so far stay as they are; see `weights.gradients_everywhere`. With fp16
        it is taken at the training's loss scale, and without where that is too large.
        """
        parameters, scale = self.trainable_parameters(), self.loss_scale
        if self.args.gradient_accumulation_steps > 1 and processes.is_sharded(parameters):
            _refusals.check_sync(self.accelerator.gradient_state.plugin_kwargs)
        found, grads = gradients_everywhere(model, loss, parameters, scale=scale)
        if scale != 1 and not torch.isfinite(global_norm(grads)):
            return gradients_everywhere(model, loss, parameters)
        return found, grads

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before their gradients are taken: 1 without fp16."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    def note(self, values: Mapping[str, float]) -> None:
        """Add values to the update's one line in the log, and so to what the Trainer reports to."""
        self._notes |= values

    def encode(self, examples: Examples) -> list[Encoded]:
        """Turn rows into tokens as the run's options say."""
        length = getattr(self.args, "max_length", None)
        return encode(self.tokenizer, examples, length or LONGEST)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return cast("PreTrainedTokenizerBase", self.processing_class)

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        return cast(int, self.tokenizer.pad_token_id)

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
        weight *= self.loss_scale
        for p, g in zip(self.trainable_parameters(), grads, strict=True):
            p.grad = g * weight if p.grad is None else p.grad.add_(g, alpha=weight)

    def _collate_any(self, rows: Sequence[Any]) -> Batch:
        # Rows of an evaluation are no positions, and stay the next trainer's.
        ours = isinstance(rows[0], int)
        return self.collate_positions(rows) if ours else dict(self._collate(rows))

    def collate_positions(self, positions: Sequence[int]) -> Batch:
        """Build a batch from row positions, with `is_safety` (B,) beside the model's inputs."""
        batch: Batch = dict(self._collate([self.rows[i] for i in positions]))
        batch["is_safety"] = torch.tensor([i < self.n_safety for i in positions])
        return batch

    def _collate(self, rows: Sequence[Any]) -> Batch:
        return collate(rows, self.pad)

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of each row."""
        return [_length(row) for row in self.rows]

    def mixes(self, n: int) -> list[tuple[int, int]]:
        """Return the safety and benign rows of an update's n micro-batches, over all processes.

        The update has them in the mix of the data, each micro-batch as nearly as rounding lets it.
        """
        rows = self.args.train_batch_size * processes.world_size()
        share = rows * (self.n_rows - self.n_safety) / self.n_rows
        # The last has a safety row for each process, whatever n is: without any the groups wait.
        most = n * rows - processes.world_size()
        ends = [min(round(i * share), most) for i in range(n + 1)]
        return [(rows - (b - a), b - a) for a, b in pairwise(ends)]

    # --------------------------------------------------------------- where Trainer calls us

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        strategy = self.args.train_sampling_strategy
        if strategy == "group_by_length":
            # Trainer reads lengths off the data set, which here is positions.
            n = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return ByLength(n, self.row_lengths, self.args.data_seed or self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        """Draw a step's batches and count their answer tokens.

        The count is taken on the batches really used: counted on the loader's own, a method that
        draws elsewhere would see its loss scaled by the wrong number.
        """
        batches = self.update_batches = self.draw_batches(epoch_iterator, num_batches)
        count = self._get_num_items_in_batch(batches, device)
        if count is None:
            count = processes.sum_over_processes(
                torch.tensor(sum(map(size, batches)), device=device)
            )
        return batches, count

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Accumulate one micro-batch; on the last one, let the method see the losses."""
        model.train()
        offload = getattr(self, "maybe_activation_offload_context", contextlib.nullcontext())
        with offload:  # TRL's
            loss = self.accumulate(model, self._prepare_inputs(inputs), num_items_in_batch)
        self.check_finite(loss)
        self._micro_losses.append(loss)
        if self.accelerator.sync_gradients:
            losses = torch.stack(self._micro_losses)
            self._micro_losses.clear()
            self.before_update(losses)
            if self._notes:
                self.log(self._notes)
                self._notes = {}
        return loss

    def _send_telemetry(self) -> None:
        """TRL's trainers report every run to the hub; ours report nothing."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        # Earlier checkpoints go when this one is whole, and not before.
        most, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.should_save:  # another process does
                return
            if tensors := self.method_tensors():
                save_file(tensors, folder / TENSORS_FILE)
            # Written last: a checkpoint without it was cut off and is not continued from.
            write_json(folder / STATE_FILE, to_json(self.method_state()))
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise HoldfastError(
                f"{folder}: the checkpoint could not be written ({error}). Is the disk full? "
                "What is finished is kept; make room and give the same command again."
            ) from error
        finally:
            self.args.save_total_limit = most
        best = self.state.best_model_checkpoint
        rotate_checkpoints(str(folder.parent), most, best, use_mtime=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint, STATE_FILE)
            self.load_method_state(json.loads(path.read_text(encoding="utf-8")))
            tensors = path.with_name(TENSORS_FILE)
            if tensors.is_file():
                self.load_method_tensors(load_file(tensors))


def _length(row: Any) -> int:
    """Count the tokens of a row of ours, or of one of TRL's, which may have several parts."""
    if isinstance(row, Encoded):
        return len(row.ids)
    return sum(len(value) for name, value in row.items() if name.endswith("ids"))


def unscaled(loss: Tensor, batch: Batch, num_items: Items) -> tuple[float, int]:
    """Return the sum of a batch's losses and its tokens, undoing the scaling of `scaled_loss`."""
    if num_items is not None and math.isinf(num_items):  # a row that counts for nothing
        return 0.0, 0
    n = size(batch)
    scale = n if num_items is None else float(num_items) / processes.world_size()
    return float(loss) * scale, n


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
