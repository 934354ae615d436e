"""A Trainer whose checkpoints also hold the state of the method."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from holdfast.errors import HoldfastError, TrainingError
from holdfast.models.weights import all_finite, trainable, weights_not_finite
from holdfast.results.files import to_json, write_json

STATE_FILE = "method_state.json"
TENSORS_FILE = "method_state.safetensors"


class CheckpointedTrainer(Trainer):
    """Saves the state of the method with every checkpoint, and loads it when training resumes."""

    def method_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the Trainer's own state, as JSON."""
        return {}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""

    def method_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold besides the Trainer's own, by name."""
        return {}

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `method_tensors`; called after `load_method_state`."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers' Trainer does.

        Raises:
            TrainingError: The trained weights are not finite.
        """
        result = super().train(*args, **kwargs)
        self._check_weights()
        return result

    def _check_weights(self) -> None:
        """Raise TrainingError if training has left weights that are not finite."""
        model = cast(nn.Module, self.model)
        if not all_finite([p.detach() for p in trainable(model)]):
            raise TrainingError(
                f"the weights are not finite after step {self.state.global_step}: training cannot "
                "continue. Lower the learning rate. The last checkpoint is kept."
                f"{weights_not_finite(model)}"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_weights()
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        # Earlier checkpoints are deleted only once this one is complete.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
            if not self.args.should_save:  # another process saves
                return
            self._save_method_state(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise HoldfastError(
                f"{folder}: the checkpoint could not be written ({error}). Is the disk full? "
                "Finished work is kept; free some space and rerun the same command."
            ) from error
        finally:
            self.args.save_total_limit = limit
        best = self.state.best_model_checkpoint
        rotate_checkpoints(str(folder.parent), limit, best, use_mtime=True)

    def _save_method_state(self, folder: Path) -> None:
        tensors = self.method_tensors()
        if tensors:
            save_file(tensors, folder / TENSORS_FILE)
        # Written last: a checkpoint without this file is incomplete, and no run resumes from it.
        write_json(folder / STATE_FILE, to_json(self.method_state()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state_file = Path(checkpoint, STATE_FILE)
        self.load_method_state(json.loads(state_file.read_text(encoding="utf-8")))
        tensors_file = state_file.with_name(TENSORS_FILE)
        if tensors_file.is_file():
            self.load_method_tensors(load_file(tensors_file))
