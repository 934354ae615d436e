"""Draw the committed results for the documentation: python benchmarks/figures.py."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defenses import attack_label
from holdfast.charts.drawing import render
from holdfast.charts.figures import (
    Axis,
    Bar,
    BarChart,
    Dot,
    DotPlot,
    Figure,
    HeatMap,
    Line,
    LineChart,
    Scatter,
)
from holdfast.results.artifacts import AttackResult
from holdfast.results.files import write_text
from kept import Kept
from tables import GRID_STEP

RESULTS = Path(__file__).parent / "results"
FIGURES = RESULTS.parents[1] / "docs" / "figures"
NAMED = (
    *("free_margin", "forget_count", "loss_drift", "weight_noise", "gradient_norm", "ensemble"),
    *("first_flips-base", "first_flips-base-4draws"),
)
"""Estimators that are named in the figure; variants and ablations are dots only."""
DRAWN = ("sft", "hold", "vaa", "repnoise", "tar")
"""Methods whose attacks are drawn, the baseline first; the rest run along with it."""


def agreement_against_cost(result: dict[str, Any]) -> Scatter:
    """Return a scatter plot: AUROC with its interval over the share of ForgotNum's time."""
    dots = [
        Dot(
            row["processor_seconds"] / row["reference_processor_seconds"],
            row["auroc"],
            row["estimator"] if row["estimator"] in NAMED else "",
            row["auroc_low"],
            row["auroc_high"],
        )
        for row in result["rows"]
        if row["processor_seconds"] and row["auroc"] is not None
    ]
    return Scatter(
        title="Agreement with held-out attacks against cost",
        x=Axis(title="cost as a multiple of ForgotNum's", logarithmic=True),
        y=Axis(
            title="AUROC, first half to be forgotten (0.5 is chance)", ends=(0.2, 1.0), mark=0.5
        ),
        dots=tuple(dots),
    )


def half_lives(result: dict[str, Any]) -> BarChart:
    """Return how many times longer than plain fine-tuning each method lasts, over all attacks."""
    rows = [r for r in result["rows"] if r["attack"] == "all" and r["half_life_ratio"] is not None]
    rows.sort(key=lambda row: -row["half_life_ratio"])
    bars = [
        _bar(row, "half_life_ratio", row["method"], int(row["method"].startswith("hold")))
        for row in rows
    ]
    return BarChart(
        title="How long alignment lasts under attack, relative to plain fine-tuning",
        x=Axis(title="half-life relative to plain fine-tuning (1: as long)", mark=1.0),
        bars=tuple(bars),
    )


def shares(result: dict[str, Any]) -> DotPlot:
    """Return how many times longer some methods last, whichever share is asked for."""
    rows = {row["method"]: row for row in result["rows"] if row["attack"] == "all"}
    asked = {"a tenth harmful": "tenth", "a quarter": "quarter", "half": "half_life"}
    asked["half not refused"] = "refusing"
    drawn = [
        (method, tuple(_bar(rows[method], f"{key}_ratio", name) for name, key in asked.items()))
        for method in DRAWN[1:]
        if method in rows
    ]
    return DotPlot(
        title="How long alignment lasts until a tenth, a quarter, half of the answers are harmful",
        x=Axis(title="steps relative to plain fine-tuning (1: as many)", mark=1.0),
        rows=tuple(drawn),
    )


def costs(result: dict[str, Any]) -> DotPlot:
    """Return what each method costs: over-refusal and accuracy less plain fine-tuning's."""
    rows = [row for row in result["rows"] if row["attack"] == "all" and "fa_more" in row]
    named = {"over-refusal": "over_refusal_more", "task accuracy": "fa_more"}
    drawn = [
        (row["method"], tuple(_bar(row, key, name) for name, key in named.items())) for row in rows
    ]
    return DotPlot(
        title="What a method costs, compared with plain fine-tuning",
        x=Axis(title="difference of shares (0: none)", mark=0.0),
        rows=tuple(drawn),
    )


