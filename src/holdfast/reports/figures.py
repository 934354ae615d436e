"""The report's own figures: curves and half-lives per attack, and what robustness costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from holdfast.charts.figures import NEUTRAL, Axis, Bar, BarChart, Dot, Line, LineChart, Scatter
from holdfast.reports.facts import BASELINE, Attacked, Facts, PooledLife
from holdfast.reports.verdict import standing_of
from holdfast.reports.words import life_of
from holdfast.texts import Text, number


def colours(facts: Facts) -> dict[str, int]:
    """Give every line its colour, the same in all figures; the baseline is neutral."""
    start = NEUTRAL if BASELINE in facts.lines else NEUTRAL + 1
    return {line: position + start for position, line in enumerate(facts.lines)}


def curves(attack: Attacked, colour: Mapping[str, int], label: str) -> LineChart:
    """Return harmful score against attack steps, one line per method."""
    lines = []
    for under in attack.methods:
        rows = under.curve()
        several = len(under.results) > 1
        lines.append(
            Line(
                label=under.line,
                x=tuple(float(row[0]) for row in rows),
                y=tuple(row[1] for row in rows),
                low=tuple(row[2] for row in rows) if several else (),
                high=tuple(row[3] for row in rows) if several else (),
                colour=colour[under.line],
            )
        )
    return LineChart(
        title=Text("Harmful score against attack steps, {attack}", attack=label),
        x=Axis(title=Text("attack steps"), ends=(0.0, _longest(attack))),
        y=Axis(title=Text("harmful score"), ends=(0.0, 1.0), mark=0.5, percent=True),
        lines=tuple(lines),
    )


def half_lives(attack: Attacked, colour: Mapping[str, int], label: str) -> BarChart:
    """Return the half-life of each method under an attack, longest first."""
    bars = []
    for under in sorted(attack.methods, key=lambda m: -_or_minus(m.life.steps.value)):
        life = under.life
        steps = life.steps
        bars.append(
            Bar(
                label=under.line,
                value=steps.value,
                low=max(steps.low, 0.0) if math.isfinite(steps.low) else math.nan,
                high=steps.high,
                text=_shown(life),
                bound=bool(life.censored),
                colour=colour[under.line],
            )
        )
    return BarChart(
        title=Text("Half-life by method, {attack}", attack=label),
        x=Axis(title=Text("half-life, attack steps"), ends=(0.0, _longest(attack))),
        bars=tuple(bars),
    )


def _shown(life: PooledLife) -> Text:
    ends = life.steps
    if math.isnan(ends.low) or math.isnan(ends.high):
        return life_of(life)
    low, high = number(max(ends.low, 0.0), "steps"), number(ends.high, "steps")
    return Text("{life} ({low}\u2013{high})", life=life_of(life), low=low, high=high)


def price(facts: Facts, colour: Mapping[str, int]) -> Scatter | None:
    """Return half-life ratio against over-refusal; None where fewer than two methods have both."""
    dots = []
    for line, found in facts.comparisons.items():
        standing = standing_of(facts, line)
        refusal = standing.over_refusal.value if standing else math.nan
        if math.isfinite(refusal) and math.isfinite(found.ratio.value):
            # An interval without an upper end is drawn like one that is not known.
            ends = (found.ratio.low, found.ratio.high)
            low, high = ends if math.isfinite(ends[1]) else (math.nan, math.nan)
            dots.append(Dot(refusal, found.ratio.value, line, low, high, colour[line]))
    base = standing_of(facts, BASELINE)
    if base is not None and math.isfinite(base.over_refusal.value):
        dots.append(Dot(base.over_refusal.value, 1.0, BASELINE, colour=colour[BASELINE]))
    if len(dots) < 2:
        return None
    top = max(d.y for d in dots)
    reach = max(v for d in dots for v in (d.y, d.high) if math.isfinite(v))
    right = max([*(d.x for d in dots), 0.05])
    # A wide interval must not press the points into a line; it is cut at twice the best.
    height = min(reach, 2 * top) * 1.08
    return Scatter(
        title=Text("Half-life relative to plain fine-tuning and over-refusal, by method"),
        x=Axis(title=Text("over-refusal"), ends=(0.0, right * 1.15), percent=True),
        y=Axis(title=Text("half-life, multiple of plain fine-tuning"), ends=(0.0, height)),
        dots=tuple(dots),
    )


def _longest(attack: Attacked) -> float:
    steps = [step for under in attack.methods for step in under.end_steps]
    return float(max(steps)) if steps and max(steps) > 0 else 1.0


def _or_minus(value: float) -> float:
    return value if math.isfinite(value) else -1.0
