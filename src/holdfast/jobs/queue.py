"""Independent jobs side by side: which comes when, how long it goes on, and what failed.

Where they are done is a `Pool`: processes of this machine (`workers`) or a cluster (`cluster`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from holdfast import errors
from holdfast.errors import DiskFull, HoldfastError, Interrupted, JobError, UsageError
from holdfast.runtime import progress
from holdfast.runtime.interrupt import deferred_interrupt

RUN, STOP, KILL = 0, 1, 2
"""What a running job is told: nothing; save and stop; end at once."""
LOOK = 0.2
"""Seconds between two looks at a running job."""


@dataclass(frozen=True)
class QueuedJob:
    """One job.

    Attributes:
        name: What people call it; no two have the same.
        kind: Jobs of one kind take about equally long.
        line: What its program reads: one line of JSON.
        needs: Names of the jobs whose results it reads.
        accelerator: Whether it uses whichever accelerator it is given.
    """

    name: str
    kind: str
    line: str
    needs: frozenset[str] = frozenset()
    accelerator: bool = True


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        seconds: How long it took.
        error: Name of a class in `holdfast.errors`; empty if all went well.
        message: What it said.
    """

    seconds: float
    error: str = ""
    message: str = ""

    @property
    def failure(self) -> HoldfastError | None:
        """The error, None if there was none."""
        if not self.error:
            return None
        found: HoldfastError = getattr(errors, self.error, HoldfastError)(self.message)
        return found


@dataclass(frozen=True)
class Pool:
    """Where jobs are done.

    Attributes:
        workers: How many are done at the same time.
        submit: Starts a job when there is room.
        tell: Tells those that run RUN, STOP or KILL.
    """

    workers: int
    submit: Callable[[QueuedJob], Future[End]]
    tell: Callable[[int], None]


# ------------------------------------------------------------------------------------- in order


def run(
    jobs: Sequence[QueuedJob], pool: Pool, note: Callable[[str, HoldfastError], None] | None = None
) -> dict[str, HoldfastError]:
    """Do the jobs, each once those that it needs are done, and return what failed.

    A job that needs a failed one is not done, and is returned with that reason. After a full disk
    none is begun any more.

    Args:
        jobs: In the order in which those that can begin do so.
        pool: Where they are done.
        note: Called with the name of a job as soon as it has failed.

    Raises:
        KeyboardInterrupt: The user interrupted; the jobs that ran have saved their state.
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
        """Begin what can begin, in the order given."""
        # One that fails for this reason may be what others need.
        while without := [j for j in self.waiting if j.needs & self.failures.keys()]:
            for job in without:
                lacking = ", ".join(sorted(job.needs & self.failures.keys()))
                self._fail(job, JobError(f"not done, since it needs {lacking}"))
        ready = [job for job in self.waiting if not job.needs & self.open]
        for job in ready[: max(pool.workers - len(self.running), 0)]:
            self.running[pool.submit(job)] = job
            self.waiting.remove(job)
            self.pace.begin(job.name)
        if self.waiting and not self.running:
            names = ", ".join(job.name for job in self.waiting)
            raise UsageError(f"{names}: these wait for one another")

    def end(self, future: Future[End]) -> None:
        """Note how a job ended."""
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
                self._fail(other, DiskFull("not begun, since the disk is full"))

    def _fail(self, job: QueuedJob, failure: HoldfastError) -> None:
        self.failures[job.name] = failure
        if job in self.waiting:
            self.waiting.remove(job)
        self.note(job.name, failure)
        self._say(job, f"failed: {failure}")

    def _say(self, job: QueuedJob, how: str) -> None:
        left = [(j.name, j.kind) for j in (*self.waiting, *self.running.values())]
        done = self.total - len(left)
        told = self.pace.told(left)
        progress.say(f"[{done}/{self.total}] {job.name}: {how}{f'; {told}' if told else ''}")
        progress.report("jobs", done, self.total)


def _end(future: Future[End]) -> End:
    if future.cancelled():
        return End(0.0, "JobError", "it was cancelled where it was to be done")
    error = future.exception()
    return End(0.0, "JobError", f"{type(error).__name__}: {error}") if error else future.result()


def summary(failures: Mapping[str, HoldfastError], total: int) -> HoldfastError:
    """Return one error for all failures: the only one itself, else a list of them.

    It is a UsageError if the user has to change something for each of them.
    """
    if total == 1:
        return next(iter(failures.values()))
    kind = (
        UsageError if all(isinstance(e, UsageError) for e in failures.values()) else HoldfastError
    )
    lines = [f"  {name}: {error}" for name, error in failures.items()]
    return kind(
        f"{len(failures)} of {total} failed; the others are done, and the same command tries these "
        "again:\n" + "\n".join(lines)
    )


# ----------------------------------------------------------------------------------------- time


class Pace:
    """How long it goes on, from what is finished.

    The remaining time is a sum over jobs of the mean seconds of finished jobs of their kind,
    divided by the workers. Jobs of a kind of which none is finished count as unknown.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.seconds: dict[str, list[float]] = {}
        self.begun: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """Note that a job begins."""
        self.begun[name] = time.monotonic()

    def end(self, name: str, kind: str, seconds: float) -> None:
        """Note that a job is finished."""
        self.begun.pop(name, None)
        self.seconds.setdefault(kind, []).append(seconds)

    def left(self, jobs: Collection[tuple[str, str]]) -> tuple[float, int]:
        """Return the seconds that remain, and the number of jobs of which nothing is known.

        Args:
            jobs: Name and kind of those that are not finished.
        """
        total, unknown = 0.0, 0
        for name, kind in jobs:
            if kind not in self.seconds:
                unknown += 1
                continue
            mean = sum(self.seconds[kind]) / len(self.seconds[kind])
            gone = time.monotonic() - self.begun[name] if name in self.begun else 0.0
            total += max(mean - gone, 0.0)
        return total / min(self.workers, max(len(jobs), 1)), unknown

    def told(self, jobs: Collection[tuple[str, str]]) -> str:
        """Say how long it goes on; nothing if nothing is known."""
        seconds, unknown = self.left(jobs)
        if unknown == len(jobs):
            return ""
        least = "at least" if unknown else "about"
        return f"{least} {duration(seconds)} to go"


def duration(seconds: float) -> str:
    """Write seconds as people say them: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
