"""Independent jobs in parallel: their order, the time that remains, and what failed.

They run in a `Pool`: processes of this machine (`workers`) or a cluster (`cluster`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from holdfast import errors
from holdfast.errors import DiskFull, HoldfastError, Interrupted, JobError, UsageError
from holdfast.runtime import progress
from holdfast.runtime.interrupt import deferred_interrupt

RUN = 0
STOP = 1
KILL = 2
"""Orders to a running job: go on; save and stop; end at once."""
LOOK = 0.2
"""Seconds between two checks of a running job."""


@dataclass(frozen=True)
class QueuedJob:
    """One job.

    Attributes:
        name: Unique name, for messages.
        kind: Jobs of one kind take about the same time.
        line: Input of its program, one line of JSON.
        needs: Names of jobs that must finish first.
        after: Names of jobs that must end first, whether they finish or fail.
        accelerator: Whether it uses an accelerator.
    """

    name: str
    kind: str
    line: str
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    accelerator: bool = True

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> QueuedJob:
        """Build a job from its `as_dict`."""
        sets = {name: frozenset(raw[name]) for name in ("needs", "after")}
        return cls(**{**raw, **sets})

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON holds of it, for `read`."""
        return {**vars(self), "needs": sorted(self.needs), "after": sorted(self.after)}


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        seconds: How long it took.
        error: Name of a class in `holdfast.errors`; empty on success.
        message: Message of the error.
        result: What the job returned, as JSON holds it.
    """

    seconds: float
    error: str = ""
    message: str = ""
    result: Any = None

    @property
    def failure(self) -> HoldfastError | None:
        """The error, None if there was none."""
        if not self.error:
            return None
        error: HoldfastError = getattr(errors, self.error, HoldfastError)(self.message)
        return error


@dataclass(frozen=True)
class Pool:
    """Workers that run jobs.

    Attributes:
        workers: Number of parallel jobs.
        submit: Starts a job when a worker is free.
        tell: Sends RUN, STOP or KILL to the running jobs.
        release: Called when no job waits any more; frees what the running ones do not use.
    """

    workers: int
    submit: Callable[[QueuedJob], Future[End]]
    tell: Callable[[int], None]
    release: Callable[[], None] = lambda: None


# ------------------------------------------------------------------------------------- in order


def run(
    jobs: Sequence[QueuedJob], pool: Pool, note: Callable[[str, HoldfastError], None] | None = None
) -> dict[str, HoldfastError]:
    """Run jobs, each after those that it needs, and return the failures by name.

    A job that needs a failed one is not run, and fails with that reason. After a full disk no
    further job starts.

    Args:
        jobs: In the order in which ready ones start.
        pool: Runs them.
        note: Called with the name and error of a job as soon as it fails.

    Raises:
        KeyboardInterrupt: The user interrupted; the running jobs have saved their state.
    """
    state = _State(list(jobs), Pace(pool.workers), note or (lambda name, failure: None))
    with deferred_interrupt() as interrupt:
        try:
            while state.waiting or state.running:
                if interrupt.requested:
                    pool.tell(STOP)
                    state.waiting.clear()
                state.begin(pool)
                done, _ = wait(state.running, timeout=LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    state.end(future)
                if not state.waiting:
                    pool.release()
        except BaseException:
            pool.tell(KILL)
            raise
    return state.failures


@dataclass
class _State:
    """Jobs that wait, run, and failed."""

    waiting: list[QueuedJob]
    pace: Pace
    note: Callable[[str, HoldfastError], None]
    running: dict[Future[End], QueuedJob] = field(default_factory=dict)
    failures: dict[str, HoldfastError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = len(self.waiting)
        self.open = {job.name for job in self.waiting}

    def begin(self, pool: Pool) -> None:
        """Start the jobs that are ready, in their order."""
        # A job that fails for this reason may itself be needed by others.
        while blocked := [j for j in self.waiting if j.needs & self.failures.keys()]:
            for job in blocked:
                missing = ", ".join(sorted(job.needs & self.failures.keys()))
                self._fail(job, JobError(f"not run: it needs {missing}"))
        undecided = self.open - self.failures.keys()
        ready = [
            job for job in self.waiting if not job.needs & self.open and not job.after & undecided
        ]
        for job in ready[: max(pool.workers - len(self.running), 0)]:
            self.running[pool.submit(job)] = job
            self.waiting.remove(job)
            self.pace.begin(job.name)
        if self.waiting and not self.running:
            names = ", ".join(job.name for job in self.waiting)
            raise UsageError(f"{names}: these jobs wait for each other")

    def end(self, future: Future[End]) -> None:
        """Record how a job ended."""
        job = self.running.pop(future)
        end = _end(future)
        failure = end.failure
        if failure is None:
            self.open.remove(job.name)
            self.pace.end(job.name, job.kind, end.seconds)
            self._say(job, duration(end.seconds))
        elif isinstance(failure, Interrupted):
            self.failures[job.name] = failure
            progress.say(f"{job.name}: stopped")
        else:
            self._fail(job, failure)
        if isinstance(failure, DiskFull):
            for other in list(self.waiting):
                self._fail(other, DiskFull("not started: the disk is full"))

    def _fail(self, job: QueuedJob, failure: HoldfastError) -> None:
        self.failures[job.name] = failure
        if job in self.waiting:
            self.waiting.remove(job)
        self.note(job.name, failure)
        self._say(job, f"failed: {failure}")

    def _say(self, job: QueuedJob, outcome: str) -> None:
        unfinished = [*self.waiting, *self.running.values()]
        remaining = self.pace.remaining([(job.name, job.kind) for job in unfinished])
        done = self.total - len(unfinished)
        suffix = f"; {remaining}" if remaining else ""
        progress.say(f"[{done}/{self.total}] {job.name}: {outcome}{suffix}")
        progress.report("jobs", done, self.total)


def _end(future: Future[End]) -> End:
    if future.cancelled():
        return End(0.0, "JobError", "it was cancelled")
    error = future.exception()
    return End(0.0, "JobError", f"{type(error).__name__}: {error}") if error else future.result()


def summary(failures: Mapping[str, HoldfastError], total: int) -> HoldfastError:
    """Return one error for all failures: the error itself if there was one job, else a list.

    It is a UsageError if every failure is one.
    """
    if total == 1:
        return next(iter(failures.values()))
    kind = (
        UsageError if all(isinstance(e, UsageError) for e in failures.values()) else HoldfastError
    )
    lines = [f"  {name}: {error}" for name, error in failures.items()]
    return kind(
        f"{len(failures)} of {total} failed; the others are done; the same command retries "
        "these:\n" + "\n".join(lines)
    )


# ----------------------------------------------------------------------------------------- time


class Pace:
    """Estimate of the remaining time, from the jobs that are finished.

    The remaining time is a sum over jobs of the mean seconds of finished jobs of their kind,
    divided by the workers. Jobs count as unknown if none of their kind is finished.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.seconds: dict[str, list[float]] = {}
        self.started: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """Record that a job starts."""
        self.started[name] = time.monotonic()

    def end(self, name: str, kind: str, seconds: float) -> None:
        """Record that a job is finished."""
        self.started.pop(name, None)
        self.seconds.setdefault(kind, []).append(seconds)

    def left(self, jobs: Collection[tuple[str, str]]) -> tuple[float, int]:
        """Return the remaining seconds, and the number of jobs of unknown kinds, not in these.

        Args:
            jobs: Name and kind of the unfinished jobs.
        """
        total = 0.0
        unknown = 0
        for name, kind in jobs:
            if kind not in self.seconds:
                unknown += 1
                continue
            mean = sum(self.seconds[kind]) / len(self.seconds[kind])
            elapsed = time.monotonic() - self.started[name] if name in self.started else 0.0
            total += max(mean - elapsed, 0.0)
        return total / min(self.workers, max(len(jobs), 1)), unknown

    def remaining(self, jobs: Collection[tuple[str, str]]) -> str:
        """Return the remaining time in words; empty if nothing is known."""
        seconds, unknown = self.left(jobs)
        if unknown == len(jobs):
            return ""
        accuracy = "at least" if unknown else "about"
        return f"{accuracy} {duration(seconds)} to go"


def duration(seconds: float) -> str:
    """Return seconds in a readable unit: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
