"""Jobs on a running dask cluster (`pip install "holdfast[distributed]"`).

The cluster brings jobs to machines; what they read and write are files of the run directory, which
every worker must see under the same path. Nothing here listens: the scheduler is the user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from holdfast.errors import UsageError
from holdfast.jobs.queue import RUN, STOP, End, Pool, QueuedJob
from holdfast.jobs.workers import Worker
from holdfast.results.files import write_text

if TYPE_CHECKING:
    from distributed import Client, Event

logger = logging.getLogger(__name__)

AGAIN = 2
"""How often a job is begun again whose worker was lost."""
OFTEN = 2.0
"""Seconds between two questions to the scheduler whether to stop."""
TIMEOUT = 20
"""Seconds to reach the scheduler, and then a worker."""


@contextlib.contextmanager
def connected(
    address: str, program: str, out: Path, *, allow_remote: bool = False
) -> Iterator[Pool]:
    """Do jobs on the cluster whose scheduler has this address.

    Where workers declare a resource GPU, each job takes one of it; else each takes a thread.

    Args:
        address: E.g. tcp://127.0.0.1:8786.
        program: Module that is run with `python -m` and calls `workers.serve`.
        out: The run directory.
        allow_remote: Connect to another machine than this one too.

    Raises:
        UsageError: The address is not of this machine, no cluster is there, it has no workers, or
            they do not see the run directory or have another version of holdfast.
    """
    if not (allow_remote or on_loopback(address)):
        raise UsageError(
            f"--scheduler {address!r} is not on this machine. Code and data go over that "
            "connection, unencrypted unless it is tls://, and whoever holds its other end or is "
            "between can run code here and on the workers. Give --allow-remote if you trust that "
            "network, or an address of 127.0.0.1, e.g. of a tunnel"
        )
    try:
        from distributed import Client, Event
    except ModuleNotFoundError as error:
        raise UsageError(
            "--scheduler needs dask: pip install 'holdfast[distributed]', here and on the workers"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(address, timeout=TIMEOUT, set_as_default=False))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--scheduler {address!r}: no dask scheduler answers there ({error}); start one "
                "with `dask scheduler --host 127.0.0.1`, and workers with `dask worker ADDRESS`"
            ) from error
        workers, resources = _workers(client, address)
        folder = out.resolve() / "work" / "jobs" / uuid.uuid4().hex[:12]
        stack.callback(_remove, folder)
        here = os.getcwd()
        _check(client, folder, here)
        stop = Event(f"holdfast-{folder.name}", client=client)
        executor = client.get_executor(pure=False, resources=resources)

        def tell(level: int) -> None:
            if level != RUN:
                stop.set()

        def submit(job: QueuedJob) -> Future[End]:
            started: Future[End] = executor.submit(remote, program, job, here, str(folder))
            return started

        yield Pool(workers, submit, tell)


def on_loopback(address: str) -> bool:
    """Say whether an address, with or without a protocol before it, is of this machine alone.

    A name other than localhost is not looked up: what it stands for may change.
    """
    try:
        host = urlsplit(address if "://" in address else f"tcp://{address}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _workers(client: Client, address: str) -> tuple[int, dict[str, int] | None]:
    """Return how many jobs go on at the same time, and what each takes."""
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError as error:
        raise UsageError(
            f"--scheduler {address!r}: the cluster has no workers; start one with "
            f"`dask worker {address}`"
        ) from error
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    cards = sum(int(worker.get("resources", {}).get("GPU", 0)) for worker in found)
    if cards:
        return cards, {"GPU": 1}
    return sum(int(worker["nthreads"]) for worker in found), None


def _check(client: Client, folder: Path, here: str) -> None:
    """Refuse workers that do not see the run directory, or have another holdfast.

    Raises:
        UsageError: Naming a worker and what it lacks.
    """
    word = uuid.uuid4().hex
    write_text(folder / "word", word)
    try:
        answers: dict[str, Any] = client.run(look, str(folder / "word"), here)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the workers cannot import {error.name!r}; install holdfast there"
        ) from error
    for worker, (read, there) in answers.items():
        if read != word:
            raise UsageError(
                f"worker {worker} does not see {folder.parent} or {here}; put --out on a file "
                "system that all machines share under the same path, and start from there"
            )
        if there != version("holdfast"):
            raise UsageError(
                f"worker {worker} has holdfast {there}, here is {version('holdfast')}; install the "
                "same version"
            )


def look(path: str, here: str) -> tuple[str, str]:
    """Return what a worker reads in a file ("" if it cannot), and its version of holdfast."""
    read = ""
    with contextlib.suppress(OSError):
        read = Path(path).read_text(encoding="utf-8")
    return read if Path(here).is_dir() else "", version("holdfast")


def remote(program: str, job: QueuedJob, here: str, folder: str) -> End:
    """Do one job on a worker of the cluster.

    Args:
        program: As in `connected`.
        job: What is to be done.
        here: Where it was asked for: file names are relative to it.
        folder: Where a file counts how often the job was begun; names the event that stops jobs.
    """
    from distributed import Event

    count = Path(folder, hashlib.sha256(job.name.encode()).hexdigest()[:16])
    begun = len(count.read_text(encoding="utf-8")) if count.exists() else 0
    if begun > AGAIN:
        return End(0.0, "JobError", f"its worker was lost {begun} times, so it is not begun again")
    write_text(count, "x" * (begun + 1))
    event = Event(f"holdfast-{Path(folder).name}")
    asked = [RUN, 0.0]

    def order() -> int:
        if asked[0] == RUN and time.monotonic() - asked[1] > OFTEN:
            asked[:] = STOP if _is_set(event) else RUN, time.monotonic()
        return int(asked[0])

    worker = Worker(program, folder=here, accelerated=job.accelerator)
    try:
        return worker.do(job, order)
    finally:
        worker.close()


def _is_set(event: Event) -> bool:
    """Say whether to stop; also where nobody answers, so that what was computed is saved."""
    try:
        return bool(event.is_set())
    except (OSError, RuntimeError, ValueError, CancelledError) as error:
        logger.warning("the scheduler does not answer, so the job stops: %s", error)
        return True


def _remove(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
