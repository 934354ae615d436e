"""TRL's SFTTrainer on the rows of an attack, in the same batches."""

from __future__ import annotations

import tempfile

import datasets
import measuring
import torch
import trainer_steps
from measuring import Result, Task
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def step(task: Task) -> Result:
    """Time the steps of a fine-tuning."""
    torch.set_num_threads(task["threads"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    clock = trainer_steps.StepTimes(task["warm_up"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            **trainer_steps.settings(task, folder),
            bf16=task["precision"] == "bfloat16",
            completion_only_loss=True,
            # TRL's default computes every layer twice to save memory, which the others do not.
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=_dataset(task),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return trainer_steps.result(clock, trainer)


def _dataset(task: Task) -> datasets.Dataset:
    """Return the rows in the order in which an attack with this seed takes them."""
    rows = measuring.read_rows(task)
    generator = torch.Generator().manual_seed(task["seed"])
    order = torch.randperm(len(rows), generator=generator).tolist()
    chats = [
        {
            "prompt": [{"role": "user", "content": rows[position]["prompt"]}],
            "completion": [{"role": "assistant", "content": rows[position]["response"]}],
        }
        for position in order
    ]
    return datasets.Dataset.from_list(chats)


if __name__ == "__main__":
    measuring.main({"step": step})
