"""Which scores are held against which attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.results.artifacts import AttackResult, Counts, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import cases
from made_lives import life

NAN = float("nan")


def scores(**changes: Any) -> Scores:
    fields: dict[str, Any] = {
        "ids": ("a", "b", "c", "d"),
        "values": np.array([1.0, 2.0, NAN, 4.0]),
        "estimator": "any",
        "data_hash": "d",
        "model_hash": "m",
        "seed": 5,
    }
    return Scores(**{**fields, **changes})


def attack(tracked: dict[str, int], **changes: Any) -> AttackResult:
    fields: dict[str, Any] = {
        "model": "sft-s5",
        "model_hash": "m",
        "method": "sft",
        "model_seed": 5,
        "attack": Attack(task="t,limit=3", **changes.pop("attack", {})),
        "judge": "j",
        "points": (Point(0, {"j": Counts(0, 10, 0)}),),
        "half_life": life(NAN, censored=True),
        "tracked": tracked,
    }
    return AttackResult(**{**fields, **changes})


def run_of(path: Path, *artifacts: Scores | AttackResult) -> RunDir:
    run = RunDir(path)
    for i, artifact in enumerate(artifacts):
        stage = "score" if isinstance(artifact, Scores) else "attack"
        with run.job(stage, f"n{i}", config={"seed": 0}, inputs={}) as job:
            artifact.save(path / stage / f"{i}.json")
            job.outputs.append(path / stage / f"{i}.json")
    return run


def test_counts_of_more_checkpoints_weigh_no_more(tmp_path: Path) -> None:
    def points(n: int) -> tuple[Point, ...]:
        return tuple(Point(step, {"j": Counts(0, 10, 0)}) for step in range(n + 1))

    few = attack({"a": 2, "b": 1, "c": 0}, points=points(2))
    many = attack({"a": 0, "b": 3, "c": 6}, points=points(6), attack={"seed": 1})
    (case,) = cases(run_of(tmp_path, few, many))
    # 2 of 2 is as often as 6 of 6.
    assert [counts.tolist() for counts in case.attacks.values()] == [[6, 3, 0], [0, 3, 6]]
    assert case.mean.tolist() == [3, 3, 3]


def test_scores_go_with_the_attacks_on_their_model(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        scores(),
        scores(model_hash="another"),
        attack({"a": 0, "b": 3, "c": 1}),  # d never held
        attack({"a": 2, "b": 5}, attack={"seed": 1}),  # tracked fewer
        attack({"a": 1}, model_hash="third", model="sft-s6"),
        attack({}),
    )
    mine, other = cases(run)
    assert (mine.model, mine.seed, mine.ids) == ("sft-s5", 5, ("a", "b"))
    assert {k: v.tolist() for k, v in mine.attacks.items()} == {
        "t, 10% harmful rows, learning rate 1e-4, seed=0": [0, 3],
        "t, 10% harmful rows, learning rate 1e-4, seed=1": [2, 5],
    }
    assert mine.mean.tolist() == [1, 4]
    assert list(mine.scores) == ["n0"]
    assert mine.values(mine.scores["n0"]).tolist() == [1, 2]
    assert (other.model, dict(other.scores)) == ("sft-s6", {})


def test_what_the_judge_could_not_count_is_left_out_and_counted(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        attack({"a": 0, "b": 3}, unknown={"c": (0, 2)}),
        attack({"a": 2, "c": 1}, unknown={"b": (1, 2), "d": (0, 1)}, attack={"seed": 1}),
    )
    (mine,) = cases(run)
    assert (mine.ids, mine.unknown) == (("a",), 3)  # b, c, d


def test_an_example_without_a_score_is_unknown(tmp_path: Path) -> None:
    (mine,) = cases(run_of(tmp_path, scores(), attack({"c": 1, "x": 2})))
    assert np.isnan(mine.values(mine.scores["n0"])).all()


def test_attacks_that_read_alike_are_kept_apart(tmp_path: Path) -> None:
    run = run_of(tmp_path, attack({"a": 1}), attack({"a": 2}, attack={"steps": 50}))
    (mine,) = cases(run)
    name = "t, 10% harmful rows, learning rate 1e-4"
    assert list(mine.attacks) == [f"{name}, steps=100", f"{name}, steps=50"]
    run = run_of(tmp_path / "equal", attack({"a": 1}), attack({"a": 2}))
    (mine,) = cases(run)
    assert list(mine.attacks) == [f"{name} #1", f"{name} #2"]


def test_a_label_names_what_was_attacked_with() -> None:
    assert attack({}, attack={"lora_rank": 8, "seed": 2}).attack.label.endswith("-s2-r8")


def test_a_run_without_attacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holdfast attack"):
        cases(run_of(tmp_path, scores()))
