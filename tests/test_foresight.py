"""What the chapter on foresight says of scores and attacks whose agreement is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.analyses.foresight import CEILING, Foresight
from holdfast.contracts import Section
from holdfast.errors import DataError
from holdfast.examples import Example, Examples
from holdfast.results.artifacts import AttackResult, Counts, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.stats import agreement
from holdfast.stats.intervals import Interval, bootstrap
from made_lives import life

ROWS = Examples([Example(f"ask {i}", "no") for i in range(10)])
IDS = ROWS.ids
UP = np.arange(10.0)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    def brief(*args: Any, **options: Any) -> Interval:
        return bootstrap(*args, **{**options, "resamples": 20})

    monkeypatch.setattr(agreement, "bootstrap", brief)


def attack(model: str, task: str, counts: np.ndarray) -> AttackResult:
    unknown = life(math.nan, censored=True)
    points = (Point(0, {"j": Counts(0, 4, 0)}),)
    tracked = dict(zip(IDS, counts.astype(int).tolist(), strict=True))
    return AttackResult(
        model, model, "sft", 0, Attack(task=task), "j", points, unknown, tracked=tracked
    )


def section(root: Path, *artifacts: tuple[str, Scores | AttackResult]) -> Section:
    run = RunDir(root)
    for name, artifact in artifacts:
        stage = "score" if isinstance(artifact, Scores) else "attack"
        rows = {"data": ROWS} if stage == "score" else {}
        with run.job(stage, name, config={"seed": 0}, inputs={}, rows=rows) as job:
            artifact.save(run.path(stage, f"{name}.json"))
            job.outputs.append(run.path(stage, f"{name}.json"))
    return Foresight().run(run)


def scores(values: np.ndarray, *, model: str = "a", seed: int = 0) -> Scores:
    return Scores(IDS, values, "toy", "d", model, seed=seed)


def test_one_line_per_estimator_and_the_ceiling(tmp_path: Path) -> None:
    found = section(
        tmp_path,
        ("up-s0", scores(UP)),
        ("down-s0", scores(-UP)),
        ("one", attack("a", "one", UP)),
        ("two", attack("a", "two", UP)),
    )
    table = found.tables["Agreement with the attacks' ForgotNum"].frame.set_index("estimator")
    assert table["AUROC"].to_dict() == {"up": 1.0, "down": 0.0, CEILING: 1.0}
    assert table["Spearman"].round(9).to_dict() == {"up": 1.0, "down": -1.0, CEILING: 1.0}
    assert len(found.findings) == 2
    (up,) = [words for words in found.findings if words.startswith("up predicted")]
    assert "AUROC of 1.00 [1.00, 1.00] (n=10 examples, 1 model; 0.5" in up


def test_examples_without_a_count_are_said(tmp_path: Path) -> None:
    one = replace(attack("a", "one", UP), unknown={"z": (0, 2)})
    found = section(tmp_path, ("up-s0", scores(UP)), ("one", one))
    said = "On a, n=1 examples are left out because their count is unknown: the judge left"
    assert found.findings[-1].startswith(said)


def test_answers_to_one_prompt_are_one_observation(tmp_path: Path) -> None:
    rows = [Example(f"ask {i // 2}", f"no {i}") for i in range(20)]
    ids = Examples(rows).ids
    values, counts = np.repeat(np.arange(10.0) % 4, 2), np.repeat(np.arange(10) % 3, 2)
    run = RunDir(tmp_path / "run")
    kept = {"data": Examples(rows)}
    hit = replace(attack("a", "one", UP), tracked=dict(zip(ids, counts.tolist(), strict=True)))
    for stage, used, artifact in (
        ("score", kept, Scores(ids, values, "toy", "d", "a")),
        ("attack", {}, hit),
    ):
        with run.job(stage, stage, config={"seed": 0}, inputs={}, rows=used) as job:
            artifact.save(run.path(stage, "it.json"))
            job.outputs.append(run.path(stage, "it.json"))

    def told() -> tuple[Any, str]:
        found = Foresight().run(run)
        table = found.tables["Agreement with the attacks' ForgotNum"].frame
        return table.iloc[0][["low", "high"]].tolist(), found.note

    def expected(units: list[str] | None) -> list[float]:
        area = agreement.agreement(values, counts.astype(float), units=units).auroc
        return [round(area.low, 3), round(area.high, 3)]

    ends, note = told()
    assert ends == pytest.approx(expected([row.prompt for row in rows]), abs=1e-3)
    assert ends != expected(None)
    assert "bootstrap over prompts, otherwise" in note
    (file,) = run.path("rows").glob("*.jsonl")
    content = file.read_text()
    file.unlink()
    with pytest.raises(DataError, match="no such file, but the results of the run"):
        told()
    file.write_text(content)
    fewer = {"data": Examples(rows[:-1])}
    with run.job("score", "score", config={"seed": 0}, inputs={"other": "x"}, rows=fewer) as job:
        job.outputs.append(run.path("score", "it.json"))
    ends, note = told()
    assert ends == pytest.approx(expected(None), abs=1e-3)
    assert "over examples, because no scores cover all rows, otherwise" in note


def test_seeds_of_an_estimator_are_one_line(tmp_path: Path) -> None:
    found = section(
        tmp_path,
        ("up-s0", scores(UP)),
        ("up-s1", scores(-UP, model="b", seed=1)),
        ("one", attack("a", "one", UP)),
        ("two", attack("b", "one", UP)),
    )
    table = found.tables["Agreement with the attacks' ForgotNum"].frame.set_index("estimator")
    assert table["AUROC"].to_dict() == {"up": 0.5}  # mean of 1 and 0
    assert "2 models" in found.findings[0]


def test_two_scores_of_a_model_are_two_lines(tmp_path: Path) -> None:
    """Without the seed's suffix both would be called "up", and one would be lost."""
    found = section(
        tmp_path,
        ("up-s0", scores(UP)),
        ("up", scores(-UP)),
        ("one", attack("a", "one", UP)),
    )
    table = found.tables["Agreement with the attacks' ForgotNum"].frame.set_index("estimator")
    assert table["AUROC"].to_dict() == {"up": 0.0, "up-s0": 1.0}


def test_a_score_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    nothing = scores(np.array([1.0, *[math.nan] * 9]))
    found = section(tmp_path, ("few", nothing), ("one", attack("a", "one", UP)))
    assert "AUROC of unknown [unknown, unknown]" in found.findings[0]
    assert dict(found.figures) == {}
