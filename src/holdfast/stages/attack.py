"""Stage: attack aligned models by fine-tuning, and watch the harmful score step by step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from holdfast import plugins, progress
from holdfast.artifacts import AttackResult, to_json
from holdfast.contracts import Task
from holdfast.errors import DiskFull, HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.jobs import summary
from holdfast.stages.cell import Cell, Material, run_cell
from holdfast.stages.config import JobsConfig
from holdfast.stages.guarding import GuardConfig, guard_of
from holdfast.stages.judging import hashes_of, judges_of
from holdfast.stages.subjects import Subject, label_of, subject

AXES = ("models", "tasks", "poison_ratios", "learning_rates", "seeds", "guards")
"""The lists whose combinations are the attacks, the slowest first."""


class AttackConfig(GuardConfig, JobsConfig):
    """Options of the stage; every combination of the lists is one attack.

    Attributes:
        models: Models of the run by label, or others by directory or hub id.
        tasks: What the customer fine-tunes for: names and options.
        harmful: The attacker's rows.
        test: Restricted prompts that are asked at every checkpoint.
        judges: Names and options; the first one's verdicts define the half-life.
        poison_ratios: Harmful shares of the fine-tuning rows.
        learning_rates: Of AdamW.
        seeds: Draw and order of the rows; the alignment's own seed is part of the model.
        steps: Optimizer steps.
        every: Steps to the first checkpoint, and between them.
        spacing: By how much the distance between checkpoints grows each time; 1 keeps it.
        until_broken: End an attack at the checkpoint at which half of the answers are harmful.
        batch_size: Rows per step.
        rows: Fine-tuning rows in all.
        max_length: Tokens kept per row.
        lora_rank: Rank of the attacker's LoRA; 0 trains all weights.
        max_new_tokens: Length of the judged answers.
        task_rows: Test rows of the task at every checkpoint; 0 for none.
        track: Alignment rows asked at every checkpoint, to learn which are forgotten.
        track_rows: At most so many of them, a sample by content id; 0 for all.
        track_judge: The one of the judges that says whether they are forgotten; the first if empty.
        save_models: Keep the attacked models.
    """

    models: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    harmful: str
    test: str
    judges: list[str] = Field(default=["refusal"], min_length=1)
    poison_ratios: list[float] = Field(default=[0.1], min_length=1)
    learning_rates: list[float] = Field(default=[1e-4], min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    steps: int = Field(default=100, ge=1)
    every: int = Field(default=10, ge=1)
    spacing: float = Field(default=1.0, ge=1)
    until_broken: bool = False
    batch_size: int = Field(default=16, ge=1)
    rows: int = Field(default=400, ge=1)
    max_length: int = Field(default=256, ge=8)
    lora_rank: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=32, ge=1)
    task_rows: int = Field(default=100, ge=0)
    track: str | None = None
    track_rows: int = Field(default=0, ge=0)
    track_judge: str = ""
    save_models: bool = False

    def keyed(self) -> dict[str, Any]:
        """Return what decides the results, options that came later only where they are used."""
        found = super().keyed()
        later = {"spacing": 1.0, "until_broken": False}
        return {k: v for k, v in found.items() if k not in later or v != later[k]}


def attack(config: AttackConfig) -> list[AttackResult]:
    """Run every cell on every model; finished cells are loaded, not run again.

    A cell that fails is noted in the run directory, and the others are run all the same.

    Raises:
        UsageError: Rows too few for a ratio, unknown task or judge.
        TrainingError: An attack's loss is not finite.
        HoldfastError: Several cells failed; the message says which, and why.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    judges = judges_of(config.judges)
    if config.track_judge and config.track_judge not in judges:
        raise UsageError(
            f"track_judge {config.track_judge!r} is none of the judges: {', '.join(judges)}"
        )
    if config.until_broken and config.track:
        raise UsageError(
            "until_broken ends attacks at different checkpoints, and ForgotNum counts checkpoints; "
            "leave out track or until_broken"
        )
    if config.jobs > 1 or config.scheduler:
        return _side_by_side(config)
    material = Material(
        harmful=config.read(config.harmful),
        test=config.read(config.test, needs_response=False),
        judges=judges,
        track=_tracked(config),
        hashes=hashes_of(judges),
    )
    subjects = [subject(config.run, name) for name in config.models]
    cells = list(itertools.product(subjects, _cells(config)))
    results, failures = [], {}
    for done, (who, cell) in enumerate(cells):
        progress.report(f"attack {who.label} {cell.label}", done, len(cells))
        try:
            results.append(_attack(config, material, who, cell))
        except DiskFull:
            raise
        except HoldfastError as error:
            failures[f"{who.label}/{cell.label}"] = error
    progress.report("attacks", len(cells), len(cells))
    if failures:
        raise summary(failures, len(cells))
    return results


def alone(config: AttackConfig) -> Iterator[tuple[str, AttackConfig]]:
    """Yield the name and the options of every attack of a configuration by itself.

    An attack has the same key there, since that holds its own settings.
    """
    for chosen in itertools.product(*(getattr(config, axis) for axis in AXES)):
        lists = {axis: [value] for axis, value in zip(AXES, chosen, strict=True)}
        one = config.model_copy(update={**lists, "jobs": 1, "scheduler": ""})
        yield f"{label_of(one.models[0])}/{next(_cells(one)).label}", one


def _side_by_side(config: AttackConfig) -> list[AttackResult]:
    from holdfast.stages.calls import Call, do
    from holdfast.stages.estimate import begin

    calls = [Call("attack", "all", config)]
    begin(calls, jobs=config.jobs)
    do(calls, jobs=config.jobs, scheduler=config.scheduler)
    # All of them are there: nothing is run again.
    return attack(config.model_copy(update={"jobs": 1, "scheduler": ""}))


def _tracked(config: AttackConfig) -> Examples | None:
    rows = config.read_if(config.track)
    if rows is None or not config.track_rows:
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: rows.ids[i])[: config.track_rows]
    return rows.select(sorted(chosen))


def _cells(config: AttackConfig) -> Iterator[Cell]:
    for task, ratio, rate, seed, guard in itertools.product(
        config.tasks, config.poison_ratios, config.learning_rates, config.seeds, config.guards
    ):
        yield Cell(task, ratio, rate, seed, guard)


def _attack(config: AttackConfig, material: Material, who: Subject, cell: Cell) -> AttackResult:
    task: Task = plugins.make("tasks", cell.task)
    guard, given = guard_of(config, cell.guard)
    name = f"{who.label}/{cell.label}"
    inputs = {
        "model": who.hash,
        "harmful": material.harmful.hash,
        "test": material.test.hash,
        "task": task.load("train").hash,
        **({"track": material.track.hash} if material.track else {}),
        **given,
        **material.hashes,
    }
    # A cell's key holds its own settings, not the lists it was chosen from, so that a longer
    # list later does not run it again.
    lists = {"models", "tasks", "poison_ratios", "learning_rates", "seeds"}
    keyed = {k: v for k, v in config.keyed().items() if k not in lists}
    keyed |= {"cell": to_json(cell.settings), "seed": cell.seed}
    path = config.run.path("attacks", who.label, f"{cell.label}.json")
    with config.run.step("attack", name, config=keyed, inputs=inputs) as step:
        if step.done is None:
            result = run_cell(config, material, who, cell, task, guard, step)
            result.save(path)
            step.outputs.append(path)
            step.facts["half_life"] = result.half_life
    return AttackResult.load(path)
