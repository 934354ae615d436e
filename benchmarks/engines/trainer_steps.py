"""What engines on transformers' Trainer share: a clock around its steps, and its settings."""

from __future__ import annotations

import time
from typing import Any

from measuring import Task, device_peak
from transformers import TrainerCallback


class StepTimes(TrainerCallback):
    """Times every step of a Trainer; the first ones warm up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.all_seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = _now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.all_seconds.append(_now() - self._start)

    @property
    def seconds(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        return self.all_seconds[self.warm_up :]


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def settings(task: Task, folder: str) -> dict[str, Any]:
    """Return the arguments of a Trainer for a task."""
    return {
        "output_dir": folder,
        "max_steps": task["warm_up"] + task["steps"],
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "per_device_train_batch_size": task["batch_size"],
        "max_length": task["max_length"],
        "seed": task["seed"],
        "data_seed": task["seed"],
        "use_cpu": task["device"] == "cpu",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": task["warm_up"] + task["steps"],
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


def result(clock: StepTimes, trainer: Any) -> dict[str, Any]:
    """Return the measurement of a finished training."""
    return {"seconds": clock.seconds, "loss": trainer.state.log_history[-1]["train_loss"]} | (
        device_peak()
    )
