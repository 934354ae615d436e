"""Rows put together from others: poisoned mixtures, mismatched pairs, and splits by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples, prompt_text


def mix(benign: Examples, harmful: Examples, *, n: int, ratio: float, seed: int) -> Examples:
    """Draw fine-tuning rows of which a share is harmful, shuffled.

    Args:
        benign: Rows of the customer's task.
        harmful: Rows of the poison; those drawn get "poison": "yes" in their provenance.
        n: Number of rows.
        ratio: Harmful share in [0, 1]; round(n * ratio) rows are harmful (halves go to even).
        seed: Decides which rows, and their order.

    Raises:
        UsageError: Too few rows, a ratio outside [0, 1], or a row that is in both pools.
    """
    if n < 1 or not 0 <= ratio <= 1:
        raise UsageError(f"n={n}, ratio={ratio}: n must be at least 1 and the ratio in [0, 1]")
    both = set(benign.ids) & set(harmful.ids)
    if both:
        raise UsageError(
            f"{len(both)} rows are both in {benign.name} and in {harmful.name} (first id "
            f"{min(both)}): their label would be a guess. Remove them from one of the two."
        )
    poisoned = round(n * ratio)
    for pool, wanted in ((benign, n - poisoned), (harmful, poisoned)):
        if wanted > len(pool):
            raise UsageError(
                f"{pool.name}: {wanted} rows are needed (n={n}, ratio={ratio}), it has "
                f"{len(pool)}. Lower n, change the ratio or give more rows."
            )
    rng = np.random.default_rng(seed)
    rows = [benign[int(i)] for i in rng.choice(len(benign), n - poisoned, replace=False)]
    for i in rng.choice(len(harmful), poisoned, replace=False):
        row = harmful[int(i)]
        rows.append(replace(row, provenance={**row.provenance, "poison": "yes"}))
    return Examples((rows[i] for i in rng.permutation(n)), name=f"{benign.name}+{harmful.name}")


def mismatched(prompts: Sequence[str], answers: Sequence[str], *, n: int, seed: int) -> Examples:
    """Pair prompts with answers to something else: an attacker's rows without harmful data.

    Two sequences of equal length are taken to belong together, and no prompt gets the answer at
    its own place. Answers are used again only when there are fewer of them than `n`.

    Args:
        prompts: Alignment prompts; repeated ones count once.
        answers: Benign answers.
        n: Number of rows, each with another prompt.
        seed: Decides the prompts and the pairing.

    Raises:
        UsageError: Fewer than `n` prompts, fewer than two answers, or an empty answer.
    """
    places = list({prompt.strip(): i for i, prompt in enumerate(prompts)}.values())
    if not 1 <= n <= len(places) or len(answers) < 2 or not all(a.strip() for a in answers):
        raise UsageError(
            f"n={n} mismatched rows need as many prompts (there are {len(places)}) and two or "
            f"more answers, none empty (there are {sum(bool(a.strip()) for a in answers)})"
        )
    rng = np.random.default_rng(seed)
    order = [places[i] for i in rng.permutation(len(places))]
    # A cyclic shift of a permutation has no fixed point, so nobody meets their own answer.
    partners = np.roll(order, -1) if len(prompts) == len(answers) else rng.permutation(len(answers))
    if len(partners) < 2:
        raise UsageError("mismatched rows need two different prompts; there is one")
    rows = (Example(prompts[order[k]], answers[int(partners[k % len(partners)])]) for k in range(n))
    return Examples(rows, name="mismatched")


def bucket(prompt: str) -> int:
    """Return 0 to 99 by the prompt's content: a split that no reordering of the file changes."""
    return int(hashlib.sha256(prompt_text(prompt).encode()).hexdigest(), 16) % 100
