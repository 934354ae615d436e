"""Options of attacks: every combination of the lists is one attack."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from holdfast.results.attacks import HALF, PLAIN, Schedule, default
from holdfast.stages.attacking.guards import GuardConfig
from holdfast.stages.config import JobsConfig, Rates, Seeds, at_least


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


Sizes = Annotated[list[int], BeforeValidator(_listed), at_least(1)]
Ranks = Annotated[list[int], BeforeValidator(_listed), at_least(0)]
Names = Annotated[list[str], BeforeValidator(_listed)]
"""One value, or a list of them."""


class AttackConfig(GuardConfig, JobsConfig):
    """Options of the stage; every combination of the lists is one attack.

    Attributes:
        models: Models of the run by label, or others by directory or hub id.
        tasks: What the customer fine-tunes for: names and options.
        harmful: The attacker's rows; none are needed where no attack has any.
        test: Restricted prompts that are asked at every checkpoint.
        judges: Names and options; the first one's verdicts define the half-life.
        preset: Grids that ship with holdfast: paper, budget, benign, identity, covert, pure,
            relearn; or files like them. Options that are given besides win.
        replay: Attacks that `holdfast adapt` found, files in the folder `adapted` of a run.
        poison_ratios: Harmful shares of the fine-tuning rows.
        poisons: What the attacker makes of the rows: names and options, "plain" for nothing.
        learning_rates: Of AdamW.
        schedules: How the learning rate goes: constant, linear or cosine, to 0 at the last step.
        seeds: Draw and order of the rows; the alignment's own seed is part of the model.
        steps: Optimizer steps, one or several numbers of them.
        epochs: Passes over the rows, in place of `steps`; 0 takes `steps`.
        every: Steps to the first checkpoint, and between them.
        spacing: By how much the distance between checkpoints grows each time; 1 keeps it.
        until_broken: End an attack at the checkpoint at which half of the answers are harmful.
        broken_at: Another share of them for until_broken, half or more: an attack that ends before
            half is broken has no half-life.
        batch_size: Rows per step, one or several numbers of them.
        rows: Fine-tuning rows in all.
        max_length: Tokens kept per row.
        lora_rank: Rank of the attacker's LoRA, one or several; 0 trains all weights.
        max_new_tokens: Length of the judged answers.
        task_rows: Test rows of the task at every checkpoint; 0 for none.
        track: Alignment rows asked at every checkpoint, to learn which are forgotten.
        track_rows: At most so many of them, a sample by content id; 0 for all.
        track_judge: The one of the judges that says whether they are forgotten; the first if empty.
        save_models: Keep the attacked models.
        name: Name of the grid, at the end of its attacks' labels; keeps them apart from others.
        only: Label of one attack of the grid, to run that one alone.
        replace: Replace finished attacks of the same label that had other options, rows or judges.
    """

    models: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    harmful: str | None = None
    test: str
    judges: list[str] = Field(default=["refusal"], min_length=1)
    preset: Names = Field(default_factory=list)
    replay: Names = Field(default_factory=list)
    poison_ratios: list[float] = Field(default=[default("poison_ratio")], min_length=1)
    poisons: list[str] = Field(default=[PLAIN], min_length=1)
    learning_rates: Rates = Field(default=[default("learning_rate")], min_length=1)
    schedules: list[Schedule] = Field(default=["constant"], min_length=1)
    seeds: Seeds = Field(default=[0], min_length=1)
    steps: Sizes = Field(default=[default("steps")], min_length=1)
    epochs: int = Field(default=0, ge=0)
    every: int = Field(default=default("every"), ge=1)
    spacing: float = Field(default=default("spacing"), ge=1)
    until_broken: bool = False
    broken_at: float = Field(default=HALF, ge=HALF, le=1)
    batch_size: Sizes = Field(default=[default("batch_size")], min_length=1)
    rows: int = Field(default=default("rows"), ge=1)
    max_length: int = Field(default=default("max_length"), ge=8)
    lora_rank: Ranks = Field(default=[0], min_length=1)
    max_new_tokens: int = Field(default=32, ge=1)
    task_rows: int = Field(default=100, ge=0)
    track: str | None = None
    track_rows: int = Field(default=0, ge=0)
    track_judge: str = ""
    save_models: bool = False
    name: str = ""
    only: str = ""
    replace: bool = False

    def keyed(self) -> dict[str, Any]:
        """Return what decides the results besides the settings of each attack.

        The lists of the grid are left out, so a longer list later does not run an attack again.
        """
        choice = {"models", "preset", "replay", "epochs", "only", "replace"}
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
