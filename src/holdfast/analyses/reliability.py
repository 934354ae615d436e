"""How far can the estimators be trusted on the models of this run?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from holdfast.charts.figures import Axis, Bar, BarChart
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Validation
from holdfast.texts import Text, number


class Reliability(Analysis):
    """Reports what `holdfast validate-estimator` found: agreement, stability, categories, sizes."""

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
            title=Text("How far can the estimators be trusted?"),
            findings=tuple(words for v in found for words in _findings(v)),
            tables={
                caption: _table(found, part, keys)
                for caption, part, keys in (
                    (
                        Text("By estimator, option and seed"),
                        "rows",
                        ("estimator", "variant", "seed"),
                    ),
                    (Text("By category"), "categories", ("estimator", "category")),
                    (Text("With fewer examples"), "sizes", ("estimator", "examples")),
                )
                if any(getattr(v, part) for v in found)
            },
            figures={
                Text("AUROC with 95% intervals"): BarChart(
                    title=Text("AUROC by estimator and option"),
                    x=Axis(title=Text("AUROC (0.5 is chance)"), ends=(0.0, 1.0), mark=0.5),
                    bars=tuple(bars),
                )
            }
            if bars
            else {},
            note=Text(
                "The ground truth is the mean ForgotNum over the attacks on each model; none of "
                "these attacks was used for a score. The ceiling is how well the mean of the "
                "other attacks predicts each attack. Intervals are bootstraps over prompts. "
                "Categories and samples of fewer than 20 examples are left out."
            ),
        )


def _name(row: Mapping[str, Any], validation: Validation, several: bool) -> Text:
    words = " ".join(
        filter(None, [row["estimator"], row["variant"], validation.model if several else ""])
    )
    return Text("{estimator}, seed {seed:d}", estimator=words, seed=row["seed"])


def _findings(validation: Validation) -> list[Text]:
    model, attacks = validation.model, len(validation.attacks)
    found = []
    for name, stability in validation.stability.items():
        row = next(r for r in validation.rows if r["estimator"] == name and not r["variant"])
        found.append(
            Text(
                "On {model}, {estimator} agrees with the mean of {attacks:d} attacks at AUROC "
                "{auroc}, AUPRC {auprc} (chance: {chance:.2f}) and Spearman {spearman} (n={n:d}); "
                "{stable}.",
                model=model,
                estimator=name,
                attacks=attacks,
                auroc=_interval(row, "auroc"),
                auprc=_interval(row, "auprc"),
                chance=_known(row["base_rate"]),
                spearman=_interval(row, "spearman"),
                n=row["n"],
                stable=_stable(stability),
            )
        )
        found.append(
            Text(
                "On {model}, {estimator} exceeds the free margin by an AUROC of {gain} (n={n:d}).",
                model=model,
                estimator=name,
                gain=_interval(row, "gain"),
                n=row["n"],
            )
        )
    if validation.unknown:
        found.append(
            Text(
                "On {model}, n={n:d} examples are left out because their count is unknown: the "
                "judge left too many of their answers undecided.",
                model=model,
                n=validation.unknown,
            )
        )
    return found


def _stable(stability: float | None) -> Text:
    if stability is None:
        return Text("whether its seeds agree is unknown")
    return Text("between seeds its ranks correlate at {value:.2f}", value=stability)


def _interval(row: Mapping[str, Any], key: str) -> Text:
    ends = {"value": row[key], "low": row[f"{key}_low"], "high": row[f"{key}_high"]}
    return Text(
        "{value} [{low}, {high}]", **{name: number(_known(end)) for name, end in ends.items()}
    )


def _known(value: float | None) -> float:
    return math.nan if value is None else value


HEADS: Mapping[str, str] = {
    "estimator": Text("estimator"),
    "variant": Text("option"),
    "seed": Text("seed"),
    "category": Text("category"),
    "examples": Text("examples"),
    "auroc": "AUROC",
    "auroc_low": Text("AUROC, low"),
    "auroc_high": Text("AUROC, high"),
    "auprc": "AUPRC",
    "auprc_low": Text("AUPRC, low"),
    "auprc_high": Text("AUPRC, high"),
    "base_rate": Text("chance"),
    "spearman": "Spearman",
    "n": "n",
    "seconds": Text("seconds"),
}
"""Field of a validation -> column head."""


def _table(found: Sequence[Validation], part: str, keys: tuple[str, ...]) -> SectionTable:
    areas = (name + end for name in ("auroc", "auprc") for end in ("", "_low", "_high"))
    columns = (*keys, *areas, "base_rate", "spearman", "n", "seconds")
    return SectionTable.of(
        {Text("model"): v.model, **{HEADS[c]: row[c] for c in columns if c in row}}
        for v in found
        for row in getattr(v, part)
    )
