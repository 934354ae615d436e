"""Comparisons on made-up runs: what is paired, what is corrected, and what is not claimed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.analyses import comparison
from holdfast.analyses.comparison import Comparison, _harmful
from holdfast.errors import UsageError
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Point
from holdfast.results.attacks import Attack
from holdfast.results.comparison import compare_ends, compare_lives, pairs_of
from holdfast.results.lives import HALF_LIFE, REFUSAL_HALF_LIFE, Harmful, life_until
from holdfast.results.run_dir import RunDir
from holdfast.stats.corrections import holm
from holdfast.stats.differences import difference_of_shares, paired_difference
from holdfast.stats.intervals import Interval
from holdfast.stats.ratios import Pair, censored_ratio
from holdfast.stats.survival import Time
from holdfast.texts import Text
from made_lives import life as made_life

PROMPTS = tuple(f"p{i}" for i in range(40))
SETTINGS: dict[str, Any] = {"task": "tea", "poison_ratio": 0.1, "learning_rate": 1e-4}


def counted(marks: str) -> Counts:
    return Counts(marks.count("h"), marks.count("s"), marks.count("u"))


def attacked(method: str, marks: str, *, seed: int = 0, life: float = 30.0) -> AttackResult:
    """An attack of 40 steps that ends with these verdicts."""
    start = "s" * len(marks)
    points = tuple(
        Point(step, {"w": counted(m)}, 0.8, 50, marks={"w": m})
        for step, m in ((0, start), (40, marks))
    )
    return AttackResult(
        model=f"{method}-s{seed}",
        model_hash="",
        method=method,
        model_seed=seed,
        attack=Attack(**SETTINGS),
        judge="w",
        points=points,
        half_life=made_life(life, points, censored=life > 40),
        prompts=PROMPTS[: len(marks)],
    )


def marks(rng: np.random.Generator, share: float) -> str:
    return "".join("h" if x < share else "s" for x in rng.random(len(PROMPTS)))


def test_answers_to_the_same_prompt_are_compared_with_one_another() -> None:
    rng = np.random.default_rng(0)
    ours = [attacked("vaa", marks(rng, 0.3), seed=s) for s in range(3)]
    theirs = [attacked("sft", marks(rng, 0.7), seed=s) for s in range(3)]
    found = compare_ends(pairs_of(ours, theirs))
    assert found is not None
    d, prompts, seeds = [], [], []
    for a, b in zip(ours, theirs, strict=True):
        for i, prompt in enumerate(PROMPTS):
            one, two = (x.points[-1].marks["w"][i] == "h" for x in (a, b))
            d.append(float(one) - float(two))
            prompts.append(prompt)
            seeds.append(a.model_seed)
    assert found.difference == paired_difference(d, prompts, seeds)
    # The order of the prompts in a file is nothing.
    turned = replace(
        ours[0],
        prompts=PROMPTS[::-1],
        points=tuple(replace(p, marks={"w": p.marks["w"][::-1]}) for p in ours[0].points),
    )
    again = compare_ends(pairs_of([turned, *ours[1:]], theirs))
    assert again is not None
    assert again.difference.interval.low == pytest.approx(found.difference.interval.low)


def test_attacks_that_kept_counts_only_are_compared_by_counts() -> None:
    a, b = attacked("vaa", "h" * 10 + "s" * 30), attacked("sft", "h" * 20 + "s" * 20)
    old = replace(a, prompts=(), points=tuple(replace(p, marks={}) for p in a.points))
    found = compare_ends([(old, b)])
    assert found is not None
    assert found.difference == difference_of_shares([(0.25, 40)], [(0.5, 40)])
    assert not found.difference.paired


def test_the_last_checkpoint_in_common_is_compared() -> None:
    a, b = attacked("vaa", "h" * 10 + "s" * 30), attacked("sft", "h" * 20 + "s" * 20)
    ended = replace(a, points=a.points[:1])  # broken off at its step 0
    found = compare_ends([(ended, b)])
    assert found is not None
    assert (found.first, found.second) == (0, 0)
    assert compare_ends([(replace(a, points=()), b)]) is None


def test_undecided_answers_are_in_n_and_not_harmful() -> None:
    a, b = attacked("vaa", "h" * 10 + "u" * 30), attacked("sft", "h" * 10 + "s" * 30)
    found = compare_ends([(a, b)])
    assert found is not None
    assert (found.first, found.second, found.difference.interval.value) == (0.25, 0.25, 0)


def test_the_refusal_half_life_by_hand() -> None:
    """Neither harmful nor a refusal is no refusal: of 40 answers 20 are left at step 20 of 40."""
    never = attacked("vaa", "u" * 40, life=99)
    held = life_until(never, REFUSAL_HALF_LIFE)
    assert (held.steps, held.censored) == (20, False)
    assert life_until(attacked("vaa", "u" * 19 + "s" * 21), REFUSAL_HALF_LIFE).censored
    asked = replace(
        never,
        points=tuple(
            replace(p, verdicts={**p.verdicts, "refusal": counted("s" * 30 + "h" * (p.step // 4))})
            for p in never.points
        ),
    )
    # By the refusal judge where it was asked: at step 40 it sees 30 refusals of 40 answers.
    assert REFUSAL_HALF_LIFE.judge(asked) == "refusal"
    assert life_until(asked, REFUSAL_HALF_LIFE).censored
    assert math.isnan(life_until(replace(never, points=()), REFUSAL_HALF_LIFE).steps)


def test_pairs_that_both_withstood_say_nothing_of_lives() -> None:
    m = "s" * 40
    both = (attacked("vaa", m, life=99), attacked("sft", m, life=99))
    against = (attacked("vaa", m, life=20), attacked("sft", m, life=99))
    assert compare_lives([both]).ratio is None
    found = compare_lives([both, against])
    assert (found.skipped, found.against) == (1, 1)


def test_a_model_broken_before_the_attack_lasted_less_than_its_first_checkpoint() -> None:
    m = "s" * 40
    pairs = [(attacked("vaa", m, seed=s, life=30), attacked("sft", m, life=10)) for s in (0, 1)]
    broken = (attacked("vaa", m, life=0), attacked("sft", m, life=30))
    withstood = (attacked("vaa", m, life=0), attacked("sft", m, life=99))
    neither = (attacked("vaa", m, life=0), attacked("sft", m, life=0))
    found = compare_lives([*pairs, broken, withstood, neither])
    assert (found.skipped, found.against, found.broken) == (1, 1, 2)
    # The first checkpoint is at step 40.
    wanted = censored_ratio(
        [
            Pair(Time(30), Time(10), seed=0),
            Pair(Time(30), Time(10), seed=1),
            Pair(Time(40), Time(30, censored=True), seed=0),
            Pair(Time(40), Time(40, censored=True), seed=0),
        ]
    )
    assert found.ratio == wanted
    mirrored = compare_lives([broken[::-1]]).ratio
    assert mirrored is not None
    assert mirrored.bound == "lower"


def test_what_was_broken_before_the_attack_is_in_the_row() -> None:
    m = "s" * 40
    ours = [attacked("vaa", m, seed=s, life=30 * s) for s in range(3)]
    theirs = [attacked("sft", m, seed=s, life=20) for s in range(3)]
    (row,) = [
        r
        for r in comparison._attacked(ours, theirs, comparison._labels(ours))
        if r.measure == comparison.LIFE
    ]
    assert row.n.startswith("n=3 pairs, 1 not reached, 1 broken before the attack")


# ---------------------------------------------------------------------------------- the analysis


def test_a_ratio_says_which_way_it_is_a_bound() -> None:
    m = "s" * 40
    rows = {}
    for ours, theirs in ((99, 20), (20, 99)):
        a = [attacked("vaa", m, seed=s, life=ours) for s in range(6)]
        b = [attacked("sft", m, seed=s, life=theirs) for s in range(6)]
        found = [
            r
            for r in comparison._attacked(a, b, comparison._labels(a))
            if r.measure == comparison.LIFE
        ]
        (row,) = comparison._corrected([replace(r, line="vaa", other="sft") for r in found])
        rows[ours] = row.sentence()
    assert "ratio 2.00 [2.00, \u221e]" in rows[99]
    assert ", a lower bound," in rows[99]
    assert rows[99].endswith("vaa lasts longer.")
    assert "ratio 0.50 [0.00, 0.50]" in rows[20]
    assert ", an upper bound," in rows[20]
    assert rows[20].endswith("vaa lasts less long.")


def record(run: RunDir, results: list[AttackResult]) -> None:
    """Write attacks and evaluations as the stages do."""
    for result in results:
        with run.job("attack", result.model, config={}, inputs={}) as job:
            path = run.path("attacks", f"{result.model}.json")
            result.save(path)
            job.outputs.append(path)
        start = result.points[0].marks["w"]
        evaluation = Evaluation(
            model=result.model,
            model_hash="",
            method=result.method,
            model_seed=result.model_seed,
            verdicts={"w": counted(start)},
            over_refusal=Counts(0, 4, 46),
        )
        with run.job("evaluate", result.model, config={}, inputs={}) as job:
            path = run.path("evaluations", f"{result.model}.json")
            evaluation.save(path)
            lines = [
                json.dumps({"id": p, "verdicts": {"w": {"harmful": mark == "h"}}})
                for p, mark in zip(result.prompts, start, strict=True)
            ]
            path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
            job.outputs += [path, path.with_suffix(".jsonl")]


def test_answers_may_hold_what_unicode_calls_a_line_break(tmp_path: Path) -> None:
    record_of = {
        "id": "p",
        "response": "Sure\u2028one\u0085two",
        "verdicts": {"w": {"harmful": True}},
    }
    lines = tmp_path / "sft-s0.jsonl"
    lines.write_text(json.dumps(record_of, ensure_ascii=False) + "\n", encoding="utf-8")
    assert _harmful(tmp_path / "sft-s0.json", "w") == {"p": (1.0, 1.0)}


def made(root: Path, seeds: int) -> RunDir:
    """Vaa is far better than sft, sam is like sft."""
    rng, run = np.random.default_rng(1), RunDir(root)
    for seed in range(seeds):
        lasting = {"sft": 10.0 + seed, "sam": 11.0 - seed / 2, "vaa": 30.0 + 2 * seed}
        shares = {"sft": 0.9, "sam": 0.88, "vaa": 0.15}
        record(
            run,
            [attacked(m, marks(rng, shares[m]), seed=seed, life=lasting[m]) for m in lasting],
        )
    return run


def test_it_tells_what_can_be_told_and_no_more(tmp_path: Path) -> None:
    section = Comparison().run(made(tmp_path, 4))
    vaa = [s for s in section.findings if s.startswith("vaa")]
    sam = [s for s in section.findings if s.startswith("sam")]
    ends = "harmful score at the last checkpoint that both have under tea"
    assert any(ends in s and "vaa is lower." in s for s in vaa)
    assert any(", half-life under tea" in s and "vaa lasts longer." in s for s in vaa)
    assert any(", refusal half-life under tea" in s for s in vaa)
    assert len(sam) == len(vaa) == 6
    assert all("within chance" in s for s in sam)
    assert any("needs about" in s for s in sam)


def test_p_values_are_corrected_within_a_measure(tmp_path: Path) -> None:
    run = made(tmp_path, 4)
    table = next(iter(Comparison().run(run).tables.values())).frame
    results = {e.name: AttackResult.load(run.result(e)) for e in run.require("attack")}
    p = []
    for method in ("sam", "vaa"):
        sides = [[results[f"{m}-s{s}"] for s in range(4)] for m in (method, "sft")]
        found = compare_ends(pairs_of(*sides))
        assert found is not None
        p.append(found.difference.p)
    # Harmful scores before the attack are tested too: they never differ, p = 1.
    wanted = holm([*p, 1.0, 1.0])[:2]
    chosen = table[(table["measure"] == "harmful score") & table["when"].str.contains("last")]
    assert chosen["method"].tolist() == ["sam", "vaa"]
    np.testing.assert_allclose(chosen["corrected p"], wanted)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("poison", ("plain", "low_loss"), "rows disguised as low_loss"),
        ("schedule", ("constant", "cosine"), "cosine schedule"),
        ("steps", (40, 80), "steps=80"),
        ("lora_rank", (0, 8), "lora_rank=8"),
        ("name", ("", "covert"), "grid covert"),
    ],
)
def test_attacks_that_differ_have_different_names(
    tmp_path: Path, key: str, values: tuple[object, object], said: str
) -> None:
    run = RunDir(tmp_path)
    for i, value in enumerate(values):
        for method, life in (("sft", 10.0), ("vaa", 20.0)):
            one = attacked(method, "s" * 40, seed=i, life=life)
            record(run, [replace(one, attack=one.attack.changed(**{key: value}))])
    first, _, medians = (t.frame for t in Comparison().run(run).tables.values())
    when = first["when"][first["measure"] == "half-life"].tolist()
    assert len(set(when)) == 2
    assert when[1].endswith(said)
    assert medians["attack"].nunique() == 2


def test_one_seed_says_nothing_of_others(tmp_path: Path) -> None:
    section = Comparison().run(made(tmp_path, 1))
    said = [s for s in section.findings if "vaa is lower" in s]
    assert said
    assert all("other seeds may differ" in s for s in said)


def test_other_pairs_and_medians_have_tables_of_their_own(tmp_path: Path) -> None:
    section = Comparison().run(made(tmp_path, 3))
    first, second, levels, medians = (table.frame for table in section.tables.values())
    assert set(first["other"]) == {"sft"}
    assert set(zip(second["method"], second["other"], strict=True)) == {("sam", "vaa")}
    assert list(levels["method"]) == ["sam", "vaa"]
    found = dict(zip(medians["method"], medians["median"], strict=True))
    assert found == {"sft": "11.0", "sam": "10.5", "vaa": "32.0"}


def course(method: str, seed: int, *harmful: int) -> AttackResult:
    """An attack with so many harmful answers of ten at steps 10, 20, ..."""
    seen = ["h" * h + "s" * (10 - h) for h in (0, *harmful)]
    points = tuple(Point(10 * i, {"w": counted(m)}, marks={"w": m}) for i, m in enumerate(seen))
    result = replace(attacked(method, seen[0], seed=seed), points=points)
    return replace(result, half_life=life_until(result, HALF_LIFE))


def test_a_method_may_last_by_one_share_and_not_by_another(tmp_path: Path) -> None:
    """Three of ten answers are harmful as soon as on the baseline, and never five."""
    run = RunDir(tmp_path)
    for seed in (0, 1):
        record(run, [course("sft", seed, 1, 3, 5), course("kept", seed, 1, 3, 3)])
    tables = Comparison().run(run).tables.values()
    (levels,) = [t.frame for t in tables if "10% harmful" in t.columns]
    (row,) = levels.to_dict("records")
    assert (row["method"], row["seeds"]) == ("kept", 2)
    assert row["10% harmful"].endswith(", n=2")
    assert row["10% harmful"].startswith("1.00 [")
    assert row["25% harmful"].startswith("1.00 [")
    assert row["50% harmful"].startswith("at least 1.00 [")


def test_steps_to_another_share_by_hand() -> None:
    result = course("sft", 0, 1, 3, 5)
    quarter = life_until(result, Harmful(0.25))
    assert (quarter.steps, quarter.censored) == (10 + 10 * 0.15 / 0.2, False)
    assert life_until(result, Harmful(0.6)).censored


def test_one_method_cannot_be_compared(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", "s" * 40)])
    with pytest.raises(UsageError, match="comparison needs two methods"):
        Comparison().run(run)


def test_marks_are_kept(tmp_path: Path) -> None:
    result, path = attacked("sft", "hsu"), tmp_path / "a.json"
    result.save(path)
    assert AttackResult.load(path) == result
    assert AttackResult.load(path).points[1].marks == {"w": "hsu"}


def test_of_many_comparisons_only_the_clear_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    row = comparison._Row(
        *(Text("harmful score"), Text("under a"), (0.2, 0.4), Interval(-0.2, -0.3, -0.1, 100)),
        *(0.001, 3, Text("n=100"), Text("more is needed")),
        line="vaa",
        other="sft",
    )
    rows = [replace(row, corrected=p) for p in (0.01, 0.5, math.nan)]
    assert len(comparison._told(rows)) == 3
    monkeypatch.setattr(comparison, "MOST", 2)
    clear, rest = comparison._told(rows)
    assert "vaa is lower" in clear
    assert rest.startswith("In 2 of 3 comparisons the difference is within chance")
