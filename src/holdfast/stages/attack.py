"""Stage: attack aligned models by fine-tuning, and watch the harmful score step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence

from holdfast.errors import DiskFull, HoldfastError
from holdfast.jobs.queue import Pace, duration, summary
from holdfast.results.artifacts import AttackResult
from holdfast.results.run_dir import Unfinished
from holdfast.runtime import progress
from holdfast.runtime.failures import failure
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of, grids_of
from holdfast.stages.attacking.job import AttackJob, check_replaced
from holdfast.stages.attacking.material import checked_material
from holdfast.stages.attacking.tuning import result_of
from holdfast.stages.run_models import subjects


def attack(config: AttackConfig) -> list[AttackResult]:
    """Run every attack on every model; the results of finished ones are loaded.

    An attack that fails is recorded in the run directory, and the others run all the same.

    Raises:
        UsageError: Too few rows for a ratio; an unknown preset, task or judge; or finished attacks
            of other options, rows or judges would be replaced.
        TrainingError: An attack's loss is not finite.
        HoldfastError: Several attacks failed; the message says which, and why.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    jobs = _jobs(config)
    check_replaced(jobs)
    if config.jobs > 1 or config.scheduler:
        return _side_by_side(config)
    results, failures = _one_by_one(jobs)
    if failures:
        raise summary(failures, len(jobs))
    return results


def _jobs(config: AttackConfig) -> list[AttackJob]:
    grids = grids_of(config)
    materials = [checked_material(grid) for grid in grids]
    return [
        AttackJob(grid, material, subject, attack)
        for grid, material in zip(grids, materials, strict=True)
        for subject in subjects(grid.run, grid.models)
        for attack in attacks_of(grid)
    ]


def _one_by_one(
    jobs: Sequence[AttackJob],
) -> tuple[list[AttackResult], dict[str, HoldfastError]]:
    """Return the results, and why others failed; report the remaining time after each."""
    results = []
    failures = {}
    pace = Pace()
    for number, job in enumerate(jobs):
        progress.report("attacks", number, len(jobs))
        clock = time.monotonic()
        finished = len(job.config.run.entries("attack"))
        try:
            results.append(result_of(job))
        except (DiskFull, Unfinished):
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything; the others go on
            failures[job.name] = failure(error)
        # The time that loading takes says nothing about the attacks that remain.
        if len(job.config.run.entries("attack")) > finished and len(jobs) > 1:
            seconds = time.monotonic() - clock
            pace.end(job.name, "attack", seconds)
            remaining = pace.remaining([(other.name, "attack") for other in jobs[number + 1 :]])
            place = f"[{number + 1}/{len(jobs)}] {job.name}"
            progress.say("; ".join(filter(None, [f"{place}: {duration(seconds)}", remaining])))
    progress.report("attacks", len(jobs), len(jobs))
    return results, failures


def _side_by_side(config: AttackConfig) -> list[AttackResult]:
    from holdfast.stages.planned_jobs import PlannedJob, run_jobs

    run_jobs(
        [PlannedJob("attack", "all", config)],
        jobs=config.jobs,
        scheduler=config.scheduler,
        allow_remote=config.allow_remote,
    )
    # All of them are finished now: nothing runs again.
    return attack(config.model_copy(update={"jobs": 1, "scheduler": ""}))
