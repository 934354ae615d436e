"""Can the groups be trusted, and would another threshold have made others?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from holdfast.charts.figures import Axis, Figure, Line, LineChart, numbers
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.groups import Recommendation, Rule, Stability, recommend, sensitivity, stability
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.run_dir import RunDir
from holdfast.stats.intervals import wilson
from holdfast.stats.wording import between, measured
from holdfast.texts import Text, joined


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
        summary: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        findings: list[Text] = []
        figures: dict[str, Figure] = {}
        for name, groups, scores, rule in _groupings(run):
            values = scores.aligned_to(groups.ids)
            found = stability(values, rule, resamples=self.resamples, seed=self.seed)
            advice = recommend(values, groups=rule.groups, seed=self.seed)
            curve = sensitivity(values, found.cuts[0].value)
            summary.append({Text("groups"): name, **_line(groups, found, advice)})
            curves += _curve(name, curve)
            findings += [
                Text("{name}: {sentence}", name=name, sentence=sentence)
                for sentence in (
                    _steady(groups, found),
                    _near(found, curve),
                    _close(groups),
                    self._advised(values, found, advice),
                )
            ]
            figures[Text("Other thresholds: {name}", name=name)] = _figure(name, curve)
        return Section(
            title=Text("How reliable are the groups?"),
            findings=tuple(findings),
            tables={
                Text("Groups and their stability"): SectionTable.of(summary),
                Text("The vulnerable group at other thresholds"): SectionTable.of(curves),
            },
            figures=figures,
            note=Text(
                "The bootstrap resamples the examples, so it shows how the threshold depends on "
                "which examples there are. It does not see errors in the scores; those are "
                "counted as examples too close to call, where the estimator gives a standard "
                "error. A rule with a fixed threshold is stable by construction, and a stable "
                "threshold need not be a useful one: whether the groups predict forgetting is "
                "measured elsewhere."
            ),
        )

    def _advised(self, values: np.ndarray, found: Stability, advice: Recommendation) -> Text:
        """Say which rule fits, with its own interval."""
        used = (found.rule.name, tuple(cut.value for cut in found.cuts))
        if used != (advice.rule.name, advice.at):
            found = stability(values, advice.rule, resamples=self.resamples, seed=self.seed)
            words = Text("another rule, {rule}, is recommended", rule=advice.rule.name)
        else:
            words = Text("the rule in use, {rule}, is the recommended one", rule=advice.rule.name)
        return Text(
            "{words}, with its threshold at {cut}: {reason}.",
            words=words,
            cut=measured(found.cuts[0], ".3g"),
            reason=advice.reason,
        )


def _groupings(run: RunDir) -> list[tuple[str, Groups, Scores, Rule]]:
    result = []
    for entry in sorted(run.require("group"), key=lambda entry: entry.name):
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
        Text("rule"): found.rule.name,
        Text("threshold"): cut.value,
        Text("low"): cut.low,
        Text("high"): cut.high,
        Text("sizes"): joined([f"{name} {size}" for name, size in groups.sizes.items()]),
        "Jaccard": found.jaccard.value,
        Text("unsettled"): found.unstable_share,
        Text("too close to call"): groups.facts.get("too_close_to_call", np.nan),
        Text("moved by hand"): len(groups.edits),
        Text("recommended"): advice.rule.name,
    }


def _curve(name: str, curve: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    heads = {
        Text("threshold"): "threshold",
        Text("vulnerable"): "vulnerable",
        Text("share above"): "share",
        "Jaccard": "jaccard",
    }
    return [
        {Text("groups"): name, **{head: curve[key][i] for head, key in heads.items()}}
        for i in range(len(curve["threshold"]))
    ]


def _steady(groups: Groups, found: Stability) -> Text:
    cuts = tuple(measured(cut, ".3g") for cut in found.cuts)
    rule = found.rule.name
    where = (
        Text("the thresholds of rule {rule} lie at {cuts:and}", rule=rule, cuts=cuts)
        if len(cuts) > 1
        else Text("the threshold of rule {rule} lies at {cut}", rule=rule, cut=cuts[0])
    )
    parts = [
        where,
        Text(
            "the set above it agrees with the set of a resample with a mean Jaccard index of "
            "{jaccard}, and {share:percent} of the n={n:d} examples change their label in more "
            "than 5% of the resamples",
            jaccard=measured(found.jaccard, ".3g"),
            share=found.unstable_share,
            n=found.jaccard.n,
        ),
    ]
    if found.failed:
        lost = {"failed": found.failed, "resamples": found.resamples}
        parts.append(Text("{failed:d} of {resamples:d} resamples could not be cut", **lost))
    if groups.edits:
        parts.append(Text("{k:d} examples were moved by hand", k=len(groups.edits)))
    return Text("{parts:semicolon}.", parts=tuple(parts))


def _near(found: Stability, curve: Mapping[str, np.ndarray]) -> Text:
    """Say what the thresholds next to the chosen one would do."""
    cut, n = found.cuts[0].value, found.jaccard.n
    right = int(np.searchsorted(curve["threshold"], cut, side="right"))
    near = sorted({max(right - 2, 0), max(right - 1, 0), min(right, len(curve["threshold"]) - 1)})
    sizes, agree = curve["vulnerable"][near], curve["jaccard"][near]
    known = agree[~np.isnan(agree)]
    return Text(
        "at the neighbouring thresholds (about 5% of the examples apart) the vulnerable group has "
        "between {smallest:d} and {largest:d} examples, and its Jaccard index with the chosen "
        "group is at least {least:.2f} (n={n:d}).",
        smallest=int(sizes.min()),
        largest=int(sizes.max()),
        least=float(known.min()) if len(known) else math.nan,
        n=n,
    )


def _close(groups: Groups) -> Text:
    n = len(groups.ids)
    if "too_close_to_call" not in groups.facts:
        return Text(
            "how many examples are too close to call is unknown, because the scores carry no "
            "standard errors (n={n:d}).",
            n=n,
        )
    known = groups.facts["doubt_known"]
    return Text(
        "{share} of the examples with a standard error are too close to call: with a probability "
        "above 25% they belong to another group (n={known:d} of {n:d}).",
        share=between(wilson(groups.facts["too_close_to_call"], known), "percent"),
        known=known,
        n=n,
    )


def _figure(name: str, curve: Mapping[str, np.ndarray]) -> LineChart:
    thresholds = numbers(curve["threshold"])
    return LineChart(
        title=Text("Vulnerable examples and agreement with the chosen groups, {name}", name=name),
        x=Axis(title=Text("threshold on the score")),
        y=Axis(title=Text("share, or Jaccard index"), ends=(0.0, 1.0), percent=True),
        lines=(
            Line(Text("share above the threshold"), thresholds, numbers(curve["share"])),
            Line(Text("Jaccard index with the chosen set"), thresholds, numbers(curve["jaccard"])),
        ),
    )
