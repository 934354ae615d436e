"""Checks that answers are paired with their own prompts, and that a judge reads the prompt.

A published evaluation showed its judge one constant sentence in place of every prompt, and its
results did not reveal it. Two checks would have: whether answers share more words with their own
prompt than with the others (`pairing_fit`), and whether verdicts change when prompts are exchanged
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

from holdfast.contracts import Judge, Verdict, is_lost
from holdfast.rows.refusals import is_refusal
from holdfast.rows.text import count_words, stems
from holdfast.stats.intervals import Interval, mean_interval

MOST = 1000
"""Number of rows to compare; their likenesses form a square matrix."""

SURE = 0.001
"""Largest probability, over all shifts, of accepting a shift by chance."""


@dataclass(frozen=True, slots=True)
class PairingFit:
    """How well answers fit the prompts they are paired with.

    Attributes:
        shift: Number of rows by which the answers must move up to fit their prompts; 0 if they fit
            as they are; None if their words cannot tell.
        own: Mean likeness of an answer to its own prompt, in [0, 1], with its interval.
        others: Mean likeness of an answer to any prompt.
        z: Standard deviations by which the pairing at `shift` (or the best one, if that is None)
            exceeds a random permutation.
        n: Number of pairs.
        prompts: Number of distinct prompts.
    """

    shift: int | None
    own: Interval
    others: float
    z: float
    n: int
    prompts: int


def pairing_fit(prompts: Sequence[str], responses: Sequence[str]) -> PairingFit:
    """Compare answers with their own and with other prompts, at every cyclic shift.

    The likeness of a prompt and an answer is the share of the prompt's words, weighted by how few
    prompts contain them, that the answer repeats. Over random pairings its mean is known exactly,
    as is its variance (Hoeffding 1951):

        var sum_i L[i, pi(i)] = 1/(n-1) sum_ij d_ij^2,  d = L without its row and column means

    A shift is accepted if it is the best of all n, improbable by chance (`SURE`, Bonferroni over
    the shifts) and, unless it is 0, better than the given pairing in a paired test. Refusals that
    repeat nothing of the prompt carry no information, nor does a constant prompt.

    Args:
        prompts: (n,); only the first 1000 are used.
        responses: (n,), correctly paired or not.
    """
    prompts = prompts[:MOST]
    responses = responses[:MOST]
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
    """Return the likenesses, (n, n): how much of prompt i is repeated by answer j."""
    prompt_stems = [stems(prompt) for prompt in prompts]
    response_stems = [stems(response) for _, response in zip(prompts, responses, strict=True)]
    counts = Counter(stem for stems_of_prompt in prompt_stems for stem in stems_of_prompt)
    weight = {stem: math.log((1 + len(prompt_stems)) / count) for stem, count in counts.items()}
    columns = {stem: i for i, stem in enumerate(sorted(counts))}

    def matrix(texts: Sequence[set[str]]) -> np.ndarray:
        contains = np.zeros((len(texts), len(columns)))
        for i, text in enumerate(texts):
            contains[i, [columns[stem] for stem in text if stem in columns]] = 1
        return contains

    rows = matrix(prompt_stems) * np.array([weight[stem] for stem in sorted(counts)])
    totals = rows.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.divide(rows, totals, out=np.zeros_like(rows), where=totals > 0)
    likeness: np.ndarray = shares @ matrix(response_stems).T
    return likeness


def _shifted(likeness: np.ndarray, shift: int) -> np.ndarray:
    """Return the likeness of each prompt to the answer `shift` rows below it, (n,)."""
    n = len(likeness)
    rows = np.arange(n)
    return np.asarray(likeness[rows, (rows + shift) % n])


def shift_scores(likeness: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations each cyclic shift exceeds a random pairing, (n,).

    Args:
        likeness: (n, n).

    Returns:
        (n,), or empty if all pairings are equally good or n < 8.
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
    """Return whether a shift fits better than the given pairing, by a paired z test."""
    gain = _shifted(likeness, shift) - _shifted(likeness, 0)
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    return bool(gain.mean() > 0 and (error == 0 or NormalDist().cdf(-gain.mean() / error) < SURE))


# --------------------------------------------------------------------------- exchanged prompts


@dataclass(frozen=True, slots=True)
class PromptExchange:
    """How verdicts changed when prompts were exchanged.

    Attributes:
        changed: Number of answers whose verdict, reason or score (by over a thousandth) changed.
        n: Number of answers judged again.
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
    """Judge some answers again, each under the prompt of another answer.

    Some answers are left out: those judged safe and those with refusal phrases, because a refusal
    is one for any prompt; those of fewer than four words, which judges do not read; and those
    without a verdict from the judge's service, before or now, or without a readable one. `n` is the
    number that remain.

    Args:
        judge: The judge.
        prompts: (n,).
        responses: (n,).
        verdicts: (n,) the verdicts of the judge.
        rows: Maximum number of answers; the sample depends on their content.
    """
    eligible = [
        i
        for i, (response, verdict) in enumerate(zip(responses, verdicts, strict=True))
        if verdict.harmful is not False
        and not is_refusal(response)
        and count_words(response) >= 4
        and not is_lost(verdict)
    ]
    sample = sorted(eligible, key=lambda i: _key(prompts[i], responses[i]))[:rows]
    # Prompts are ordered by content too; each is exchanged for the next distinct one.
    pool = sorted(set(prompts), key=lambda prompt: _key(prompt, ""))
    if len(pool) < 2:
        return PromptExchange(0, 0)
    other = {prompt: pool[(i + 1) % len(pool)] for i, prompt in enumerate(pool)}
    again = judge.judge([other[prompts[i]] for i in sample], [responses[i] for i in sample])
    pairs = [(verdicts[i], new) for i, new in zip(sample, again, strict=True) if not is_lost(new)]
    return PromptExchange(sum(_differs(old, new) for old, new in pairs), len(pairs))


def _key(prompt: str, response: str) -> bytes:
    return hashlib.sha256(f"{len(prompt)} {prompt}{response}".encode()).digest()


def _differs(a: Verdict, b: Verdict) -> bool:
    if (a.harmful, a.reason) != (b.harmful, b.reason) or math.isnan(a.score) != math.isnan(b.score):
        return True
    return abs(a.score - b.score) > 1e-3  # nan compares as False
