"""Did the scores foresee which examples the attacks made the model forget?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from holdfast.agreement import first_half
from holdfast.artifacts import AttackResult, RunDir, Scores
from holdfast.charts import Bar, bar_chart
from holdfast.contracts import Analysis, Section
from holdfast.errors import UsageError
from holdfast.stats import Interval, auroc, bootstrap, mean_interval, spearman


@dataclass(frozen=True)
class Foresight(Analysis):
    """Compares every estimator's scores with the ForgotNum of attacks it has not seen.

    An attack counts for a score only if it was made on the very model that was scored and tracked
    the scored rows. Spearman is against the count. AUROC is for being among the first half to be
    forgotten: for "forgotten at least once", the paper's label, where at most half were; where
    more were, for the highest counts that at most half reach. The free refusal margin of the
    unperturbed model is the baseline to beat.
    """

    needs: ClassVar[tuple[str, ...]] = ("score", "attack")

    def run(self, run: RunDir) -> Section:
        """Return one line per estimator, averaged over attacks and seeds."""
        table = _agreement(run)
        if table.empty:
            raise UsageError(
                f"{run.root}: no attack tracked the rows of a model that was scored; run "
                "`holdfast attack --track DATA` on the scored model"
            )
        summary, bars, findings = [], [], []
        for estimator, rows in table.groupby("estimator", sort=False):
            interval = _pooled(rows)
            rank = mean_interval(rows["spearman"].to_numpy())
            summary.append(
                {
                    "estimator": estimator,
                    "AUROC": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "Spearman": rank.value,
                    "seconds": rows["seconds"].mean(),
                    "attacks": len(rows),
                }
            )
            bars.append(Bar(str(estimator), interval.value, interval.low, interval.high))
            findings.append(
                f"{estimator} foresaw the first half to be forgotten with AUROC "
                f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}], "
                f"n={rows['n'].max()} examples, {len(rows)} attacks (0.5 is chance)."
            )
        return Section(
            title="Were the forgotten examples foreseen?",
            findings=tuple(findings),
            tables={
                "Agreement with the attacks' ForgotNum": pd.DataFrame(summary).round(3),
                "Attack by attack": table.drop(columns=["scores"]).round(3),
            },
            figures={
                "AUROC with 95 % intervals": bar_chart(
                    bars, title="AUROC of each estimator", x_label="AUROC (0.5 is chance)"
                )
            },
            note=(
                "An attack's own ForgotNum is noisy: another attack's count predicts it with less "
                "than certainty, which is the ceiling for any score. The interval is a bootstrap "
                "over examples when there is one attack, otherwise a t interval over attacks."
            ),
        )


def _pooled(rows: pd.DataFrame) -> Interval:
    if len(rows) == 1:
        labels, scores = rows["scores"].iloc[0]
        return bootstrap(auroc, labels, scores, resamples=500)
    return mean_interval(rows["auroc"].to_numpy())


def _agreement(run: RunDir) -> pd.DataFrame:
    rows = []
    attacks = [AttackResult.load(run.result(e)) for e in run.require("attack")]
    for entry in run.require("score"):
        scores = Scores.load(run.path(next(iter(entry.outputs))))
        estimator = scores.estimator.partition(",")[0]
        columns = {estimator: (scores.values, scores.facts.get("seconds", np.nan))}
        if "margin" in scores.details:
            columns["free margin"] = (-scores.details["margin"], np.nan)
        for attack in attacks:
            if attack.model_hash != scores.model_hash or not attack.tracked:
                continue
            count = np.array([attack.tracked.get(i, np.nan) for i in scores.ids], float)
            for label, (values, seconds) in columns.items():
                rows.append(_row(label, values, seconds, attack, count))
    return pd.DataFrame(rows)


def _row(
    label: str, values: np.ndarray, seconds: float, attack: AttackResult, count: np.ndarray
) -> dict[str, object]:
    known = np.isfinite(count) & np.isfinite(values)
    x, y = values[known], count[known]
    early = first_half(y)
    a = attack.attack
    return {
        "estimator": label,
        "model": attack.model,
        "attack": f"{str(a['task']).partition(',')[0]} p={a['poison_ratio']:g} s={a['seed']}",
        "auroc": auroc(early, x),
        "spearman": spearman(x, y),
        "forgotten": float((y > 0).mean()) if len(y) else np.nan,
        "label": f"count >= {y[early].min():.0f}" if early.any() else "none forgotten",
        "n": len(y),
        "seconds": seconds,
        "scores": (early, x),
    }
