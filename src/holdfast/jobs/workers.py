"""Processes that run jobs: if one dies, its job has failed and the others continue.

A process reads one job after the other, each a line of JSON, and answers with lines of JSON: its
progress and how each job ended. Nothing is pickled. When its standard input ends, it saves its
state and stops; this is how Ctrl-C and the death of its parent reach it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import IO, Any

from holdfast import errors
from holdfast.errors import HoldfastError, Interrupted
from holdfast.jobs.queue import KILL, LOOK, RUN, STOP, End, Pool, QueuedJob
from holdfast.runtime import memory, progress, threads
from holdfast.runtime.failures import failure
from holdfast.runtime.interrupt import deferred_interrupt

logger = logging.getLogger(__name__)

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of CUDA, ROCm and WSL; where Linux has none of them, torch need not be loaded to look."""
OFTEN = 0.5
"""Seconds between two lines on the same progress."""
GRACE = 20.0
"""Seconds that a process without a job has to end."""
Message = dict[str, Any]


# --------------------------------------------------------------------------------- in the process


def serve(do: Callable[[Message], Any]) -> None:
    """Run the jobs of a `Worker`, inside its process, until the input ends.

    The process ends after a failed job, so that it leaves nothing behind in memory.

    Args:
        do: Runs one job and returns its result, which JSON can hold, or None; raises any exception
            if it fails.
    """
    # What libraries print must not come between the lines of JSON.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(lines, busy), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        while line := lines.get():
            end = _run(do, json.loads(line), channel)
            busy.clear()
            _send(channel, end)
            if "error" in end:
                return
            memory.free()


def _read(lines: queue.SimpleQueue[str], busy: threading.Event) -> None:
    # Not sys.stdin, whose lock would still be held when the program ends.
    with os.fdopen(os.dup(0), encoding="utf-8") as source:
        for line in source:
            busy.set()
            lines.put(line)
    lines.put("")
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGINT)


