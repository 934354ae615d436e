"""Jobs on a dask cluster of this machine: the same results, lost workers, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.jobs import cluster
from holdfast.jobs.queue import QueuedJob, run

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # dask's own, of sockets and loops that it closes late
]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


Start = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    made = []

    def begin(workers: int = 2, host: str = "127.0.0.1", **more: Any) -> Any:
        found = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host=host,
            dashboard_address=None,
            **more,
        )
        made.append(found)
        return found

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., QueuedJob]:
    def make(name: str, how: str = "short", *needs: str, **more: Any) -> QueuedJob:
        line = json.dumps({"name": name, "how": how, "folder": str(tmp_path), **more})
        return QueuedJob(name, how, line, frozenset(needs))

    return make


def test_jobs_are_done_where_the_cluster_brings_them(
    start: Start, tmp_path: Path, job: Any
) -> None:
    address = start().scheduler_address
    assert address.startswith("tcp://127.0.0.1:")
    jobs = [job("a"), job("b", "short", "a"), job("bad", "fail"), job("after", "short", "bad")]
    with cluster.connected(address, "jobs_program", tmp_path / "run") as pool:
        assert pool.workers == 2
        failures = run(jobs, pool)
    assert {name: str(error) for name, error in failures.items()} == {
        "bad": "bad cannot",
        "after": "not run: it needs bad",
    }
    lines = [line.split(" ")[:2] for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert lines.index(["a", "ends"]) < lines.index(["b", "begins"])
    assert list((tmp_path / "run" / "work" / "jobs").iterdir()) == []


def test_a_job_that_loses_its_workers_is_begun_three_times(
    start: Start, tmp_path: Path, job: Any
) -> None:
    address = start(3).scheduler_address
    with cluster.connected(address, "jobs_program", tmp_path / "run") as pool:
        failures = run([job("evil", "kill worker"), job("good")], pool)
    assert list(failures) == ["evil"]
    assert "its worker was lost 3 times" in str(failures["evil"])
    lines = (tmp_path / "log").read_text("utf-8").splitlines()
    assert sum(line.startswith("evil begins") for line in lines) == 1 + cluster.RESTARTS
    assert "good ends" in lines


def test_a_worker_of_two_accelerators_does_two_jobs(start: Start, tmp_path: Path, job: Any) -> None:
    address = start(1, resources={"GPU": 2}).scheduler_address
    with cluster.connected(address, "jobs_program", tmp_path / "run") as pool:
        assert pool.workers == 2
        assert run([job("a")], pool) == {}


def test_ctrl_c_reaches_the_jobs(start: Start, tmp_path: Path, job: Any) -> None:
    def press() -> None:
        while not (tmp_path / "a.begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    address = start(1).scheduler_address
    presser = threading.Thread(target=press)
    presser.start()
    with (
        pytest.raises(KeyboardInterrupt),
        cluster.connected(address, "jobs_program", tmp_path / "run") as pool,
    ):
        run([job("a", "long")], pool)
    presser.join()
    assert (tmp_path / "a.saved").exists()


def test_the_ports_of_a_cluster_on_loopback_are_reported(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(cluster.progress, "say", lines.append)
    running = start(1, worker_dashboard_address="127.0.0.1:0")
    with cluster.connected(running.scheduler_address, "jobs_program", tmp_path / "run"):
        pass
    assert len(lines) == 1
    port = running.scheduler_address.rpartition(":")[2]
    assert f"127.0.0.1:{port}" in lines[0]
    assert "worker tcp://127.0.0.1:" in lines[0]
    assert "*" not in lines[0]
    assert "listen on every address" not in caplog.text


def test_ports_that_are_open_on_every_address_are_named(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(cluster.progress, "say", lines.append)
    running = start(1, host="0.0.0.0")  # noqa: S104  # what the test is about
    port = running.scheduler_address.rpartition(":")[2]
    address = f"tcp://127.0.0.1:{port}"
    with cluster.connected(address, "jobs_program", tmp_path / "run"):
        pass
    assert f"*:{port}" in lines[0]
    (warning,) = [line for line in caplog.messages if "listen on every address" in line]
    assert warning.startswith("2 of the cluster's 2 processes listen on every address")
    assert "(the first is scheduler)" in warning
    assert "--host ADDRESS --dashboard-address ADDRESS:0" in warning


def test_another_machine_is_only_asked_where_that_was_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    address = "tcp://192.0.2.1:8786"  # of no machine, RFC 5737
    with (
        pytest.raises(UsageError, match="not on this machine.*can run code here.*--allow-remote"),
        cluster.connected(address, "jobs_program", tmp_path / "run"),
    ):
        pass
    with (
        pytest.raises(UsageError, match="no dask scheduler answers there"),
        cluster.connected(address, "jobs_program", tmp_path / "run", allow_remote=True),
    ):
        pass


def test_what_cannot_work_is_said_at_once(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 1)

    def connect(address: str) -> None:
        with cluster.connected(address, "jobs_program", tmp_path / "run"):
            pass

    with pytest.raises(UsageError, match="no dask scheduler answers there"):
        connect("tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match="the cluster has no workers"):
        connect(start(0).scheduler_address)
    address = start(1).scheduler_address
    monkeypatch.setattr(cluster, "version", lambda name: "0.0.1")
    with pytest.raises(
        UsageError, match=r"has holdfast .*, this machine 0\.0\.1; install the same"
    ):
        connect(address)
    monkeypatch.undo()
    monkeypatch.setattr(cluster, "write_text", lambda path, text: None)  # nobody else sees it
    with pytest.raises(UsageError, match="does not see .*; put --out on a file"):
        connect(address)
