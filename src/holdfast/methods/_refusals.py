"""Ways of training under which a method would be silently wrong: refused before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from transformers import TrainingArguments

UNSUPPORTED = {
    "packing": "puts several rows into one, and groups are of rows; leave it out",
    "padding_free": "puts several rows into one, and groups are of rows; leave it out",
    "shuffle_dataset": "moves rows after they were counted; leave it out, and shuffle the dataset",
    "deepspeed": "keeps weights where they cannot be moved and put back; use DDP or FSDP2",
    "torch_compile": "compiles a step, and weights move in the middle of it; leave it out",
    "parallelism_config": "parts a row over processes; use DDP or FSDP2",
    "ddp_static_graph": "expects one backward pass a step, and there are more; leave it out",
}
"""Options under which a method would be silently wrong, and why."""


def refuse(given: Mapping[str, Any]) -> None:
    """Refuse options of training under which a method would be silently wrong.

    Raises:
        UsageError: Naming the option, why not, and what to do.
    """
    for option, why in UNSUPPORTED.items():
        if value := given.get(option):
            raise UsageError(f"{option}={value!r} {why}")


def check(args: TrainingArguments) -> None:
    """Refuse a run that a method would go through silently wrong.

    Raises:
        UsageError: Saying what to do.
    """
    refuse(vars(args))
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


def check_sync(accumulation: Mapping[str, Any]) -> None:
    """Refuse FSDP2 with gradients that wait unsharded for the last micro-batch of an update.

    A method's own gradients would be added to them.

    Args:
        accumulation: Settings of accelerate's gradient accumulation.

    Raises:
        UsageError: Naming the setting.
    """
    if not accumulation.get("sync_each_batch"):
        raise UsageError(
            "FSDP2 with gradient_accumulation_steps above 1 needs sync_each_batch, or a method's "
            "own gradients mix with those that wait: give accelerator_config="
            "{'gradient_accumulation_kwargs': {'sync_each_batch': True}}"
        )
