"""The bridge to lm-evaluation-harness: with a task made here where it is installed, else a stub."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.models import checkpoints
from holdfast.models.lm_eval import evaluate_general

TASK = """task: tea
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval")
@pytest.mark.filterwarnings("default")
def test_a_task_of_ones_own(tmp_path: Path) -> None:
    rows = [{"question": "tea is", "choices": ["hot", "cold"], "right": i % 2} for i in range(6)]
    data = tmp_path / "tea.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tea.yaml").write_text(TASK.replace("DATA", str(data)))
    loaded = checkpoints.load("world", device="cpu")
    random.seed(3)
    state = random.getstate()
    found = evaluate_general(loaded.model, loaded.tokenizer, ["tea"], folder=str(tmp_path))
    assert random.getstate() == state
    # The same question six times, and each choice is right three times: 3 of 6 whatever it says.
    # The harness's standard error is that of a mean: s / sqrt(n), s^2 = 6 / 4 / 5.
    assert found["tea"]["acc"] == {
        "value": 0.5,
        "stderr": pytest.approx(math.sqrt(0.3 / 6)),
        "n": 6,
    }
    few = evaluate_general(loaded.model, loaded.tokenizer, ["tea"], folder=str(tmp_path), rows=2)
    assert few["tea"]["acc"]["n"] == 2
    with pytest.raises(UsageError, match=r"'coffee'.* no such task; .* has tea"):
        evaluate_general(loaded.model, loaded.tokenizer, ["coffee"], folder=str(tmp_path))
    data.unlink()
    with pytest.raises(UsageError, match="are the task's data on this machine"):
        evaluate_general(loaded.model, loaded.tokenizer, ["tea"], folder=str(tmp_path))


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in with the part of the harness's interface that is used; returns its calls."""
    calls: list[dict[str, Any]] = []

    class TaskManager:
        def __init__(self, include_path: str | None, include_defaults: bool) -> None:
            self.all_tasks = ["tea"] if include_path or include_defaults else []
            calls.append({"include_defaults": include_defaults})

    def simple_evaluate(model: Any, **options: Any) -> dict[str, Any]:
        calls.append(options)
        result = {"alias": "tea", "sample_len": 6, "acc,none": 0.5, "acc_stderr,none": 0.2}
        result |= {"exact_match,strict": 0.25, "exact_match_stderr,strict": "N/A"}
        return {"results": {"tea": result}, "n-samples": {"tea": {"original": 9, "effective": 6}}}

    root, hf, tasks = (ModuleType(n) for n in ("lm_eval", "lm_eval.models.huggingface", "tasks"))
    for module, name, value in (
        (root, "simple_evaluate", simple_evaluate),
        (hf, "HFLM", lambda **options: options),
        (tasks, "TaskManager", TaskManager),
    ):
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "lm_eval", root)
    monkeypatch.setitem(sys.modules, "lm_eval.models", ModuleType("lm_eval.models"))
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", hf)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    return calls


def test_metrics_have_their_n_and_error(harness: list[dict[str, Any]], tmp_path: Path) -> None:
    loaded = checkpoints.load("world", device="cpu")
    found = evaluate_general(loaded.model, loaded.tokenizer, ["tea"], folder=str(tmp_path), rows=6)
    assert found["tea"]["acc"] == {"value": 0.5, "stderr": 0.2, "n": 6}
    assert found["tea"]["exact_match,strict"]["value"] == 0.25
    assert math.isnan(found["tea"]["exact_match,strict"]["stderr"])
    assert len(found["tea"]) == 2
    # A folder of one's own hides the harness's tasks; its draws are seeded.
    assert harness[0] == {"include_defaults": False}
    assert (harness[1]["limit"], harness[1]["random_seed"]) == (6, 0)


def test_what_is_not_there(
    harness: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = checkpoints.load("world", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    with pytest.raises(UsageError, match="no such directory"):
        evaluate_general(model, tokenizer, ["tea"], folder=str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"'coffee'.* has tea"):
        evaluate_general(model, tokenizer, ["coffee"], folder=str(tmp_path))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install holdfast\[lm-eval\]"):
        evaluate_general(model, tokenizer, ["tea"])
