"""Jobs that are planned: which depend on which, and running them in order or in parallel."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from holdfast.errors import Busy, DiskFull, HoldfastError, JobError
from holdfast.jobs import queue as engine
from holdfast.jobs.cluster import connected
from holdfast.jobs.queue import Pace, QueuedJob
from holdfast.jobs.workers import Worker, local
from holdfast.results.run_dir import dry_run
from holdfast.runtime import progress
from holdfast.runtime.failures import failure
from holdfast.stages.config import StageConfig
from holdfast.stages.run_models import label_of
from holdfast.stages.table import STAGES

logger = logging.getLogger(__name__)

PROGRAM = "holdfast.stages.child"
Failures = dict[str, HoldfastError]
"""Name of a job -> why it failed."""


@dataclass(frozen=True)
class PlannedJob:
    """A stage with its options; for an attack stage several jobs, see `parts`.

    Attributes:
        stage: Name of the stage, see `stages.table`.
        name: Name of the result within the stage, where there is one result.
        config: Its options.
    """

    stage: str
    name: str
    config: StageConfig

    def __call__(self) -> Any:
        """Run the stage."""
        _, function = STAGES[self.stage].load()
        return function(self.config)

    @property
    def title(self) -> str:
        """Name in messages, and in the needs of other jobs."""
        return f"{self.stage} {self.name}"

    @property
    def line(self) -> str:
        """The job as a line of JSON; `read` reads it."""
        config = self.config.model_dump(mode="json")
        return json.dumps({"stage": self.stage, "name": self.name, "config": config})

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> PlannedJob:
        """Read a job from what `line` holds."""
        config = STAGES[raw["stage"]].load_config()
        return cls(raw["stage"], raw["name"], config.model_validate(raw["config"]))

    @property
    def needs(self) -> frozenset[str]:
        """Titles of the jobs that make what this one reads, if they are made in the same run."""
        given = {name: getattr(self.config, name, None) for name in ("groups", "scores", "model")}
        models = [
            *getattr(self.config, "models", ()),
            *([given["model"]] if given["model"] else []),
        ]
        found = {f"align {label_of(name)}" for name in models}
        if self.stage == "align" and given["groups"]:
            found.add(f"group {given['groups']}")
        if self.stage == "group" and given["scores"]:
            found.add(f"score {given['scores']}")
        return frozenset(found - {self.title})

    @property
    def finished(self) -> bool:
        """Whether its result exists, made from what it would be made from now."""
        try:
            with dry_run():
                self()
        except Exception:  # noqa: BLE001  # unfinished; its turn reports the error
            return False
        return True


def single_jobs(planned: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs one by one: an attack stage has one for each attack and model."""
    return [part for job in planned for part in _parts(job)]


def _parts(job: PlannedJob) -> Iterator[PlannedJob]:
    if job.stage != "attack":
        yield job
        return
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.attacking.grid import single_attacks

    for name, config in single_attacks(cast(AttackConfig, job.config)):
        yield PlannedJob("attack", name, config)


def unfinished(planned: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs that must still run, because they or what they need are not finished.

    Args:
        planned: Those that others need come first.
    """
    found: dict[str, PlannedJob] = {}
    for job in planned:
        if job.needs & found.keys() or not job.finished:
            found[job.title] = job
    return list(found.values())


def run_jobs(
    planned: Sequence[PlannedJob], *, jobs: int = 1, scheduler: str = "", allow_remote: bool = False
) -> None:
    """Run jobs; one that fails is recorded in its run directory, and the others run all the same.

    Args:
        planned: In an order in which they can run one after the other.
        jobs: Number of parallel processes; 1 runs everything in this process.
        scheduler: Address of a running dask cluster that runs them.
        allow_remote: Whether the cluster may be on another machine.

    Raises:
        HoldfastError: Some failed; the message says which, and why.
        DiskFull: There is no room; what had not begun was not tried.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    failures, total = attempt_jobs(
        planned, jobs=jobs, scheduler=scheduler, allow_remote=allow_remote
    )
    if failures:
        raise engine.summary(failures, total)


def attempt_jobs(
    planned: Sequence[PlannedJob],
    *,
    jobs: int = 1,
    scheduler: str = "",
    allow_remote: bool = False,
    spare: list[Worker] | None = None,
) -> tuple[Failures, int]:
    """Run jobs as `run_jobs` does; return what failed, and the number of all jobs.

    Args:
        planned: As in `run_jobs`.
        jobs: As in `run_jobs`.
        scheduler: As in `run_jobs`.
        allow_remote: As in `run_jobs`.
        spare: Processes that were started beforehand, see `jobs.workers.started`.
    """
    if jobs == 1 and not scheduler:
        return _in_order(planned), len(planned)
    every = single_jobs(planned)
    wanted = {job.title: job for job in unfinished(every)}
    if there := len(every) - len(wanted):
        progress.say(f"{there} of {len(every)} are finished already")
    if not wanted:
        return {}, len(every)
    out = every[0].config.out
    with (
        connected(scheduler, PROGRAM, out, allow_remote=allow_remote)
        if scheduler
        else local(PROGRAM, min(jobs, len(wanted)), spare)
    ) as pool:
        failures = engine.run(
            [_job(job, wanted) for job in wanted.values()],
            pool,
            lambda title, error: _note(wanted[title], error),
        )
    for error in failures.values():
        if isinstance(error, DiskFull):
            raise error
    return failures, len(every)


def _job(job: PlannedJob, others: Collection[str]) -> QueuedJob:
    return QueuedJob(
        name=job.title,
        kind=job.stage,
        line=job.line,
        needs=frozenset(job.needs & set(others)),
        accelerator=job.config.device in ("auto", "cuda"),
    )


def _in_order(planned: Sequence[PlannedJob]) -> Failures:
    failures: Failures = {}
    pace = Pace()
    for number, job in enumerate(planned):
        told = pace.remaining([(c.title, c.stage) for c in planned[number:]])
        place = f"[{number + 1}/{len(planned)}]"
        progress.say(f"{place} {job.title}{f' ({told})' if told else ''}")
        there, clock = len(job.config.run.entries(job.stage)), time.monotonic()
        try:
            if lacking := sorted(job.needs & failures.keys()):
                raise JobError(f"not run: it needs {', '.join(lacking)}")
            job()
        except DiskFull:
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
            failures[job.title] = why = failure(error)
            progress.say(f"{place} {job.title} failed: {why}")
            _note(job, why)
        else:
            job.config.run.clear_failure(job.stage, job.name)
            # What was finished before says nothing of how long the others take.
            if len(job.config.run.entries(job.stage)) > there:
                pace.end(job.title, job.stage, time.monotonic() - clock)
    return failures


def _note(job: PlannedJob, error: HoldfastError) -> None:
    """Record a failure in the run directory if possible; an error here stops nothing else."""
    if isinstance(error, Busy | DiskFull):  # the job that found the disk full has recorded it
        return
    try:
        _noted(job, str(error))
    except Exception as problem:  # noqa: BLE001  # a note that fails must end nothing
        logger.warning("%s: its failure could not be noted: %s", job.title, failure(problem))


def _noted(job: PlannedJob, reason: str) -> None:
    """Record a failure unless the job has recorded it itself."""
    run, found = job.config.run, single_jobs([job])
    noted = {(one.stage, one.name) for one in run.failures()}
    for part in found:
        known = (part.stage, part.name) in noted and len(found) > 1
        if not known and not part.finished:
            run.record_failure(part.stage, part.name, reason)
