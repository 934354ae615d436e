"""Callbacks of an alignment run: progress, steps that fp16 skips, and stopping on an interrupt."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from holdfast.errors import TrainingError
from holdfast.runtime import progress
from holdfast.runtime.interrupt import Interrupt

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)


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


class CountSkippedSteps(TrainerCallback):
    """Counts the steps that fp16's loss scaler skips, and ends training that consists of them."""

    def __init__(self) -> None:
        self.skipped = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting."""
        self.skipped = 0

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step if it was skipped."""
        # Only accelerate's optimizer knows; before it is prepared there is none to ask.
        self.skipped += getattr(kwargs.get("optimizer"), "step_was_skipped", False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report skipped steps.

        Raises:
            TrainingError: All steps were skipped, so no weight has moved.
        """
        if not self.skipped:
            return
        if self.skipped == state.global_step:
            raise TrainingError(
                f"all {self.skipped} steps were skipped because their gradients overflowed in "
                "fp16, so no weight has moved. Train in bfloat16 or float32, or for more steps."
            )
        log.warning(
            "%d of %d steps were skipped because their gradients overflowed in fp16",
            self.skipped,
            state.global_step,
        )
