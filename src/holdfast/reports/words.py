"""Numbers and labels in words: the same rounding everywhere, unknown said as unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from holdfast.reports.catalogue import Code, language
from holdfast.reports.facts import Attacked, LineComparison, PooledLife
from holdfast.reports.page import PAGE
from holdfast.results.attacks import table_name
from holdfast.stats.intervals import Interval
from holdfast.stats.ratios import Bound
from holdfast.texts import Language, Text, Value, number


@dataclass(frozen=True)
class Words:
    """The fixed text of one language, and how numbers are written in it."""

    code: Code

    @property
    def language(self) -> Language:
        """The language."""
        return language(self.code)

    @cached_property
    def text(self) -> Mapping[str, str]:
        """Key of `page.PAGE` -> text."""
        messages = self.language.messages
        return {key: messages.get(english, english) for key, english in PAGE.items()}

    def say(self, key: str, **values: Value) -> str:
        """Return a text of the page with its placeholders filled."""
        return self.language.fill(self.text[key], values)

    def said(self, text: str) -> str:
        """Return a `Text` in this language; names stay as they are."""
        return self.language.say(text)

    def cell(self, value: str | int | float) -> str:
        """Write a cell of a table."""
        if isinstance(value, str):
            return self.said(value)
        if isinstance(value, int):
            return self.language.number(value, "count")
        return self.language.number(value, ".3g" if abs(value) < 1000 else ",.0f")

    def percent(self, share: float) -> str:
        """Write a share; one decimal where rounding would hide that it is not 0 or 1."""
        return self.language.number(share, "percent")

    def steps(self, steps: float) -> str:
        """Write a number of attack steps."""
        return self.language.number(steps, "steps")

    def count(self, number: float) -> str:
        """Write a number of rows, all its digits."""
        return self.language.number(number, ",.0f")

    def times(self, ratio: float) -> str:
        """Write a ratio, without its multiplication sign; an interval may have no upper end."""
        return self.language.number(ratio, "times")

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
        return self.said(life_of(life))

    def ratio(self, comparison: LineComparison | None) -> str:
        """Write how many times as long as the baseline a method held."""
        return self.said(ratio_of(comparison))

    def attack(self, attack: Attacked, among: Sequence[Attacked]) -> str:
        """Name an attack by its settings, adding those that tell it from the others."""
        return self.said(attack_of(attack, among))


def life_of(life: PooledLife) -> Text:
    """Return a half-life, with ">" for a lower bound."""
    steps = number(life.steps.value, "steps")
    return Text(">{steps}", steps=steps) if life.censored else steps


def ratio_of(comparison: LineComparison | None) -> Text:
    """Return how many times as long as the baseline a method held."""
    if comparison is None or not comparison.pairs or comparison.bound == "unknown":
        return number(math.nan)
    ratio = number(comparison.ratio.value, "times")
    sign = {"lower": "\u2265", "upper": "\u2264"}.get(comparison.bound, "")
    return Text("{sign}{ratio}\u00d7", sign=sign, ratio=ratio)


def attack_of(attack: Attacked, among: Sequence[Attacked]) -> Text:
    """Name an attack by its settings, adding those that tell it from the others."""
    seen = [(a.attack, a.judge) for a in among]
    return table_name((attack.attack, attack.judge), seen)


def within(bound: Bound, value: Text) -> Text:
    """Return a value as what it bounds."""
    if bound == "unknown":
        return number(math.nan)
    if bound == "lower":
        return Text("at least {value}", value=value)
    return Text("at most {value}", value=value) if bound == "upper" else value
