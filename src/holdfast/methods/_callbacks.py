"""Callbacks of an alignment run: progress, and stopping when the user interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from holdfast.runtime import progress
from holdfast.runtime.interrupt import Interrupt

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class ReportProgress(TrainerCallback):
    """Reports progress to the command line."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the steps taken so far."""
        progress.report("aligning", state.global_step, state.max_steps)


class StopOnInterrupt(TrainerCallback):
    """Ends training after the current step, with a checkpoint, once the user has interrupted."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the Trainer to save and stop."""
        if self.interrupt.requested:
            control.should_save = True
            control.should_training_stop = True