def _run(do: Callable[[Message], Any], job: Message, channel: IO[str]) -> Message:
    last: dict[str, float] = {}

    def report(activity: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last.get(activity, 0.0) > OFTEN:
            last[activity] = now
            _send(channel, {"progress": [activity, done, total]})

    try:
        with progress.showing(report):
            result = do(job)
    except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
        reason = failure(error)
        return {"error": _class_of(reason), "message": str(reason)}
    except KeyboardInterrupt:
        return {"error": Interrupted.__name__, "message": "interrupted"}
    return {"result": result}


def _class_of(error: HoldfastError) -> str:
    """Return the name of the error's nearest class in `holdfast.errors`."""
    names = (cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
    return next(names, HoldfastError.__name__)


def _send(channel: IO[str], message: Message) -> None:
    # The parent may be gone; the results must be saved all the same.
    with contextlib.suppress(OSError):
        channel.write(json.dumps(message, ensure_ascii=False) + "\n")
        channel.flush()


# ------------------------------------------------------------------------------------- around it


class Worker:
    """The parent's handle of a process that runs jobs.

    Args:
        program: Module that is run with `python -m` and calls `serve`.
        env: Environment variables added to this process's own.
        folder: Working directory; this process's own if None.
        accelerated: Whether to reserve an accelerator for it until it is closed.
    """

    def __init__(
        self,
        program: str,
        env: Mapping[str, str] | None = None,
        folder: str | None = None,
        *,
        accelerated: bool = False,
    ) -> None:
        with contextlib.ExitStack() as stack:
            device = stack.enter_context(accelerator()) if accelerated else {}
            self.process = subprocess.Popen(
                [sys.executable, "-m", program],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **(env or {}), **device},
                # Ctrl-C in a terminal goes to the whole foreground group. This process learns of it
                # from its input instead, and only once: a second one would end it before it saved.
                start_new_session=True,
            )
            self.reserved = stack.pop_all()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.log: deque[str] = deque(maxlen=20)
        self.readers = [
            threading.Thread(target=t, daemon=True) for t in (self._read_messages, self._read_log)
        ]
        for reader in self.readers:
            reader.start()

    @property
    def usable(self) -> bool:
        """Whether it can take another job."""
        return self.process.poll() is None

    def do(self, job: QueuedJob, order: Callable[[], int]) -> End:
        """Run a job and wait for its end.

        Args:
            job: The job.
            order: Polled while the job runs; returns RUN, STOP or KILL.
        """
        start = time.monotonic()
        totals: dict[str, int] = {}  # of the progress bars that are open
        self._write(job.line)
        end: End | None = None
        while end is None:
            dead = self.process.poll() is not None
            if order() == KILL:
                self.process.kill()
            elif order() == STOP:
                self.stop()
            try:
                message = self.messages.get(timeout=0.0 if dead else LOOK)
            except queue.Empty:
                end = self._death() if dead else None
                continue
            if "progress" in message:
                activity, done, total = message["progress"]
                totals[activity] = total
                progress.report(f"{job.name}: {activity}", done, total)
            else:
                end = End(
                    0.0,
                    message.get("error", ""),
                    message.get("message", ""),
                    message.get("result"),
                )
        for activity, total in totals.items():  # a bar that was left open would stay
            progress.report(f"{job.name}: {activity}", total, total)
        if end.error:
            self.close()
        return replace(end, seconds=time.monotonic() - start)

    def stop(self) -> None:
        """Ask the process to end, after it has saved its state; do not wait."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()

    def close(self) -> None:
        """End the process and wait for its end."""
        self.stop()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reserved.close()
        for reader in self.readers:
            reader.join(GRACE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # `do` notices that it is dead
            if self.process.stdin is not None:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()

    def _read_messages(self) -> None:
        for line in self.process.stdout or ():
            with contextlib.suppress(json.JSONDecodeError):
                self.messages.put(json.loads(line))

    def _read_log(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(line.rstrip())
            if line.startswith(("WARNING ", "ERROR ")):
                logger.warning("%s", line.partition(" ")[2].rstrip())

    def _death(self) -> End | None:
        for reader in self.readers:
            reader.join(GRACE)  # its last messages
        if not self.messages.empty():
            return None
        code = self.process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            cause = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return End(0.0, "JobError", f"its process was ended by {name}{cause}")
        last = next((line for line in reversed(self.log) if line), "no message")
        return End(0.0, "JobError", f"its process ended with code {code}: {last}")


# --------------------------------------------------------------------------------- this machine


@contextlib.contextmanager
def started(program: str, workers: int) -> Iterator[list[Worker]]:
    """Start processes for `local` that load their modules while the jobs are still being planned.

    They see every accelerator, so where there are several `local` starts others.

    Args:
        program: Module that is run with `python -m` and calls `serve`.
        workers: Number of processes; none are started for a single one.
    """
    env = threads.settings(workers)
    spare = [Worker(program, env) for _ in range(workers if workers > 1 else 0)]
    try:
        yield spare
    finally:
        for worker in spare:
            worker.process.kill()  # it has no job
        _close(spare)


def first_result(workers: Sequence[Worker], line: str) -> Any:
    """Have the first of several processes do a job, and return its result.

    Raises:
        HoldfastError: The job failed.
        KeyboardInterrupt: The user interrupted.
    """
    job = QueuedJob("plan", "plan", line)
    with deferred_interrupt() as interrupt:
        end = workers[0].do(job, lambda: KILL if interrupt.requested else RUN)
    if end.failure is not None:
        raise end.failure
    return end.result


@contextlib.contextmanager
def local(program: str, workers: int, spare: list[Worker] | None = None) -> Iterator[Pool]:
    """Run jobs in up to `workers` processes of this machine.

    Each has its share of the cores (or fewer threads, if OMP_NUM_THREADS is set) and, where there
    are several accelerators, the least used one.

    Args:
        program: Module that is run with `python -m` and calls `serve`.
        workers: Number of parallel jobs.
        spare: Processes of `started`, used before new ones are started.
    """
    if workers > 1:
        progress.say(threads.description(workers))
    order = [RUN]
    idle: queue.SimpleQueue[tuple[Worker, QueuedJob]] = queue.SimpleQueue()
    env = threads.settings(workers)

    def new_worker(job: QueuedJob) -> Worker:
        with contextlib.suppress(IndexError):
            if spare and len(accelerators()) < 2:
                return spare.pop()
        return Worker(program, env, accelerated=job.accelerator)

    def work(job: QueuedJob) -> End:
        worker = _reusable(idle, job)
        if worker is None:
            worker = new_worker(job)
        end = worker.do(job, lambda: order[0])
        if worker.usable:
            idle.put((worker, job))
        else:
            worker.close()
        return end

    def submit(job: QueuedJob) -> Future[End]:
        # The copied context holds the listeners of `progress`.
        return executor.submit(copy_context().run, work, job)

    def close_idle() -> None:
        _close([idle.get()[0] for _ in range(idle.qsize())])

    with ThreadPoolExecutor(workers) as executor:
        try:
            yield Pool(workers, submit, lambda level: order.__setitem__(0, level), close_idle)
        finally:
            executor.shutdown()
            close_idle()


def _close(workers: Sequence[Worker]) -> None:
    # Python takes a second to end with torch loaded: they end at the same time.
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.close()


def _reusable(idle: queue.SimpleQueue[tuple[Worker, QueuedJob]], job: QueuedJob) -> Worker | None:
    """Return an idle process for a job; None without one, or if it has another kind of device."""
    try:
        worker, before = idle.get_nowait()
    except queue.Empty:
        return None
    if before.accelerator == job.accelerator and worker.usable:
        return worker
    worker.close()
    return None


# ---------------------------------------------------------------------------------- accelerators

_in_use: Counter[str] = Counter()
_choosing = threading.Lock()


@contextlib.contextmanager
def accelerator() -> Iterator[dict[str, str]]:
    """Reserve the least used accelerator, where there are several.

    Yields:
        Environment variables that show a process only that accelerator.
    """
    with _choosing:
        visible = accelerators()
        least_used = min(visible, key=lambda name: _in_use[name]) if len(visible) > 1 else ""
        _in_use[least_used] += 1
    try:
        yield {"CUDA_VISIBLE_DEVICES": least_used} if least_used else {}
    finally:
        with _choosing:
            _in_use[least_used] -= 1


def accelerators() -> list[str]:
    """Return the accelerators that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return []
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
