"""Did the scores foresee which examples the attacks made the model forget?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd

from holdfast.charts.figures import Axis, Bar, BarChart, Figure
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.errors import UsageError
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Case, cases, prompts_of
from holdfast.stats.agreement import Agreement, agreement, ceilings, mean_over_models
from holdfast.stats.intervals import Interval
from holdfast.texts import Text, number

CEILING = Text("another attack (ceiling)")


class Foresight(Analysis):
    """Compares every estimator's scores with the ForgotNum of attacks it has not seen.

    An attack counts for a score only if it was made on the very model that was scored and tracked
    the scored rows. The label is the mean ForgotNum over a model's attacks, which has less noise
    than one attack's; how well the other attacks foresee one is the ceiling for any score.
    Spearman is against the count, AUROC for being among the first half to be forgotten.
    """

    needs: ClassVar[tuple[str, ...]] = ("score", "attack")

    def run(self, run: RunDir) -> Section:
        """Return one line per estimator, averaged over models."""
        scored = [case for case in cases(run) if case.scores]
        if not scored:
            raise UsageError(
                f"{run.root}: no attack tracked the rows of a model that was scored; run "
                "`holdfast attack --track DATA` on the scored model"
            )
        prompts = [prompts_of(run, case) for case in scored]
        pairs = zip(scored, prompts, strict=True)
        table = pd.DataFrame([row for case, units in pairs for row in _rows(case, units)])
        unit = (
            Text("examples, because no scores cover all rows")
            if None in prompts
            else Text("prompts")
        )
        summary, bars, findings = [], [], []
        for name, rows in table.groupby("estimator", sort=False):
            area = mean_over_models(rows["_auroc"].tolist(), least=0.0)
            rank = mean_over_models(rows["_spearman"].tolist(), least=-1.0)
            summary.append(
                {
                    Text("estimator"): CEILING if name == CEILING else name,
                    "AUROC": area.value,
                    Text("low"): area.low,
                    Text("high"): area.high,
                    "Spearman": rank.value,
                    Text("seconds"): rows["seconds"].mean(),
                    Text("models"): rows["model"].nunique(),
                }
            )
            if not np.isnan(area.value):
                label = CEILING if name == CEILING else str(name)
                bars.append(Bar(label, area.value, area.low, area.high))
            if name != CEILING:
                findings.append(
                    Text(
                        "{estimator} predicted the first half to be forgotten with an AUROC of "
                        "{area} (n={n:d} examples, {models}; 0.5 is chance).",
                        estimator=str(name),
                        area=_written(area),
                        n=int(rows["n"].max()),
                        models=_models(rows["model"].nunique()),
                    )
                )
        findings += [
            Text(
                "On {model}, n={n:d} examples are left out because their count is unknown: the "
                "judge left too many of their answers undecided.",
                model=case.model,
                n=case.unknown,
            )
            for case in scored
            if case.unknown
        ]
        return Section(
            title=Text("Did the scores predict which examples are forgotten?"),
            findings=tuple(findings),
            tables={
                Text("Agreement with the attacks' ForgotNum"): SectionTable.of(summary),
                Text("Model by model"): _by_model(table),
            },
            figures=_figures(bars),
            note=Text(
                "An attack's own ForgotNum is noisy: even another attack's count predicts it only "
                "in part, and that is the ceiling for any score. With one model the interval is a "
                "bootstrap over {unit}, otherwise a t interval over models.",
                unit=unit,
            ),
        )


def _figures(bars: list[Bar]) -> dict[str, Figure]:
    if not bars:
        return {}
    chart = BarChart(
        title=Text("AUROC of each estimator"),
        x=Axis(title=Text("AUROC (0.5 is chance)"), ends=(0.0, 1.0), mark=0.5),
        bars=tuple(bars),
    )
    return {Text("AUROC with 95% intervals"): chart}


def _by_model(table: pd.DataFrame) -> SectionTable:
    heads = {
        "estimator": Text("estimator"),
        "model": Text("model"),
        "attacks": Text("attacks"),
        "auroc": "AUROC",
        "spearman": "Spearman",
        "first half": Text("first half"),
        "forgotten": Text("forgotten"),
        "n": "n",
        "seconds": Text("seconds"),
    }
    records = table.to_dict("records")
    for record in records:
        if record["estimator"] == CEILING:
            record["estimator"] = CEILING
    return SectionTable.of({head: record[key] for key, head in heads.items()} for record in records)


def _rows(case: Case, units: list[str] | None) -> list[dict[str, object]]:
    mean = case.mean
    found = [
        _row(case, name, agreement(case.values(scores), mean, units=units), scores)
        for name, scores in case.by_estimator.items()
    ]
    if len(case.attacks) > 1:
        ceiling = ceilings(list(case.attacks.values()), units=units)
        found += [_row(case, CEILING, one) for one in ceiling]
    return found


def _row(
    case: Case, name: str, found: Agreement, scores: Scores | None = None
) -> dict[str, object]:
    return {
        "estimator": name,
        "model": case.model,
        "attacks": len(case.attacks),
        "auroc": found.auroc.value,
        "spearman": found.spearman.value,
        "first half": found.base_rate,
        "forgotten": float((case.mean > 0).mean()) if len(case.ids) else np.nan,
        "n": found.n,
        "seconds": np.nan if scores is None else scores.facts.get("seconds", np.nan),
        "_auroc": found.auroc,
        "_spearman": found.spearman,
    }


def _written(found: Interval) -> Text:
    """Return value and interval; one model of several that could be compared has no interval."""
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return Text("{value} [{low}, {high}]", **{key: number(end) for key, end in ends.items()})


def _models(count: int) -> Text:
    return Text("1 model") if count == 1 else Text("{n:d} models", n=count)
