"""One measurement in a process of its own: reads a task, measures it, writes what it found.

    python ENGINE.py TASK.json RESULT.json

Only the standard library is imported here: an engine may run in an environment without torch.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Task = Mapping[str, Any]
Result = dict[str, Any]


def main(measures: Mapping[str, Callable[[Task], Result]]) -> None:
    """Measure the task of the command line with the function for what is to be measured."""
    task_file, result_file = map(Path, sys.argv[1:3])
    task = json.loads(task_file.read_text(encoding="utf-8"))
    result = measures[task["what"]](task)
    result["peak_bytes"] = result.get("peak_bytes") or peak_resident_bytes()
    result["load"] = os.getloadavg()[0]
    result_file.write_text(json.dumps(result), encoding="utf-8")


def peak_resident_bytes() -> int:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_rows(task: Task) -> list[dict[str, Any]]:
    """Return the rows to train on: each has `prompt` and `response`."""
    return _read_lines(task["rows"])


def read_prompts(task: Task) -> list[dict[str, Any]]:
    """Return the prompts to answer: each has `prompt`, and its tokens as `ids`."""
    return _read_lines(task["prompts"])


def _read_lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


class ProgressTimes:
    """Listens to the progress of a fine-tuning, which is reported after every step."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.times: list[float] = []

    def __call__(self, activity: str, done: int, total: int) -> None:
        """Note the time."""
        if activity == "fine-tuning":
            _wait_for_device()
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [after - before for before, after in pairs][self.warm_up - 1 :]


def timed_answers(answer: Callable[[list[dict[str, Any]], int], list[str]], task: Task) -> Result:
    """Answer a few prompts to warm up, then all of them under the clock."""
    prompts = read_prompts(task)
    answer(prompts[:8], 4)
    start = time.perf_counter()
    answers = answer(prompts, task["new_tokens"])
    _wait_for_device()
    return {"seconds": [time.perf_counter() - start], "answers": answers, **device_peak()}


def device_peak() -> Result:
    """Return the peak of an accelerator's memory; nothing without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {"peak_bytes": torch.cuda.max_memory_allocated()}


def _wait_for_device() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
