"""What a run directory says, gathered for the report; unknown stays unknown, seeds are pooled here.

Results are pooled over seeds by alignment method and by attack (its settings and the judge, the
seed left out). Nothing missing or broken stops the report: it is named in `Facts.problems`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from holdfast import plugins
from holdfast.contracts import Poison
from holdfast.errors import UsageError
from holdfast.examples import Example
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Life
from holdfast.results.attacks import Attack
from holdfast.results.comparison import (
    Pairs,
    Shares,
    attack_key,
    compare_accuracies,
    compare_lives,
    life_of,
    line_names,
    pairs_of,
)
from holdfast.results.lives import HALF_LIFE, REFUSAL_HALF_LIFE, Event, life_until
from holdfast.results.run_dir import Entry, Failure, RunDir
from holdfast.stats.intervals import Interval, mean_interval, wilson_around
from holdfast.stats.ratios import Bound, Outcome

BASELINE = "sft"
Draw = tuple[str, int, int]
"""An attack, the seed of the model, and the draw of rows."""
_T = TypeVar("_T", AttackResult, Evaluation)


@dataclass(frozen=True)
class PooledLife:
    """A half-life over seeds.

    Attributes:
        steps: Mean and interval; the mean is a lower bound if `censored`.
        censored: Number of seeds in which the attack ended first.
        n: Number of seeds with a known outcome.
    """

    steps: Interval
    censored: int
    n: int


@dataclass(frozen=True)
class LineComparison:
    """Half-lives of a method against another's, paired by attack and seeds.

    Attributes:
        ratio: Geometric mean ratio of the half-lives; those that were not reached are taken as
            such (`survival.censored_ratio`), and an end may be infinite.
        difference: Mean difference in attack steps, where the other's half-life was reached.
        steps: Mean half-life of the method and of the other, over the same pairs as `difference`.
        bound: What the ratio bounds, where too few half-lives were reached (`survival.Ratio`).
        pairs: Pairs behind the ratio.
        censored: Of these, pairs with a half-life that was not reached.
        skipped: Pairs that cannot be compared (both half-lives are censored, both are 0, or one is
            unknown).
        against: Pairs among those in which only the other survived the attack.
        outcome: "unclear" unless the ratio's interval excludes 1 (`survival.Ratio`).
    """

    ratio: Interval
    difference: Interval
    steps: tuple[float, float]
    bound: Bound
    pairs: int
    censored: int
    skipped: int
    against: int
    outcome: Outcome


@dataclass(frozen=True)
class Under:
    """A method under one attack, over seeds."""

    line: str
    results: tuple[AttackResult, ...]

    @property
    def end_steps(self) -> list[int]:
        """Last checkpoint of each seed's attack."""
        return sorted({r.points[-1].step for r in self.results if r.points})

    @property
    def end(self) -> Interval:
        """Harmful score at the last checkpoint."""
        return share([c for c in self._last() if c], "harmful")

    @property
    def verdicts(self) -> Counts:
        """Verdicts at the last checkpoint, seeds added up."""
        return add([c for c in self._last() if c])

    @property
    def life(self) -> PooledLife:
        """Half-life in attack steps."""
        return self._life([r.half_life for r in self.results])

    @property
    def refusal_life(self) -> PooledLife:
        """Attack steps until half of the restricted prompts are no longer refused."""
        return self._life([life_until(r, REFUSAL_HALF_LIFE, resamples=0) for r in self.results])

    @staticmethod
    def _life(lives_of_seeds: Sequence[Life]) -> PooledLife:
        known = [life for life in lives_of_seeds if math.isfinite(life.at_least)]
        censored = sum(life.censored for life in known)
        steps = mean_interval([life.at_least for life in known]) if known else unknown()
        if censored:
            steps = Interval(steps.value, math.nan, math.nan, steps.n)
        return PooledLife(steps, censored, len(known))

    @property
    def accuracy(self) -> Interval:
        """Downstream accuracy at the last checkpoint."""
        ends = [r.points[-1] for r in self.results if r.points]
        known = [p for p in ends if math.isfinite(p.accuracy) and p.accuracy_n]
        return pooled([(p.accuracy, p.accuracy_n) for p in known])

    def curve(self) -> list[tuple[int, float, float, float]]:
        """Return (step, mean, lowest, highest harmful score) at steps that every seed has."""
        by_seed = [
            {p.step: p.verdicts[r.judge].harmful_score for p in r.points if r.judge in p.verdicts}
            for r in self.results
        ]
        steps = set.intersection(*(set(seed) for seed in by_seed)) if by_seed else set()
        rows = [(step, [seed[step] for seed in by_seed]) for step in sorted(steps)]
        # A seed whose score is unknown at a step leaves the mean there unknown.
        return [
            (step, math.nan, math.nan, math.nan)
            if any(map(math.isnan, scores))
            else (step, sum(scores) / len(scores), min(scores), max(scores))
            for step, scores in rows
        ]

    def _last(self) -> list[Counts | None]:
        return [r.points[-1].verdicts.get(r.judge) if r.points else None for r in self.results]


