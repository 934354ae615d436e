"""How far can the estimators be trusted on the models of this run?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pandas as pd

from holdfast.charts.charts import Bar, bar_chart
from holdfast.contracts import Analysis, Section
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Validation


class Reliability(Analysis):
    """Tells what `holdfast validate-estimator` found: agreement, stability, categories, sizes."""

    needs: ClassVar[tuple[str, ...]] = ("validate-estimator",)

    def run(self, run: RunDir) -> Section:
        """Return the findings of every validation of the run."""
        found = [Validation.load(run.result(e)) for e in run.require("validate-estimator")]
        bars = [
            Bar(_name(row, v, len(found) > 1), row["auroc"], row["auroc_low"], row["auroc_high"])
            for v in found
            for row in v.rows
            if row["auroc"] is not None
        ]
        return Section(
            title="How far can the estimators be trusted?",
            findings=tuple(words for v in found for words in _findings(v)),
            tables={
                caption: _table(found, part, keys)
                for caption, part, keys in (
                    ("By estimator, option and seed", "rows", ("estimator", "variant", "seed")),
                    ("By category", "categories", ("estimator", "category")),
                    ("With fewer examples", "sizes", ("estimator", "examples")),
                )
                if any(getattr(v, part) for v in found)
            },
            figures={
                "AUROC with 95 % intervals": bar_chart(
                    bars, title="AUROC by estimator and option", x_label="AUROC (0.5 is chance)"
                )
            }
            if bars
            else {},
            note=(
                "The truth is the mean ForgotNum over the attacks on each model, none of which "
                "made a score. The ceiling is how well the other attacks' mean foresees each "
                "attack. Intervals are bootstraps over prompts. A category or a sample of fewer "
                "than 20 examples is left out."
            ),
        )


def _name(row: Mapping[str, Any], validation: Validation, several: bool) -> str:
    words = [row["estimator"], row["variant"], f"seed {row['seed']}"]
    return " ".join(filter(None, [*words, validation.model if several else ""]))


def _findings(validation: Validation) -> list[str]:
    model, attacks = validation.model, len(validation.attacks)
    found = []
    for name, stability in validation.stability.items():
        row = next(r for r in validation.rows if r["estimator"] == name and not r["variant"])
        found.append(
            f"On {model}, {name} agrees with the mean of {attacks} attacks at AUROC "
            f"{_interval(row, 'auroc')}, AUPRC {_interval(row, 'auprc')} (chance has "
            f"{_number(row['base_rate'])}) and Spearman {_interval(row, 'spearman')}, "
            f"n={row['n']}; {_stable(stability)}."
        )
        found.append(
            f"On {model}, {name} is above the free margin by {_interval(row, 'gain')} AUROC, "
            f"n={row['n']}."
        )
    if validation.unknown:
        found.append(
            f"Of {model}, n={validation.unknown} examples are left out, their count unknown: the "
            "judge could not decide enough of their answers."
        )
    return found


def _stable(stability: float | None) -> str:
    if stability is None:
        return "whether its seeds agree is unknown"
    return f"between its seeds its ranks correlate at {stability:.2f}"


def _interval(row: Mapping[str, Any], key: str) -> str:
    ends = f"[{_number(row[f'{key}_low'])}, {_number(row[f'{key}_high'])}]"
    return f"{_number(row[key])} {ends}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _table(found: Sequence[Validation], part: str, keys: tuple[str, ...]) -> pd.DataFrame:
    areas = (name + end for name in ("auroc", "auprc") for end in ("", "_low", "_high"))
    columns = (*keys, *areas, "base_rate", "spearman", "n", "seconds")
    rows = [
        {"model": v.model, **{c: row[c] for c in columns if c in row}}
        for v in found
        for row in getattr(v, part)
    ]
    return pd.DataFrame(rows).round(3)
