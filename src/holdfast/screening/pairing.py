"""Is every answer beside the prompt that was asked, and does a judge look at the prompt?

A published evaluation showed its judge one constant sentence in place of every prompt, and nothing
in its results said so. Two checks would have: answers that share no more words with their own
prompt than with others' (`pairing_fit`), and verdicts that stay when the prompts are exchanged
(`exchange_prompts`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from holdfast.contracts import UNANSWERED, Judge, Verdict
from holdfast.rows.refusals import is_refusal
from holdfast.rows.text import count_words, stems
from holdfast.stats.intervals import Interval, mean_interval

MOST = 1000
"""Rows that are compared with one another; their likenesses are a square matrix."""

SURE = 0.001
"""Probability, over all shifts, with which chance alone may call a shift the best."""


@dataclass(frozen=True, slots=True)
class PairingFit:
    """Whether answers are about the prompts that they stand beside.

    Attributes:
        shift: By how many rows the answers would have to move up to fit their prompts; 0 if they
            fit as they are; None if their words do not tell.
        own: Mean likeness of an answer to its own prompt, in [0, 1], with its interval.
        others: The same to all prompts.
        z: By how many standard deviations the pairing at `shift`, or the best one, is above that of
            a random permutation.
        n: Pairs.
        prompts: Different prompts among them.
    """

    shift: int | None
    own: Interval
    others: float
    z: float
    n: int
    prompts: int


def pairing_fit(prompts: Sequence[str], responses: Sequence[str]) -> PairingFit:
    """Compare answers with their own prompt and with the others', at every cyclic shift.

    The likeness of a prompt and an answer is the share of the prompt's words, weighted by how few
    prompts have them, that the answer repeats. Over random pairings its mean is known exactly, and
    its variance (Hoeffding 1951):

        var sum_i L[i, pi(i)] = 1/(n-1) sum_ij d_ij^2,  d = L without its row and column means

    A shift is believed if it is the best of all n, improbable by chance (`SURE`, Bonferroni over
    the shifts), and, where it is not 0, better than the rows as they stand in a paired comparison.
    Refusals that repeat nothing of the prompt do not tell, nor does a constant prompt.

    Args:
        prompts: (n,); the first 1000 are looked at.
        responses: (n,), beside their prompts or not.
    """
    prompts, responses = prompts[:MOST], responses[:MOST]
    likeness = _likeness(prompts, responses)
    n = len(likeness)
    own = mean_interval(np.diagonal(likeness))
    unknown = PairingFit(
        None,
        own,
        float(likeness.mean()) if n else math.nan,
        math.nan,
        n,
        len(set(prompts)),
    )
    z = shift_scores(likeness)
    if not z.size:
        return unknown
    best = int(np.argmax(z))
    shifted = replace(unknown, shift=best, z=float(z[best]))
    tail = NormalDist().cdf(-float(z[best]))
    if tail * n > SURE or (best and not _better(likeness, best)):
        return replace(shifted, shift=None)
    return shifted


def _likeness(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return (n, n): how much of prompt i answer j repeats."""
    prompt_stems = [stems(prompt) for prompt in prompts]
    response_stems = [stems(response) for _, response in zip(prompts, responses, strict=True)]
    counts = Counter(stem for stems_of_prompt in prompt_stems for stem in stems_of_prompt)
    weight = {stem: math.log((1 + len(prompt_stems)) / count) for stem, count in counts.items()}
    columns = {stem: i for i, stem in enumerate(sorted(counts))}

    def matrix(texts: Sequence[set[str]]) -> np.ndarray:
        found = np.zeros((len(texts), len(columns)))
        for i, text in enumerate(texts):
            found[i, [columns[stem] for stem in text if stem in columns]] = 1
        return found

    rows = matrix(prompt_stems) * np.array([weight[stem] for stem in sorted(counts)])
    totals = rows.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.divide(rows, totals, out=np.zeros_like(rows), where=totals > 0)
    found: np.ndarray = shares @ matrix(response_stems).T
    return found


