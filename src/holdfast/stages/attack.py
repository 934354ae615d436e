"""Stage: attack aligned models by fine-tuning, and measure them at every checkpoint."""

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
    """Run every attack on every model, and load the results of finished attacks.

    A failed attack is recorded in the run directory, and the others continue.

    Raises:
        UsageError: There are too few rows for a ratio; a preset, task or judge is unknown; or
            finished attacks with other options, rows or judges would be replaced.
        TrainingError: The loss of an attack is not finite.
        HoldfastError: Several attacks failed; the message lists them with the reasons.
        KeyboardInterrupt: The attack was interrupted; the same call continues it.
    """
    jobs = _jobs(config)
    for job in jobs:
        _ = job.guard, job.poison  # builds them, and so checks their options
    check_replaced(jobs)
    if not config.only:
        _announce(config)
    if config.jobs > 1 or config.scheduler:
        _side_by_side(config)  # all attacks are finished then, and their results are loaded below
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
    """Run the attacks in this process, reporting the remaining time after each.

    Returns:
        The results, and the error of each failed attack by the name of its job.
    """
    results = []
    failures = {}
    pace = Pace()
    for number, job in enumerate(jobs):
        progress.report("attacks", number, len(jobs))
        start = time.monotonic()
        entries_before = len(job.config.run.entries("attack"))
        try:
            results.append(result_of(job))
        except (DiskFull, Unfinished):
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything; others continue
            failures[job.name] = failure(error)
        # Loading a finished result takes no time worth counting towards the pace.
        if len(job.config.run.entries("attack")) > entries_before and len(jobs) > 1:
            seconds = time.monotonic() - start
            pace.end(job.name, "attack", seconds)
            remaining = pace.remaining([(other.name, "attack") for other in jobs[number + 1 :]])
            line = f"[{number + 1}/{len(jobs)}] {job.name}: {duration(seconds)}"
            progress.say(f"{line}; {remaining}" if remaining else line)
    progress.report("attacks", len(jobs), len(jobs))
    return results, failures


def _announce(config: AttackConfig) -> None:
    """Show what the attacks will take, once it is known that they can run."""
    from holdfast.stages.forecast import announce
    from holdfast.stages.planned_jobs import PlannedJob

    announce([PlannedJob("attack", "all", config)], jobs=config.jobs)


def _side_by_side(config: AttackConfig) -> None:
    from holdfast.stages.planned_jobs import PlannedJob, run_jobs

    run_jobs(
        [PlannedJob("attack", "all", config)],
        jobs=config.jobs,
        scheduler=config.scheduler,
        allow_remote=config.allow_remote,
    )
