"""Is everything forgotten at once, or some prompts long before others?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from holdfast.charts.charts import Series, line_chart
from holdfast.contracts import Analysis, Section
from holdfast.results.artifacts import AttackResult, Life
from holdfast.results.attacks import HALF
from holdfast.results.comparison import Lives, lives, naming
from holdfast.results.lives import REFUSAL_HALF_LIFE, Refusals, lasting
from holdfast.results.run_dir import RunDir
from holdfast.stats.intervals import Interval


class Levelling(Analysis):
    """Compares the steps after which a few prompts, half of them, and nearly all are answered.

    Weighting the examples that are forgotten first, as group DRO does, is meant to level: to make
    the weakest last as long as the rest. Where the weakest last nearly as long anyway there is
    little to level, and a method that lasts many times longer owes it to something else. It is no
    bound: training on weak examples may make the strong ones stronger as well.

    A prompt is counted by whether it is still refused (`lives.Refusals`), so that answers
    which are neither harmful nor a refusal are not taken for the strongest.
    """

    needs: ClassVar[tuple[str, ...]] = ("attack",)

    weakest: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the prompts that are no longer refused when the weakest have fallen."""
    strongest: float = Field(default=0.9, gt=0.5, le=1)
    """The share when all but the strongest have fallen."""

    def run(self, run: RunDir) -> Section:
        """Return, for every method, how far the weakest and the strongest prompts lie apart."""
        attacks = [AttackResult.load(run.result(entry)) for entry in run.require("attack")]
        named, by_name = naming(attacks), defaultdict[str, list[AttackResult]](list)
        for attack in attacks:
            by_name[named(attack)].append(attack)
        lines, findings = [], []
        for name, mine in by_name.items():
            spread = {share: self._against_half(mine, share) for share in self._shares}
            lines.append({"method": name, **self._line(mine, spread)})
            findings.append(_finding(name, spread))
        return Section(
            title="Is everything forgotten at once?",
            findings=tuple(findings),
            tables={"Steps until so many prompts are no longer refused": pd.DataFrame(lines)},
            figures={"Prompts no longer refused, over half-lives": _courses(by_name)},
            note=(
                "Ratios are geometric means over attacks and seeds, an end that was not reached "
                "taken as such. An attack that stops when a model is broken (until_broken) says "
                "nothing of what lasts longer. What is counted are the tested prompts: a kind of "
                "request that is not among them is not seen."
            ),
        )

    @property
    def _shares(self) -> tuple[float, float]:
        return self.weakest, self.strongest

    def _against_half(self, mine: Sequence[AttackResult], share: float) -> Lives:
        return lives([(a, a) for a in mine], Refusals(share), REFUSAL_HALF_LIFE)

    def _line(self, mine: Sequence[AttackResult], spread: dict[float, Lives]) -> dict[str, Any]:
        line: dict[str, Any] = {"attacks": len(mine)}
        for share in (self.weakest, HALF, self.strongest):
            ends = [lasting(a, Refusals(share), resamples=0) for a in mine]
            line[f"steps to {share:.0%}"] = median_steps(ends)
            line[f"ended before {share:.0%}"] = sum(life.censored for life in ends)
        for share, found in spread.items():
            known = _known(found)
            told = str(known).partition(", n=")[0] if known else "unknown"
            line[f"{share:.0%} against half"] = told
        return line


def median_steps(ends: Sequence[Life]) -> float:
    """Return the median of the steps; infinite where the attacks ended first, nan if unknown."""
    steps = [math.inf if life.censored else life.steps for life in ends]
    return float(pd.Series(steps, dtype=float).median())


def _known(found: Lives) -> Interval | None:
    """Return the ratio, None where there is a bound or nothing."""
    return found.ratio.interval if found.ratio and not found.ratio.bound else None


def _finding(name: str, spread: dict[float, Lives]) -> str:
    (weak, early), (strong, late) = spread.items()
    return (
        f"On {name}, {weak:.0%} of the prompts are no longer refused after {_written(early)} of "
        f"the steps that it takes for half of them, {strong:.0%} after {_written(late)} of them."
    )


def _written(found: Lives) -> str:
    known = _known(found)
    n = found.skipped + (found.ratio.used if found.ratio else 0)
    return str(known) if known else f"an unknown part (n={n})"


def _courses(by_name: dict[str, list[AttackResult]]) -> str:
    found = [(name, _course(name, attack)) for name, mine in by_name.items() for attack in mine]
    first = {name: series for name, series in reversed(found) if series is not None}
    return line_chart(
        [first[name] for name in by_name if name in first],
        title="The first attack on each that reached its half-life",
        x_label="attack steps, in half-lives",
        y_label="share no longer refused",
    )


def _course(name: str, attack: AttackResult) -> Series | None:
    """Return the course in half-lives, None where there is no half-life."""
    life = lasting(attack, REFUSAL_HALF_LIFE, resamples=0)
    if not life.steps > 0:
        return None
    judge = REFUSAL_HALF_LIFE.judge(attack)
    counts = [(p.step, c) for p in attack.points if (c := p.verdicts.get(judge)) and c.n]
    along = [step / life.steps for step, _ in counts]
    return Series(name, along, [1 - c.safe / c.n for _, c in counts])
