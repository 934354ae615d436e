"""Draw the committed results for the documentation: python benchmarks/figures.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from defenses import attack_label
from holdfast.artifacts import AttackResult, write_text
from holdfast.charts import Bar, Dot, Series, bar_chart, line_chart, scatter
from holdfast.svg import ChartOptions
from kept import Kept

RESULTS = Path(__file__).parent / "results"
FIGURES = RESULTS.parents[1] / "docs" / "figures"
NAMED = (
    *("free_margin", "forget_count", "loss_drift", "weight_noise", "gradient_norm", "ensemble"),
    *("first_flips-base", "first_flips-base-4draws"),
)
"""Estimators that are named in the figure; variants and ablations are dots only."""
DRAWN = ("sft", "hold", "vaa", "repnoise", "tar")
"""Methods whose attacks are drawn, the baseline first; the rest run along with it."""


def agreement_against_cost(result: dict[str, Any]) -> str:
    """Return a scatter plot: AUROC with its interval over the share of ForgotNum's time."""
    dots = [
        Dot(
            math.log10(row["processor_seconds"] / row["reference_processor_seconds"]),
            row["auroc"],
            row["estimator"] if row["estimator"] in NAMED else "",
            row["auroc_low"],
            row["auroc_high"],
            1 if row["estimator"] in NAMED else 0,
        )
        for row in result["rows"]
        if row["processor_seconds"] and row["auroc"] is not None
    ]
    return scatter(
        dots,
        title="Agreement with held-out attacks against cost",
        x_label="log10 of the share of ForgotNum's time (-1: a tenth)",
        y_label="AUROC, first half to be forgotten (0.5 is chance)",
        options=ChartOptions(width=640, height=320, mark=0.5, y_range=(0.2, 1.0)),
    )


def half_lives(result: dict[str, Any]) -> str:
    """Return how many times longer than plain fine-tuning each method lasts, over all attacks."""
    rows = [r for r in result["rows"] if r["attack"] == "all" and r["half_life_ratio"] is not None]
    rows.sort(key=lambda row: -row["half_life_ratio"])
    return bar_chart(
        [
            Bar(
                row["method"],
                row["half_life_ratio"],
                low=_end(row, "half_life_ratio_low"),
                high=_end(row, "half_life_ratio_high"),
                open_end=row.get("half_life_ratio_bound") == "lower",
                colour=1 if row["method"].startswith("hold") else 0,
            )
            for row in rows
        ],
        title="How long alignment lasts under attack, against plain fine-tuning",
        x_label="half-life against plain fine-tuning (1: as long)",
        options=ChartOptions(width=640, mark=1.0),
    )


def _end(row: dict[str, Any], key: str) -> float:
    return math.nan if row[key] is None else float(row[key])


def courses(kept: Kept) -> str:
    """Return the harmful score over the steps of the first attack with poison, seeds averaged."""
    label = next(attack_label(a) for a in kept.attacks if a.attack["poison_ratio"] > 0)
    chosen = [a for a in kept.attacks if attack_label(a) == label]
    lines = []
    for colour, method in enumerate(DRAWN):
        mine = [a for a in chosen if a.method == method]
        if not mine:
            continue
        shared = set.intersection(*({p.step for p in a.points} for a in mine))
        steps = sorted(step for step in shared if step)
        scores = [[_score(a, step) for a in mine] for step in steps]
        named = {"low": [min(s) for s in scores], "high": [max(s) for s in scores]}
        mean = [sum(s) / len(s) for s in scores]
        lines.append(Series(method, steps, mean, **named, colour=colour))
    return line_chart(
        lines,
        title=f"Harmful score in the course of an attack: {label}",
        x_label="attack steps, as far as every seed's attack went",
        y_label="harmful score",
        options=ChartOptions(width=640, height=320, mark=0.5, y_range=(0.0, 1.0)),
    )


def _score(attack: AttackResult, step: int) -> float:
    point = next(p for p in attack.points if p.step == step)
    return point.verdicts[attack.judge].harmful_score


def main() -> None:
    """Write the figures of every results file that has some."""
    for path in sorted(RESULTS.glob("defenses-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        write_text(FIGURES / f"{path.stem}.svg", half_lives(result))
        if (attacks := path.with_suffix(".jsonl")).is_file():
            write_text(FIGURES / f"{path.stem}-courses.svg", courses(Kept.load(attacks)))
    for name in ("world", "text"):
        result = json.loads((RESULTS / f"estimators-{name}.json").read_text(encoding="utf-8"))
        write_text(FIGURES / f"estimators-{name}.svg", agreement_against_cost(result))


if __name__ == "__main__":
    main()
