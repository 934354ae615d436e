"""The stage `analyze`: what it runs when nothing is named, and what it says of the rest."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.results.artifacts import AttackResult, Counts, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.stages.analyze import AnalyzeConfig, analyze
from made_lives import life


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run with scores of six rows, and one attack that tracked none of them."""
    rows = Examples(Example(f"ask {i}", "no") for i in range(6))
    made = RunDir(tmp_path / "run")
    scores = Scores(rows.ids, np.arange(6.0), "toy", rows.hash, "m")
    settings = Attack(task="t")
    unknown = life(math.nan, censored=True)
    points = (Point(0, {"j": Counts(0, 4, 0)}),)
    attack = AttackResult("sft-s0", "m", "sft", 0, settings, "j", points, unknown)
    with made.job("score", "toy", config={}, inputs={}, rows={"data": rows}) as job:
        scores.save(made.path("scores", "toy.json"))
        job.outputs.append(made.path("scores", "toy.json"))
    with made.job("attack", "one", config={}, inputs={}) as job:
        attack.save(made.path("attacks", "one.json"))
        job.outputs.append(made.path("attacks", "one.json"))
    return made


def test_an_analysis_that_lacks_something_is_left_out_and_that_is_said(
    run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores and an attack are there, so `overlap` and `foresight` are tried; no row is tracked."""
    with caplog.at_level(logging.WARNING):
        found = analyze(AnalyzeConfig(out=run.root))
    assert [section.title for section in found] == [
        "What do the vulnerable examples have in common?",
        "Is everything forgotten at once?",
    ]
    assert {entry.name for entry in run.entries("analyze")} == {"factors", "levelling"}
    said = {record.args[0]: record.getMessage() for record in caplog.records if record.args}  # type: ignore[index]
    assert set(said) == {"categories", "foresight", "overlap"}
    assert "analysis overlap left out: " in said["overlap"]
    assert "two or more attacks" in said["overlap"]
    assert "\n" not in said["overlap"]


@pytest.mark.parametrize("name", ["foresight", "overlap"])
def test_one_that_was_asked_for_is_missed(run: RunDir, name: str) -> None:
    with pytest.raises(UsageError, match="holdfast attack --track DATA"):
        analyze(AnalyzeConfig(out=run.root, analyses=["factors", name]))


def test_an_unknown_one(run: RunDir) -> None:
    with pytest.raises(UsageError, match="'nothing' is not one of the analyses"):
        analyze(AnalyzeConfig(out=run.root, analyses=["nothing"]))


def test_a_run_in_which_nothing_is_possible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match="empty: no such run directory; check --out"):
        analyze(AnalyzeConfig(out=tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    assert analyze(AnalyzeConfig(out=tmp_path / "empty")) == []
    assert "nothing could be analyzed" in caplog.text
