"""Did the scores foresee which examples the attacks made the model forget?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd

from holdfast.charts.charts import Bar, bar_chart
from holdfast.contracts import Analysis, Section
from holdfast.errors import UsageError
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Case, cases, prompts_of
from holdfast.stats.agreement import Agreement, agreement, ceilings, mean_over_models
from holdfast.stats.intervals import Interval

CEILING = "another attack (ceiling)"


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
        unit = "examples, as no scores are of all rows," if None in prompts else "prompts"
        summary, bars, findings = [], [], []
        for name, rows in table.groupby("estimator", sort=False):
            area = mean_over_models(rows["_auroc"].tolist(), least=0.0)
            rank = mean_over_models(rows["_spearman"].tolist(), least=-1.0)
            summary.append(
                {
                    "estimator": name,
                    "AUROC": area.value,
                    "low": area.low,
                    "high": area.high,
                    "Spearman": rank.value,
                    "seconds": rows["seconds"].mean(),
                    "models": rows["model"].nunique(),
                }
            )
            if not np.isnan(area.value):
                bars.append(Bar(str(name), area.value, area.low, area.high))
            if name != CEILING:
                findings.append(
                    f"{name} foresaw the first half to be forgotten with AUROC {_written(area)}, "
                    f"n={rows['n'].max()} examples, {_models(rows['model'].nunique())} (0.5 is "
                    "chance)."
                )
        findings += [
            f"Of {case.model}, n={case.unknown} examples are left out, their count unknown: the "
            "judge could not decide enough of their answers."
            for case in scored
            if case.unknown
        ]
        return Section(
            title="Were the forgotten examples foreseen?",
            findings=tuple(findings),
            tables={
                "Agreement with the attacks' ForgotNum": pd.DataFrame(summary).round(3),
                "Model by model": table.drop(columns=["_auroc", "_spearman"]).round(3),
            },
            figures={
                "AUROC with 95 % intervals": bar_chart(
                    bars, title="AUROC of each estimator", x_label="AUROC (0.5 is chance)"
                )
            }
            if bars
            else {},
            note=(
                "An attack's own ForgotNum is noisy: another attack's count predicts it with less "
                "than certainty, which is the ceiling for any score. The interval is a bootstrap "
                f"over {unit} when there is one model, otherwise a t interval over models."
            ),
        )


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


def _written(found: Interval) -> str:
    """Return value and interval; one model of several that could be compared has no interval."""
    value, low, high = (
        "unknown" if np.isnan(x) else f"{x:.2f}" for x in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


def _models(number: int) -> str:
    return f"{number} model{'' if number == 1 else 's'}"