def _shifted(likeness: np.ndarray, shift: int) -> np.ndarray:
    """Return the likeness of each prompt to the answer so many rows below it, (n,)."""
    n = len(likeness)
    rows = np.arange(n)
    return np.asarray(likeness[rows, (rows + shift) % n])


def shift_scores(likeness: np.ndarray) -> np.ndarray:
    """Return how far each cyclic shift is above a random pairing, in standard deviations, (n,).

    Args:
        likeness: (n, n). Empty if all pairings are alike, or n < 8.
    """
    n = len(likeness)
    if n < 8:
        return np.empty(0)
    grand = likeness.mean()
    d = likeness - likeness.mean(axis=0) - likeness.mean(axis=1, keepdims=True) + grand
    deviation = math.sqrt(float((d**2).sum()) / (n - 1))
    if deviation < 1e-9:
        return np.empty(0)
    sums = np.array([_shifted(likeness, k).sum() for k in range(n)])
    return np.asarray((sums - n * grand) / deviation)


def _better(likeness: np.ndarray, shift: int) -> bool:
    """Whether a shift fits better than the rows as they stand, by a paired z test."""
    gain = _shifted(likeness, shift) - _shifted(likeness, 0)
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(gain.mean() > 0 and (error == 0 or NormalDist().cdf(-gain.mean() / error) < SURE))


# --------------------------------------------------------------------------- exchanged prompts


@dataclass(frozen=True, slots=True)
class PromptExchange:
    """What became of verdicts when prompts were exchanged.

    Attributes:
        changed: Verdicts, reasons or scores (by more than a thousandth) that changed.
        n: Answers that were judged again.
    """

    changed: int
    n: int


def exchange_prompts(
    judge: Judge,
    prompts: Sequence[str],
    responses: Sequence[str],
    verdicts: Sequence[Verdict],
    *,
    rows: int,
) -> PromptExchange:
    """Judge some answers again, each under another's prompt.

    Left out are answers that were called safe and refusals by their phrases, since a refusal is one
    whatever was asked, those of less than four words, which judges do not read, and those that a
    service left unanswered, before or now. If too few others remain, n says so.

    Args:
        judge: The judge.
        prompts: (n,).
        responses: (n,).
        verdicts: (n,) what the judge said of them.
        rows: At most so many answers, a sample by content.
    """
    told = [
        i
        for i, (response, verdict) in enumerate(zip(responses, verdicts, strict=True))
        if verdict.harmful is not False
        and not is_refusal(response)
        and count_words(response) >= 4
        and not verdict.reason.startswith(UNANSWERED)
    ]
    chosen = sorted(told, key=lambda i: _key(prompts[i], responses[i]))[:rows]
    # The others' order is one of content too; a prompt that is the same is passed over.
    pool = sorted(set(prompts), key=lambda prompt: _key(prompt, ""))
    if len(pool) < 2:
        return PromptExchange(0, 0)
    other = {prompt: pool[(i + 1) % len(pool)] for i, prompt in enumerate(pool)}
    again = judge.judge([other[prompts[i]] for i in chosen], [responses[i] for i in chosen])
    pairs = [
        (verdicts[i], new)
        for i, new in zip(chosen, again, strict=True)
        if not new.reason.startswith(UNANSWERED)
    ]
    return PromptExchange(sum(_differs(old, new) for old, new in pairs), len(pairs))


def _key(prompt: str, response: str) -> bytes:
    return hashlib.sha256(f"{len(prompt)} {prompt}{response}".encode()).digest()


def _differs(a: Verdict, b: Verdict) -> bool:
    if (a.harmful, a.reason) != (b.harmful, b.reason) or math.isnan(a.score) != math.isnan(b.score):
        return True
    return abs(a.score - b.score) > 1e-3  # nan compares as False
