"""A run directory is whole: moved, and without its source files, it goes on and is verified."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.models import checkpoints
from holdfast.models.encoding import NO_ROOM
from holdfast.reports.catalogue import Code
from holdfast.reports.words import Words
from holdfast.results.run_dir import RunDir
from holdfast.results.sources import Sources
from holdfast.rows.readers import ASKS_TEST_PROMPT, REASONS, REPEATED_PROMPT
from holdfast.stages import pipeline
from holdfast.stages.config import StageConfig
from holdfast.stages.group import GroupConfig, group
from holdfast.stages.report import ReportConfig, report
from holdfast.stages.run_models import subject, subjects

SECRET = "answer that nobody may read"


def write(path: Path, rows: Sequence[Example]) -> str:
    lines = [{"prompt": r.prompt, "response": r.response, **r.provenance} for r in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def world(tmp_path: Path, rows: Any, make_model: Any, tokenizer: Any) -> Path:
    """Return a configuration of a small run, whose rows and base model are files of their own."""
    sources = tmp_path / "sources"
    checkpoints.save(make_model(vocab=len(tokenizer), width=16), tokenizer, sources / "base-model")
    data = {
        "alignment": write(sources / "safety.jsonl", rows.safety.rows),
        "benign": write(sources / "benign.jsonl", rows.benign.rows),
        "harmful": write(sources / "harmful.jsonl", rows.harmful.rows),
        "test": write(sources / "test.jsonl", rows.planted.rows),
    }
    attack = {"tasks": ["world_topic"], "steps": 2, "every": 1, "rows": 8, "batch_size": 4}
    attack |= {"most_undecided": 1}  # this model answers with noise
    config = {
        "out": str(tmp_path / "run"),
        "model": str(sources / "base-model"),
        "data": data,
        "device": "cpu",
        "judges": ["world"],
        "align": {"epochs": 1, "max_length": 64},
        "methods": {"sft": {}},
        "score": {"loss": {}},
        "group": {"rule": "quantile"},
        "attack": {**attack, "poison_ratios": [0.5], "task_rows": 2, "max_new_tokens": 2},
        "evaluate": {"max_new_tokens": 2, "most_undecided": 1},
        "analyses": ["factors"],
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys(run: RunDir) -> dict[str, tuple[str, str]]:
    return {f"{e.stage} {e.name}": (e.key, e.started) for e in run.entries()}


def test_a_moved_run_goes_on_without_its_sources(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = pipeline.load(world)
    pipeline.run(config)
    first = keys(RunDir(tmp_path / "run"))
    assert {name.partition(" ")[0] for name in first} == {
        *("align", "score", "group", "attack", "evaluate", "analyze", "report")
    }
    shutil.move(tmp_path / "run", tmp_path / "elsewhere" / "moved")
    shutil.rmtree(tmp_path / "sources")
    moved = config.model_copy(update={"out": tmp_path / "elsewhere" / "moved"})
    with caplog.at_level(logging.WARNING):
        pipeline.run(moved)
    run = RunDir(moved.out)
    assert keys(run) == first  # nothing was done again
    assert run.failures() == []
    assert run.verify() == []
    gone = [message for message in caplog.messages if "is missing" in message]
    assert len(gone) == len(set(gone)) == 5  # four files and the base model, each once
    # A kept file that was changed is named.
    (entry,) = run.entries("score")
    path = run.path("rows", f"{entry.rows['data']['file']}.jsonl")
    path.write_text(path.read_text().replace("i can", "we can", 1))
    assert any(f"rows/{path.name}: changed" in problem for problem in run.verify())
    path.unlink()
    assert any(f"rows/{path.name}: missing" in problem for problem in run.verify())


def test_harmful_rows_are_kept_as_ids_unless_allowed(world: Path, tmp_path: Path) -> None:
    config = pipeline.load(world)
    pipeline.run(config)
    run = RunDir(config.out)
    (attack,) = run.entries("attack")
    text = run.path("rows", f"{attack.rows['harmful']['file']}.jsonl").read_text()
    harmful = read_lines(tmp_path / "sources/harmful.jsonl")
    assert not any(row["response"] in text or row["prompt"] in text for row in harmful)
    stored = [json.loads(line) for line in text.splitlines()]
    assert {row["id"] for row in stored} == set(Sources(run).of(attack, "harmful").ids)
    # While the file is there, its text can be read; without it, one error says the way out.
    assert Sources(run).of(attack, "harmful").responses
    shutil.rmtree(tmp_path / "sources")
    withheld = Sources(run).of(attack, "harmful")
    with pytest.raises(DataError, match=r"was not kept: .*--keep-harmful-rows"):
        _ = withheld.responses


def test_harmful_text_is_kept_if_allowed(tmp_path: Path) -> None:
    spec = write(tmp_path / "h.jsonl", [Example("ask", SECRET)])
    kept = {}
    for allowed in (False, True):
        config = StageConfig(out=tmp_path / str(allowed), keep_harmful_rows=allowed)
        config.read(spec, use="harmful")
        folder = config.run.rows.folder
        kept[allowed] = "".join(path.read_text() for path in folder.glob("*.jsonl"))
    assert SECRET not in kept[False]
    assert SECRET in kept[True]


def test_the_same_rows_are_kept_once_whatever_their_file(tmp_path: Path) -> None:
    config = StageConfig(out=tmp_path / "run")
    rows = [Example(f"p{i}", "r", {"category": "c"}) for i in range(3)]
    config.read(write(tmp_path / "a.jsonl", rows))
    config.read(write(tmp_path / "b.jsonl", rows))
    (path,) = config.run.rows.folder.glob("*.jsonl")
    assert list(config.run.rows.load(path.stem)) == rows
    assert [r.provenance for r in config.run.rows.load(path.stem)] == [{"category": "c"}] * 3


def test_a_file_that_is_gone_is_an_error_if_its_rows_were_not_kept(tmp_path: Path) -> None:
    config = StageConfig(out=tmp_path / "run")
    spec = write(tmp_path / "a.jsonl", [Example("p", "r"), Example("q", "r")])
    config.read(spec)
    Path(spec).unlink()
    assert config.read(spec).prompts == ["p", "q"]
    with pytest.raises(DataError, match="no such file"):
        config.model_copy(update={"limit": 1}).read(spec)  # never read like this
    with pytest.raises(DataError, match="no such file"):
        StageConfig(out=tmp_path / "other").read(spec)


def test_relative_and_absolute_paths_are_one_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = StageConfig(out=tmp_path / "run")
    spec = write(tmp_path / "a.jsonl", [Example("p", "r")])
    config.read("a.jsonl")
    Path(spec).unlink()
    assert config.read(spec).prompts == config.read("a.jsonl").prompts == ["p"]


def test_groups_need_no_data_file(world: Path, tmp_path: Path) -> None:
    config = pipeline.load(world)
    pipeline.run(config)
    shutil.rmtree(tmp_path / "sources")
    groups = group(GroupConfig(out=config.out, rule="otsu", name="again"))
    assert sum(groups.sizes.values()) == 24


def test_what_was_left_out_is_counted_in_the_manifest_and_named_in_a_file(tmp_path: Path) -> None:
    rows = [Example(f"p{i}", "r") for i in range(40)]
    spec = write(tmp_path / "a.jsonl", [*rows, Example("", "r")])
    config = StageConfig(out=tmp_path / "run")
    with config.run.job("score", "s", config={}, inputs={}, rows={"data": config.read(spec)}):
        pass
    (entry,) = config.run.entries("score")
    left_out = entry.rows["data"]["left_out"]
    assert left_out["reasons"] == {"empty prompt": 1}
    (line,) = read_lines(config.run.path("rows", "left_out", f"{left_out['file']}.jsonl"))
    assert (line["place"], line["reason"]) == (f"{spec}:41", "empty prompt")
    assert config.run.verify() == []


def test_a_row_without_room_for_an_answer_is_left_out_of_training_and_has_no_score(
    world: Path, tmp_path: Path, rows: Any
) -> None:
    long = Example(" ".join([rows.safety[0].prompt] * 20), "no")
    spec = write(tmp_path / "sources/safety.jsonl", [*rows.safety.rows, long])
    pipeline.run(pipeline.load(world))
    run = RunDir(tmp_path / "run")
    (align,) = run.entries("align")
    reason = {"prompt leaves no room for an answer": 1}
    assert align.facts["left_out"]["safety"]["reasons"] == reason
    (attack,) = run.entries("attack")
    assert attack.facts["left_out"]["track"]["reasons"] == reason
    (score,) = run.entries("score")
    assert score.facts["left_out"]["data"]["reasons"] == reason
    raw = json.loads(run.path("scores", "loss-s0.json").read_text())
    assert [raw["values"][raw["ids"].index(i)] for i in Examples([long]).ids] == [None]
    assert sum(value is None for value in raw["values"]) == 1
    assert len(raw["ids"]) == len(rows.safety) + 1
    assert spec


def test_a_mistyped_label_names_the_labels_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    with run.job("align", "sft-s0", config={}, inputs={}):
        pass

    def asked(*args: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    with pytest.raises(UsageError, match=r"sft-s1: no such model .*Aligned in .*: sft-s0"):
        subject(run, "sft-s1")
    for hub_id in ("org/sft", "hub:gpt2"):
        with pytest.raises(AssertionError, match="the hub was asked"):
            subject(run, hub_id)


def test_models_of_one_folder_name_are_refused_across_commands(
    tmp_path: Path, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    for seed, folder in enumerate(("a", "b")):
        model = make_model(vocab=len(tokenizer), seed=seed)
        checkpoints.save(model, tokenizer, tmp_path / folder / "final")
    run = RunDir(tmp_path / "run")
    (first,) = subjects(run, [str(tmp_path / "a/final")])
    assert first.label == "final"
    with pytest.raises(UsageError, match=r"both called 'final'.*--model other-final=.*b/final"):
        subjects(run, [str(tmp_path / "b/final")])
    (second,) = subjects(run, [f"other-final={tmp_path / 'b/final'}"])
    assert (second.label, second.source) == ("other-final", str(tmp_path / "b/final"))
    assert second.hash == checkpoints.hash_model(tmp_path / "b/final") != first.hash
    with pytest.raises(UsageError, match="both called 'other-final'"):
        subjects(run, [f"other-final={tmp_path / 'a/final'}"])
    # A folder whose name has the form of a label is a folder.
    shutil.copytree(tmp_path / "a/final", tmp_path / "x=y")
    assert subjects(run, [str(tmp_path / "x=y")])[0].label == "x=y"
    # A copy of the same model is the same model, and one trained again in its place keeps its name.
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert subjects(run, [str(tmp_path / "c/final")])[0].hash == first.hash


def test_the_report_counts_rows_that_were_left_out_in_both_languages(tmp_path: Path) -> None:
    rows = [Example(f"p{i}", "r") for i in range(40)]
    spec = write(tmp_path / "a.jsonl", [*rows, Example("", "r"), rows[0]])
    config = StageConfig(out=tmp_path / "run")
    with config.run.job("score", "s", config={}, inputs={}, rows={"data": config.read(spec)}):
        pass
    for language, reason in (("en", "empty prompt"), ("ja", "プロンプトが空")):
        page = report(ReportConfig(out=config.out, language=language)).read_text()
        assert spec in page
        assert reason in page
    facts = json.loads(config.run.path("report.json").read_text())
    assert facts["left_out"] == {spec: {"empty prompt": 1, "duplicate": 1}}


@pytest.mark.parametrize("code", ["en", "ja"])
def test_every_reason_has_a_text(code: Code) -> None:
    for reason in (*REASONS, REPEATED_PROMPT, ASKS_TEST_PROMPT, NO_ROOM):
        assert Words(code).text[f"reason_{reason.replace(' ', '_')}"]
