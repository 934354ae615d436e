"""What vulnerable examples have in common: factors of the text, effect sizes, corrected p values.

Numeric factors are compared with the score by Spearman's rank correlation, yes-no factors by
Cliff's delta. Both lie in [-1, 1]; 0 means no relation, and positive means more vulnerable. All
tests of a call are corrected together (Benjamini-Hochberg).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from holdfast.examples import Example
from holdfast.rows.similarity import nearest
from holdfast.rows.text import count_words, normalise, words
from holdfast.stats.corrections import benjamini_hochberg
from holdfast.stats.intervals import Interval, bootstrap
from holdfast.stats.ranks import auroc, rankable, spearman
from holdfast.stats.wording import between
from holdfast.texts import Text

Measure = Literal["Spearman", "Cliff's delta"]

FEWEST_ROWS = 20
SMALLEST_LEVEL = 5
"""A level is tested only if at least this many rows have it and at least this many lack it."""
MOST_FREQUENT = 10
EXACT_BELOW = 500
"""With fewer rows Spearman's p value is by permutation; with more, Student's t is as good."""
PERMUTATIONS = 4999
_OFFER = re.compile(
    r"\b(?:i|we)(?: can| could| would| will|'d|'ll) (?:gladly )?(?:help you|offer|suggest|tell you|"
    r"share|explain|point you)\b|\bi(?:'d|'m)(?: be)? (?:happy|glad)\b|"
    r"\bhappy to (?:help|talk|explain|discuss)\b|\binstead\b|\balternatively\b|"
    r"\bif you(?:'d| would)? (?:like|want|need)\b|\blet me know\b|\bwould you like\b|"
    r"\b(?:please|consider) (?:contact|call|reach|talk|speak|seek|consult)",
)


@dataclass(frozen=True)
class Factor:
    """A property of the examples.

    Attributes:
        name: E.g. "prompt length" or "category".
        level: The value whose rows are compared with the rest; "" if the property is a number.
        values: (n,) float64; 0 or 1 if there is a level; nan = unknown, left out.
        phrase: Describes the examples in a sentence, e.g. "with longer prompts".
    """

    name: str
    level: str
    values: np.ndarray
    phrase: str

    @property
    def label(self) -> str:
        """Name and level."""
        if not self.level:
            return self.name
        return Text("{name}: {level}", name=self.name, level=self.level)


@dataclass(frozen=True)
class Effect:
    """How a factor relates to the score.

    Attributes:
        factor: The factor.
        measure: Spearman's correlation, or Cliff's delta of rows with the level over the rest.
        interval: The effect with a percentile bootstrap interval over the examples.
        members: Number of rows with the level; None if the factor is a number.
        p: Two-sided p value, uncorrected; nan if the factor never varies.
        corrected: p value corrected for all tests of the call; nan where p is.
    """

    factor: Factor
    measure: Measure
    interval: Interval
    members: int | None
    p: float
    corrected: float

    def stands_out(self, alpha: float = 0.05, smallest: float = 0.1) -> bool:
        """Return whether it is significant after correction and large enough to matter."""
        return self.corrected <= alpha and abs(self.interval.value) >= smallest

    def sentence(self) -> Text:
        """Return the effect as a sentence."""
        more = self.interval.value > 0
        direction = Text("more vulnerable") if more else Text("less vulnerable")
        if self.members is None:
            return Text(
                "Examples {phrase} score as {direction}: rank correlation {effect}, n={n:d}, "
                "corrected p {p:p}.",
                phrase=self.factor.phrase,
                direction=direction,
                effect=between(self.interval),
                n=self.interval.n,
                p=self.corrected,
            )
        return Text(
            "Examples {phrase} score as {direction} than the rest: such an example outranks "
            "another one in {share:percent} of pairs (Cliff's delta {effect}, n={members:d} of "
            "{n:d}, corrected p {p:p}).",
            phrase=self.factor.phrase,
            direction=direction,
            share=(1 + self.interval.value) / 2,
            effect=between(self.interval),
            members=self.members,
            n=self.interval.n,
            p=self.corrected,
        )


# ------------------------------------------------------------------------------------ properties


def describe(rows: Sequence[Example], benign: Sequence[Example] = ()) -> list[Factor]:
    """Return the factors of some rows.

    These are lengths, the share of the prompt's content words that the response repeats, the rarity
    of the prompt's words, similarity to the nearest benign prompt (if there are benign rows), the
    category, the most frequent openings of prompt and response, and whether the response offers
    other help. They work best for English: content words are those outside scikit-learn's English
    stop list, and offers are recognised by a list of phrases.
    """
    prompts = [r.prompt for r in rows]
    responses = [r.response for r in rows]
    numbers = [
        (Text("prompt length"), _each(count_words, prompts), Text("with longer prompts")),
        (Text("response length"), _each(count_words, responses), Text("with longer responses")),
        (
            Text("request repeated"),
            np.array([_taken_up(row) for row in rows]),
            Text("whose responses repeat more words of the request"),
        ),
        (Text("rare words"), rarity(prompts), Text("whose prompts use rarer words")),
    ]
    if benign:
        near = nearest(prompts, [row.prompt for row in benign])
        close = Text("whose prompts are closer to a benign one")
        numbers.append((Text("nearest benign prompt"), near, close))
    offers = np.array([float(bool(_OFFER.search(normalise(text)))) for text in responses])
    return [
        *(Factor(name, "", values, phrase) for name, values, phrase in numbers),
        *_levels(
            Text("category"),
            [row.provenance.get("category") for row in rows],
            lambda level: Text("of category '{level}'", level=level),
        ),
        *_levels(
            Text("prompt begins"),
            _starts(prompts, 2),
            lambda level: Text("whose prompt begins with '{level}'", level=level),
            MOST_FREQUENT,
        ),
        *_levels(
            Text("response begins"),
            _starts(responses, 3),
            lambda level: Text("whose response begins with '{level}'", level=level),
            MOST_FREQUENT,
        ),
        Factor(
            Text("response"),
            Text("offers help"),
            offers,
            Text("whose response offers other help"),
        ),
    ]


def _each(number: Callable[[str], int], texts: Sequence[str]) -> np.ndarray:
    return np.array([number(text) for text in texts], dtype=np.float64)


def _taken_up(row: Example) -> float:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    prompt_words = set(words(row.prompt)) - ENGLISH_STOP_WORDS
    return (
        len(prompt_words & set(words(row.response))) / len(prompt_words)
        if prompt_words
        else math.nan
    )


def rarity(texts: Sequence[str]) -> np.ndarray:
    """Return the mean rank of each text's words by frequency, (n,) in [0, 1], 1 = rarest.

    A word's frequency is the number of texts that contain it, and words of equal frequency share
    their mean rank. Each distinct word of a text counts once; nan for a text without words.
    """
    from scipy.stats import rankdata

    kinds = [set(words(text)) for text in texts]
    counts = Counter(word for kind in kinds for word in kind)
    ranks = rankdata([-count for count in counts.values()]) / max(1, len(counts))
    rank_of = dict(zip(counts, ranks.tolist(), strict=True))
    # math.fsum, because sets are ordered differently in every process.
    return np.array(
        [math.fsum(rank_of[w] for w in kind) / len(kind) if kind else math.nan for kind in kinds]
    )


def _starts(texts: Sequence[str], count: int) -> list[str | None]:
    return [" ".join(words(text)[:count]) or None for text in texts]


def _levels(
    name: Text,
    of: Sequence[str | None],
    phrase: Callable[[str], Text],
    most: int | None = None,
) -> list[Factor]:
    """Return one factor per value, the most frequent ones first; rows without a value are nan."""
    counts = Counter(value for value in of if value)
    most_frequent = sorted(counts, key=lambda value: (-counts[value], value))[:most]
    return [
        Factor(
            name,
            level,
            np.array([float(value == level) if value else math.nan for value in of]),
            phrase(level),
        )
        for level in most_frequent
    ]


# ----------------------------------------------------------------------------------------- tests


def effects(
    scores: np.ndarray, factors: Sequence[Factor], *, seed: int = 0, resamples: int = 500
) -> list[Effect]:
    """Relate every factor to the score, except those that too few rows have or lack.

    Args:
        scores: (n,) vulnerability; nan = not scored, left out.
        factors: Factors with values of shape (n,).
        seed: Random seed of permutations and bootstrap.
        resamples: Number of bootstrap resamples.

    Raises:
        UsageError: Fewer than 20 scored rows, or all scores equal.
    """
    check(scores)
    scored = np.isfinite(scores)
    measured_effects = []
    for factor in factors:
        measured = scored & np.isfinite(factor.values)
        x = factor.values[measured]
        y = scores[measured]
        members = int(x.sum()) if factor.level else None
        if members is not None and not SMALLEST_LEVEL <= members <= len(x) - SMALLEST_LEVEL:
            continue
        if len(x) < FEWEST_ROWS:
            continue
        measure: Measure = "Spearman" if members is None else "Cliff's delta"
        p = p_value(x, y, is_level=members is not None, seed=seed)
        statistic = spearman if members is None else _delta
        interval = bootstrap(statistic, x, y, seed=seed, resamples=resamples)
        measured_effects.append(Effect(factor, measure, interval, members, p, math.nan))
    corrected = benjamini_hochberg(np.array([effect.p for effect in measured_effects]))
    return [
        replace(effect, corrected=float(q))
        for effect, q in zip(measured_effects, corrected, strict=True)
    ]


def check(scores: np.ndarray) -> None:
    """Check that the scores allow a comparison.

    Raises:
        UsageError: Fewer than 20 scored rows, or all scores equal.
    """
    rankable(scores, purpose="relating scores to what rows have in common", fewest=FEWEST_ROWS)


def cliffs_delta(inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the share of pairs with a > b minus the share with a < b (Cliff 1993).

    Args:
        inside: Values a, finite, any number.
        outside: Values b, finite, any number.

    Returns:
        In [-1, 1]; nan if either is empty.
    """
    labels = np.repeat([1.0, 0.0], [len(inside), len(outside)])
    return 2 * auroc(labels, np.concatenate([inside, outside])) - 1


def _delta(member: np.ndarray, scores: np.ndarray) -> float:
    return cliffs_delta(scores[member == 1], scores[member == 0])


def p_value(x: np.ndarray, y: np.ndarray, *, is_level: bool, seed: int = 0) -> float:
    """Return the two-sided p value of the null hypothesis of no relation; nan if x never varies.

    Args:
        x: (n,) the factor; 0 or 1 if `is_level`.
        y: (n,) scores.
        is_level: If True, the Mann-Whitney test (exact for few, distinct scores). Otherwise
            Spearman's: for n < 500 by permutation, (1 + as extreme) / (1 + drawn), for larger n by
            Student's t.
        seed: Random seed of the permutations.
    """
    from scipy import stats

    if x.min() == x.max() or y.min() == y.max():
        return math.nan
    if is_level:
        return float(stats.mannwhitneyu(y[x == 1], y[x == 0]).pvalue)
    if len(x) >= EXACT_BELOW:
        return float(stats.spearmanr(x, y).pvalue)
    a, b = (stats.rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    drawn = np.random.default_rng(seed).permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1) @ a
    extreme = np.abs(drawn) >= abs(float(a @ b)) * (1 - 1e-12)
    return float((1 + extreme.sum()) / (1 + PERMUTATIONS))
