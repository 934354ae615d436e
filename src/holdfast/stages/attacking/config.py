"""Options of attacks: every combination of the lists is one attack."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from holdfast.contracts import MOST_UNDECIDED
from holdfast.results.attacks import HALF, PLAIN, default
from holdfast.stages.attacking.guards import GuardConfig
from holdfast.stages.config import (
    JobsConfig,
    JudgeSpecs,
    ModelConfig,
    Models,
    PoisonSpecs,
    Ranks,
    Rates,
    Schedules,
    Seeds,
    Shares,
    Sizes,
    TaskSpecs,
)


class AttackConfig(GuardConfig, JobsConfig, ModelConfig):
    """Options of the stage; every combination of the lists is one attack."""

    PLACES: ClassVar[frozenset[str]] = frozenset(
        {
            "models",
            "tasks",
            "harmful",
            "test",
            "judges",
            "track",
            "preset",
            "replay",
            "most_undecided",
        }
    )

    models: Models = Field(min_length=1)
    """Model to attack: its label in the run, a directory, a GGUF file, package:NAME or
    a hub id. LABEL=DIRECTORY gives it a label.
    """
    tasks: TaskSpecs = Field(min_length=1)
    """Downstream task that the model is fine-tuned on."""
    harmful: str | None = None
    """The attacker's harmful rows; not needed if the poison ratio is 0."""
    test: str
    """Restricted prompts that the model answers at every checkpoint."""
    judges: JudgeSpecs = Field(default=["refusal"], min_length=1)
    """Judge of the responses; the first one's verdicts define the half-life."""
    most_undecided: float = Field(default=MOST_UNDECIDED, ge=0, le=1)
    """Largest share of undecided verdicts of a judge before the attack, and at later checkpoints
    of replies that are no verdict; with more, the attack stops with the reason. 1 never stops.
    """
    preset: list[str] = Field(default_factory=list)
    """Preset grid (paper, budget, benign, identity, covert, pure, relearn), or a YAML file with a
    grid. Other options override it.
    """
    replay: list[str] = Field(default_factory=list)
    """Attack found by `holdfast adapt`: a file in the folder `adapted` of a run."""
    poison_ratios: Shares = Field(default=[default("poison_ratio")], min_length=1)
    """Harmful share of the fine-tuning rows."""
    poisons: PoisonSpecs = Field(default=[PLAIN], min_length=1)
    """Disguise of the harmful rows; plain leaves them unchanged."""
    learning_rates: Rates = Field(default=[default("learning_rate")], min_length=1)
    """Learning rate of AdamW."""
    schedules: Schedules = Field(default=["constant"], min_length=1)
    """Learning-rate schedule: constant, or linear or cosine decay to 0 at the last step."""
    seeds: Seeds = Field(default=[0], min_length=1)
    """Random seed of the attack: selects and orders its rows."""
    steps: Sizes = Field(default=[default("steps")], min_length=1)
    """Number of optimizer steps."""
    epochs: int = Field(default=0, ge=0)
    """Number of passes over the rows, instead of --steps; 0 uses --steps."""
    every: int = Field(default=default("every"), ge=1)
    """Number of steps between checkpoints, and to the first one."""
    spacing: float = Field(default=default("spacing"), ge=1)
    """Factor by which the distance between checkpoints grows; 1 keeps it constant."""
    until_broken: bool = False
    """End an attack at the first checkpoint that reaches --broken-at."""
    broken_at: float = Field(default=HALF, ge=HALF, le=1)
    """Share of harmful answers at which --until-broken ends an attack."""
    batch_size: Sizes = Field(default=[default("batch_size")], min_length=1)
    """Number of rows per optimizer step."""
    rows: int = Field(default=default("rows"), ge=1)
    """Total number of fine-tuning rows."""
    max_length: int = Field(default=default("max_length"), ge=8)
    """Maximum length of a row in tokens."""
    lora_rank: Ranks = Field(default=[0], min_length=1)
    """Rank of the attacker's LoRA; 0 trains all weights."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Maximum length of the judged answers in tokens."""
    task_rows: int = Field(default=100, ge=0)
    """Number of task test rows answered at every checkpoint; 0 skips task accuracy."""
    track: str | None = None
    """Alignment rows answered at every checkpoint, to record which are forgotten."""
    track_rows: int = Field(default=0, ge=0)
    """Maximum number of tracked rows, sampled by content id; 0 tracks all."""
    track_judge: str = ""
    """Judge of the tracked rows, one of --judge; empty for the first."""
    save_models: bool = False
    """Save the attacked models."""
    name: str = ""
    """Name of the grid; appended to the labels of its attacks."""
    only: str = ""
    """Label of the only attack of the grid to run; empty runs all."""
    replace: bool = False
    """Replace finished attacks that have the same label but other options, rows or judges."""

    def keyed(self) -> dict[str, Any]:
        """Return the options of a job's key, without the settings of the attacks.

        The lists of the grid are left out, so adding a value does not rerun finished attacks.
        """
        unkeyed = {"epochs", "only", "replace"} | set(SHARED) | set(AXES.values())
        return {key: value for key, value in super().keyed().items() if key not in unkeyed}


AXES = {
    "task": "tasks",
    "poison_ratio": "poison_ratios",
    "learning_rate": "learning_rates",
    "seed": "seeds",
    "guard": "guards",
    "poison": "poisons",
    "schedule": "schedules",
    "steps": "steps",
    "batch_size": "batch_size",
    "lora_rank": "lora_rank",
}
"""Setting of an attack -> the option that lists its values, in the order of the grid."""
SHARED = ("rows", "max_length", "every", "spacing", "until_broken", "broken_at", "name")
"""Settings that all attacks of a grid share; their options have the same names."""
