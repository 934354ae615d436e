"""The base of every alignment method: a Trainer with hooks, and the rows it trains on.

A method is a subclass that overrides the hooks it changes, usually one. It never overrides the
training loop, and every overridden method calls the next class, so a method also works in front of
one of TRL's trainers: `class VaaSft(Vaa, SFTTrainer)`, see `AlignmentTrainer`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from holdfast.errors import MismatchError, TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.methods import _refusals
from holdfast.methods._batches import MARKS, Batch, Items, by_length, size
from holdfast.methods._callbacks import CountSkippedSteps, ReportProgress
from holdfast.methods._checkpoints import CheckpointedTrainer
from holdfast.methods._data import AlignmentData as AlignmentData
from holdfast.methods._order import ByLength, Positions
from holdfast.models import processes
from holdfast.models.encoding import Encoded, collate, encode
from holdfast.models.head_loss import (
    answer_loss,
    answer_loss_and_logits,
    loss_and_logits_of_one_pass,
)
from holdfast.models.heads import has_own_loss, with_columns
from holdfast.models.precision import attention_in_float32
from holdfast.models.weights import (
    all_finite,
    global_norm,
    gradients_everywhere,
    trainable,
    weights_not_finite,
)
from holdfast.options import Options
from holdfast.rows.trl import from_dataset

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

SMALLEST_SCALE = 2.0**-14
"""Loss scale of fp16 below which a gradient that is not finite is no accident of the scale."""
LONGEST = 2**20
"""Tokens kept per row if the run sets no limit."""


@dataclass
class MethodArguments(TrainingArguments):
    """Arguments of an alignment run: all of TrainingArguments, and the maximum length of a row."""

    max_length: int = field(default=256, metadata={"help": "Tokens kept per row."})

    def __post_init__(self) -> None:
        # Rows carry marks (is_safety) that the Trainer would prune as unknown to the model.
        self.remove_unused_columns = False
        super().__post_init__()  # type: ignore[no-untyped-call]


class AlignmentTrainer(CheckpointedTrainer):
    """Base of all methods; without overridden hooks it is plain supervised fine-tuning.

    On its own it trains on the rows of `data`:

        Vaa(model, MethodArguments("out"), data=data, processing_class=tokenizer)

    In front of a TRL trainer, TRL prepares the dataset and computes the loss. `holdfast.trl` has
    these trainers ready-made:

        class VaaSft(Vaa, SFTTrainer):
            pass

        VaaSft(model, SFTConfig("out"), train_dataset=dataset, processing_class=tokenizer,
               data=AlignmentData.of(dataset, Groups.load("groups.json")))

    Attributes:
        Options: Model of the method's options; its fields are documented.
        needs: Rows the method requires, a subset of {"groups", "harmful"}; checked before the model
            is loaded.
        neutral: Option values at which the gradient must equal plain supervised fine-tuning's.
        options: The values of the options.
        rows: The encoded rows, safety rows first.
        update_batches: Micro-batches of the current optimizer step.
    """

    Options: ClassVar[type[Options]] = Options
    needs: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Any]] = {}
    options: Any
    rows: list[Any]

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
        dataset: datasets.Dataset | None = kwargs.pop("train_dataset", None)
        if dataset is None:
            self._train_on_data(model, args, kwargs)
        else:
            super().__init__(model=model, args=args, train_dataset=dataset, **kwargs)
            self._train_on_prepared(dataset)
        self.add_callback(CountSkippedSteps())
        self.prepare()

    def _train_on_data(self, model: Any, args: TrainingArguments, kwargs: dict[str, Any]) -> None:
        """Train on the rows of `data`."""
        kwargs["train_dataset"] = Positions(self.n_rows)
        kwargs["data_collator"] = self.collate_positions
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), ReportProgress()]
        super().__init__(model=model, args=args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.rows = self.encode(self.data.safety)
        if self.data.benign:
            self.rows += self.encode(self.data.benign)

    def _train_on_prepared(self, dataset: datasets.Dataset) -> None:
        """Train on the rows that the next trainer prepared from a dataset, with its collator."""
        prepared: Any = self.train_dataset
        if len(prepared) != len(dataset):
            raise UsageError(
                f"the trainer prepared {len(prepared)} rows from {len(dataset)}, but each row must "
                "stay one row. If long rows were dropped, raise max_length"
            )
        place_of = {row_id: place for place, row_id in enumerate(from_dataset(dataset).ids)}
        row_ids = [*self.data.safety.ids, *(self.data.benign.ids if self.data.benign else ())]
        missing = [row_id for row_id in row_ids if row_id not in place_of]
        if missing:
            raise MismatchError(
                f"{len(missing)} of the {len(row_ids)} rows of `data` are not in the training "
                "dataset; make `data` from that dataset with AlignmentData.of"
            )
        self.rows = [prepared[place_of[row_id]] for row_id in row_ids]
        self._collate = self.data_collator  # type: ignore[assignment, method-assign]
        self.train_dataset = Positions(self.n_rows)
        self.data_collator = self._collate_any

    # ------------------------------------------------------------------------------- hooks

    def prepare(self) -> None:
        """Set up the method, before training starts and before a checkpoint is loaded."""

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
        losses = []
        for part in self._parts(batch, num_items):
            loss = self.scaled_loss(model, part, num_items)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def before_update(self, losses: Tensor) -> None:
        """Use the losses (n_micro,) of a step before the optimizer moves; default: nothing."""

    # ------------------------------------------------------------------------ for the hooks

    def scaled_loss(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Return the micro-batch's part of the step's mean loss over answer tokens.

        `batch` may be part of a micro-batch. If `num_items` is None, return the batch's own mean.
        """
        return self.scaled_loss_of(model, batch, num_items)

    def loss_and_logits(
        self,
        model: nn.Module,
        batch: Batch,
        num_items: Items,
        columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return `scaled_loss` and the logits at one position of each row, with their gradients.

        TRL's losses do not return logits, so with them these are computed from the last hidden
        states of the loss's pass, or take another pass.

        Args:
            model: The model.
            batch: Rows with labels.
            num_items: See `scaled_loss`.
            columns: (B,) the positions.

        Returns:
            The loss, and the logits (B, V).
        """
        if self._reads_answers_only(model, batch):
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                loss, logits = answer_loss_and_logits(
                    model, _model_inputs(batch), columns, num_items
                )
            return self._over_processes(loss, num_items), logits
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask, _ = with_columns(torch.zeros_like(batch["labels"], dtype=torch.bool), columns)
        with self.compute_loss_context_manager():
            return loss_and_logits_of_one_pass(
                model,
                lambda: self.scaled_loss_of(model, batch, num_items),
                {**inputs, "use_cache": False},
                mask,
            )

    def scaled_loss_of(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Return the scaled loss of the trainer behind this one, without terms of the method."""
        inputs = _model_inputs(batch)
        if self._reads_answers_only(model, batch):
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                loss = answer_loss(model, inputs, num_items)
            return self._over_processes(loss, num_items)
        # Preference losses and some models ignore the count and return the mean of their batch.
        takes_count = self.model_accepts_loss_kwargs and "labels" in batch
        # Trainer's annotation wants an int; a weighted count is a float.
        count = cast("Tensor | int | None", num_items if takes_count else None)
        with self.compute_loss_context_manager():
            computed = self.compute_loss(model, inputs, num_items_in_batch=count)
        loss = cast(Tensor, computed)
        if num_items is not None and not takes_count:
            loss = loss * (size(batch) * processes.world_size() / num_items)
        return loss

    def _parts(self, batch: Batch, num_items: Items) -> list[Batch]:
        """Part a micro-batch by length if its loss is the sum of its parts'; see `scaled_loss`.

        What a method does around `accumulate` may be meant for the whole micro-batch, and several
        processes would have to exchange the gradients of every part.
        """
        plain = type(self).accumulate is AlignmentTrainer.accumulate
        alone = num_items is not None and processes.world_size() == 1
        if not plain or not alone or "attention_mask" not in batch:
            return [batch]
        model = cast(nn.Module, self.model)
        return by_length(batch) if self._reads_answers_only(model, batch) else [batch]

    def _reads_answers_only(self, model: nn.Module, batch: Batch) -> bool:
        """Return whether the loss is the plain one, which reads logits at answer positions only.

        TRL's trainers compute their losses themselves, in blocks of answer positions.
        """
        return (
            type(self).compute_loss is Trainer.compute_loss
            and "labels" in batch
            and self.label_smoother is None
            and self.compute_loss_func is None
            and not has_own_loss(model)
        )

    def _over_processes(self, loss: Tensor, num_items: Items) -> Tensor:
        """Return a loss that was divided by the tokens of all processes, scaled as by Trainer."""
        scaled = num_items is not None and self.args.average_tokens_across_devices
        return loss * processes.world_size() if scaled else loss

    def answer_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over answer tokens of rows that the method adds itself.

        Unlike `scaled_loss`, this is never a loss of TRL's.
        """
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return answer_loss(model, {**batch, "use_cache": False})

    def collate_rows(self, rows: Sequence[Encoded]) -> Batch:
        """Build a batch of rows that the method adds itself, on the training device."""
        return collate(rows, self.pad, self.args.device)

    def gradient_of(
        self, model: nn.Module, loss: Callable[[], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return a loss, and its gradient with respect to the trainable parameters.

        The gradient is that of all processes, and accumulated gradients do not change; see
        `weights.gradients_everywhere`. With fp16 it is computed at the loss scale of the training,
        or without scaling if that overflows.

        Raises:
            TrainingError: The loss or the gradient is not finite.
        """
        parameters = self.trainable_parameters()
        scale = self.loss_scale
        if self.args.gradient_accumulation_steps > 1 and processes.is_sharded(parameters):
            _refusals.check_sync(self.accelerator.gradient_state.plugin_kwargs)
        with self._attention():
            loss_value, grads = gradients_everywhere(model, loss, parameters, scale=scale)
        if scale != 1 and not torch.isfinite(global_norm(grads)):
            loss_value, grads = gradients_everywhere(model, loss, parameters)
        self.check_finite(loss_value)
        self._check_all_finite(grads, loss_value)
        return loss_value, grads

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        return attention_in_float32(self.args.device, autocast=bool(self.args.bf16))

    @property
    def loss_scale(self) -> float:
        """Factor on losses before their gradients are computed; 1 without fp16."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    def note(self, values: Mapping[str, float]) -> None:
        """Add values to the log line of the current update."""
        self._notes |= values

    def encode(self, examples: Examples) -> list[Encoded]:
        """Encode rows, each cut to the `max_length` of the arguments."""
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
        """Raise TrainingError if a loss is nan or infinite, before the optimizer moves.

        With several processes all of them must call this, and all raise if one has such a loss:
        otherwise the others would wait for it in their next exchange.
        """
        n_broken = processes.sum_over_processes((~torch.isfinite(loss.detach())).long())
        if not n_broken:
            return
        place = "" if not torch.isfinite(loss) else " in another process"
        value = f"{loss.item()}" if not place else "not finite"
        raise TrainingError(
            f"the loss is {value}{place} at step {self.state.global_step + 1}: training cannot "
            "continue. Lower the learning rate or the size of the method's own steps (rho, "
            "alpha, attack_lr). The last checkpoint is kept."
            f"{weights_not_finite(cast(nn.Module, self.model))}"
        )

    def _check_gradients(self, losses: Tensor) -> None:
        """Raise TrainingError if a gradient is nan or infinite, before the optimizer moves.

        A finite loss does not exclude it, and clipping would spread it over all weights. With fp16
        the scaler skips such a step and halves its scale; a step is in vain once the scale is as
        small as a gradient in half precision can be.
        """
        scaled = self.accelerator.scaler is not None
        if scaled and self.loss_scale > SMALLEST_SCALE:
            return
        grads = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        self._check_all_finite(grads, losses.sum())

    def _check_all_finite(self, grads: Sequence[Tensor], loss: Tensor) -> None:
        if not all_finite(grads):
            raise TrainingError(
                f"a gradient is not finite at step {self.state.global_step + 1}, though the loss "
                f"is {loss.item():.4g}: training cannot continue. Lower the learning rate "
                "or the size of the method's own steps (rho, alpha, attack_lr), or train in "
                "bfloat16 or float32. The last checkpoint is kept."
            )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training changes."""
        return trainable(cast(nn.Module, self.model))

    def add_gradient(self, grads: Sequence[Tensor], weight: float) -> None:
        """Add weight * grads, one tensor per trainable parameter, to the accumulated gradient."""
        # Accumulated gradients carry the loss scale of fp16, so these must carry it too.
        weight *= self.loss_scale
        for p, g in zip(self.trainable_parameters(), grads, strict=True):
            if p.grad is None:
                p.grad = g * weight
            else:
                p.grad.add_(g, alpha=weight)

    def _collate_any(self, rows: Sequence[Any]) -> Batch:
        # Evaluation rows are not positions; the next trainer collates them.
        if isinstance(rows[0], int):
            return self.collate_positions(rows)
        return dict(self._collate(rows))

    def collate_positions(self, positions: Sequence[int]) -> Batch:
        """Build a batch from row positions: the model's inputs and `is_safety` (B,)."""
        batch: Batch = dict(self._collate([self.rows[i] for i in positions]))
        batch["is_safety"] = torch.tensor([i < self.n_safety for i in positions])
        return batch

    def _collate(self, rows: Sequence[Any]) -> Batch:
        return collate(rows, self.pad)

    @property
    def row_lengths(self) -> list[int]:
        """Number of tokens of each row."""
        return [_length(row) for row in self.rows]

    def mixes(self, n: int) -> list[tuple[int, int]]:
        """Return the numbers of safety and benign rows in each of an update's n micro-batches.

        They count the rows of all processes. The update has them in the proportion of the data, and
        so has each micro-batch, up to rounding.
        """
        rows = self.args.train_batch_size * processes.world_size()
        benign_rows = rows * (self.n_rows - self.n_safety) / self.n_rows
        # Leave one safety row per process in the last micro-batch: every process must have a group
        # to train on.
        most_benign = n * rows - processes.world_size()
        benign_so_far = [min(round(i * benign_rows), most_benign) for i in range(n + 1)]
        benign_counts = [after - before for before, after in pairwise(benign_so_far)]
        return [(rows - benign, benign) for benign in benign_counts]

    # ------------------------------------------------------------- overrides of Trainer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        strategy = self.args.train_sampling_strategy
        if strategy == "group_by_length":
            # Trainer would read lengths from the dataset, which here holds positions.
            n = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return ByLength(n, self.row_lengths, self.args.data_seed or self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        """Draw a step's batches and count their answer tokens.

        The count must come from the drawn batches: a method may draw others than the loader's, and
        the loader's count would scale its loss wrongly.
        """
        batches = self.draw_batches(epoch_iterator, num_batches)
        self.update_batches = batches
        count = self._get_num_items_in_batch(batches, device)
        if count is None:
            own_count = torch.tensor(sum(map(size, batches)), device=device)
            count = processes.sum_over_processes(own_count)
        return batches, count

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Accumulate one micro-batch; after the last one, call `before_update`."""
        model.train()
        # TRL's trainers have this context; transformers' does not.
        offload = getattr(self, "maybe_activation_offload_context", contextlib.nullcontext())
        with offload, self._attention():
            loss = self.accumulate(model, self._prepare_inputs(inputs), num_items_in_batch)
        self.check_finite(loss)
        self._micro_losses.append(loss)
        if self.accelerator.sync_gradients:
            losses = torch.stack(self._micro_losses)
            self._micro_losses.clear()
            self.before_update(losses)
            self._check_gradients(losses)
            if self._notes:
                self.log(self._notes)
                self._notes = {}
        return loss

    def _send_telemetry(self) -> None:
        """Report nothing; TRL's trainers would report every run to the hub."""


def _model_inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name not in MARKS}


def _length(row: Any) -> int:
    """Count the tokens of an encoded row, or of one of TRL's, which may have several parts."""
    if isinstance(row, Encoded):
        return len(row.ids)
    return sum(len(value) for name, value in row.items() if name.endswith("ids"))


def unscaled(loss: Tensor, batch: Batch, num_items: Items) -> tuple[float, int]:
    """Return the summed loss of a batch and its tokens, undoing the scaling of `scaled_loss`."""
    if num_items is not None and math.isinf(num_items):  # a row of weight 0
        return 0.0, 0
    n_tokens = size(batch)
    divisor = n_tokens if num_items is None else float(num_items) / processes.world_size()
    return float(loss) * divisor, n_tokens
