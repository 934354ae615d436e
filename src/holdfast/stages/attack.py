"""Stage: attack aligned models by fine-tuning, and watch the harmful score step by step."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from holdfast import plugins, progress
from holdfast.artifacts import AttackResult, sha256_json, to_json
from holdfast.contracts import Task
from holdfast.errors import DiskFull, HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.finetune import Schedule
from holdfast.jobs import Pace, duration, summary
from holdfast.mishaps import FAILS, failure
from holdfast.runs import NotDone
from holdfast.stages.cell import HALF, PLAIN, Cell, Material, check_rows, run_cell, task_hashes
from holdfast.stages.config import JobsConfig, Rates, Seeds, at_least
from holdfast.stages.guarding import GuardConfig, apart, guard_of
from holdfast.stages.judging import hashes_of, judges_of
from holdfast.stages.presets import expanded
from holdfast.stages.subjects import Subject, label_of, subjects
from holdfast.text import prompt_text

logger = logging.getLogger(__name__)


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
        name: Put at the end of the attacks' names: they stand beside those of another name.
        only: Name of one attack of the grid, to run that one alone.
    """

    models: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    harmful: str | None = None
    test: str
    judges: list[str] = Field(default=["refusal"], min_length=1)
    preset: Names = Field(default_factory=list)
    replay: Names = Field(default_factory=list)
    poison_ratios: list[float] = Field(default=[0.1], min_length=1)
    poisons: list[str] = Field(default=[PLAIN], min_length=1)
    learning_rates: Rates = Field(default=[1e-4], min_length=1)
    schedules: list[Schedule] = Field(default=["constant"], min_length=1)
    seeds: Seeds = Field(default=[0], min_length=1)
    steps: Sizes = Field(default=[100], min_length=1)
    epochs: int = Field(default=0, ge=0)
    every: int = Field(default=10, ge=1)
    spacing: float = Field(default=1.0, ge=1)
    until_broken: bool = False
    broken_at: float = Field(default=HALF, ge=HALF, le=1)
    batch_size: Sizes = Field(default=[16], min_length=1)
    rows: int = Field(default=400, ge=1)
    max_length: int = Field(default=256, ge=8)
    lora_rank: Ranks = Field(default=[0], min_length=1)
    max_new_tokens: int = Field(default=32, ge=1)
    task_rows: int = Field(default=100, ge=0)
    track: str | None = None
    track_rows: int = Field(default=0, ge=0)
    track_judge: str = ""
    save_models: bool = False
    name: str = ""
    only: str = ""

    def keyed(self) -> dict[str, Any]:
        """Return what decides every attack's results: not the lists that it was chosen from.

        A longer list later then does not run it again. Options that came later are there only
        where they are used.
        """
        left_out = {"models", "tasks", "preset", "replay", "epochs", "name", "only", *AXES}
        later = {"spacing": 1.0, "until_broken": False, "broken_at": HALF}
        return {
            k: v
            for k, v in super().keyed().items()
            if k not in left_out and (k not in later or v != later[k])
        }


AXES = (
    *("poison_ratios", "poisons", "learning_rates", "schedules", "seeds"),
    *("steps", "batch_size", "lora_rank"),
)
"""Options of which an attack has one value each."""


def attack(config: AttackConfig) -> list[AttackResult]:
    """Run every cell on every model; finished cells are loaded, not run again.

    A cell that fails is noted in the run directory, and the others are run all the same.

    Raises:
        UsageError: Rows too few for a ratio, unknown preset, task or judge.
        TrainingError: An attack's loss is not finite.
        HoldfastError: Several cells failed; the message says which, and why.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    grids = grids_of(config)
    materials = [checked(grid) for grid in grids]
    if config.jobs > 1 or config.scheduler:
        return _side_by_side(config)
    cells = [
        (grid, material, who, cell)
        for grid, material in zip(grids, materials, strict=True)
        for who in subjects(grid.run, grid.models)
        for cell in cells_of(grid)
    ]
    results, failures = _one_by_one(cells)
    if failures:
        raise summary(failures, len(cells))
    return results


def _one_by_one(
    cells: Sequence[tuple[AttackConfig, Material, Subject, Cell]],
) -> tuple[list[AttackResult], dict[str, HoldfastError]]:
    """Return the results, and why others failed; say after each how long it goes on."""
    results, failures, pace = [], {}, Pace()
    names = [f"{who.label}/{cell.label}" for _, _, who, cell in cells]
    for done, (name, one) in enumerate(zip(names, cells, strict=True)):
        progress.report("attacks", done, len(cells))
        run, clock = one[0].run, time.monotonic()
        there = len(run.entries("attack"))
        try:
            results.append(one_attack(*one))
        except (DiskFull, NotDone):
            raise
        except FAILS as error:
            failures[name] = failure(error)
        # What was finished before says nothing of how long the others take.
        if len(run.entries("attack")) > there and len(cells) > 1:
            pace.end(name, "attack", time.monotonic() - clock)
            told = pace.told([(left, "attack") for left in names[done + 1 :]])
            seconds = duration(time.monotonic() - clock)
            progress.say(f"[{done + 1}/{len(cells)}] {name}: {seconds}{told and f'; {told}'}")
    progress.report("attacks", len(cells), len(cells))
    return results, failures


def alone(config: AttackConfig) -> Iterator[tuple[str, AttackConfig]]:
    """Yield the name and the options of every attack of a configuration by itself.

    An attack has the same name and key there, since these hold its own settings.
    """
    for grid in grids_of(config):
        for name in grid.models:
            for cell in cells_of(grid):
                changes = {"models": [name], "only": cell.label, "jobs": 1, "scheduler": ""}
                yield f"{label_of(name)}/{cell.label}", grid.model_copy(update=changes)


def grids_of(config: AttackConfig) -> list[AttackConfig]:
    """Return the grids that a configuration's presets and found attacks stand for, or itself.

    Raises:
        UsageError: There is no such preset, or none of their attacks is named as `only` says.
    """
    grids = expanded(config) if config.preset or config.replay else [config]
    if not any(cells_of(grid) for grid in grids):
        names = ", ".join(cell.label for grid in grids for cell in _combined(grid))
        raise UsageError(f"--only {config.only!r}: none of {names}")
    return grids


def _side_by_side(config: AttackConfig) -> list[AttackResult]:
    from holdfast.stages.calls import Call, do

    do(
        [Call("attack", "all", config)],
        jobs=config.jobs,
        scheduler=config.scheduler,
        allow_remote=config.allow_remote,
    )
    # All of them are there: nothing is run again.
    return attack(config.model_copy(update={"jobs": 1, "scheduler": ""}))


def checked(config: AttackConfig) -> Material:
    """Read what all attacks of a grid share, and refuse it if one of them would end it.

    Raises:
        UsageError: See `prepare` and `check_rows`.
    """
    material = prepare(config)
    check_rows(config, material, cells_of(config))
    return material


def prepare(config: AttackConfig) -> Material:
    """Read what all attacks of a grid share.

    Raises:
        UsageError: Options that do not go together, an unknown judge, no such rows.
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
    if config.broken_at != HALF and not config.until_broken:
        raise UsageError(
            f"broken_at={config.broken_at:g} says where until_broken ends an attack, and without "
            "until_broken it goes on to its last step; give until_broken, or leave out broken_at"
        )
    harmful = config.read_if(config.harmful)
    apart(config.read_if(config.known_harmful), harmful, "known_harmful")
    test = config.asked(config.test)
    return Material(
        harmful=_untested(harmful or Examples([], name="no harmful rows"), test),
        test=test,
        judges=judges,
        track=_tracked(config),
        hashes=hashes_of(judges),
    )


