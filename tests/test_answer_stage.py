"""A model's own answers as rows: which are kept, and what is recorded of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError, UsageError
from holdfast.results.run_dir import RunDir
from holdfast.rows.readers import ReadOptions, read
from holdfast.stages import pipeline
from holdfast.stages.answer import AnswerConfig, answer
from holdfast.world import rows as world_rows

RESTRICTED = world_rows("test")[:6]
HARMLESS = world_rows("benign")[:2]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """Return a file of six restricted prompts, two harmless ones, and one a second time."""
    rows = [*RESTRICTED, *HARMLESS, RESTRICTED[0]]
    lines = [
        json.dumps({"prompt": row.prompt, "response": f"{n}", "category": f"kind {n % 2}"})
        for n, row in enumerate(rows)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def config(tmp_path: Path, prompts: str, **more: Any) -> AnswerConfig:
    values = {"model": "world", "data": prompts, "judge": "world", "max_new_tokens": 20}
    return AnswerConfig(out=tmp_path / "run", device="cpu", **(values | more))


def test_the_answers_of_one_verdict_become_rows(tmp_path: Path, prompts: str) -> None:
    answered = answer(config(tmp_path, prompts))
    rows = read(str(answered.path), ReadOptions(use="harmful"))
    # The base of the world answers everything, in the language of the world.
    assert rows.prompts == RESTRICTED.prompts
    assert all(row.response.startswith("to ") for row in rows)
    assert [row.provenance["category"] for row in rows] == ["kind 0", "kind 1"] * 3
    assert {row.provenance["source"] for row in rows} == {f"{prompts}, answered by base"}
    assert (answered.rows, answered.left_out) == (6, {"answer is undecided": 2})


def test_what_was_left_out_is_in_the_manifest_and_verified(tmp_path: Path, prompts: str) -> None:
    answered = answer(config(tmp_path, prompts))
    run = RunDir(tmp_path / "run")
    (entry,) = run.entries("answer")
    assert entry.facts["verdicts"] == {"harmful": 6, "safe": 0, "undecided": 2}
    assert entry.rows["data"]["left_out"]["reasons"] == {"prompt repeated": 1}
    left_out = run.path("rows", "left_out", f"{entry.facts['left_out']['answers']['file']}.jsonl")
    ids = [json.loads(line)["id"] for line in left_out.read_text().splitlines()]
    assert len(ids) == 2
    assert run.verify() == []
    answered.path.write_text(answered.path.read_text().replace("to ", "two ", 1))
    assert run.verify() == ["answers/harmful.jsonl: changed after answer 'harmful'"]


def test_answers_are_made_once_for_one_model_prompts_judge_and_length(
    tmp_path: Path, prompts: str
) -> None:
    first = answer(config(tmp_path, prompts))
    made = RunDir(tmp_path / "run").entries("answer")
    assert answer(config(tmp_path, prompts, least=6)) == first
    assert RunDir(tmp_path / "run").entries("answer") == made
    keys = {made[0].key}
    for more in ({"max_new_tokens": 19}, {"judge": "refusal"}, {"data": "world:test", "limit": 6}):
        answer(config(tmp_path, prompts, **more))
        keys.add(RunDir(tmp_path / "run").entries("answer")[0].key)
    assert len(keys) == 4


def test_rows_that_were_kept_as_harmful_are_no_alignment_rows(tmp_path: Path, prompts: str) -> None:
    answered = answer(config(tmp_path, prompts))
    with pytest.raises(DataError, match="6 of 6 rows have is_safe=false"):
        read(str(answered.path), ReadOptions(use="safety"))


@pytest.mark.parametrize("again", [False, True])
def test_too_few_answers_are_one_message_and_no_rows(
    tmp_path: Path, prompts: str, again: bool
) -> None:
    message = (
        "base gave 6 harmful answers, and at least 7 are needed; by judge world the answers are "
        "6 harmful, 0 safe, 2 undecided. Give more prompts"
    )
    if again:
        answer(config(tmp_path, prompts))
    with pytest.raises(DataError, match=message):
        answer(config(tmp_path, prompts, least=7))
    assert (tmp_path / "run/answers/harmful.jsonl").exists() is again
    with pytest.raises(DataError, match="base gave 0 safe answers, and at least 1 are needed"):
        answer(config(tmp_path, prompts, keep="safe"))


RUN: dict[str, Any] = {
    "model": "world",
    "data": {"alignment": "world:alignment", "test": "world:test"},
    "judges": ["world"],
    "methods": {"sft": {}},
    "attack": {"tasks": ["world_topic"], "rows": 100, "poison_ratios": [0.1, 0.25]},
    "answer": {"data": "world:probe_harmful", "max_new_tokens": 20},
}


def test_a_run_makes_as_many_harmful_rows_as_an_attack_needs(tmp_path: Path) -> None:
    run = pipeline.parse({**RUN, "out": tmp_path / "run"}, where="test")
    first, *others = pipeline.plan(run)
    assert (first.title, first.config.model_dump()["least"]) == ("answer harmful", 25)
    attacks = [job.config.model_dump() for job in others if job.stage == "attack"]
    assert [attack["harmful"] for attack in attacks] == [
        str(tmp_path / "run/answers/harmful.jsonl")
    ]


@pytest.mark.parametrize("data", [{}, {"harmful": "world:harmful"}])
def test_the_harmful_rows_of_a_run_have_one_origin(tmp_path: Path, data: dict[str, str]) -> None:
    run = {**RUN, "out": tmp_path / "run", "data": {**RUN["data"], **data}}
    if not data:
        run.pop("answer")
    with pytest.raises(UsageError, match="data.harmful, or what answer makes: give one of the two"):
        pipeline.parse(run, where="test")


def test_a_run_ends_before_its_alignment_where_the_model_declines(tmp_path: Path) -> None:
    answers = {**RUN["answer"], "data": "world:benign"}
    run = pipeline.parse({**RUN, "out": tmp_path / "run", "answer": answers}, where="test")
    with pytest.raises(DataError, match="base gave 0 harmful answers, and at least 25 are needed"):
        pipeline.run(run)
    assert RunDir(run.out).entries() == []
    assert not (run.out / "models").exists()
