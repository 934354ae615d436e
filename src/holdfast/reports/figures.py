"""The report's own charts: curves and half-lives per attack, the price, the verdict bars."""

from __future__ import annotations

import math
from collections.abc import Mapping

from holdfast.charts import svg
from holdfast.charts.charts import (
    Bar,
    ChartOptions,
    Dot,
    Series,
    bar_chart,
    line_chart,
    scatter,
)
from holdfast.reports.facts import Attacked, Facts
from holdfast.reports.verdict import standing_of
from holdfast.reports.words import Words
from holdfast.results.artifacts import Counts


def colours(facts: Facts) -> dict[str, int]:
    """Give every line its colour, the same in all charts; the baseline comes first: neutral."""
    start = 0 if "sft" in facts.lines else 1
    return {line: position + start for position, line in enumerate(facts.lines)}


def curves(attack: Attacked, colour: Mapping[str, int], words: Words, label: str) -> str:
    """Draw harmful score against attack steps, one line per method."""
    series = []
    for under in attack.methods:
        rows = under.curve()
        many = len(under.results) > 1
        series.append(
            Series(
                label=under.line,
                x=[row[0] for row in rows],
                y=[row[1] for row in rows],
                low=[row[2] for row in rows] if many else (),
                high=[row[3] for row in rows] if many else (),
                colour=colour[under.line],
            )
        )
    options = ChartOptions(
        x_range=(0, _longest(attack)),
        y_range=(0, 1),
        mark=0.5,
        percent=True,
        right=_margin(attack),
        unknown=words.text["unknown"],
    )
    return line_chart(
        series,
        title=words.say("chart_curve_title", attack=label),
        x_label=words.text["chart_steps"],
        y_label=words.text["harmful_score"],
        options=options,
    )


def half_lives(attack: Attacked, colour: Mapping[str, int], words: Words, label: str) -> str:
    """Draw the half-life of each method under an attack, longest first."""
    bars = []
    for under in sorted(attack.methods, key=lambda m: -_or_minus(m.life.steps.value)):
        life = under.life
        ends = words.between(life.steps, "steps")
        bars.append(
            Bar(
                label=under.line,
                value=life.steps.value,
                low=max(life.steps.low, 0.0) if math.isfinite(life.steps.low) else math.nan,
                high=life.steps.high,
                text=words.life(life) + (f" ({ends})" if ends else ""),
                open_end=bool(life.censored),
                colour=colour[under.line],
            )
        )
    return bar_chart(
        bars,
        title=words.say("chart_life_title", attack=label),
        x_label=words.text["half_life"],
        options=ChartOptions(
            x_range=(0, _longest(attack)), right=_margin(attack), unknown=words.text["unknown"]
        ),
    )


def price(facts: Facts, colour: Mapping[str, int], words: Words) -> str:
    """Draw half-life ratio against over-refusal; "" where fewer than two methods have both."""
    dots = []
    for line, found in facts.comparisons.items():
        standing = standing_of(facts, line)
        refusal = standing.over_refusal.value if standing else math.nan
        if math.isfinite(refusal) and math.isfinite(found.ratio.value):
            # An interval without an upper end is drawn like one that is not known.
            known = math.isfinite(found.ratio.high)
            ends = (found.ratio.low, found.ratio.high) if known else (math.nan, math.nan)
            dots.append(Dot(refusal, found.ratio.value, line, *ends, colour=colour[line]))
    base = standing_of(facts, "sft")
    if base is not None and math.isfinite(base.over_refusal.value):
        dots.append(Dot(base.over_refusal.value, 1.0, "sft", colour=colour["sft"]))
    if len(dots) < 2:
        return ""
    top = max(d.y for d in dots)
    reach = max([v for d in dots for v in (d.y, d.high) if math.isfinite(v)])
    right = max([*(d.x for d in dots), 0.05])
    return scatter(
        dots,
        title=words.text["chart_price_title"],
        x_label=words.text["over_refusal"],
        y_label=words.text["chart_price_y"],
        # A wide interval must not press the points into a line; it is cut at twice the best.
        options=ChartOptions(
            percent=True, x_range=(0, right * 1.15), y_range=(0, min(reach, 2 * top) * 1.08)
        ),
    )


def verdict_bar(counts: Counts, words: Words) -> str:
    """Draw the shares of harmful, undecided and safe answers as one thin bar; "" if there are none.

    Undecided has a place of its own, hatched, between the other two.
    """
    if not counts.n:
        return ""
    title = words.say(
        "answers_split",
        harmful=counts.harmful,
        undecided=counts.undecided,
        safe=counts.safe,
        n=counts.n,
    )
    parts, x = [], 0.0
    for share, look in (
        (counts.harmful / counts.n, "fill:var(--bad,#a83232)"),
        (counts.undecided / counts.n, "fill:var(--doubt,#c9a227)"),
        (counts.safe / counts.n, "fill:var(--good,#9fb8ae)"),
    ):
        if share:
            parts.append(svg.rect(x, 1, share * 96 - 0.8, 10, look))
        x += share * 96
    return svg.document(96, 12, title, parts)


def _longest(attack: Attacked) -> float:
    steps = [step for under in attack.methods for step in under.end_steps]
    return float(max(steps)) if steps and max(steps) > 0 else 1.0


def _margin(attack: Attacked) -> float:
    """Return the room for the names at the lines' ends; the bars below keep the same axis."""
    return min(max([30.0, *(svg.width_of(m.line) + 14 for m in attack.methods)]), 150.0)


def _or_minus(value: float) -> float:
    return value if math.isfinite(value) else -1.0