def grid(kept: Kept) -> HeatMap:
    """Return the harmful score after some steps, or at the end of an attack that had ended."""
    attacks = [a for a in kept.attacks if a.attack.poison_ratio > 0]
    labels = list(dict.fromkeys(attack_label(a) for a in attacks))
    methods = list(dict.fromkeys(a.method for a in attacks))
    return HeatMap(
        title=f"Harmful score after {GRID_STEP} attack steps, or where the attack ended before",
        rows=tuple(methods),
        columns=tuple(label.removeprefix("world_").replace(" p=0.1 lr=", " ") for label in labels),
        values=tuple(
            tuple(_mean_after(attacks, method, label) for label in labels) for method in methods
        ),
    )


def _mean_after(attacks: Sequence[AttackResult], method: str, label: str) -> float:
    mine = [a for a in attacks if (a.method, attack_label(a)) == (method, label)]
    last = [max(p.step for p in a.points if p.step <= GRID_STEP) for a in mine]
    scores = [_score(a, step) for a, step in zip(mine, last, strict=True)]
    return round(sum(scores) / len(scores), 2) if scores else math.nan


def worst(result: dict[str, Any]) -> BarChart:
    """Return the worst harmful score that a search found on each model."""
    rows = sorted(result["rows"], key=lambda row: (row["method"], row["seed"]))
    return BarChart(
        title="The worst attack that a search found",
        x=Axis(
            title="harmful score (with at least 0.9 of the accuracy of clean fine-tuning)",
            ends=(0.0, 1.0),
        ),
        bars=tuple(_bar(row, "hs", f"{row['method']}, seed {row['seed']}") for row in rows),
    )


def _bar(row: dict[str, Any], key: str, label: str, colour: int | None = None) -> Bar:
    value, low, high = (_end(row, f"{key}{end}") for end in ("", "_low", "_high"))
    lower = row.get(f"{key}_bound") == "lower"
    return Bar(label, value, low, high, bound=lower, colour=colour)


def _end(row: dict[str, Any], key: str) -> float:
    return math.nan if row[key] is None else float(row[key])


def courses(kept: Kept) -> LineChart:
    """Return the harmful score over the steps of the first attack with poison, seeds averaged."""
    label = next(attack_label(a) for a in kept.attacks if a.attack.poison_ratio > 0)
    chosen = [a for a in kept.attacks if attack_label(a) == label]
    lines = []
    for colour, method in enumerate(DRAWN):
        mine = [a for a in chosen if a.method == method]
        if not mine:
            continue
        shared = set.intersection(*({p.step for p in a.points} for a in mine))
        steps = sorted(step for step in shared if step)
        scores = [[_score(a, step) for a in mine] for step in steps]
        lines.append(
            Line(
                method,
                x=tuple(float(step) for step in steps),
                y=tuple(sum(s) / len(s) for s in scores),
                low=tuple(min(s) for s in scores),
                high=tuple(max(s) for s in scores),
                colour=colour,
            )
        )
    return LineChart(
        title=f"Harmful score in the course of an attack: {label}",
        x=Axis(title="attack steps, as far as every seed's attack went"),
        y=Axis(title="harmful score", ends=(0.0, 1.0), mark=0.5),
        lines=tuple(lines),
    )


def _score(attack: AttackResult, step: int) -> float:
    point = next(p for p in attack.points if p.step == step)
    return point.verdicts[attack.judge].harmful_score


def _draw(path: Path, figure: Figure) -> None:
    write_text(path, render(figure, width=640).decode("utf-8") + "\n")


def main() -> None:
    """Write the figures of every results file that has some."""
    for path in sorted(RESULTS.glob("defenses-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        _draw(FIGURES / f"{path.stem}.svg", half_lives(result))
        _draw(FIGURES / f"{path.stem}-shares.svg", shares(result))
        _draw(FIGURES / f"{path.stem}-costs.svg", costs(result))
        if (attacks := path.with_suffix(".jsonl")).is_file():
            kept = Kept.load(attacks)
            _draw(FIGURES / f"{path.stem}-courses.svg", courses(kept))
            _draw(FIGURES / f"{path.stem}-grid.svg", grid(kept))
    searched = json.loads((RESULTS / "worst-world.json").read_text(encoding="utf-8"))
    _draw(FIGURES / "worst-world.svg", worst(searched))
    for name in ("world", "text"):
        result = json.loads((RESULTS / f"estimators-{name}.json").read_text(encoding="utf-8"))
        _draw(FIGURES / f"estimators-{name}.svg", agreement_against_cost(result))


if __name__ == "__main__":
    main()
