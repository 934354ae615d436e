"""Stage: attack aligned models by fine-tuning, and watch the harmful score step by step."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from holdfast import plugins
from holdfast.contracts import Task
from holdfast.errors import DiskFull, HoldfastError
from holdfast.jobs.queue import Pace, duration, summary
from holdfast.results.artifacts import AttackResult, sha256_json, to_json
from holdfast.results.run_dir import NotDone
from holdfast.runtime import progress
from holdfast.runtime.failures import failure
from holdfast.stages.attacking.cell import run_cell
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import Cell, cells_of, grids_of
from holdfast.stages.attacking.guards import guard_of
from holdfast.stages.attacking.material import Material, checked, task_hashes
from holdfast.stages.subjects import Subject, subjects

logger = logging.getLogger(__name__)


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
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything; the others go on
            failures[name] = failure(error)
        # What was finished before says nothing of how long the others take.
        if len(run.entries("attack")) > there and len(cells) > 1:
            pace.end(name, "attack", time.monotonic() - clock)
            told = pace.told([(left, "attack") for left in names[done + 1 :]])
            seconds = duration(time.monotonic() - clock)
            progress.say(f"[{done + 1}/{len(cells)}] {name}: {seconds}{told and f'; {told}'}")
    progress.report("attacks", len(cells), len(cells))
    return results, failures


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
    with config.run.job(kind, name, config=keyed, inputs=inputs) as job:
        if job.done is None:
            result = run_cell(config, material, who, cell, task, guard, job)
            rows = {k: v for k, v in inputs.items() if k not in ("model", "track")}
            key = sha256_json([rows, config.max_new_tokens])
            result = replace(result, attack={**result.attack, "given_hash": key})
            result.save(path)
            job.outputs.append(path)
            job.facts["half_life"] = result.half_life
    return AttackResult.load(path)
