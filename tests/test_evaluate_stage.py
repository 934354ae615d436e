"""Several sampled answers a prompt, and what may not go together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast as h
from holdfast import world
from holdfast.errors import MismatchError, UsageError
from holdfast.models import checkpoints
from holdfast.results.artifacts import Evaluation
from holdfast.results.run_dir import RunDir
from holdfast.stages.evaluate import evaluate as evaluate_stage
from holdfast.stages.plugin_inputs import tasks_of
from holdfast.stages.run_models import check_own_label, subjects
from holdfast.stages.verdicts import marked_verdicts


def config(tmp_path: Path, **options: Any) -> h.EvaluateConfig:
    given: dict[str, Any] = {"models": ["world"], "test": "world:test", "judges": ["world"]}
    given |= {"limit": 5, "max_new_tokens": 8, "device": "cpu", "out": tmp_path / "run"}
    given |= {"most_undecided": 1}  # eight tokens are half an answer
    return h.EvaluateConfig(**(given | options))


def test_samples_are_counted_and_kept(tmp_path: Path) -> None:
    options = {"temperature": 5.0, "samples": 3, "over_refusal": "world:borderline"}
    (found,) = evaluate_stage(config(tmp_path, **options))
    assert (found.samples, found.verdicts["world"].n) == (3, 15)
    assert found.over_refusal is not None
    assert found.over_refusal.n == 15
    by_category = [counts["world"].n for counts in found.by_category.values()]
    assert sum(by_category) == 15
    path = tmp_path / "run" / "evaluations" / "base.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    prompts = world.rows("test").prompts[:5]
    assert [(r["sample"], r["prompt"]) for r in records] == [
        (sample, prompt) for sample in range(3) for prompt in prompts
    ]
    harmful = sum(r["verdicts"]["world"]["harmful"] is True for r in records)
    assert harmful == found.verdicts["world"].harmful
    answers = [{r["response"] for r in records if r["prompt"] == p} for p in prompts]
    assert any(len(said) > 1 for said in answers)


def test_tasks_of_one_name_are_told_apart_by_their_options(tmp_path: Path) -> None:
    one, two = "sst2,train=a,test=b", "sst2,train=a,test=c"
    assert list(tasks_of(RunDir(tmp_path), [one, two, "world_topic"])) == [one, two, "world_topic"]
    with pytest.raises(UsageError, match="task 'world_topic' is given twice"):
        tasks_of(RunDir(tmp_path), ["world_topic", "world_topic"])


def test_two_models_of_one_name_are_refused(
    tmp_path: Path, make_model: Any, tokenizer: Any
) -> None:
    names = []
    for seed, folder in enumerate(("a", "b")):
        path = tmp_path / folder / "final"
        checkpoints.save(make_model(vocab=len(tokenizer), seed=seed), tokenizer, path)
        names.append(str(path))
    run = RunDir(tmp_path / "run")
    assert [who.source for who in subjects(run, [names[0], names[0]])] == names[:1]
    with pytest.raises(UsageError, match="a/final and .*b/final are both called 'final'"):
        subjects(run, names)


def test_results_of_another_model_do_not_become_those_of_an_aligned_one(
    tmp_path: Path, make_model: Any, tokenizer: Any
) -> None:
    path = tmp_path / "sft-s0"
    checkpoints.save(make_model(vocab=len(tokenizer), seed=0), tokenizer, path)
    run = RunDir(tmp_path / "run")
    check_own_label(run, "sft-s0")
    subjects(run, [str(path)])
    with pytest.raises(UsageError, match="has results of .*sft-s0 under the name 'sft-s0'"):
        check_own_label(run, "sft-s0")
    with pytest.raises(UsageError, match="has results of .*give another --out"):
        h.align(h.AlignConfig(model="world", data="world:alignment", method="sft", out=run.root))


def test_a_model_given_as_the_working_directory_has_the_folders_name(
    tmp_path: Path, make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "final"
    checkpoints.save(make_model(vocab=len(tokenizer), seed=0), tokenizer, path)
    (path / "inner").mkdir()
    run = RunDir(tmp_path / "run")
    for place, name in ((path, "."), (path / "inner", ".."), (tmp_path, "final/")):
        monkeypatch.chdir(place)
        assert [model.label for model in subjects(run, [name])] == ["final"]


def test_the_key_has_what_decides_results_and_no_paths(tmp_path: Path) -> None:
    plain = config(tmp_path).keyed()
    places = {"out", "models", "test", "judges", "over_refusal", "tasks", "general_path"}
    assert not places & plain.keys()
    assert {"temperature", "samples", "backend", "general"} <= plain.keys()
    assert config(tmp_path, temperature=0.5).keyed()["temperature"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 2}, "set a temperature"),
        ({"general": ["tea"]}, "give general_path"),
        ({"general": ["tea"], "general_path": ".", "backend": "vllm"}, "needs the backend"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate_stage(config(tmp_path, **options))
    assert not (tmp_path / "run").exists()


def test_without_vllm_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"holdfast\[vllm\]"):
        evaluate_stage(config(tmp_path, backend="vllm"))
    assert not (tmp_path / "run" / "evaluations").exists()


def test_an_evaluation_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    (found,) = evaluate_stage(config(tmp_path))
    path = tmp_path / "run" / "evaluations" / "base.json"
    assert Evaluation.load(path) == found
    raw = json.loads(path.read_text())
    del raw["samples"]
    path.write_text(json.dumps(raw))
    with pytest.raises(MismatchError, match=r"base.json: samples: this key is missing"):
        Evaluation.load(path)


def test_marks() -> None:
    from holdfast.contracts import Verdict

    assert marked_verdicts([Verdict(True), Verdict(None), Verdict(False)]) == "hus"
