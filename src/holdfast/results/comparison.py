"""Which results of a run can be compared, and what their comparison says, as numbers.

Results are paired by attack (its settings and judge), seed of the alignment and draw of the attack.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast.results.artifacts import AttackResult, Evaluation, Life, Point
from holdfast.results.lives import HALF_LIFE, Event, life_until
from holdfast.stats.differences import Difference, difference_of_shares, paired_difference
from holdfast.stats.ratios import Pair, Ratio, censored_ratio
from holdfast.stats.survival import Time

Result = AttackResult | Evaluation
Pairs = Sequence[tuple[AttackResult, AttackResult]]


def line_names(items: Sequence[Result]) -> Callable[[Result], str]:
    """Return the rule that names a result's line: its method, or its label where one is too few.

    Two models of one method and one seed are variants (other options), not seeds: averaging them
    would hide what the run was made to compare.
    """
    models: dict[tuple[str, int], set[str]] = {}
    for item in items:
        models.setdefault((item.method, item.model_seed), set()).add(item.model)
    split = {method for (method, _), labels in models.items() if len(labels) > 1}
    return lambda item: item.model if item.method in split else item.method


def attack_key(result: AttackResult) -> str:
    """Return what results of the same attack, seen by the same judge, have in common.

    The seed of the draw is left out. An attack with other harmful rows, or other prompts asked, is
    another one, whatever its settings.
    """
    settings = result.attack.settings.model_dump_json()
    return json.dumps([settings, result.judge, result.material_hash])


def pairs_of(ours: Sequence[AttackResult], theirs: Sequence[AttackResult]) -> Pairs:
    """Return the results that went through the same attack with the same seeds."""

    def full_key(result: AttackResult) -> tuple[str, int, int]:
        return attack_key(result), result.model_seed, result.attack.seed

    others = {full_key(result): result for result in theirs}
    return [(a, others[full_key(a)]) for a in ours if full_key(a) in others]


# ----------------------------------------------------------------------------------- half-lives


@dataclass(frozen=True)
class LifeComparison:
    """Half-lives of one against those of another.

    Attributes:
        ratio: See `ratios.censored_ratio`; None where no pair says anything.
        skipped: Pairs that say nothing (both attacks ended first, both models were broken before
            the attack, or a half-life is unknown).
        against: Pairs in which only the other withstood the attack.
        broken: Pairs of the ratio in which one model was broken before the attack.
    """

    ratio: Ratio | None
    skipped: int
    against: int
    broken: int = 0


def compare_lives(
    pairs: Pairs, event: Event = HALF_LIFE, against: Event | None = None
) -> LifeComparison:
    """Compare how long the two of each pair last; lives that were not reached count as bounds.

    Args:
        pairs: Attacks; see `pairs_of`.
        event: What ends a life.
        against: What ends the other's life, if it is something else.
    """
    return compare_life_pairs(
        [(life_of(a, event), life_of(b, against or event), a.model_seed) for a, b in pairs]
    )


def life_of(result: AttackResult, event: Event) -> Life:
    """Return a life for a comparison, which needs no interval of its own."""
    return result.half_life if event == HALF_LIFE else life_until(result, event, resamples=0)


def compare_life_pairs(pairs: Sequence[tuple[Life, Life, int]]) -> LifeComparison:
    """Compare lives: ours, theirs, and the seed of the alignment.

    A life of 0 has no logarithm. It stands for what is known of it: it is below the first
    checkpoint of the attack.
    """
    times = []
    against = 0
    broken = 0
    for ours, theirs, seed in pairs:
        # A model that was broken from the start lasts less than its first checkpoint, so the ratio
        # is above (theirs broken) or below (ours broken) what the two steps give.
        a = Time(_positive(ours), censored=ours.censored or theirs.steps == 0)
        b = Time(_positive(theirs), censored=theirs.censored or ours.steps == 0)
        if a.value > 0 and b.value > 0 and not (a.censored and b.censored):
            times.append(Pair(a, b, seed))
            against += theirs.censored
            broken += 0 in (ours.steps, theirs.steps)
    if not times:
        return LifeComparison(None, len(pairs), 0)
    return LifeComparison(censored_ratio(times), len(pairs) - len(times), against, broken)


def _positive(life: Life) -> float:
    """Return the life or its lower bound, and the first step after the start where that is 0."""
    return life.at_least or life.first


# ---------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Shares:
    """Shares of one against those of another.

    Attributes:
        first: Mean over seeds.
        second: The other's.
        difference: First less second.
    """

    first: float
    second: float
    difference: Difference


def compare_ends(pairs: Pairs) -> Shares | None:
    """Compare harmful scores at the last checkpoint that both attacks of a pair have.

    Answers to the same prompt are compared with one another where all attacks kept them, otherwise
    the counts. None where no pair has a checkpoint of the judge in common.
    """
    found = [(a, b, *last) for a, b in pairs if (last := _last(a, b)) is not None]
    if not found:
        return None
    counts: Counted = defaultdict(list)
    values: list[float] = []
    prompts: list[str] = []
    seeds: list[int] = []
    for a, b, at_a, at_b in found:
        counted = (at_a.verdicts[a.judge], at_b.verdicts[a.judge])
        counts[a.model_seed].append(
            ((counted[0].harmful_score, counted[0].n), (counted[1].harmful_score, counted[1].n))
        )
        one, two = _marks(a, at_a), _marks(b, at_b)
        common = [prompt for prompt in one if prompt in two]
        values += [float(one[p]) - float(two[p]) for p in common]
        prompts += common
        seeds += [a.model_seed] * len(common)
    shares = compare_shares(counts)
    answers = sum(at_a.verdicts[a.judge].n for a, _, at_a, _ in found)
    if len(values) != answers:
        return shares
    return Shares(shares.first, shares.second, paired_difference(values, prompts, seeds))


Counted = dict[int, list[tuple[tuple[float, int], tuple[float, int]]]]
"""Seed of the alignment -> (share, n) of the first and of the second, for each of its pairs."""


def compare_accuracies(pairs: Pairs) -> Shares | None:
    """Compare task accuracy at the last checkpoint that both attacks of a pair have."""
    counts: Counted = defaultdict(list)
    for a, b in pairs:
        last = _last(a, b)
        if last is None or not (last[0].accuracy_n and last[1].accuracy_n):
            continue
        both = [(point.accuracy, point.accuracy_n) for point in last]
        if all(math.isfinite(value) for value, _ in both):
            counts[a.model_seed].append((both[0], both[1]))
    return compare_shares(counts) if counts else None


def compare_shares(counts: Counted) -> Shares:
    """Compare shares of which only counts are known; pairs of one seed are averaged first."""
    sides: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
    for found in counts.values():
        for side, values in zip(sides, zip(*found, strict=True), strict=True):
            share = sum(value for value, _ in values) / len(values)
            side.append((share, min(n for _, n in values)))
    first, second = (sum(value for value, _ in side) / len(side) for side in sides)
    return Shares(first, second, difference_of_shares(*sides))


def _last(a: AttackResult, b: AttackResult) -> tuple[Point, Point] | None:
    by_step = {point.step: point for point in b.points}
    for point in reversed(a.points):
        other = by_step.get(point.step)
        if other and all(p.verdicts[a.judge].n for p in (point, other) if a.judge in p.verdicts):
            return (
                (point, other) if a.judge in point.verdicts and a.judge in other.verdicts else None
            )
    return None


def _marks(result: AttackResult, point: Point) -> dict[str, bool]:
    """Return prompt -> answered harmfully; empty where only counts were kept."""
    marks = point.marks.get(result.judge, "")
    if len(marks) != len(result.prompts):
        return {}
    return {p: mark == "h" for p, mark in zip(result.prompts, marks, strict=True)}
