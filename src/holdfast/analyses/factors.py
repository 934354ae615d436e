"""What do the vulnerable examples have in common?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from holdfast.charts.figures import NEUTRAL, Axis, Bar, DotPlot
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import Entry, RunDir
from holdfast.results.sources import Sources
from holdfast.screening.effects import Effect, check, describe, effects
from holdfast.stats.wording import measured
from holdfast.texts import Text

_SHOWN = 15
_TITLE = Text("What do the vulnerable examples have in common?")
_NOTE = Text(
    "Correlation is not cause: a factor may stand in for another one, and changing it need not "
    "change how soon an example is forgotten. The score is itself a prediction. Effects lie in "
    "[-1, 1]; p values are corrected for all tests together (Benjamini-Hochberg), and rows that "
    "resemble one another make them too small."
)


class Factors(Analysis):
    """Compares lengths, category, phrasing, refusal style, rare words and benign neighbours."""

    needs: ClassVar[tuple[str, ...]] = ("score",)

    scores: str = ""
    """Name of the scores in the run; empty takes the first ones."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Expected share of false findings."""
    smallest: float = Field(default=0.1, ge=0)
    """Effects closer to 0 than this are not mentioned."""
    resamples: int = Field(default=500, ge=1)
    """Number of bootstrap resamples."""

    def run(self, run: RunDir) -> Section:
        """Return what goes with the score, and nothing where nothing stands out."""
        # Not the oldest: which scores are made first in parallel is chance.
        entry = min(run.require("score", self.scores or None), key=lambda entry: entry.name)
        scores = Scores.load(run.result(entry))
        examples = Sources(run).of(entry, "data")
        values = scores.aligned_to(examples.ids)
        try:
            check(values)
        except UsageError as error:
            return _unknown(values, f"{error}")
        benign, neighbours = _benign(run, entry)
        factors = describe(examples, benign or ())
        found = effects(values, factors, seed=scores.seed, resamples=self.resamples)
        found.sort(key=lambda e: -abs(np.nan_to_num(e.interval.value)))
        untested = len(factors) - sum(not np.isnan(e.p) for e in found)
        left_out = int((~np.isfinite(values)).sum())
        return Section(
            title=_TITLE,
            findings=self._findings(found),
            tables={Text("All {n:d} factors, strongest first", n=len(found)): _table(found)},
            figures={
                Text("Strongest effects with 95% intervals (above 0: more vulnerable)"): _chart(
                    found
                )
            },
            note=Text(
                "{note} Scores: {scores}. {left_out:d} rows without a score are left out; "
                "{untested:d} factors are not tested because they never vary or because fewer "
                "than five rows have or lack them. {neighbours}",
                note=_NOTE,
                scores=entry.name,
                left_out=left_out,
                untested=untested,
                neighbours=neighbours,
            ),
        )

    def _findings(self, found: list[Effect]) -> tuple[Text, ...]:
        standing = [e for e in found if e.stands_out(self.alpha, self.smallest)]
        if standing:
            return tuple(e.sentence() for e in standing)
        tested = sum(not np.isnan(e.p) for e in found)
        if not tested:
            return (Text("No factor could be tested (n=0), so the effects are unknown."),)
        top = found[0]
        return (
            Text(
                "Nothing stands out among the {tested:d} factors tested; the largest effect is "
                "{factor} ({measure} {effect}, corrected p {p:p}).",
                tested=tested,
                factor=top.factor.label,
                measure=_measure(top),
                effect=measured(top.interval),
                p=top.corrected,
            ),
        )


def _benign(run: RunDir, scored: Entry) -> tuple[Examples | None, Text]:
    """Return the benign rows that the alignment or the scores used, and a sentence about them."""
    for entry in (*run.entries("align"), scored):
        if "benign" in entry.rows:
            rows = Sources(run).of(entry, "benign")
            return rows, Text(
                "Benign neighbours come from the {n:d} rows of {job}.", n=len(rows), job=entry.name
            )
    return None, Text("Benign neighbours skipped: the run has no benign rows.")


def _unknown(values: np.ndarray, why: str) -> Section:
    n = int(np.isfinite(values).sum())
    return Section(
        title=_TITLE,
        findings=(
            Text(
                "What vulnerable examples have in common is unknown, n={n:d}: {reason}.",
                n=n,
                reason=why.rstrip("."),
            ),
        ),
        tables={
            Text("Rows"): SectionTable.of([{Text("rows"): len(values), Text("with a score"): n}])
        },
        note=_NOTE,
    )


def _table(found: list[Effect]) -> SectionTable:
    return SectionTable.of(
        {
            Text("factor"): e.factor.name,
            Text("level"): e.factor.level,
            Text("measure"): _measure(e),
            Text("effect"): e.interval.value,
            Text("low"): e.interval.low,
            Text("high"): e.interval.high,
            "n": e.interval.n,
            # A length is not a property that some rows have: the cell is empty, not unknown.
            Text("with it"): "" if e.members is None else e.members,
            "p": e.p,
            Text("corrected p"): e.corrected,
        }
        for e in found
    )


def _measure(effect: Effect) -> Text:
    if effect.measure == "Spearman":
        return Text("Spearman's correlation")
    return Text("Cliff's delta")


def _chart(found: list[Effect]) -> DotPlot:
    # Dots, not bars: a bar begins at the left edge, and half of these effects are below 0.
    rows = [
        (
            e.factor.label,
            (
                Bar(
                    e.factor.label,
                    e.interval.value,
                    e.interval.low,
                    e.interval.high,
                    colour=1 if e.corrected <= 0.05 else NEUTRAL,
                ),
            ),
        )
        for e in found[:_SHOWN]
        if not np.isnan(e.interval.value)
    ]
    return DotPlot(
        title=Text("Effect of each factor on the score"),
        x=Axis(title=Text("Spearman's correlation or Cliff's delta"), ends=(-1.0, 1.0), mark=0.0),
        rows=tuple(rows),
    )
