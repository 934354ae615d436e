"""Comparison of results: which results can be compared, and how they differ.

Results are paired by attack (settings and judge), alignment seed and attack seed.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from holdfast.results.artifacts import AttackResult, Evaluation, Life, Point
from holdfast.results.lives import HALF_LIFE, Event, life_until
from holdfast.stats.differences import Difference, difference_of_shares, paired_difference
from holdfast.stats.ratios import Pair, Ratio, censored_ratio
from holdfast.stats.survival import Time

Result = AttackResult | Evaluation
Pairs = Sequence[tuple[AttackResult, AttackResult]]


def line_names(items: Sequence[Result]) -> Callable[[Result], str]:
    """Return a function that names a result's line in a table: by method, or by label.

    If a run has two models of one method and seed, they have different options. Such models get a
    line each, by label, since averaging would hide the difference that the run is about.
    """
    models: dict[tuple[str, int], set[str]] = {}
    for item in items:
        models.setdefault((item.method, item.model_seed), set()).add(item.model)
    split = {method for (method, _), labels in models.items() if len(labels) > 1}
    return lambda item: item.model if item.method in split else item.method


def attack_key(result: AttackResult) -> str:
    """Return a key that is equal for results of the same attack and judge with any attack seed.

    Attacks with other harmful rows or test prompts differ in it, even with equal settings.
    """
    settings = result.attack.settings.model_dump_json()
    return json.dumps([settings, result.judge, result.material_hash])


def pairs_of(ours: Sequence[AttackResult], theirs: Sequence[AttackResult]) -> Pairs:
    """Return the pairs of results of the same attack with the same seeds."""

    def full_key(result: AttackResult) -> tuple[str, int, int]:
        return attack_key(result), result.model_seed, result.attack.seed

    others = {full_key(result): result for result in theirs}
    return [(a, others[full_key(a)]) for a in ours if full_key(a) in others]


# ----------------------------------------------------------------------------------- half-lives


@dataclass(frozen=True)
class LifeComparison:
    """Lives of one method compared with the lives of another.

    Attributes:
        ratio: See `ratios.censored_ratio`; None if no pair is informative.
        skipped: Number of uninformative pairs: both lives are censored, both models were broken
            before the attack, or a life is unknown.
        against: Number of pairs in which only the other method withstood the attack.
        broken: Number of pairs in the ratio in which one model was broken before the attack.
    """

    ratio: Ratio | None
    skipped: int
    against: int
    broken: int = 0


def compare_lives(
    pairs: Pairs, event: Event = HALF_LIFE, against: Event | None = None
) -> LifeComparison:
    """Compare the lives of paired attacks; censored lives enter as bounds.

    Args:
        pairs: See `pairs_of`.
        event: The event that ends a life.
        against: The event that ends the other's life, if it differs.
    """
    return compare_life_pairs(
        [(life_of(a, event), life_of(b, against or event), a.model_seed) for a, b in pairs]
    )


def life_of(result: AttackResult, event: Event) -> Life:
    """Return the life until an event, without its interval unless the result stores it."""
    return result.half_life if event == HALF_LIFE else life_until(result, event, resamples=0)


def compare_life_pairs(pairs: Sequence[tuple[Life, Life, int]]) -> LifeComparison:
    """Compare pairs of lives.

    A life of 0 has no logarithm. It is replaced by its upper bound, the first checkpoint after
    step 0.

    Args:
        pairs: Our life, their life, and the alignment seed.
    """
    times = []
    against = 0
    broken = 0
    for ours, theirs, seed in pairs:
        # If a model is broken before the attack, its life is below the first checkpoint, so the
        # quotient of the two steps bounds the ratio: from below if theirs is broken, from above if
        # ours is. Marking the other's time as censored expresses that.
        our_time = Time(_positive(ours), censored=ours.censored or theirs.steps == 0)
        their_time = Time(_positive(theirs), censored=theirs.censored or ours.steps == 0)
        both_known = our_time.value > 0 and their_time.value > 0
        if both_known and not (our_time.censored and their_time.censored):
            times.append(Pair(our_time, their_time, seed))
            against += theirs.censored
            broken += 0 in (ours.steps, theirs.steps)
    if not times:
        return LifeComparison(None, len(pairs), 0)
    return LifeComparison(censored_ratio(times), len(pairs) - len(times), against, broken)


def _positive(life: Life) -> float:
    """Return the life or its lower bound; for 0 the first checkpoint after step 0.

    A lower bound of 0, of an attack measured at step 0 only, says nothing: nan.
    """
    if life.censored:
        return life.at_least or math.nan
    return life.at_least or life.first


# ---------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Shares:
    """Shares of one method compared with the shares of another.

    Attributes:
        first: Mean share of the first method over seeds.
        second: Mean share of the second method over seeds.
        difference: First minus second.
    """

    first: float
    second: float
    difference: Difference


def compare_ends(pairs: Pairs) -> Shares | None:
    """Compare harmful scores at the last checkpoint that both attacks of a pair have.

    The comparison is prompt by prompt if all results store their marks, else of the counts. Its
    interval and p value cover whatever the undecided answers may be (`covering`).

    Returns:
        None if no pair has a checkpoint with decided verdicts of the judge in common.
    """
    shares_by_seed: SharesBySeed = defaultdict(list)
    least_by_seed: SharesBySeed = defaultdict(list)
    greatest_by_seed: SharesBySeed = defaultdict(list)
    differences = PairedDifferences()
    answers = 0
    for ours, theirs in pairs:
        last = _last(ours, theirs)
        if last is None:
            continue
        our_counts, their_counts = (point.verdicts[ours.judge] for point in last)
        answers += our_counts.n
        seed = ours.model_seed
        our_score = (our_counts.harmful_score, our_counts.n)
        their_score = (their_counts.harmful_score, their_counts.n)
        shares_by_seed[seed].append((our_score, their_score))
        our_greatest = (our_counts.greatest_score, our_counts.n)
        their_greatest = (their_counts.greatest_score, their_counts.n)
        least_by_seed[seed].append((our_score, their_greatest))
        greatest_by_seed[seed].append((our_greatest, their_score))
        differences.add(_marks(ours, last[0]), _marks(theirs, last[1]), seed)
    if not shares_by_seed:
        return None
    shares = compare_shares(shares_by_seed)
    if len(differences.values) == answers:
        return Shares(shares.first, shares.second, differences.difference)
    least = compare_shares(least_by_seed).difference
    greatest = compare_shares(greatest_by_seed).difference
    return Shares(shares.first, shares.second, covering(shares.difference, least, greatest))


@dataclass
class PairedDifferences:
    """Differences between two methods' answers to the same prompts.

    Attributes:
        values: Difference of each prompt and seed, if no undecided answer is harmful.
        least: The same if every undecided answer of the second method is harmful.
        greatest: The same if every undecided answer of the first method is harmful.
        prompts: Content id of each prompt.
        seeds: Alignment seed of each difference.
    """

    values: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    greatest: list[float] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def add(self, ours: Mapping[str, Bounds], theirs: Mapping[str, Bounds], seed: int) -> None:
        """Add the prompts that both methods answered.

        Args:
            ours: Prompt -> least and greatest share of its answers that are harmful.
            theirs: The same of the other method.
            seed: Alignment seed.
        """
        for prompt in ours:
            if prompt not in theirs:
                continue
            our_least, our_greatest = ours[prompt]
            their_least, their_greatest = theirs[prompt]
            self.values.append(our_least - their_least)
            self.least.append(our_least - their_greatest)
            self.greatest.append(our_greatest - their_least)
            self.prompts.append(prompt)
            self.seeds.append(seed)

    @property
    def difference(self) -> Difference:
        """The mean difference."""
        central, least, greatest = (
            paired_difference(values, self.prompts, self.seeds)
            for values in (self.values, self.least, self.greatest)
        )
        return covering(central, least, greatest)


def covering(central: Difference, least: Difference, greatest: Difference) -> Difference:
    """Return a difference whose interval and p value hold wherever it lies between two others.

    Args:
        central: The difference if no undecided answer is harmful.
        least: The least difference that the undecided answers allow.
        greatest: The greatest difference that they allow.
    """
    interval = replace(
        central.interval,
        low=min(least.interval.low, central.interval.low),
        high=max(greatest.interval.high, central.interval.high),
    )
    lowest = least.interval.value
    highest = greatest.interval.value
    if lowest == highest:
        return central
    p = 1.0 if lowest <= 0 <= highest else max(least.p, central.p, greatest.p)
    return replace(central, interval=interval, p=p)


Bounds = tuple[float, float]
"""Least and greatest share of harmful answers, given what is undecided."""
SharesBySeed = dict[int, list[tuple[tuple[float, int], tuple[float, int]]]]
"""Alignment seed -> (share, n) of the first and the second method, for each pair of the seed."""


def compare_accuracies(pairs: Pairs) -> Shares | None:
    """Compare task accuracy at the last checkpoint that both attacks of a pair have."""
    shares_by_seed: SharesBySeed = defaultdict(list)
    for ours, theirs in pairs:
        last = _last(ours, theirs)
        if last is None or not (last[0].accuracy_n and last[1].accuracy_n):
            continue
        our_accuracy, their_accuracy = ((point.accuracy, point.accuracy_n) for point in last)
        if math.isfinite(our_accuracy[0]) and math.isfinite(their_accuracy[0]):
            shares_by_seed[ours.model_seed].append((our_accuracy, their_accuracy))
    return compare_shares(shares_by_seed) if shares_by_seed else None


def compare_shares(shares_by_seed: SharesBySeed) -> Shares:
    """Compare shares from their counts; the pairs of a seed are averaged first."""
    first = [_mean_share([ours for ours, _ in pairs]) for pairs in shares_by_seed.values()]
    second = [_mean_share([theirs for _, theirs in pairs]) for pairs in shares_by_seed.values()]
    return Shares(
        first=sum(share for share, _ in first) / len(first),
        second=sum(share for share, _ in second) / len(second),
        difference=difference_of_shares(first, second),
    )


def _mean_share(shares: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Return the mean of shares, and the smallest number of answers behind one of them."""
    mean = sum(share for share, _ in shares) / len(shares)
    return mean, min(n for _, n in shares)


def _last(ours: AttackResult, theirs: AttackResult) -> tuple[Point, Point] | None:
    """Return the last checkpoints at the same step; None if a side has no verdicts of the judge.

    Checkpoints at which a judge decided nothing are skipped.
    """
    judge = ours.judge
    by_step = {point.step: point for point in theirs.points}
    for point in reversed(ours.points):
        other = by_step.get(point.step)
        if other is None:
            continue
        counts = [p.verdicts[judge] for p in (point, other) if judge in p.verdicts]
        if all(count.decided for count in counts):
            return (point, other) if len(counts) == 2 else None
    return None


def _marks(result: AttackResult, point: Point) -> dict[str, Bounds]:
    """Return prompt -> least and greatest harm of its answer; empty if there are only counts."""
    marks = point.marks.get(result.judge, "")
    if len(marks) != len(result.prompts):
        return {}
    bounds = {"h": (1.0, 1.0), "s": (0.0, 0.0), "u": (0.0, 1.0)}
    return {prompt: bounds[mark] for prompt, mark in zip(result.prompts, marks, strict=True)}
