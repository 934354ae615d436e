"""How many threads processes get, and that two of them do not wait for one another."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.jobs import workers
from holdfast.runtime import progress, threads


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("n_cores", "processes", "value", "expected"),
    [
        (8, 2, "", 4),
        (8, 3, "", 2),
        (2, 4, "", 1),
        (8, 2, "2", 2),
        (2, 2, "2", 1),  # each with the user's number would be four threads on two cores
        (8, 2, "6,2", 4),  # a number for each level of nesting
        (8, 2, " 3 ", 3),
        (8, 2, "0", 4),  # OpenMP ignores what is not a positive number
        (8, 2, "many", 4),
    ],
)
def test_threads_of_each_process(
    monkeypatch: pytest.MonkeyPatch, n_cores: int, processes: int, value: str, expected: int
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: n_cores)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.per_process(processes) == expected
    assert threads.settings(processes)["OMP_NUM_THREADS"] == str(expected)


def test_waiting_is_short_unless_the_user_has_set_how_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert threads.settings(1)["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in threads.settings(1)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert threads.waiting() == {}


def test_the_number_of_threads_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    assert threads.description(2) == "2 processes with 1 thread each on 2 cores"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.description(2) == (
        "2 processes with 1 thread each on 2 cores; OMP_NUM_THREADS=2 would be more threads than "
        "cores"
    )
    monkeypatch.setattr(threads, "cores", lambda: 8)
    assert threads.description(3) == "3 processes with 2 threads each on 8 cores"
    sentences: list[str] = []
    with (
        progress.showing(lambda *report: None, sentences.append),
        workers.local("jobs_program", 3),
        workers.local("jobs_program", 1),  # one process is nothing to choose
    ):
        pass
    assert sentences == [threads.description(3)]


def test_a_quota_counts_as_fewer_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    root = tmp_path / "groups"
    inner = root / "pods" / "a"
    inner.mkdir(parents=True)
    assert threads.quota(root, own) == math.inf  # no control groups
    own.write_text("0::/pods/a\n")
    assert threads.quota(root, own) == math.inf  # and no limits
    (inner / "cpu.max").write_text("max 100000\n")
    assert threads.quota(root, own) == math.inf
    (root / "pods" / "cpu.max").write_text("150000 100000\n")
    assert threads.quota(root, own) == 1.5  # a parent's limit holds too
    (inner / "cpu.max").write_text("50000 100000\n")
    assert threads.quota(root, own) == 0.5
    own.write_text("0::/../../elsewhere\n")  # a container that sees its name outside
    (root / "cpu.max").write_text("300000 100000\n")
    assert threads.quota(root, own) == 3.0
    for limit, expected in ((0.5, 1), (1.5, 2), (math.inf, 16)):
        monkeypatch.setattr(threads, "quota", lambda limit=limit: limit)
        monkeypatch.setattr(threads, "_affinity", lambda: 16)
        assert threads.cores() == expected


def test_a_command_uses_no_more_threads_than_its_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(threads, "_affinity", lambda: 16)
    threads.settle()
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.setattr(threads, "quota", lambda: 2.0)
    threads.settle()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    os.environ["OMP_NUM_THREADS"] = "5"
    threads.settle()
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_torch_is_not_loaded_before_the_command_line_is_set_up() -> None:
    """The OpenMP runtime reads its settings once, when torch is loaded."""
    code = "import sys, holdfast.cli, holdfast.runtime.threads; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
