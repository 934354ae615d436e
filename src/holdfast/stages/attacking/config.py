"""Options of attacks: every combination of the lists is one attack."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from holdfast.results.attacks import HALF, PLAIN, default
from holdfast.stages.attacking.guards import GuardConfig
from holdfast.stages.config import (
    JobsConfig,
    JudgeSpecs,
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


class AttackConfig(GuardConfig, JobsConfig):
    """Options of the stage; every combination of the lists is one attack."""

    PLACES: ClassVar[frozenset[str]] = frozenset(
        {"models", "tasks", "harmful", "test", "judges", "track", "preset", "replay"}
    )

    models: Models = Field(min_length=1)
    """Model to attack: its label in the run, or a directory or hub id."""
    tasks: TaskSpecs = Field(min_length=1)
    """Task that the customer fine-tunes for."""
    harmful: str | None = None
    """The attacker's rows; none are needed if no attack has any."""
    test: str
    """Restricted prompts that are asked at every checkpoint."""
    judges: JudgeSpecs = Field(default=["refusal"], min_length=1)
    """Judge of the responses; the first one's verdicts define the half-life."""
    preset: list[str] = Field(default_factory=list)
    """Grid that ships with holdfast (paper, budget, benign, identity, covert, pure, relearn), or a
    file like one. Options given beside it take precedence.
    """
    replay: list[str] = Field(default_factory=list)
    """Attack found by `holdfast adapt`: a file in the folder `adapted` of a run."""
    poison_ratios: Shares = Field(default=[default("poison_ratio")], min_length=1)
    """Harmful share of the fine-tuning rows."""
    poisons: PoisonSpecs = Field(default=[PLAIN], min_length=1)
    """What the attacker makes of the rows; plain leaves them as they are."""
    learning_rates: Rates = Field(default=[default("learning_rate")], min_length=1)
    """Learning rate of AdamW."""
    schedules: Schedules = Field(default=["constant"], min_length=1)
    """Course of the learning rate: constant, or linear or cosine down to 0 at the last step."""
    seeds: Seeds = Field(default=[0], min_length=1)
    """Random seed for the draw and order of the rows; the alignment's own seed is part of the
    model.
    """
    steps: Sizes = Field(default=[default("steps")], min_length=1)
    """Number of optimizer steps."""
    epochs: int = Field(default=0, ge=0)
    """Number of passes over the rows, in place of --steps; 0 uses --steps."""
    every: int = Field(default=default("every"), ge=1)
    """Number of steps to the first checkpoint, and between checkpoints."""
    spacing: float = Field(default=default("spacing"), ge=1)
    """Factor by which the distance between checkpoints grows each time; 1 keeps it."""
    until_broken: bool = False
    """End an attack at the checkpoint at which half of the answers are harmful."""
    broken_at: float = Field(default=HALF, ge=HALF, le=1)
    """Share of harmful answers at which --until-broken ends an attack. An attack that ends before
    half are harmful has no half-life.
    """
    batch_size: Sizes = Field(default=[default("batch_size")], min_length=1)
    """Number of rows per step."""
    rows: int = Field(default=default("rows"), ge=1)
    """Total number of fine-tuning rows."""
    max_length: int = Field(default=default("max_length"), ge=8)
    """Number of tokens kept of each row."""
    lora_rank: Ranks = Field(default=[0], min_length=1)
    """Rank of the attacker's LoRA; 0 trains all weights."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Length of the judged answers in tokens."""
    task_rows: int = Field(default=100, ge=0)
    """Number of the task's test rows asked at every checkpoint; 0 asks none."""
    track: str | None = None
    """Alignment rows asked at every checkpoint, to learn which are forgotten."""
    track_rows: int = Field(default=0, ge=0)
    """Most rows to track, a sample by content id; 0 tracks all."""
    track_judge: str = ""
    """Judge, one of --judge, that says whether tracked rows are forgotten; empty takes the first.
    """
    save_models: bool = False
    """Keep the attacked models."""
    name: str = ""
    """Name of the grid, at the end of its attacks' labels, which keeps them apart from other grids.
    """
    only: str = ""
    """Label of one attack of the grid, to run it alone."""
    replace: bool = False
    """Replace finished attacks with the same label that had other options, rows or judges."""

    def keyed(self) -> dict[str, Any]:
        """Return what decides the results besides the settings of each attack.

        The lists of the grid are left out, so a longer list later does not run an attack again.
        """
        choice = {"epochs", "only", "replace"}
        left_out = choice | set(SHARED) | set(AXES.values())
        return {key: value for key, value in super().keyed().items() if key not in left_out}


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
"""Settings that all attacks of a grid share; the options have the same names."""
