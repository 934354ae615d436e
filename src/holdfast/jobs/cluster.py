"""Jobs on a running dask cluster (`pip install "holdfast[distributed]"`).

The cluster brings jobs to machines; what they read and write are files of the run directory, which
every worker must see under the same path. Nothing here listens: the scheduler is the user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
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
from holdfast.runtime import progress, threads

if TYPE_CHECKING:
    from distributed import Client, Event

logger = logging.getLogger(__name__)

RESTARTS = 2
"""How often a job is restarted after its worker was lost."""
OFTEN = 2.0
"""Seconds between two requests to the scheduler whether to stop."""
MOST_PORTS = 5
"""Number of processes of a cluster whose ports are listed."""
EVERY = "*"
"""Stands for every address of a machine."""
TIMEOUT = 20
"""Seconds to reach the scheduler, and then a worker."""


@contextlib.contextmanager
def connected(
    address: str, program: str, out: Path, *, allow_remote: bool = False
) -> Iterator[Pool]:
    """Run jobs on the dask cluster whose scheduler has this address.

    If workers declare a resource GPU, each job takes one; otherwise each takes a thread.

    Args:
        address: E.g. tcp://127.0.0.1:8786.
        program: Module that is run with `python -m` and calls `workers.serve`.
        out: The run directory.
        allow_remote: Allow an address on another machine.

    Raises:
        UsageError: The address is on another machine, no cluster answers, it has no workers, or
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
                f"--scheduler {address!r}: no dask scheduler answers there ({error}); start "
                "one with `dask scheduler --host 127.0.0.1 --dashboard-address 127.0.0.1:0` and "
                "workers with `dask worker ADDRESS --host 127.0.0.1 --dashboard-address "
                "127.0.0.1:0`"
            ) from error
        workers, resources = _workers(client, address)
        folder = out.resolve() / "work" / "jobs" / uuid.uuid4().hex[:12]
        stack.callback(_remove, folder)
        here = os.getcwd()
        _check(client, folder, here)
        _report_ports(_ports(client))
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
    """Return whether an address, with or without a protocol, is on this machine's loopback.

    Names other than localhost are not resolved: what they resolve to may change.
    """
    try:
        host = urlsplit(address if "://" in address else f"tcp://{address}").hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _workers(client: Client, address: str) -> tuple[int, dict[str, int] | None]:
    """Return the number of parallel jobs, and the resources that each takes."""
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError as error:
        raise UsageError(
            f"--scheduler {address!r}: the cluster has no workers; start one with "
            f"`dask worker {address} --host ADDRESS --dashboard-address ADDRESS:0`"
        ) from error
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    cards = sum(int(worker.get("resources", {}).get("GPU", 0)) for worker in workers)
    if cards:
        return cards, {"GPU": 1}
    return sum(int(worker["nthreads"]) for worker in workers), None


def _check(client: Client, folder: Path, here: str) -> None:
    """Reject workers that do not see the run directory, or have another version of holdfast.

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
    for worker, (content, worker_version) in answers.items():
        if content != word:
            raise UsageError(
                f"worker {worker} does not see {folder.parent} or {here}; put --out on a file "
                "system that all machines share under the same path, and start from there"
            )
        if worker_version != version("holdfast"):
            raise UsageError(
                f"worker {worker} has holdfast {worker_version}, this machine "
                f"{version('holdfast')}; install the same version"
            )


def _ports(client: Client) -> dict[str, list[str]]:
    """Return the addresses on which each process of the cluster listens.

    What the scheduler knows of its workers does not say it: a worker at tcp://127.0.0.1:34949 may
    listen on every address of its machine.
    """
    try:
        ports = {"scheduler": client.run_on_scheduler(listening)}
    except Exception as error:  # noqa: BLE001  # without holdfast there it raises whatever fails first
        logger.warning("the scheduler's ports are unknown: %s", error)
        ports = {}
    nannies: dict[str, Any] = client.run(listening, nanny=True, on_error="ignore")
    for worker, addresses in client.run(listening).items():
        ports[f"worker {worker}"] = sorted({*addresses, *nannies.get(worker, [])})
    return ports


def listening() -> list[str]:
    """Return HOST:PORT of every TCP port on which this process listens; * for every address."""
    psutil: Any = importlib.import_module("psutil")  # dask needs it
    listed = psutil.Process().net_connections("tcp")
    local = [one.laddr for one in listed if one.status == psutil.CONN_LISTEN]
    hosts = {"0.0.0.0": EVERY, "::": EVERY}  # noqa: S104  # read, not bound
    return sorted({f"{hosts.get(address.ip, address.ip)}:{address.port}" for address in local})


def _report_ports(ports: Mapping[str, Sequence[str]]) -> None:
    """Report where the cluster listens, and warn of ports that are open on every address."""
    listed = [f"{process} on {', '.join(addresses)}" for process, addresses in ports.items()]
    rest = f"; and {len(listed) - MOST_PORTS} more workers" if len(listed) > MOST_PORTS else ""
    progress.say(f"dask listens: {'; '.join(listed[:MOST_PORTS])}{rest}")
    exposed = [
        process
        for process, addresses in ports.items()
        if any(address.startswith(EVERY) for address in addresses)
    ]
    if exposed:
        logger.warning(
            "%d of the cluster's %d processes listen on every address of their machine (the first "
            "is %s); anyone who can reach them can run code there. Start them with --host ADDRESS "
            "--dashboard-address ADDRESS:0",
            len(exposed),
            len(ports),
            exposed[0],
        )


def look(path: str, here: str) -> tuple[str, str]:
    """Return the content of a file as a worker reads it ("" if it cannot), and its version."""
    content = ""
    with contextlib.suppress(OSError):
        content = Path(path).read_text(encoding="utf-8")
    return content if Path(here).is_dir() else "", version("holdfast")


def remote(program: str, job: QueuedJob, here: str, folder: str) -> End:
    """Run one job on a worker of the cluster.

    Args:
        program: As in `connected`.
        job: The job.
        here: Working directory of the program that queued it; file names are relative to it.
        folder: Holds a file that counts the starts of the job; names the event that stops jobs.
    """
    from distributed import Event

    count = Path(folder, hashlib.sha256(job.name.encode()).hexdigest()[:16])
    starts = len(count.read_text(encoding="utf-8")) if count.exists() else 0
    if starts > RESTARTS:
        return End(0.0, "JobError", f"its worker was lost {starts} times; giving up")
    write_text(count, "x" * (starts + 1))
    event = Event(f"holdfast-{Path(folder).name}")
    current = RUN
    checked = 0.0

    def order() -> int:
        nonlocal current, checked
        if current == RUN and time.monotonic() - checked > OFTEN:
            current = STOP if _is_set(event) else RUN
            checked = time.monotonic()
        return current

    env = threads.settings(_jobs_at_once())
    worker = Worker(program, env, folder=here, accelerated=job.accelerator)
    try:
        return worker.do(job, order)
    finally:
        worker.close()


def _jobs_at_once() -> int:
    """Return how many jobs the dask worker around this function runs at the same time."""
    from distributed import get_worker

    try:
        return max(1, int(get_worker().state.nthreads))
    except ValueError:  # not inside a worker
        return 1


def _is_set(event: Event) -> bool:
    """Return whether to stop; also True if the scheduler is gone, so that results are saved."""
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
