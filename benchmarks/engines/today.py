"""The engine of this working tree."""

from __future__ import annotations

import tempfile
from typing import Any

import measuring
import numpy as np
import torch
import trainer_steps
from measuring import Result, Task

from holdfast import plugins
from holdfast.examples import Example, Examples
from holdfast.methods.base import AlignmentData, MethodArguments
from holdfast.models import checkpoints
from holdfast.models.generation import generate
from holdfast.models.precision import computing_in
from holdfast.results.artifacts import Groups
from holdfast.runtime import progress
from holdfast.tuning.loop import FinetuneConfig, finetune


def step(task: Task) -> Result:
    """Time the steps of an attack."""
    loaded = _load(task)
    losses: list[float] = []
    clock = measuring.ProgressTimes(task["warm_up"])
    config = FinetuneConfig(
        learning_rate=task["learning_rate"],
        steps=task["warm_up"] + task["steps"],
        batch_size=task["batch_size"],
        max_length=task["max_length"],
        seed=task["seed"],
        every=task["warm_up"] + task["steps"],
    )
    with progress.showing(clock), computing_in(task["precision"]):
        finetune(
            loaded.model,
            loaded.tokenizer,
            _rows(task),
            config,
            on_snapshot=lambda steps, loss: losses.append(loss),
        )
    return {"seconds": clock.seconds, "loss": losses[-1], **measuring.device_peak()}


def aligned_step(task: Task) -> Result:
    """Time the steps of an alignment."""
    loaded = _load(task)
    rows = _rows(task)
    half = len(rows) // 2
    safety = Examples(list(rows)[:half], name="safety")
    harmful = Examples(list(rows)[half:], name="harmful")
    labels = np.arange(half) % 2
    groups = Groups(safety.ids, labels, ("even", "odd"), "alternating", "", safety.hash)
    clock = trainer_steps.StepTimes(task["warm_up"])
    method: Any = plugins.find("methods", task["method"])
    with tempfile.TemporaryDirectory() as folder, computing_in(task["precision"]):
        arguments = trainer_steps.settings(task, folder)
        trainer = method(
            loaded.model,
            MethodArguments(**arguments, bf16=task["precision"] == "bfloat16"),
            data=AlignmentData(safety=safety, groups=groups, harmful=harmful),
            options=method.Options(**task["options"]),
            processing_class=loaded.tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return trainer_steps.result(clock, trainer)


def answers(task: Task) -> Result:
    """Time the answers to all prompts."""
    loaded = _load(task)

    def answer(prompts: list[dict[str, Any]], new_tokens: int) -> list[str]:
        texts = [prompt["prompt"] for prompt in prompts]
        return generate(loaded.model, loaded.tokenizer, texts, max_new_tokens=new_tokens)

    with computing_in(task["precision"]):
        return measuring.timed_answers(answer, task)


def _load(task: Task) -> checkpoints.Loaded:
    torch.set_num_threads(task["threads"])
    return checkpoints.load(task["model"], device=task["device"])


def _rows(task: Task) -> Examples:
    rows = measuring.read_rows(task)
    return Examples((Example(row["prompt"], row["response"]) for row in rows), name="rows")


if __name__ == "__main__":
    measuring.main(
        {"step": step, "sft_step": aligned_step, "hold_step": aligned_step, "answers": answers}
    )
