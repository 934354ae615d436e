"""Is everything forgotten at once, or some prompts long before others?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from holdfast.charts.figures import Axis, Line, LineChart
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.results.artifacts import AttackResult, Life
from holdfast.results.attacks import HALF
from holdfast.results.comparison import LifeComparison, compare_lives, line_names
from holdfast.results.lives import REFUSAL_HALF_LIFE, Refusals, life_until
from holdfast.results.run_dir import RunDir
from holdfast.stats.intervals import Interval
from holdfast.stats.wording import between, measured
from holdfast.texts import UNKNOWN, Text


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
        named, by_name = line_names(attacks), defaultdict[str, list[AttackResult]](list)
        for attack in attacks:
            by_name[named(attack)].append(attack)
        lines, findings = [], []
        for name, mine in by_name.items():
            spread = {share: self._against_half(mine, share) for share in self._shares}
            lines.append({Text("method"): name, **self._line(mine, spread)})
            findings.append(_finding(name, spread))
        return Section(
            title=Text("Is everything forgotten at once?"),
            findings=tuple(findings),
            tables={
                Text("Steps until a share of the prompts is no longer refused"): SectionTable.of(
                    lines
                )
            },
            figures={Text("Prompts no longer refused, over half-lives"): _courses(by_name)},
            note=Text(
                "Ratios are geometric means over attacks and seeds; half-lives that were not "
                "reached enter as lower bounds. An attack that stops when a model is broken "
                "(until_broken) says nothing about what lasts longer. Only the tested prompts "
                "count: a kind of request that is not among them is not seen."
            ),
        )

    @property
    def _shares(self) -> tuple[float, float]:
        return self.weakest, self.strongest

    def _against_half(self, mine: Sequence[AttackResult], share: float) -> LifeComparison:
        return compare_lives([(a, a) for a in mine], Refusals(share), REFUSAL_HALF_LIFE)

    def _line(
        self, mine: Sequence[AttackResult], spread: dict[float, LifeComparison]
    ) -> dict[str, Any]:
        line: dict[str, Any] = {Text("attacks"): len(mine)}
        for share in (self.weakest, HALF, self.strongest):
            ends = [life_until(a, Refusals(share), resamples=0) for a in mine]
            line[Text("steps to {share:percent}", share=share)] = median_steps(ends)
            line[Text("ended before {share:percent}", share=share)] = sum(
                life.censored for life in ends
            )
        for share, found in spread.items():
            known = _known(found)
            head = Text("{share:percent} against half", share=share)
            line[head] = between(known) if known else Text(UNKNOWN)
        return line


def median_steps(ends: Sequence[Life]) -> float:
    """Return the median of the steps; infinite where the attacks ended first, nan if unknown."""
    steps = [math.inf if life.censored else life.steps for life in ends]
    return float(pd.Series(steps, dtype=float).median())


def _known(found: LifeComparison) -> Interval | None:
    """Return the ratio, None where there is a bound or nothing."""
    return found.ratio.interval if found.ratio and not found.ratio.bound else None


def _finding(name: str, spread: dict[float, LifeComparison]) -> Text:
    (weak, early), (strong, late) = spread.items()
    return Text(
        "On {method}, relative to the steps until half of the prompts are no longer refused, "
        "{weak:percent} are no longer refused after {early} of these steps and {strong:percent} "
        "after {late}.",
        method=name,
        weak=weak,
        early=_written(early),
        strong=strong,
        late=_written(late),
    )


def _written(found: LifeComparison) -> Text:
    known = _known(found)
    n = found.skipped + (found.ratio.used if found.ratio else 0)
    return measured(known) if known else Text("an unknown share (n={n:d})", n=n)


def _courses(by_name: dict[str, list[AttackResult]]) -> LineChart:
    found = [(name, _course(name, attack)) for name, mine in by_name.items() for attack in mine]
    first = {name: line for name, line in reversed(found) if line is not None}
    return LineChart(
        title=Text("The first attack on each method that reached its half-life"),
        x=Axis(title=Text("attack steps, in half-lives")),
        y=Axis(title=Text("no longer refused"), ends=(0.0, 1.0), percent=True, mark=HALF),
        lines=tuple(first[name] for name in by_name if name in first),
    )


def _course(name: str, attack: AttackResult) -> Line | None:
    """Return the course in half-lives, None where there is no half-life."""
    life = life_until(attack, REFUSAL_HALF_LIFE, resamples=0)
    if not life.steps > 0:
        return None
    judge = REFUSAL_HALF_LIFE.judge(attack)
    counts = [(p.step, c) for p in attack.points if (c := p.verdicts.get(judge)) and c.n]
    along = tuple(step / life.steps for step, _ in counts)
    return Line(name, along, tuple(1 - c.safe / c.n for _, c in counts))