def _untested(harmful: Examples, test: Examples) -> Examples:
    """Leave out harmful rows whose prompt is asked afterwards: they would be learnt by heart."""
    tested = {prompt_text(prompt) for prompt in test.prompts}
    kept = Examples(
        (row for row in harmful if prompt_text(row.prompt) not in tested), name=harmful.name
    )
    if lost := len(harmful) - len(kept):
        logger.warning("%d of %d harmful rows ask a prompt of --test: left out", lost, len(harmful))
    return kept


def _tracked(config: AttackConfig) -> Examples | None:
    rows = config.read_if(config.track)
    if rows is None or not config.track_rows:
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: rows.ids[i])[: config.track_rows]
    return rows.select(sorted(chosen))


def cells_of(config: AttackConfig) -> list[Cell]:
    """Return the attacks of a grid, or the one that is named as `only` says if it is of this grid.

    The names of those with the first number of steps, batch size and rank do not say it, so that
    a longer list later leaves them what they are.
    """
    return [cell for cell in _combined(config) if config.only in ("", cell.label)]


def _combined(config: AttackConfig) -> Iterator[Cell]:
    an_epoch = [-(-config.rows // size) for size in config.batch_size]
    steps = [config.epochs * n for n in an_epoch[:1]] if config.epochs else config.steps
    firsts = (steps[0], config.batch_size[0], config.lora_rank[0])
    for task, ratio, rate, seed, guard, poison, schedule, *sizes in itertools.product(
        *(config.tasks, config.poison_ratios, config.learning_rates, config.seeds, config.guards),
        *(config.poisons, config.schedules, steps, config.batch_size, config.lora_rank),
    ):
        marks = zip("nbr", sizes, firsts, strict=True)
        number = config.epochs * -(-config.rows // sizes[1]) or sizes[0]
        yield Cell(
            *(task, ratio, rate, seed, guard, poison, schedule, number, sizes[1], sizes[2]),
            name=config.name,
            mark="".join(f"-{letter}{size}" for letter, size, first in marks if size != first),
        )


def one_attack(
    config: AttackConfig, material: Material, who: Subject, cell: Cell, kind: str = "attack"
) -> AttackResult:
    """Run an attack unless it is there already.

    Args:
        config: The grid that it is of.
        material: What its attacks share.
        who: The model.
        cell: The attack.
        kind: Stage that it is a step of; the result lies in the folder of that name and an "s".
    """
    task: Task = plugins.make("tasks", cell.task)
    guard, given = guard_of(config, cell.guard)
    name = f"{who.label}/{cell.label}"
    inputs = {
        "model": who.hash,
        **({"harmful": material.harmful.hash} if material.harmful else {}),
        "test": material.test.hash,
        **task_hashes(task, config.task_rows),
        **({"track": material.track.hash} if material.track else {}),
        **given,
        **material.hashes,
        "options of task": plugins.mark(task),
        "options of guard": plugins.mark(guard),
        "options of poison": plugins.mark(plugins.make("poisons", cell.poison)),
    }
    keyed = config.keyed() | {"cell": to_json(cell.settings), **cell.sizes, "seed": cell.seed}
    path = config.run.path(f"{kind}s", who.label, f"{cell.label}.json")
    with config.run.step(kind, name, config=keyed, inputs=inputs) as step:
        if step.done is None:
            result = run_cell(config, material, who, cell, task, guard, step)
            rows = {k: v for k, v in inputs.items() if k not in ("model", "track")}
            key = sha256_json([rows, config.max_new_tokens])
            result = replace(result, attack={**result.attack, "given_hash": key})
            result.save(path)
            step.outputs.append(path)
            step.facts["half_life"] = result.half_life
    return AttackResult.load(path)