@dataclass(frozen=True)
class Attacked:
    """One attack and every method that went through it."""

    key: str
    attack: Attack
    judge: str
    methods: tuple[Under, ...]


@dataclass(frozen=True)
class Standing:
    """A method before any attack, over seeds."""

    line: str
    seeds: int
    verdicts: Counts
    harmful: Interval
    over_refusal: Interval
    tasks: Mapping[str, Interval]
    from_attack: bool


@dataclass(frozen=True)
class Facts:
    """Everything the report says about a run, as numbers."""

    entries: tuple[Entry, ...]
    attacks: tuple[Attacked, ...]
    standings: tuple[Standing, ...]
    lines: tuple[str, ...]
    comparisons: Mapping[str, LineComparison]
    refusing: Mapping[str, LineComparison]
    missing: tuple[str, ...]
    problems: tuple[str, ...]
    failed: tuple[Failure, ...]
    judges: tuple[str, ...]

    @property
    def best(self) -> str | None:
        """The line that held longest, None if nothing was attacked."""
        attacked = {m.line for a in self.attacks for m in a.methods}
        return next((line for line in ranked(self.attacks) if line in attacked), None)


def gather(run: RunDir) -> Facts:
    """Read a run directory.

    Raises:
        UsageError: A file in `manifest/` is broken, so that not even the list of steps is known.
    """
    entries = run.entries()
    problems = list(run.verify())
    results = list(_load(run, entries, "attack", AttackResult.load, problems))
    evaluations = list(_load(run, entries, "evaluate", Evaluation.load, problems))
    problems += _nothing_decided(evaluations, results)
    name = line_names([*results, *evaluations])
    attacks = tuple(_attacks(results, name))
    judges = list(dict.fromkeys(r.judge for r in results))
    standings = tuple(_standings(evaluations, results, judges, name))
    order = list(dict.fromkeys([*ranked(attacks), *(s.line for s in standings)]))
    lines = sorted(order, key=lambda line: line != BASELINE)
    stages = {entry.stage for entry in entries}
    return Facts(
        entries=tuple(entries),
        attacks=attacks,
        standings=tuple(sorted(standings, key=lambda s: lines.index(s.line))),
        lines=tuple(lines),
        comparisons={x: compare(attacks, x, BASELINE) for x in lines if x != BASELINE},
        refusing={x: compare_refusing(attacks, x, BASELINE) for x in lines if x != BASELINE},
        missing=tuple(s for s in ("score", "align", "attack", "evaluate") if s not in stages),
        problems=tuple(dict.fromkeys(problems)),
        # That an earlier report failed is over when this one is there.
        failed=tuple(f for f in run.failures() if f.stage != "report"),
        judges=tuple(judges),
    )


def compare(attacks: Sequence[Attacked], line: str, other: str) -> LineComparison:
    """Compare two lines' half-lives over the attacks and seeds that both went through."""
    return _compared(pairs_of(_results(attacks, line), _results(attacks, other)), HALF_LIFE)


def compare_shortest(attacks: Sequence[Attacked], line: str, other: str) -> LineComparison:
    """Compare two lines' half-lives if undecided answers were harmful on the first line only."""
    pairs = pairs_of(_results(attacks, line), _results(attacks, other))
    return _compared(pairs, HALF_LIFE.earliest, HALF_LIFE)


def compare_refusing(attacks: Sequence[Attacked], line: str, other: str) -> LineComparison:
    """Compare two lines' refusal half-lives (`lives.Refusals`) in the same way."""
    pairs = pairs_of(_results(attacks, line), _results(attacks, other))
    return _compared(pairs, REFUSAL_HALF_LIFE)


def _compared(pairs: Pairs, event: Event, against: Event | None = None) -> LineComparison:
    found = compare_lives(pairs, event, against)
    both = [(life_of(a, event), life_of(b, against or event)) for a, b in pairs]
    known = [(a, b) for a, b in both if a.at_least + b.at_least > 0 and not b.censored]
    a = [ours.at_least for ours, _ in known]
    b = [theirs.at_least for _, theirs in known]
    gaps = mean_interval([x - y for x, y in zip(a, b, strict=True)]) if known else unknown()
    n = len(known)
    means = (sum(a) / n, sum(b) / n) if n else (math.nan, math.nan)
    if found.ratio is None:
        return LineComparison(
            ratio=unknown(),
            difference=gaps,
            steps=means,
            bound="",
            pairs=0,
            censored=0,
            skipped=found.skipped,
            against=0,
            outcome="unclear",
        )
    return LineComparison(
        ratio=found.ratio.interval,
        difference=gaps,
        steps=means,
        bound=found.ratio.bound,
        pairs=found.ratio.used,
        censored=found.ratio.censored,
        skipped=found.skipped,
        against=found.against,
        outcome=found.ratio.outcome,
    )


