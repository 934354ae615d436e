"""Numbers and labels in words: the same rounding everywhere, unknown said as unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.reports.facts import Attacked, LineComparison, PooledLife
from holdfast.reports.texts import TEXTS, Language
from holdfast.results.attacks import percent, table_name
from holdfast.stats.intervals import Interval
from holdfast.stats.ratios import Bound


@dataclass(frozen=True)
class Words:
    """The fixed text of one language, and how numbers are written in it."""

    language: Language

    @property
    def text(self) -> Mapping[str, str]:
        """Key -> text, see `texts`."""
        return TEXTS[self.language]

    def say(self, key: str, **values: object) -> str:
        """Return a text with its placeholders filled."""
        return self.text[key].format(**values)

    def percent(self, share: float) -> str:
        """Write a share; one decimal where rounding would hide that it is not 0 or 1."""
        if not math.isfinite(share):
            return self.text["unknown"]
        return percent(share)

    def steps(self, steps: float) -> str:
        """Write a number of attack steps."""
        if not math.isfinite(steps):
            return self.text["unknown"]
        return f"{steps:.1f}" if 0 < abs(steps) < 9.95 else f"{steps:,.0f}"

    def times(self, ratio: float) -> str:
        """Write a ratio, without its multiplication sign; an interval may have no upper end."""
        if ratio == math.inf:
            return "\u221e"
        if not math.isfinite(ratio):
            return self.text["unknown"]
        return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}"

    def between(self, interval: Interval, kind: str) -> str:
        """Write the ends of an interval ("" if it has none); kind is percent, steps or times."""
        if math.isnan(interval.low) or math.isnan(interval.high):
            return ""
        write = getattr(self, kind)
        # Steps and ratios cannot be negative; a t interval over two seeds does not know that.
        low = write(max(interval.low, 0.0))
        if kind == "percent":
            low = low.removesuffix("%") if write(interval.high) != low else low
        return f"{low}\u2013{write(interval.high)}"

    def life(self, life: PooledLife) -> str:
        """Write a half-life, with ">" for a lower bound."""
        return (">" if life.censored else "") + self.steps(life.steps.value)

    def ratio(self, comparison: LineComparison | None) -> str:
        """Write how many times as long as the baseline a method held."""
        if comparison is None or not comparison.pairs:
            return self.text["unknown"]
        if comparison.bound == "unknown":
            return self.text["unknown"]
        sign = {"lower": "\u2265", "upper": "\u2264"}.get(comparison.bound, "")
        return f"{sign}{self.times(comparison.ratio.value)}\u00d7"

    def within(self, bound: Bound, value: str) -> str:
        """Write a value for what it bounds."""
        if bound == "unknown":
            return self.text["unknown"]
        key = {"lower": "at_least", "upper": "at_most"}.get(bound)
        return self.say(key, value=value) if key else value

    def attack(self, attack: Attacked, among: Sequence[Attacked]) -> str:
        """Name an attack by its settings, adding those that tell it from the others."""
        seen = [(a.attack, a.judge) for a in among]
        return table_name((attack.attack, attack.judge), seen, self.text)
