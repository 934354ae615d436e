"""Planned jobs: their dependencies, and running them in order or in parallel."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import Busy, DiskFull, HoldfastError, JobError
from holdfast.jobs import queue as engine
from holdfast.jobs.cluster import connected
from holdfast.jobs.queue import Pace, Pool, QueuedJob
from holdfast.jobs.workers import local
from holdfast.results.run_dir import dry_run
from holdfast.runtime import memory, progress
from holdfast.runtime.failures import failure
from holdfast.stages.config import StageConfig
from holdfast.stages.run_models import label_of
from holdfast.stages.table import STAGES

if TYPE_CHECKING:
    from holdfast.stages.analyze import AnalyzeConfig

logger = logging.getLogger(__name__)

PROGRAM = "holdfast.stages.child"
"""Module that processes run to work on jobs."""
Failures = dict[str, HoldfastError]
"""Name of a job -> why it failed."""


@dataclass(frozen=True)
class PlannedJob:
    """A stage with its options; an attack stage stands for several jobs, see `single_jobs`.

    Attributes:
        stage: Name of the stage, see `stages.table`.
        name: Name of the result within the stage, if there is one result.
        config: Options of the stage.
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
        """The job as a line of JSON, for `read`."""
        config = self.config.model_dump(mode="json")
        return json.dumps({"stage": self.stage, "name": self.name, "config": config})

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> PlannedJob:
        """Build a job from a parsed `line`."""
        config = STAGES[raw["stage"]].load_config()
        return cls(raw["stage"], raw["name"], config.model_validate(raw["config"]))

    @property
    def needs(self) -> frozenset[str]:
        """Titles of the jobs of the same run whose results this one reads."""
        option = {name: getattr(self.config, name, None) for name in ("groups", "scores", "model")}
        models = list(getattr(self.config, "models", ()))
        if option["model"]:
            models.append(option["model"])
        titles = {f"align {label_of(model)}" for model in models}
        if self.stage == "align" and option["groups"]:
            titles.add(f"group {option['groups']}")
        if self.stage == "group" and option["scores"]:
            titles.add(f"score {option['scores']}")
        return frozenset(titles - {self.title})

    def after(self, others: Iterable[PlannedJob]) -> frozenset[str]:
        """Return the titles of the other jobs whose end this one waits for, even if they fail.

        An analysis reads what the stages that it needs have left; the report reads everything.
        """
        if self.stage == "report":
            return frozenset(other.title for other in others if other.stage != self.stage)
        if self.stage != "analyze":
            return frozenset()
        stages = cast("AnalyzeConfig", self.config).stages
        return frozenset(other.title for other in others if other.stage in stages)

    @property
    def finished(self) -> bool:
        """Whether its result exists and was made from the current inputs and options."""
        try:
            with dry_run():
                self()
        except Exception:  # noqa: BLE001  # counts as unfinished; running it reports the error
            return False
        return True


