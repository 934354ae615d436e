"""The summary: a verdict in plain sentences and the key figures; no claim beyond the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.reports.facts import (
    BASELINE,
    Facts,
    LineComparison,
    Standing,
    all_went_through,
    compare,
    compare_accuracy,
    ranked,
)
from holdfast.reports.words import Words
from holdfast.stats.intervals import Interval


@dataclass(frozen=True)
class Card:
    """A key figure: what it is, the figure, and a line that puts it into proportion."""

    label: str
    value: str
    detail: str


def verdict(facts: Facts, words: Words) -> list[str]:
    """Return the sentences of the summary, the verdict first."""
    best = facts.best
    if best is None:
        return [words.text["verdict_none"], *_price(facts, None, words)]
    return [
        _first(facts, best, words),
        *_steps(facts.comparisons.get(best), best, words),
        *_refusing(facts, best, words),
        *_second(facts, best, words),
        *_price(facts, best, words),
    ]


def cards(facts: Facts, words: Words) -> list[Card]:
    """Return three to five key figures of the method that held longest."""
    best = facts.best
    if best is None:
        return []
    comparison, standing = facts.comparisons.get(best), standing_of(facts, best)
    found = []
    if comparison is not None and comparison.pairs:
        key = f"card_{comparison.bound}" if comparison.bound else ""
        detail = words.text[key] if key else _interval(comparison.ratio, "times", words)
        found.append(Card(words.text["card_ratio"], words.ratio(comparison), detail))
    found += _weakest(facts, best, words)
    if standing is not None and math.isfinite(standing.harmful.value):
        value = words.percent(standing.harmful.value)
        detail = _interval(standing.harmful, "percent", words)
        found.append(Card(words.text["card_before"], value, detail))
    for key, price in (("card_refusal", _refusal), ("card_accuracy", accuracy)):
        own, base = price(facts, best)
        if math.isfinite(own):
            detail = "" if best == BASELINE else _versus(base, words)
            found.append(Card(words.text[key], words.percent(own), detail))
    return found


def standing_of(facts: Facts, line: str) -> Standing | None:
    """Return a line's standing before any attack."""
    return next((s for s in facts.standings if s.line == line), None)


def accuracy(facts: Facts, line: str) -> tuple[float, float]:
    """Return the mean accuracy under attack, a line's and the baseline's after as many steps.

    Without any attack that both have it is the line's after all of its own, and the baseline's is
    unknown.
    """
    found = compare_accuracy(facts.attacks, line, BASELINE)
    if found is not None:
        return found.first, found.second
    ends = [m.accuracy.value for a in facts.attacks for m in a.methods if m.line == line]
    known = [value for value in ends if math.isfinite(value)]
    return (sum(known) / len(known) if known else math.nan), math.nan


def _first(facts: Facts, best: str, words: Words) -> str:
    attacked = {m.line for a in facts.attacks for m in a.methods}
    if len(attacked) == 1:
        return words.say("verdict_alone", best=best)
    if best == BASELINE:
        known = all_went_through(facts.attacks, sorted(attacked))
        return words.text["verdict_baseline" if known else "verdict_apart"]
    if BASELINE not in attacked:
        return words.say("verdict_no_baseline", best=best, methods=len(attacked))
    found = facts.comparisons[best]
    return words.say(
        _key(found),
        best=best,
        ratio=words.within(found.bound, words.times(found.ratio.value)),
        low=words.times(found.ratio.low),
        high=words.times(found.ratio.high),
        pairs=found.pairs,
        against=found.against,
        censored=found.censored,
    )


def _key(found: LineComparison) -> str:
    """Choose the sentence that says no more than the comparison does."""
    if not found.bound and found.pairs > 1 and math.isnan(found.ratio.low):
        return f"verdict_{found.outcome}_equal"  # so there is no spread to make an interval of
    if found.outcome == "longer":
        if found.bound:
            return "verdict_longer_bound"
        return "verdict_longer_censored" if found.censored else "verdict_longer"
    if found.outcome == "shorter":
        return "verdict_shorter"
    if not found.pairs:
        return "verdict_unclear_none"
    if found.bound == "unknown":
        return "verdict_unclear_either"
    if found.against:
        return "verdict_unclear_against"
    if found.pairs == 1 or not math.isfinite(found.ratio.low):
        return "verdict_unclear_one"
    if found.bound == "upper":
        return "verdict_unclear_upper"
    return "verdict_unclear_early" if found.bound else "verdict_unclear"


