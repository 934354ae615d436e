"""Draw the committed results for the documentation: python benchmarks/figures.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from holdfast.artifacts import write_text
from holdfast.charts import Dot, scatter
from holdfast.svg import ChartOptions

RESULTS = Path(__file__).parent / "results"
FIGURES = RESULTS.parents[1] / "docs" / "figures"
NAMED = (
    *("free_margin", "forget_count", "loss_drift", "weight_noise", "gradient_norm", "ensemble"),
    *("first_flips-base", "first_flips-base-4draws"),
)
"""Estimators that are named in the figure; variants and ablations are dots only."""


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


def main() -> None:
    """Write a figure for every results file that has one."""
    for path in sorted(RESULTS.glob("estimators-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        write_text(FIGURES / f"{path.stem}.svg", agreement_against_cost(result))


if __name__ == "__main__":
    main()
