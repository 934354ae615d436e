"""Rejects training settings under which a method would be silently wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from transformers import TrainingArguments

UNSUPPORTED = {
    "packing": "puts several rows into one, but groups consist of rows; leave it out",
    "padding_free": "puts several rows into one, but groups consist of rows; leave it out",
    "shuffle_dataset": "moves rows after they were counted; leave it out, and shuffle the dataset",
    "deepspeed": "keeps weights where they cannot be moved and restored; use DDP or FSDP2",
    "torch_compile": "compiles a step, but weights move in the middle of it; leave it out",
    "parallelism_config": "splits a row over processes; use DDP or FSDP2",
    "ddp_static_graph": "expects one backward pass per step, but there are more; leave it out",
}
"""Options under which a method would be silently wrong, and why."""
BATCH_LOSSES = frozenset({"aot", "aot_unpaired", "sft"})
"""Losses of TRL's DPOTrainer that are not a mean over rows: they sort or average over a batch."""


def refuse(settings: Mapping[str, Any]) -> None:
    """Reject training settings under which a method would be silently wrong.

    Raises:
        UsageError: A setting is unsupported; the message says why and what to do.
    """
    for option, reason in UNSUPPORTED.items():
        value = settings.get(option)
        if value:
            raise UsageError(f"{option}={value!r} {reason}")


def check(args: TrainingArguments) -> None:
    """Reject training arguments under which a method would be silently wrong.

    Raises:
        UsageError: An argument is unsupported; the message says what to do.
    """
    refuse(vars(args))
    _check_loss(args)
    if args.gradient_accumulation_steps < 1:
        raise UsageError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} must be at least 1"
        )
    checkpointing = args.activation_checkpointing_kwargs
    if isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"):
        raise UsageError(
            "use_reentrant=True: reentrant checkpointing allows one kind of backward pass, and a "
            "method makes others as well; leave it out or set it to False"
        )
    if args.train_sampling_strategy == "batch_rebalance":
        raise UsageError("train_sampling_strategy='batch_rebalance' goes round the groups' batches")
    if args.n_gpu > 1:
        raise UsageError(
            f"{args.n_gpu} accelerators in one process: the model would be copied to them at every "
            "step. Start a process for each with torchrun, or set CUDA_VISIBLE_DEVICES"
        )


def _check_loss(args: TrainingArguments) -> None:
    """Reject preference losses that change when a batch is split into safety rows and groups."""
    losses = getattr(args, "loss_type", None)
    if not isinstance(losses, list):  # not DPOConfig's
        return
    unsupported = sorted(BATCH_LOSSES & set(losses))
    if unsupported:
        raise UsageError(
            f"loss_type={unsupported[0]!r} is not a mean over rows, but methods split a batch into "
            "safety rows, benign rows and groups; use another loss, such as 'sigmoid' or 'ipo'"
        )


def check_sync(accumulation: Mapping[str, Any]) -> None:
    """Reject FSDP2 with gradients that stay unsharded until the last micro-batch of an update.

    A method's own gradients would be mixed into them.

    Args:
        accumulation: Settings of accelerate's gradient accumulation.

    Raises:
        UsageError: The setting is missing.
    """
    if not accumulation.get("sync_each_batch"):
        raise UsageError(
            "FSDP2 with gradient_accumulation_steps above 1 needs sync_each_batch, or a method's "
            "own gradients mix with those that wait: give accelerator_config="
            "{'gradient_accumulation_kwargs': {'sync_each_batch': True}}"
        )