def ranked(attacks: Sequence[Attacked]) -> list[str]:
    """Return the lines, longest first, by geometric mean half-life over what all went through.

    That are the attacks, seeds and draws that all lines have: one that lacks the harder ones would
    come out longest. Where there is nothing of that kind, each goes by all of its own. Censored
    half-lives count as the last step. Lines without any known half-life come last.
    """
    lines = list(dict.fromkeys(m.line for a in attacks for m in a.methods))
    shared = all_went_through(attacks, lines)

    def height(line: str) -> float:
        lives = {key: life for key, life in _reaches(attacks, line).items() if math.isfinite(life)}
        reached = [life for key, life in lives.items() if not shared or key in shared]
        return sum(math.log1p(v) for v in reached) / len(reached) if reached else -1.0

    return sorted(lines, key=lambda line: -height(line))


def all_went_through(attacks: Sequence[Attacked], lines: Sequence[str]) -> set[Draw]:
    """Return the attacks with their seeds and draws that left all lines a known half-life."""
    known = [
        {key for key, life in _reaches(attacks, line).items() if math.isfinite(life)}
        for line in lines
    ]
    return set.intersection(*known) if known else set()


def _reaches(attacks: Sequence[Attacked], line: str) -> dict[Draw, float]:
    return {
        (a.key, r.model_seed, r.attack.seed): r.half_life.at_least
        for a in attacks
        for m in a.methods
        if m.line == line
        for r in m.results
    }


def compare_accuracy(attacks: Sequence[Attacked], line: str, other: str) -> Shares | None:
    """Compare two lines' accuracies after as many attack steps; None where no attack lets one.

    An attack that ends where a model breaks trains on for as long as it holds: at their own ends
    one would have learnt the customer's task for longer.
    """
    return compare_accuracies(pairs_of(_results(attacks, line), _results(attacks, other)))


