"""What do the vulnerable examples have in common?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from holdfast.charts.charts import Bar, ChartOptions, dot_plot
from holdfast.contracts import Analysis, Section
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import Entry, RunDir
from holdfast.results.sources import Sources
from holdfast.screening.effects import Effect, check, describe, effects

_SHOWN = 15
_TITLE = "What do the vulnerable examples have in common?"
_NOTE = (
    "Correlation is not cause: a factor may stand in for another one, and changing it need not "
    "change how soon an example is forgotten. The score is itself a prediction. Effects lie in "
    "[-1, 1]; p values are corrected for all tests together (Benjamini-Hochberg), and rows that "
    "resemble one another make them too small. "
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
        entries = run.require("score", self.scores or None)
        entry, scores = entries[0], Scores.load(run.result(entries[0]))
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
            tables={f"All {len(found)} factors, strongest first": _table(found)},
            figures={
                "Strongest effects with 95 % intervals (above 0 = more vulnerable)": _chart(found)
            },
            note=(
                f"{_NOTE}Scores {entry.name!r}; {left_out} rows without a score left out; "
                f"{untested} factors not tested, because they never vary or fewer than five rows "
                f"have or lack them. {neighbours}"
            ),
        )

    def _findings(self, found: list[Effect]) -> tuple[str, ...]:
        standing = [e for e in found if e.stands_out(self.alpha, self.smallest)]
        if standing:
            return tuple(e.sentence() for e in standing)
        tested = sum(not np.isnan(e.p) for e in found)
        if not tested:
            return ("Nothing stands out, n=0 factors could be tested: effects unknown.",)
        top = found[0]
        return (
            f"Nothing stands out among {tested} factors tested; the largest effect is that of "
            f"{top.factor.label} ({top.measure} {top.interval}, corrected p = "
            f"{top.corrected:.2f}).",
        )


def _benign(run: RunDir, scored: Entry) -> tuple[Examples | None, str]:
    """Return the benign rows that the alignment or the scores used, and a sentence about them."""
    for entry in (*run.entries("align"), scored):
        if "benign" in entry.rows:
            rows = Sources(run).of(entry, "benign")
            return (
                rows,
                f"Benign neighbours are those among the {len(rows)} rows of {entry.name!r}.",
            )
    return None, "Benign neighbours skipped: the run has no benign rows."


def _unknown(values: np.ndarray, why: str) -> Section:
    n = int(np.isfinite(values).sum())
    return Section(
        title=_TITLE,
        findings=(f"What vulnerable examples have in common is unknown, n={n}: {why}",),
        tables={"Rows": pd.DataFrame([{"rows": len(values), "with a score": n}])},
        note=_NOTE,
    )


def _table(found: list[Effect]) -> pd.DataFrame:
    rows = [
        {
            "factor": e.factor.name,
            "level": e.factor.level,
            "measure": e.measure,
            "effect": e.interval.value,
            "low": e.interval.low,
            "high": e.interval.high,
            "n": e.interval.n,
            # A length is no property that some rows have: the cell is empty, not unknown.
            "with it": "" if e.members is None else str(e.members),
            "p": _written(e.p),
            "corrected p": _written(e.corrected),
        }
        for e in found
    ]
    return pd.DataFrame(rows).round(3)


def _written(p: float) -> str:
    if np.isnan(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _chart(found: list[Effect]) -> str:
    # Dots, not bars: a bar begins at the left edge, and half of these effects are below 0.
    rows = [
        (
            e.factor.label,
            [
                Bar(
                    f"{e.interval.value:.2f}",
                    e.interval.value,
                    e.interval.low,
                    e.interval.high,
                    colour=1 if e.corrected <= 0.05 else 0,
                )
            ],
        )
        for e in found[:_SHOWN]
        if not np.isnan(e.interval.value)
    ]
    return dot_plot(
        rows,
        title="Effect of each factor on the score",
        x_label="Spearman or Cliff's delta",
        options=ChartOptions(x_range=(-1.0, 1.0)),
    )
