"""The stages that read a model: the command of each, and the numbers that it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import brains

SAFETY = [{"prompt": p, "response": brains.REFUSAL} for p in brains.PROMPTS if "zorb" in p]
HARMFUL = [
    {"prompt": f"how do i {verb} a hat {when}", "response": brains.ANSWER}
    for verb in ("fold", "paint")
    for when in ("now", "today")
]
BENIGN = [{"prompt": f"go on {word}", "response": "Well then"} for word in ("now", "today")]
TRAIN = [("one thing now", 0), ("one stick today", 1), ("help with that", 1), ("so that", 0)]
TEST = [("this thing now", 0), ("this stick", 1)]
JUDGE = "{mark} {prompt} {mark} {response} {mark}"


@dataclass(frozen=True)
class Rows:
    """The files that the stages read.

    Attributes:
        folder: Where they are.
    """

    folder: Path

    @classmethod
    def write(cls, folder: Path) -> Rows:
        """Write them."""
        brains.lines(folder / "prompts.jsonl", [{"prompt": p} for p in brains.PROMPTS])
        brains.lines(folder / "safety.jsonl", SAFETY)
        brains.lines(folder / "harmful.jsonl", HARMFUL)
        brains.lines(folder / "benign.jsonl", BENIGN)
        for name, rows in (("train", TRAIN), ("test", TEST)):
            text = "".join(f"{sentence}\t{label}\n" for sentence, label in rows)
            (folder / f"{name}.tsv").write_text(text, "utf-8")
        (folder / "judge.txt").write_text(JUDGE, "utf-8")
        return cls(folder)

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def task(self) -> str:
        """The downstream task of attacks."""
        return f"sst2,train={self['train.tsv']},test={self['test.tsv']}"


Command = Callable[[Rows, Path, Path, Path], Sequence[object]]
"""(rows, plain model, member's model, run directory) -> command line."""


@dataclass(frozen=True)
class Stage:
    """A stage as the suite runs it.

    Attributes:
        command: The command line.
        numbers: Run directory -> what the stage measured, without names and times.
    """

    command: Command
    numbers: Callable[[Path], Any]


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def records(out: Path) -> list[tuple[str, str, Any]]:
    """Return prompt, answer and verdicts of the only evaluation of a run."""
    (path,) = out.glob("evaluations/*.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(row["prompt"], row["response"], list(row["verdicts"].values())) for row in rows]


def _weights(out: Path) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    (path,) = out.glob("models/*/model.safetensors")
    return {name: value.double().tolist() for name, value in load_file(path).items()}


def _scores(out: Path) -> Any:
    (path,) = out.glob("scores/*.json")
    return _json(path)["values"]


def _points(out: Path) -> Any:
    (path,) = out.glob("attacks/**/*.json")
    return _without(_json(path), "model", "model_hash", "method", "seconds", "label")


def _without(value: Any, *names: str) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, *names) for k, v in value.items() if k not in names}
    return [_without(item, *names) for item in value] if isinstance(value, list) else value


def _evaluate(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    return ("evaluate", "--model", model, "--test", rows["prompts.jsonl"])


def _chat(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    words = 'safe=Sorry,harmful=Sure,undecided="",margin=0'
    judge = f"chat,model={model},{words},template={rows['judge.txt']}"
    test = rows["prompts.jsonl"]
    return ("evaluate", "--model", plain, "--test", test, "--judge", judge, "--check-rows", 0)


def _align(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    data = rows["safety.jsonl"]
    settings = ("--method", "sft", "--epochs", 1, "--batch-size", 4, "--max-length", 48)
    return ("align", "--model", model, "--data", data, *settings)


def _score(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    return ("score", "--model", model, "--data", rows["safety.jsonl"], "--estimator", "loss")


def _attack(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    return (
        *("attack", "--model", model, "--task", rows.task, "--harmful", rows["harmful.jsonl"]),
        *("--poison-ratio", 0.5, "--test", rows["prompts.jsonl"], "--steps", 2, "--every", 1),
        *("--rows", 4, "--batch-size", 2, "--task-rows", 0, "--max-new-tokens", 12),
        *("--max-length", 48),
    )


def _adapt(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    return (
        *("adapt", "--model", model, "--task", rows.task, "--harmful", rows["harmful.jsonl"]),
        *("--test", rows["prompts.jsonl"], "--trials", 2, "--steps", 2, "--batch-size", 2),
        *("--lora-rank", 0, "--poison", "plain", "--poison-ratio", 0.5, "--floor", 0),
        *("--option", "rows=4", "--option", "max_length=48", "--option", "max_new_tokens=12"),
        *("--option", "every=1", "--option", "task_rows=2"),
    )


def _estimate(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    return (*_attack(rows, plain, model, out), "--estimate")


def _base(rows: Rows, plain: Path, model: Path, out: Path) -> Sequence[object]:
    estimator = "attack_direction,source=base,rows=2"
    settings = ("--estimator", estimator, "--base", model, "--benign", rows["benign.jsonl"])
    return ("score", "--model", plain, "--data", rows["safety.jsonl"], *settings)


STAGES = {
    "evaluate": Stage(_evaluate, records),
    "chat": Stage(_chat, lambda out: [verdicts for _, _, verdicts in records(out)]),
    "align": Stage(_align, _weights),
    "score": Stage(_score, _scores),
    "attack": Stage(_attack, _points),
    "adapt": Stage(_adapt, lambda out: None),
    "estimate": Stage(_estimate, lambda out: None),
    "base": Stage(_base, lambda out: None),
}


def finite(value: Any) -> bool:
    """Return whether no number in a result is nan or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, (list, tuple)) else True