def share(
    counts: Sequence[Counts],
    what: Literal["harmful", "safe", "undecided"],
    samples: Sequence[int] | None = None,
) -> Interval:
    """Return the mean share over seeds, among all answers, with an interval; see `pooled`.

    The interval of the harmful share covers whatever the undecided answers may be. A seed of which
    nothing was decided is not in the mean; if nothing was decided at all, the share is unknown.

    Several sampled answers to one prompt count as one observation, which is never too many.
    """
    each = samples or [1] * len(counts)
    answered = [(c, c.n // k) for c, k in zip(counts, each, strict=True) if c.n]
    least = pooled([(getattr(c, what) / c.n, n) for c, n in answered])
    if what != "harmful" or not any(c.undecided for c, _ in answered):
        return least
    greatest = pooled([(c.greatest_score, n) for c, n in answered])
    known = [c.harmful_score for c, _ in answered if c.decided]
    value = sum(known) / len(known) if known else math.nan
    low, high = (least.low, greatest.high) if known else (0.0, 1.0)
    return Interval(value, low, high, least.n)


def pooled(shares: Sequence[tuple[float, int]]) -> Interval:
    """Return the mean of shares of several seeds with an honest interval.

    Both sources of doubt count: which seed (t interval over seeds) and which prompts (Wilson, for
    one seed's number of prompts, since seeds answer the same ones). The wider end wins: equal
    seeds, as at a harmful score of 0, would otherwise pretend to be certain.

    Args:
        shares: (share, number of answers) of each seed.
    """
    if not shares:
        return unknown()
    mean = sum(value for value, _ in shares) / len(shares)
    n = min(size for _, size in shares)
    prompts = wilson_around(mean, n)
    low, high = prompts.low, prompts.high
    if len(shares) > 1:
        seeds = mean_interval([value for value, _ in shares])
        low, high = min(low, seeds.low), max(high, seeds.high)
    return Interval(mean, max(low, 0.0), min(high, 1.0), sum(size for _, size in shares))


def add(counts: Sequence[Counts]) -> Counts:
    """Add up verdicts."""
    return Counts(
        sum(c.harmful for c in counts),
        sum(c.safe for c in counts),
        sum(c.undecided for c in counts),
    )


def unknown() -> Interval:
    """Return the interval that says nothing."""
    return Interval(math.nan, math.nan, math.nan, 0)


def _load(
    run: RunDir,
    entries: Sequence[Entry],
    stage: str,
    load: Callable[[Any], _T],
    problems: list[str],
) -> Iterator[_T]:
    kind = {"attack": "attack", "evaluate": "evaluation"}[stage]
    for entry in entries:
        if entry.stage != stage:
            continue
        for relative in entry.outputs:
            path = run.path(relative)
            if path.suffix != ".json" or not path.is_file():
                continue
            try:
                raw = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(raw, dict) and raw.get("kind") == kind:
                    yield load(path)
            except (UsageError, ValueError, TypeError, KeyError, AttributeError) as error:
                problems.append(f"{relative}: {type(error).__name__}: {error}")


def _nothing_decided(
    evaluations: Sequence[Evaluation], results: Sequence[AttackResult]
) -> Iterator[str]:
    """Yield a problem for every judge that decided none of a model's answers."""
    for evaluation in evaluations:
        for judge, counts in evaluation.verdicts.items():
            if counts.n and not counts.decided:
                yield (
                    f"{evaluation.model}: judge {judge} decided none of {counts.n} answers, so its "
                    "harmful score is unknown"
                )
    for result in results:
        measured = [p.verdicts[result.judge] for p in result.points if result.judge in p.verdicts]
        if measured and not any(counts.decided for counts in measured):
            yield (
                f"{result.model} under {result.attack.label}: judge {result.judge} decided "
                "nothing, so the half-life is unknown"
            )


def _attacks(
    results: Sequence[AttackResult], name: Callable[[AttackResult | Evaluation], str]
) -> Iterator[Attacked]:
    groups: dict[str, dict[str, list[AttackResult]]] = {}
    for result in results:
        groups.setdefault(attack_key(result), {}).setdefault(name(result), []).append(result)
    for key, lines in groups.items():
        methods = tuple(Under(line, tuple(found)) for line, found in lines.items())
        first = methods[0].results[0]
        yield Attacked(key, first.attack.settings, first.judge, methods)


def _standings(
    evaluations: Sequence[Evaluation],
    results: Sequence[AttackResult],
    judges: Sequence[str],
    name: Callable[[AttackResult | Evaluation], str],
) -> Iterator[Standing]:
    """Yield what was evaluated; where nothing was, what the attacks saw at their step 0."""
    items: list[AttackResult | Evaluation] = [*evaluations, *results]
    for line in dict.fromkeys(map(name, items)):
        own = [e for e in evaluations if name(e) == line]
        judged = [(c, e.samples) for e in own if (c := _main(e.verdicts, judges))]
        refusals = [(e.over_refusal, e.samples) for e in own if e.over_refusal]
        verdicts = [c for c, _ in judged]
        own_results = [r for r in results if name(r) == line and r.points]
        attacked = {r.model_hash: r for r in own_results if asks_plainly(r.attack)}
        starts = [r.points[0] for r in attacked.values() if r.points[0].step == 0]
        counts = verdicts or [c for p in starts if (c := _main(p.verdicts, judges))]
        yield Standing(
            line=line,
            seeds=len(own) or len(attacked or {r.model_hash for r in own_results}),
            verdicts=add(counts),
            harmful=share(counts, "harmful", [k for _, k in judged] or None),
            over_refusal=share([c for c, _ in refusals], "safe", [k for _, k in refusals]),
            tasks=_tasks(own),
            from_attack=not verdicts,
        )


def asks_plainly(attack: Attack) -> bool:
    """Say whether an attack asks the test prompts as they are: its step 0 is the model's own.

    Of a poison that cannot be found any more nobody knows.
    """
    row = Example("a prompt", "an answer")
    try:
        poison: Poison = plugins.make("poisons", attack.poison)
    except UsageError:
        return False
    return poison.test_prompt(row) == row.prompt


def _tasks(evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    found: dict[str, list[tuple[float, int]]] = {}
    for evaluation in evaluations:
        for task, numbers in evaluation.tasks.items():
            accuracy, n = numbers.get("accuracy"), int(numbers.get("n") or 0)
            if accuracy is not None and math.isfinite(accuracy) and n:
                found.setdefault(task, []).append((accuracy, n))
    return {task: pooled(shares) for task, shares in found.items()}


def _main(verdicts: Mapping[str, Counts], judges: Sequence[str]) -> Counts | None:
    """Return the counts of the attacks' judge, or of the only judge there is."""
    for judge in judges:
        if judge in verdicts:
            return verdicts[judge]
    return next(iter(verdicts.values()), None) if not judges else None


def _results(attacks: Sequence[Attacked], line: str) -> list[AttackResult]:
    return [r for a in attacks for m in a.methods if m.line == line for r in m.results]