def single_jobs(planned: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs with each attack and analyze stage split into one job per result."""
    stages = {job.stage for job in planned}
    return [part for job in planned for part in _parts(job, stages)]


def _parts(job: PlannedJob, stages: Collection[str]) -> Iterator[PlannedJob]:
    match job.stage:
        case "attack":
            yield from _attacks(job)
        case "analyze":
            yield from _analyses(job, stages)
        case _:
            yield job


def _attacks(job: PlannedJob) -> Iterator[PlannedJob]:
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.attacking.grid import single_attacks

    for name, config in single_attacks(cast(AttackConfig, job.config)):
        yield PlannedJob("attack", name, config)


def _analyses(job: PlannedJob, stages: Collection[str]) -> Iterator[PlannedJob]:
    from holdfast.stages.analyze import AnalyzeConfig, single_analyses

    for name, config in single_analyses(cast(AnalyzeConfig, job.config), stages):
        yield PlannedJob("analyze", name, config)


def unfinished(planned: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the jobs that must still run because they, or jobs they need, are not finished.

    Args:
        planned: The jobs; those that others need come first.
    """
    to_run: dict[str, PlannedJob] = {}
    for job in planned:
        waits_for = job.needs | job.after(planned)
        if waits_for & to_run.keys() or not job.finished:
            to_run[job.title] = job
    return list(to_run.values())


def run_jobs(
    planned: Sequence[PlannedJob], *, jobs: int = 1, scheduler: str = "", allow_remote: bool = False
) -> None:
    """Run jobs. A failed job is recorded in its run directory, and the others run all the same.

    Args:
        planned: The jobs, in an order in which they can run one after the other.
        jobs: Number of parallel processes; 1 runs everything in this process.
        scheduler: Address of a running dask cluster to run them on.
        allow_remote: Whether the cluster may be on another machine.

    Raises:
        HoldfastError: Some jobs failed; the message says which, and why.
        DiskFull: The disk is full; jobs that had not started were not tried.
        KeyboardInterrupt: Interrupted; the same call resumes.
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
) -> tuple[Failures, int]:
    """Run jobs as `run_jobs` does; return what failed, and the number of all jobs.

    Args:
        planned: As in `run_jobs`.
        jobs: As in `run_jobs`.
        scheduler: As in `run_jobs`.
        allow_remote: As in `run_jobs`.
    """
    if jobs == 1 and not scheduler:
        return _in_order(planned), len(planned)
    agenda = Agenda.of(planned)
    if not agenda.jobs:
        agenda.announce()
        return {}, agenda.total
    out = planned[0].config.out
    with (
        connected(scheduler, PROGRAM, out, allow_remote=allow_remote)
        if scheduler
        else local(PROGRAM, min(jobs, len(agenda.jobs)))
    ) as pool:
        return agenda.attempt(pool), agenda.total


@dataclass(frozen=True)
class Agenda:
    """The jobs that are still to be done, as the queue takes them.

    Attributes:
        jobs: The unfinished jobs.
        total: Number of all jobs, finished ones included.
        forecast: What they are expected to take, in one sentence; empty if unknown.
    """

    jobs: tuple[QueuedJob, ...]
    total: int
    forecast: str = ""

    @classmethod
    def of(cls, planned: Sequence[PlannedJob], forecast: str = "") -> Agenda:
        """Find out which of the planned jobs are unfinished."""
        all_jobs = single_jobs(planned)
        to_run = unfinished(all_jobs)
        for job in planned:
            if job.stage == "analyze":  # each analysis records its own failure from here on
                job.config.run.clear_failure(job.stage, job.name)
        queued = tuple(_queued(job, to_run) for job in to_run)
        return cls(queued, len(all_jobs), forecast)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Agenda:
        """Build an agenda from a parsed `as_dict`."""
        jobs = tuple(QueuedJob.read(job) for job in raw["jobs"])
        return cls(jobs, raw["total"], raw["forecast"])

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it, for `read`."""
        return {
            "jobs": [job.as_dict() for job in self.jobs],
            "total": self.total,
            "forecast": self.forecast,
        }

    def announce(self) -> None:
        """Say what is to be done."""
        if self.forecast:
            progress.say(self.forecast)
        n_finished = self.total - len(self.jobs)
        if n_finished:
            progress.say(f"{n_finished} of {self.total} are finished already")

    def attempt(self, pool: Pool) -> Failures:
        """Run the jobs and return the failures.

        Raises:
            DiskFull: The disk is full; jobs that had not started were not tried.
            KeyboardInterrupt: Interrupted; the same call resumes.
        """
        self.announce()
        lines = {job.name: job.line for job in self.jobs}
        failures = engine.run(
            self.jobs,
            pool,
            lambda name, error: _record_failure(PlannedJob.read(json.loads(lines[name])), error),
        )
        for error in failures.values():
            if isinstance(error, DiskFull):
                raise error
        return failures


def _queued(job: PlannedJob, others: Sequence[PlannedJob]) -> QueuedJob:
    return QueuedJob(
        name=job.title,
        kind=job.stage,
        line=job.line,
        needs=job.needs & {other.title for other in others},
        after=job.after(others),
        accelerator=job.config.device in ("auto", "cuda"),
    )


@memory.kept()
def _in_order(planned: Sequence[PlannedJob]) -> Failures:
    failures: Failures = {}
    pace = Pace()
    for number, job in enumerate(planned):
        remaining = pace.remaining([(later.title, later.stage) for later in planned[number:]])
        place = f"[{number + 1}/{len(planned)}]"
        progress.say(f"{place} {job.title}{f' ({remaining})' if remaining else ''}")
        entries_before = len(job.config.run.entries(job.stage))
        started = time.monotonic()
        try:
            failed_needs = sorted(job.needs & failures.keys())
            if failed_needs:
                raise JobError(f"not run: it needs {', '.join(failed_needs)}")
            job()
        except DiskFull:
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
            reason = failure(error)
            failures[job.title] = reason
            progress.say(f"{place} {job.title} failed: {reason}")
            _record_failure(job, reason)
        else:
            job.config.run.clear_failure(job.stage, job.name)
            # A job that was finished before says nothing about how long others take.
            if len(job.config.run.entries(job.stage)) > entries_before:
                pace.end(job.title, job.stage, time.monotonic() - started)
        memory.free()
    return failures


def _record_failure(job: PlannedJob, error: HoldfastError) -> None:
    """Record a failure in the run directory if possible; an error here stops nothing else."""
    if isinstance(error, Busy | DiskFull):  # the job that found the disk full has recorded it
        return
    try:
        _record_reason(job, str(error))
    except Exception as problem:  # noqa: BLE001  # a failure to record must not end other jobs
        logger.warning("%s: its failure could not be recorded: %s", job.title, failure(problem))


def _record_reason(job: PlannedJob, reason: str) -> None:
    """Record a failure for every part of a job that is not finished.

    Parts of several that recorded a reason of their own keep it.
    """
    run = job.config.run
    parts = list(_attacks(job)) if job.stage == "attack" else [job]
    recorded = {(entry.stage, entry.name) for entry in run.failures()}
    for part in parts:
        has_own_reason = len(parts) > 1 and (part.stage, part.name) in recorded
        if not has_own_reason and not part.finished:
            run.record_failure(part.stage, part.name, reason)
