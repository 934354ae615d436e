"""Processes that do jobs: one that dies is a job that failed, and the others go on.

A process reads one job after the other, each a line of JSON, and answers with lines of JSON: what
progress it makes and how each job ended. Nothing is pickled. When its standard input ends it saves
what it has and stops; that is how it hears of Ctrl-C, and that whoever started it was killed.
"""

from __future__ import annotations

import contextlib
import gc
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import IO, Any

from holdfast.errors import Interrupted
from holdfast.jobs.queue import KILL, LOOK, RUN, STOP, End, Pool, QueuedJob
from holdfast.runtime import progress
from holdfast.runtime.failures import failure

logger = logging.getLogger(__name__)

OFTEN = 0.5
"""Seconds between two lines on the same progress."""
GRACE = 20.0
"""Seconds that a process without a job has to end."""
Message = dict[str, Any]


# --------------------------------------------------------------------------------- in the process


def serve(do: Callable[[Message], None]) -> None:
    """Be the program of a `Worker`: read jobs until the input ends.

    After a job that failed the program ends, so that nothing of the failure outlives it.

    Args:
        do: Does one job; raises any exception if it fails.
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
            end = _done(do, json.loads(line), channel)
            busy.clear()
            _tell(channel, end)
            if "error" in end:
                return
            _tidy()


def _read(lines: queue.SimpleQueue[str], busy: threading.Event) -> None:
    # Not sys.stdin, whose lock would still be held when the program ends.
    with os.fdopen(os.dup(0), encoding="utf-8") as source:
        for line in source:
            busy.set()
            lines.put(line)
    lines.put("")
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGINT)


def _done(do: Callable[[Message], None], job: Message, channel: IO[str]) -> Message:
    last: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last.get(what, 0.0) > OFTEN:
            last[what] = now
            _tell(channel, {"progress": [what, done, total]})

    try:
        with progress.showing(report):
            do(job)
    except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
        found = failure(error)
        return {"error": type(found).__name__, "message": str(found)}
    except KeyboardInterrupt:
        return {"error": Interrupted.__name__, "message": "interrupted"}
    return {"done": True}


def _tell(channel: IO[str], message: Message) -> None:
    # Whoever started this may be gone; what was computed is to be saved all the same.
    with contextlib.suppress(OSError):
        channel.write(json.dumps(message, ensure_ascii=False) + "\n")
        channel.flush()


def _tidy() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------- around it


class Worker:
    """A process that does jobs, seen from outside.

    Args:
        program: Module that is run with `python -m` and calls `serve`.
        env: Environment variables besides this process's own.
        folder: Where it runs; here if None.
        accelerated: Whether it has an accelerator, which it keeps until it is closed.
    """

    def __init__(
        self,
        program: str,
        env: Mapping[str, str] | None = None,
        folder: str | None = None,
        *,
        accelerated: bool = False,
    ) -> None:
        with contextlib.ExitStack() as held:
            own = held.enter_context(accelerator()) if accelerated else {}
            self.process = subprocess.Popen(
                [sys.executable, "-m", program],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **(env or {}), **own},
                # Ctrl-C in a terminal goes to all processes in front; this one hears of it from
                # its input, once, since a second one would end it before it has saved.
                start_new_session=True,
            )
            self.held = held.pop_all()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.words: deque[str] = deque(maxlen=20)
        self.readers = [threading.Thread(target=t, daemon=True) for t in (self._hear, self._note)]
        for reader in self.readers:
            reader.start()

    @property
    def usable(self) -> bool:
        """Whether it can be given another job."""
        return self.process.poll() is None

    def do(self, job: QueuedJob, order: Callable[[], int]) -> End:
        """Have a job done, and wait for its end.

        Args:
            job: What is to be done.
            order: Asked again and again: RUN, STOP or KILL.
        """
        clock, bars = time.monotonic(), dict[str, int]()
        self._write(job.line)
        end: End | None = None
        while end is None:
            dead = self.process.poll() is not None
            if order() == KILL:
                self.process.kill()
            elif order() == STOP:
                self._stop()
            try:
                message = self.messages.get(timeout=0.0 if dead else LOOK)
            except queue.Empty:
                end = self._death() if dead else None
                continue
            if "progress" in message:
                what, done, total = message["progress"]
                bars[what] = total
                progress.report(f"{job.name}: {what}", done, total)
            else:
                end = End(0.0, message.get("error", ""), message.get("message", ""))
        for what, total in bars.items():  # a bar that was left open would stay
            progress.report(f"{job.name}: {what}", total, total)
        if end.error:
            self.close()
        return End(time.monotonic() - clock, end.error, end.message)

    def close(self) -> None:
        """End the process, and wait for that."""
        self._stop()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.held.close()
        for reader in self.readers:
            reader.join(GRACE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # that it is dead is seen later
            if self.process.stdin is not None:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()

    def _hear(self) -> None:
        for line in self.process.stdout or ():
            with contextlib.suppress(json.JSONDecodeError):
                self.messages.put(json.loads(line))

    def _note(self) -> None:
        for line in self.process.stderr or ():
            self.words.append(line.rstrip())
            if line.startswith(("WARNING ", "ERROR ")):
                logger.warning("%s", line.partition(" ")[2].rstrip())

    def _death(self) -> End | None:
        for reader in self.readers:
            reader.join(GRACE)  # its last words
        if not self.messages.empty():
            return None
        code = self.process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            why = ", as the system does where memory runs out" if name == "SIGKILL" else ""
            return End(0.0, "JobError", f"its process was ended by {name}{why}")
        last = next((line for line in reversed(self.words) if line), "it said nothing")
        return End(0.0, "JobError", f"its process ended with code {code}: {last}")


# --------------------------------------------------------------------------------- this machine


@contextlib.contextmanager
def local(program: str, workers: int) -> Iterator[Pool]:
    """Do jobs in so many processes of this machine.

    Each has its share of the cores (unless OMP_NUM_THREADS is set) and, where there are several
    accelerators, the one that fewest others use.

    Args:
        program: Module that is run with `python -m` and calls `serve`.
        workers: Jobs at the same time.
    """
    order = [RUN]
    idle: queue.SimpleQueue[tuple[Worker, QueuedJob]] = queue.SimpleQueue()
    env = {}
    if "OMP_NUM_THREADS" not in os.environ:
        env["OMP_NUM_THREADS"] = str(max(cores() // workers, 1))

    def work(job: QueuedJob) -> End:
        worker = _another(idle, job)
        if worker is None:
            worker = Worker(program, env, accelerated=job.accelerator)
        end = worker.do(job, lambda: order[0])
        if worker.usable:
            idle.put((worker, job))
        else:
            worker.close()
        return end

    def submit(job: QueuedJob) -> Future[End]:
        # The copied context knows to whom progress is shown.
        return threads.submit(copy_context().run, work, job)

    with ThreadPoolExecutor(workers) as threads:
        try:
            yield Pool(workers, submit, lambda level: order.__setitem__(0, level))
        finally:
            threads.shutdown()
            while not idle.empty():
                idle.get()[0].close()


def _another(idle: queue.SimpleQueue[tuple[Worker, QueuedJob]], job: QueuedJob) -> Worker | None:
    """Return a process that has done its job, unless the next is on another kind of device."""
    try:
        worker, before = idle.get_nowait()
    except queue.Empty:
        return None
    if before.accelerator == job.accelerator and worker.usable:
        return worker
    worker.close()
    return None


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# ---------------------------------------------------------------------------------- accelerators

_in_use: Counter[str] = Counter()
_choosing = threading.Lock()


@contextlib.contextmanager
def accelerator() -> Iterator[dict[str, str]]:
    """Choose the accelerator that fewest others use, where there are several.

    Yields:
        The environment variables by which a process sees that one only.
    """
    with _choosing:
        visible = accelerators()
        chosen = min(visible, key=lambda name: _in_use[name]) if len(visible) > 1 else ""
        _in_use[chosen] += 1
    try:
        yield {"CUDA_VISIBLE_DEVICES": chosen} if chosen else {}
    finally:
        with _choosing:
            _in_use[chosen] -= 1


def accelerators() -> list[str]:
    """Return the accelerators that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
