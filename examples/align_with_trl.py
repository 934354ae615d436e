"""Vulnerability-aware alignment in a script that trains with TRL.

    python examples/align_with_trl.py sft     # supervised refusals
    python examples/align_with_trl.py dpo     # preference pairs

What a script with `SFTTrainer` or `DPOTrainer` changes is marked: one class that puts the method
before the trainer, and one argument that says which rows are safety rows, and of which group. It
runs on the embedded world as it stands; with a model and a dataset of your own the two marked
places stay the same, and the groups come from

    holdfast score ... && holdfast group ...     # then Groups.load("runs/mine/groups/NAME.json")
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would tell the hub of every run

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import holdfast as h
from holdfast.methods.base import AlignmentData
from holdfast.methods.vaa import Vaa, VaaOptions
from holdfast.models import checkpoints
from holdfast.results.artifacts import Groups
from holdfast.rows.readers import read


class VaaSft(Vaa, SFTTrainer):  # one class
    """Group DRO with a perturbation over TRL's supervised loss."""


class VaaDpo(Vaa, DPOTrainer):
    """The same over TRL's preference loss."""


def groups_of(out: Path) -> Groups:
    """Align plainly, score and group: what a project that uses holdfast has done already."""
    common = {"out": out, "device": "cpu", "limit": 200}
    h.align(h.AlignConfig(model="world", data="world:alignment", epochs=6, **common))
    h.score(h.ScoreConfig(model="sft-s0", base="world", data="world:alignment", **common))
    return h.group(h.GroupConfig(data="world:alignment", scores="attack_direction", **common))


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def main(kind: str) -> None:
    """Train a few steps and show what the sampler did."""
    loaded = checkpoints.load("world", device="cpu")
    safety, benign = read("world:alignment")[:200], read("world:benign")[:100]
    with tempfile.TemporaryDirectory() as folder:
        groups = groups_of(Path(folder, "run"))
        options = {"output_dir": folder, "max_steps": 20, "use_cpu": True, "report_to": "none"}
        if kind == "sft":
            rows = [
                {"prompt": turns("user", r.prompt), "completion": turns("assistant", r.response)}
                for r in (*safety, *benign)
            ]
        else:
            # The worse answer: what the model said before its alignment, or any other bad one.
            rows = [
                {
                    "prompt": turns("user", r.prompt),
                    "chosen": turns("assistant", r.response),
                    "rejected": turns("assistant", benign[i % len(benign)].response),
                }
                for i, r in enumerate(safety)
            ]
        dataset = Dataset.from_list(rows)
        trainer_class, config = {"sft": (VaaSft, SFTConfig), "dpo": (VaaDpo, DPOConfig)}[kind]
        trainer = trainer_class(
            loaded.model,
            config(**options),
            train_dataset=dataset,
            processing_class=loaded.tokenizer,
            data=AlignmentData.of(dataset, groups),  # one argument
            options=VaaOptions(rho=0.1, curriculum="constant"),
        )
        trainer.train()
        for entry in trainer.state.log_history:
            if "group" in entry:
                shares = {k: round(v, 3) for k, v in entry.items() if k.startswith("q_")}
                print(f"group {entry['group']}  safety loss {entry['safety_loss']:.3f}  {shares}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sft")
