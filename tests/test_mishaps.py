"""Steps that fail: noted and told, whatever ran out, and nothing is lost or left half there."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import Busy, DiskFull, HoldfastError, TrainingError, UsageError
from holdfast.reports.build import build
from holdfast.results import files
from holdfast.results.files import read_json, write_json
from holdfast.results.run_dir import RunDir, Unfinished, dry_run, waiting_for_locks

Usage = namedtuple("Usage", "total used free")


def step(run: RunDir, error: BaseException | None = None) -> None:
    with run.job("attack", "a/b", config={"seed": 1}, inputs={}) as made:
        if made.done is None:
            if error is not None:
                raise error
            write_json(run.path("x.json"), 1)
            made.outputs.append(run.path("x.json"))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def test_a_failure_is_noted_until_the_step_is_done(run: RunDir) -> None:
    for words in ("the loss is nan", "the loss is inf"):
        with pytest.raises(TrainingError, match=words):
            step(run, TrainingError(words))
    (found,) = run.failures()
    assert (found.stage, found.name, found.reason) == ("attack", "a/b", "the loss is inf")
    assert run.entries() == []
    step(run)
    assert (run.failures(), len(run.entries())) == ([], 1)


def test_a_note_that_another_process_removes_is_passed_over(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.record_failure("attack", "a", "the loss is nan")
    run.record_failure("attack", "b", "the loss is inf")

    def removing(path: Path, *rest: Any) -> Any:
        if path.stem.endswith("-a"):
            path.unlink()
        return read_json(path, *rest)

    monkeypatch.setattr(files, "read_json", removing)
    assert [one.name for one in run.failures()] == ["b"]
    run.path("failed", "broken.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        run.failures()


def test_what_nobody_foresaw_is_noted_and_stays_what_it_is(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError):
        step(run, ZeroDivisionError("by zero"))
    assert run.failures()[0].reason == "ZeroDivisionError: by zero"


def test_ctrl_c_is_no_failure(run: RunDir) -> None:
    with pytest.raises(KeyboardInterrupt):
        step(run, KeyboardInterrupt())
    assert run.failures() == []


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "x")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        caused(HoldfastError("the model could not be written"), FULL),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_says_what_lies_there(
    run: RunDir, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10, 10, 0))
    run.path("attacked").mkdir(parents=True)
    run.path("attacked", "weights").write_bytes(b"0" * 3 * 2**20)
    with pytest.raises(DiskFull) as caught:
        step(run, error)
    text = str(caught.value)
    assert text.startswith(f"{run.root}: no room on the disk for attack 'a/b' (in use: attacked/ 3")
    assert "rerun the same command; finished work is kept" in text


def test_a_file_that_goes_away_hides_no_full_disk(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: Any, **more: Any) -> os.stat_result:
        if str(path).endswith("gone"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, **more)

    run.path("work").mkdir(parents=True)
    run.path("work", "gone").touch()
    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(DiskFull):
        step(run, FULL)


def test_a_broken_file_is_no_full_disk_while_there_is_room(run: RunDir) -> None:
    with pytest.raises(RuntimeError, match="unexpected pos"):
        step(run, RuntimeError("unexpected pos 576 vs 534"))


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA out of memory")])
def test_memory_that_runs_out_is_one_message(run: RunDir, error: Exception) -> None:
    with pytest.raises(HoldfastError, match="attack 'a/b': out of memory. Use fewer parallel jobs"):
        step(run, error)


def write_again(run: RunDir) -> None:
    with run.job("attack", "a/b", config={"seed": 2}, inputs={}) as made:
        write_json(run.path("x.json"), 2)
        made.outputs.append(run.path("x.json"))


def test_a_full_disk_leaves_no_litter_and_what_was_there(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(run)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(run.root.rglob("*"))
    with pytest.raises(DiskFull):
        write_again(run)
    monkeypatch.undo()
    files = [path for path in run.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert set(files) <= set(before)
    assert run.verify() == []
    assert len(run.entries()) == 1


def test_looking_does_nothing(run: RunDir) -> None:
    with pytest.raises(Unfinished), dry_run():
        step(run)
    assert not run.root.exists()
    step(run)
    with dry_run():
        step(run, AssertionError("it is there"))


def test_a_step_of_another_process_is_waited_for_by_the_patient(run: RunDir) -> None:
    with (
        run.job("attack", "a/b", config={"seed": 1}, inputs={}),
        pytest.raises(Busy, match="another process"),
    ):
        step(RunDir(run.root))
    assert run.failures() == [], "somebody is doing it"
    with waiting_for_locks(0.1):
        step(run)
    assert isinstance(Busy(""), UsageError)


def test_steps_whose_names_differ_after_a_dot_are_done_at_the_same_time(run: RunDir) -> None:
    with (
        run.job("attack", "topic-p0.1-s0", config={}, inputs={}),
        run.job("attack", "topic-p0.1-s1", config={}, inputs={}),
    ):
        pass
    assert len(run.entries()) == 2


@pytest.mark.parametrize(("language", "heading"), [("en", "What failed"), ("ja", "失敗したもの")])
def test_the_report_names_what_failed(run: RunDir, language: Any, heading: str) -> None:
    assert heading not in build(run, [], title="t", language=language)
    run.record_failure("attack", "sft-s0/topic", "no <room> left")
    page = build(run, [], title="t", language=language)
    for words in (heading, "attack sft-s0/topic", "no &lt;room&gt; left"):
        assert words in page
    run.clear_failure("attack", "sft-s0/topic")
    run.record_failure("report", "report", "no room for this page")
    assert heading not in build(run, [], title="t", language=language)
