"""Can the groups be trusted, and would another threshold have made others?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from holdfast.charts.charts import ChartOptions, Series, line_chart
from holdfast.contracts import Analysis, Section
from holdfast.groups import Recommendation, Rule, Stability, recommend, sensitivity, stability
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.run_dir import RunDir
from holdfast.stats.intervals import Interval, wilson


class Grouping(Analysis):
    """Asks of every grouping of the run how much of it is chance and how much is choice.

    Chance: the threshold's bootstrap interval over examples, the examples whose label flips, and
    those too close to call by their own standard errors. Choice: how size and membership of the
    vulnerable group move with the threshold, and which rule fits the scores best.
    """

    needs: ClassVar[tuple[str, ...]] = ("score", "group")

    resamples: int = Field(default=200, ge=1)
    """Number of bootstrap resamples."""
    seed: int = Field(default=0, ge=0)
    """Random seed of the bootstrap."""

    def run(self, run: RunDir) -> Section:
        """Return one line per grouping, and one figure each."""
        summary, curves, findings, figures = [], [], [], {}
        for name, groups, scores, rule in _groupings(run):
            values = scores.aligned_to(groups.ids)
            found = stability(values, rule, resamples=self.resamples, seed=self.seed)
            advice = recommend(values, groups=rule.groups, seed=self.seed)
            curve = sensitivity(values, found.cuts[0].value)
            summary.append({"groups": name, **_line(groups, found, advice)})
            curves.append(pd.DataFrame({"groups": name, **curve}))
            findings += [
                f"{name}: {sentence}"
                for sentence in (
                    _steady(groups, found),
                    _near(found, curve),
                    _close(groups),
                    self._advised(values, found, advice),
                )
            ]
            figures[f"Other thresholds: {name}"] = _figure(name, curve)
        return Section(
            title="How sure are the groups?",
            findings=tuple(findings),
            tables={
                "Groups and their stability": pd.DataFrame(summary).round(3),
                "The vulnerable group at other thresholds": pd.concat(
                    curves, ignore_index=True
                ).round(3),
            },
            figures=figures,
            note=(
                "The bootstrap resamples the examples, so it shows how the threshold depends on "
                "which examples there are; it does not see errors of the scores, which the doubt "
                "of each example counts, where the estimator gives a standard error. A rule with a "
                "fixed threshold is stable by construction, and a stable threshold need not be a "
                "useful one: whether the groups foresee forgetting is measured elsewhere."
            ),
        )

    def _advised(self, values: np.ndarray, found: Stability, advice: Recommendation) -> str:
        """Say which rule fits, with its own interval."""
        used = (found.rule.name, tuple(cut.value for cut in found.cuts))
        if used != (advice.rule.name, advice.at):
            found = stability(values, advice.rule, resamples=self.resamples, seed=self.seed)
            words = f"another rule, {advice.rule.name}, is recommended"
        else:
            words = f"the rule used, {advice.rule.name}, is the recommended one"
        return f"{words}, at {_written(found.cuts[0])}: {advice.reason}."


def _groupings(run: RunDir) -> list[tuple[str, Groups, Scores, Rule]]:
    result = []
    for entry in run.require("group"):
        groups = Groups.load(run.result(entry))
        rule = _rule(entry.config, groups.facts)
        result.append((entry.name, groups, run.scores_behind(groups), rule))
    return result


def _rule(config: Mapping[str, Any], facts: Mapping[str, Any]) -> Rule:
    """Return the rule of a step; what an older one did not write down had its default."""
    if "chosen_rule" in facts:
        return Rule(facts["chosen_rule"], groups=config["groups"])
    default = Rule()
    return Rule(
        name=config.get("rule", default.name),
        quantile=config.get("quantile", default.quantile),
        mass=config.get("mass", default.mass),
        groups=config.get("groups", default.groups),
    )


def _line(groups: Groups, found: Stability, advice: Recommendation) -> dict[str, object]:
    cut = found.cuts[0]
    return {
        "rule": found.rule.name,
        "threshold": cut.value,
        "low": cut.low,
        "high": cut.high,
        "sizes": ", ".join(f"{name} {size}" for name, size in groups.sizes.items()),
        "Jaccard": found.jaccard.value,
        "unsettled": found.unsettled,
        "too close to call": groups.facts.get("too_close_to_call", np.nan),
        "moved by hand": len(groups.edits),
        "recommended": advice.rule.name,
    }


def _steady(groups: Groups, found: Stability) -> str:
    where = " and ".join(_written(cut) for cut in found.cuts)
    some = len(found.cuts) > 1
    hand = f"; {len(groups.edits)} examples were moved by hand" if groups.edits else ""
    lost = f"; {found.failed} of {found.resamples} resamples could not be cut"
    return (
        f"the threshold{'s' if some else ''} of rule {found.rule.name} "
        f"{'lie' if some else 'lies'} at {where}; the set above agrees with a resample's with a "
        f"mean Jaccard of {_written(found.jaccard)}, and {_percent(found.unsettled)} of the "
        f"n={found.jaccard.n} examples change their label in more than 5 % of the resamples"
        f"{lost if found.failed else ''}{hand}."
    )


def _near(found: Stability, curve: Mapping[str, np.ndarray]) -> str:
    """Say what the thresholds next to the chosen one would do."""
    cut, n = found.cuts[0].value, found.jaccard.n
    right = int(np.searchsorted(curve["threshold"], cut, side="right"))
    near = sorted({max(right - 2, 0), max(right - 1, 0), min(right, len(curve["threshold"]) - 1)})
    sizes, agree = curve["vulnerable"][near], curve["jaccard"][near]
    known = agree[~np.isnan(agree)]
    least = f"{known.min():.2f} or more" if len(known) else "unknown"
    return (
        f"at the nearest of the other thresholds (about 5 % of the examples apart) the vulnerable "
        f"group has between {sizes.min()} and {sizes.max()} examples, a Jaccard "
        f"with the one chosen of {least}, n={n}."
    )


def _close(groups: Groups) -> str:
    n = len(groups.ids)
    if "too_close_to_call" not in groups.facts:
        return (
            "how many examples are too close to call is unknown, as the scores carry no standard "
            f"errors, n={n}."
        )
    known = groups.facts["doubt_known"]
    share = wilson(groups.facts["too_close_to_call"], known)
    return (
        f"{_percent(share.value)} [{_percent(share.low)}, {_percent(share.high)}] of the examples "
        "with a standard error are too close to call: their group would be another with a "
        f"probability above 25 %, n={known} of {n}."
    )


def _written(interval: Interval) -> str:
    ends = f"{interval.low:.3g}, {interval.high:.3g}"
    unknown = np.isnan(interval.low) or np.isnan(interval.high)
    value = "unknown" if np.isnan(interval.value) else f"{interval.value:.3g}"
    return f"{value} [{'unknown' if unknown else ends}], n={interval.n}"


def _percent(share: float) -> str:
    return "an unknown share" if np.isnan(share) else f"{100 * share:.0f} %"


def _figure(name: str, curve: Mapping[str, np.ndarray]) -> str:
    x = curve["threshold"].tolist()
    return line_chart(
        [
            Series("share above", x, curve["share"].tolist()),
            Series("Jaccard", x, curve["jaccard"].tolist()),
        ],
        title=f"Share of vulnerable examples and agreement with the chosen groups, {name}",
        x_label="threshold on the score",
        y_label="share above it; Jaccard with the set above the chosen one",
        options=ChartOptions(percent=True, y_range=(0, 1)),
    )
