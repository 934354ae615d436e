"""Jobs side by side: order, failures of every kind, Ctrl-C, the death of whoever started them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DiskFull, HoldfastError, JobError, UsageError
from holdfast.jobs import cluster, workers
from holdfast.jobs.queue import End, Pace, Pool, QueuedJob, duration, run, summary
from holdfast.jobs.workers import accelerator, accelerators, first_result, local, started
from holdfast.runtime import progress, threads

PROGRAM = "jobs_program"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, *filter(None, sys.path)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., QueuedJob]:
    def make(name: str, how: str = "short", *needs: str, **more: Any) -> QueuedJob:
        line = json.dumps({"name": name, "how": how, "folder": str(tmp_path), **more})
        return QueuedJob(name, more.get("kind", how), line, frozenset(needs))

    return make


def log(folder: Path) -> list[list[str]]:
    return [line.split(" ") for line in (folder / "log").read_text("utf-8").splitlines()]


def events(folder: Path) -> list[tuple[str, str]]:
    return [(line[0], line[1]) for line in log(folder)]


def waited_for(path: Path) -> None:
    limit = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < limit, f"{path} never came"
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("workers", [1, 3])
def test_a_job_begins_after_those_it_needs(tmp_path: Path, job: Any, workers: int) -> None:
    jobs = [job("a"), job("b", "short", "a"), job("c", "short", "a"), job("d", "short", "b", "c")]
    with local(PROGRAM, workers) as pool:
        assert run(jobs, pool) == {}
    place = {event: i for i, event in enumerate(events(tmp_path))}
    assert len(place) == 8
    for one in jobs:
        assert all(place[need, "ends"] < place[one.name, "begins"] for need in one.needs)


def test_no_more_than_asked_for_at_the_same_time(tmp_path: Path, job: Any) -> None:
    with local(PROGRAM, 2) as pool:
        run([job(f"j{i}", seconds=0.1) for i in range(6)], pool)
    at_once, most = 0, 0
    for _, what in events(tmp_path):
        at_once += 1 if what == "begins" else -1
        most = max(most, at_once)
    assert most <= 2
    assert len({line[2] for line in log(tmp_path) if line[1] == "begins"}) == 2  # processes


def test_jobs_that_wait_for_one_another_are_refused(job: Any) -> None:
    with (
        local(PROGRAM, 1) as pool,
        pytest.raises(UsageError, match="a, b: these jobs wait for each other"),
    ):
        run([job("a", "short", "b"), job("b", "short", "a")], pool)


def test_progress_and_the_time_left_are_told(job: Any) -> None:
    bars: list[tuple[str, int, int]] = []
    said: list[str] = []
    with (
        progress.showing(lambda *args: bars.append(args), said.append),
        local(PROGRAM, 1) as pool,
    ):
        run([job("a"), job("b")], pool)
    assert [bar for bar in bars if bar[0] == "a: counting"] == [
        ("a: counting", 1, 3),
        ("a: counting", 3, 3),  # what a job leaves open is closed
    ]
    assert [bar for bar in bars if bar[0] == "jobs"] == [("jobs", 1, 2), ("jobs", 2, 2)]
    assert re.fullmatch(r"\[1/2\] a: \d+ s; about \d+ s to go", said[0])
    assert re.fullmatch(r"\[2/2\] b: \d+ s", said[1])


# -------------------------------------------------------------------------------------- failures


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path, job: Any) -> None:
    jobs = [
        job("bad", "fail"),
        job("wrong", "fail", kind="UsageError"),
        job("dead", "die"),
        job("odd", "crash"),
        job("after", "short", "bad", "good"),
        job("good"),
        job("last", "short", "after"),
    ]
    with local(PROGRAM, 2) as pool:
        failures = run(jobs, pool)
    said = {name: (type(error), str(error)) for name, error in failures.items()}
    assert said == {
        "bad": (HoldfastError, "bad cannot"),
        "wrong": (UsageError, "wrong cannot"),
        "dead": (
            JobError,
            "its process was ended by SIGKILL, as the system does when memory runs out",
        ),
        "odd": (JobError, "ZeroDivisionError: nobody foresaw this"),
        "after": (JobError, "not run: it needs bad"),
        "last": (JobError, "not run: it needs after"),
    }
    assert ("good", "ends") in events(tmp_path)


def test_a_full_disk_begins_nothing_more(tmp_path: Path, job: Any) -> None:
    with local(PROGRAM, 1) as pool:
        noted: list[str] = []
        failures = run(
            [job("full", "fail", kind="DiskFull"), job("next")],
            pool,
            lambda name, error: noted.append(name),
        )
    assert noted == ["full", "next"]
    assert [type(error) for error in failures.values()] == [DiskFull, DiskFull]
    assert events(tmp_path) == [("full", "begins")]


def pool_of(*futures: Future[End]) -> Pool:
    left = list(futures)
    return Pool(1, lambda job: left.pop(0), lambda level: None)


def ended(end: End) -> Future[End]:
    future: Future[End] = Future()
    future.set_result(end)
    return future


def test_a_job_waits_for_the_end_of_others_even_if_they_fail(job: Any) -> None:
    started = []

    def submit(queued: QueuedJob) -> Future[End]:
        started.append(queued.name)
        return ended(End(0.0, "HoldfastError", "no room") if queued.name == "b" else End(0.0))

    last = replace(job("last"), after=frozenset({"a", "b", "c"}))
    jobs = [last, job("a"), job("b"), job("c", "short", "b")]
    failures = run(jobs, Pool(1, submit, lambda level: None))
    assert started == ["a", "b", "last"]
    assert {name: str(error) for name, error in failures.items()} == {
        "b": "no room",
        "c": "not run: it needs b",
    }


def test_idle_processes_are_released_once_no_job_waits(job: Any) -> None:
    released = []
    pool = Pool(
        1, lambda queued: ended(End(0.0)), lambda level: None, lambda: released.append(True)
    )
    assert run([job("a"), job("b")], pool) == {}
    assert len(released) == 1


def test_a_queued_job_survives_json(job: Any) -> None:
    queued = replace(job("a", "short", "b"), after=frozenset({"c", "d"}))
    assert QueuedJob.read(json.loads(json.dumps(queued.as_dict()))) == queued


def test_a_process_returns_the_result_of_a_job(job: Any) -> None:
    with started(PROGRAM, 2) as spare:
        assert first_result(spare, job("a", seconds=0).line) == {"name": "a"}
        with pytest.raises(UsageError, match="b cannot"):
            first_result(spare[1:], job("b", "fail", kind="OptionError").line)


def test_the_first_cause_of_a_chain_of_failures_is_told(job: Any) -> None:
    jobs = [job("a"), job("b", "short", "a"), job("c", "short", "b"), job("d", "short", "c")]
    failures = run(jobs, pool_of(ended(End(0.0, "HoldfastError", "no room"))))
    assert {name: str(error) for name, error in failures.items()} == {
        "a": "no room",
        "b": "not run: it needs a",
        "c": "not run: it needs b",
        "d": "not run: it needs c",
    }


def test_a_cancelled_job_is_one_that_failed(job: Any) -> None:
    gone: Future[End] = Future()
    gone.cancel()
    gone.set_running_or_notify_cancel()
    failures = run([job("a"), job("b")], pool_of(gone, ended(End(0.0))))
    assert {name: type(error) for name, error in failures.items()} == {"a": JobError}


def test_one_error_for_all() -> None:
    wrong, bad = UsageError("wrong"), HoldfastError("bad")
    assert summary({"a": wrong}, 1) is wrong
    both = summary({"a": wrong, "b": bad}, 5)
    assert both.exit_code == 1
    assert str(both).splitlines() == [
        "2 of 5 failed; the others are done; the same command retries these:",
        "  a: wrong",
        "  b: bad",
    ]
    assert summary({"a": wrong, "b": wrong}, 5).exit_code == 2


# -------------------------------------------------------------------------------------- stopping


def test_ctrl_c_lets_every_job_save(tmp_path: Path, job: Any) -> None:
    def press() -> None:
        for name in ("a", "b"):
            waited_for(tmp_path / f"{name}.begun")
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    jobs = [job("a", "long"), job("b", "long"), job("c")]
    with pytest.raises(KeyboardInterrupt), local(PROGRAM, 2) as pool:
        run(jobs, pool)
    presser.join()
    assert {path.name for path in tmp_path.glob("*.saved")} == {"a.saved", "b.saved"}
    assert ("c", "begins") not in events(tmp_path)


def test_jobs_save_when_whoever_started_them_is_killed(tmp_path: Path, job: Any) -> None:
    one = job("a", "long")
    code = (
        "import sys\nfrom holdfast.jobs.queue import QueuedJob, run\n"
        "from holdfast.jobs.workers import local\n"
        f"with local({PROGRAM!r}, 1) as pool:\n"
        f"    run([QueuedJob('a', 'long', {one.line!r})], pool)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        waited_for(tmp_path / "a.begun")
        parent.kill()
    waited_for(tmp_path / "a.saved")


def test_a_job_whose_scheduler_is_gone_saves(
    tmp_path: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")

    class Gone:
        def __init__(self, name: str) -> None:
            pass

        def is_set(self) -> bool:
            if (tmp_path / "a.begun").exists():
                raise OSError("Timed out trying to connect")
            return False

    monkeypatch.setattr(distributed, "Event", Gone)
    monkeypatch.setattr(cluster, "OFTEN", 0.0)
    end = cluster.remote(PROGRAM, job("a", "long"), str(tmp_path), str(tmp_path / "jobs"))
    assert end.error == "Interrupted"
    assert (tmp_path / "a.saved").exists()


# ----------------------------------------------------------------------------------------- means


def test_each_has_its_share_of_the_cores_and_an_accelerator(
    tmp_path: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert accelerators() == ["4", "7"]
    with local(PROGRAM, 2) as pool:
        run([job("a", seconds=0.5), job("b", seconds=0.5)], pool)
    begun = [line for line in log(tmp_path) if line[1] == "begins"]
    assert {line[3] for line in begun} == {str(max(threads.cores() // 2, 1))}
    assert sorted(line[4] for line in begun) == ["4", "7"]


def test_the_successor_of_a_dead_process_has_its_accelerator(
    tmp_path: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with local(PROGRAM, 1) as pool:
        run([job("a", "die"), job("b")], pool)
    assert [line[4] for line in log(tmp_path) if line[1] == "begins"] == ["4", "4"]


def test_two_that_begin_at_once_choose_two_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Counter[str]):
        def __getitem__(self, name: str) -> int:
            found = super().__getitem__(name)
            time.sleep(0.02)
            return found

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(workers, "_in_use", Slow())
    together, found = threading.Barrier(2), list[str]()

    def choose() -> None:
        together.wait()
        with accelerator() as env:
            found.append(env["CUDA_VISIBLE_DEVICES"])
            together.wait()

    threads = [threading.Thread(target=choose) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["4", "7"]


@pytest.mark.parametrize(("n_cores", "threads_each"), [(8, "3"), (4, "2"), (1, "1")])
def test_a_choice_of_threads_is_kept_up_to_the_share_of_the_cores(
    tmp_path: Path,
    job: Any,
    monkeypatch: pytest.MonkeyPatch,
    n_cores: int,
    threads_each: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(threads, "cores", lambda: n_cores)
    with local(PROGRAM, 2) as pool:
        run([job("a")], pool)
    assert log(tmp_path)[0][3] == threads_each


# ------------------------------------------------------------------------------------------ time


def test_time_left_is_the_mean_of_the_kind() -> None:
    pace = Pace(2)
    assert pace.remaining([("x", "attack")]) == ""  # nothing is known
    pace.end("a", "attack", 100.0)
    pace.end("b", "attack", 200.0)
    # Three of a mean of 150 s on two workers, and one of which nothing is known.
    seconds, unknown = pace.left(
        [("c", "attack"), ("d", "attack"), ("e", "attack"), ("f", "score")]
    )
    assert (seconds, unknown) == (3 * 150 / 2, 1)
    assert pace.remaining([("c", "attack")]) == "about 2 min to go"  # one cannot be shared
    assert pace.remaining([("c", "attack"), ("f", "score")]).startswith("at least")


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
