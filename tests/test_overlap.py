"""The paper's CommonForgotRatio by hand, where not every count is known."""

from __future__ import annotations

import math
from pathlib import Path

from holdfast.analyses.overlap import Overlap
from holdfast.results.artifacts import AttackResult, Counts, Point
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from made_lives import life


def attacked(
    task: str, tracked: dict[str, int], unknown: dict[str, tuple[int, int]]
) -> AttackResult:
    return AttackResult(
        model="sft-s0",
        model_hash="h",
        method="sft",
        model_seed=0,
        attack=Attack(task=task),
        judge="world",
        points=(Point(0, {"world": Counts(0, 10, 0)}),),
        half_life=life(math.nan, censored=True),
        tracked=tracked,
        unknown=unknown,
    )


def test_what_is_unknown_under_one_attack_is_not_taken_for_kept(tmp_path: Path) -> None:
    """Of a, b, c known under both, a is forgotten under both and b under one: one of one."""
    one = attacked("tea", {"a": 3, "b": 2, "c": 0, "d": 1}, {})
    two = attacked("mail", {"a": 1, "b": 0, "c": 0, "e": 2}, {"d": (0, 2)})
    run = RunDir(tmp_path)
    for i, result in enumerate((one, two)):
        with run.job("attack", f"a{i}", config={}, inputs={}) as job:
            result.save(run.path("attacks", f"{i}.json"))
            job.outputs.append(run.path("attacks", f"{i}.json"))
    (said,) = [s for s in Overlap().run(run).findings if "CommonForgotRatio" in s]
    assert "1.00 [" in said
    assert "n=1 examples of the smallest forgotten set, out of 3 whose count is known" in said