def _steps(found: LineComparison | None, best: str, words: Words) -> list[str]:
    # Where the other withstood an attack its steps are not known, and a mean would leave that out.
    if found is None or not found.pairs or found.against:
        return []
    values = {
        "best": best,
        "steps": words.within("lower" if found.censored else "", words.steps(found.steps[0])),
        "base": words.steps(found.steps[1]),
    }
    ends = found.difference
    if found.censored or not math.isfinite(ends.low):
        return [words.say("sentence_steps_plain", **values)]
    values |= {"diff": words.steps(ends.value), "low": words.steps(ends.low)}
    return [words.say("sentence_steps", **values, high=words.steps(ends.high))]


def _refusing(facts: Facts, best: str, words: Words) -> list[str]:
    """Say whether the model goes on refusing, or only ceases to answer harmfully."""
    found, held = facts.refusing.get(best), facts.comparisons.get(best)
    if found is None or held is None or held.outcome != "longer" or not found.pairs:
        return []
    key = "sentence_refusing" if found.outcome == "longer" else "sentence_refusing_not"
    ratio = words.within(found.bound, words.times(found.ratio.value))
    low, high = words.times(found.ratio.low), words.times(found.ratio.high)
    return [words.say(key, best=best, ratio=ratio, low=low, high=high)]


def _second(facts: Facts, best: str, words: Words) -> list[str]:
    others = [line for line in ranked(facts.attacks) if line not in (best, BASELINE)]
    if not others or best == BASELINE:
        return []
    found = compare(facts.attacks, best, others[0])
    if found.outcome != "longer":
        return [words.say("sentence_second_unclear", best=best, second=others[0])]
    ratio = words.within(found.bound, words.times(found.ratio.value))
    low, high = words.times(found.ratio.low), words.times(found.ratio.high)
    return [
        words.say("sentence_second", best=best, second=others[0], ratio=ratio, low=low, high=high)
    ]


def _price(facts: Facts, best: str | None, words: Words) -> list[str]:
    if best is None:
        return []
    standing = standing_of(facts, best)
    before = standing.harmful if standing else None
    if before is None or not math.isfinite(before.value):
        sentences = [words.say("sentence_before_unknown", best=best)]
    else:
        low, high = words.percent(before.low), words.percent(before.high)
        hs = words.percent(before.value)
        said = words.say("sentence_before", best=best, hs=hs, low=low, high=high, n=before.n)
        sentences = [said]
    price = ""
    for name, read in (("refusal", _refusal), ("accuracy", accuracy)):
        own, base = read(facts, best)
        if math.isfinite(own):
            shown = words.percent(own)
            alone = name == "accuracy" and (best == BASELINE or not math.isfinite(base))
            key = f"sentence_{name}{'_alone' if alone else ''}"
            price += words.say(key, over=shown, acc=shown, base=words.percent(base))
        else:
            price += words.text[f"sentence_{name}_unknown"]
    return [*sentences, price]


def _refusal(facts: Facts, line: str) -> tuple[float, float]:
    """Return the over-refusal of a line and of the baseline."""
    own, base = (standing_of(facts, name) for name in (line, BASELINE))
    return (
        own.over_refusal.value if own else math.nan,
        base.over_refusal.value if base else math.nan,
    )


def _weakest(facts: Facts, best: str, words: Words) -> list[Card]:
    lives = [
        (m.life.steps.value, words.life(m.life), words.attack(a, facts.attacks))
        for a in facts.attacks
        for m in a.methods
        if m.line == best and m.life.n
    ]
    if not lives:
        return []
    _, value, attack = min(lives)
    detail = words.say("card_weakest_detail", attack=attack)
    return [Card(words.text["card_weakest"], value, detail)]


def _interval(interval: Interval, kind: str, words: Words) -> str:
    if math.isnan(interval.low) or math.isnan(interval.high):
        return ""
    write = getattr(words, kind)
    return words.say("card_interval", low=write(interval.low), high=write(interval.high))


def _versus(base: float, words: Words) -> str:
    return words.say("card_versus", base=words.percent(base))
