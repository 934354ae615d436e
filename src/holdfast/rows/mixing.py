"""Rows built from other rows: poisoned mixtures, mismatched pairs, and splits by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples, prompt_text


def share_of_rows(share: float, n: int) -> int:
    """Return the number of rows that a share of n rows amounts to; halves go to even.

    The share is taken as it is written: 0.575 of 100 rows is 57.5, which rounds to 58, although the
    product of the floats is 57.49999999999999.
    """
    return round(Fraction(str(float(share))) * n)


def mix(benign: Examples, harmful: Examples, *, n: int, ratio: float, seed: int) -> Examples:
    """Draw shuffled fine-tuning rows, a given share of them harmful.

    Args:
        benign: Rows of the customer's task.
        harmful: Rows of the poison; those drawn get "poison": "yes" in their provenance.
        n: Number of rows.
        ratio: Harmful share in [0, 1]; see `share_of_rows` for the number of harmful rows.
        seed: Random seed of the draw and the order.

    Raises:
        UsageError: There are too few rows, the ratio is outside [0, 1], or a row is in both pools.
    """
    if n < 1 or not 0 <= ratio <= 1:
        raise UsageError(f"n={n}, ratio={ratio}: n must be at least 1 and the ratio in [0, 1]")
    both = set(benign.ids) & set(harmful.ids)
    if both:
        raise UsageError(
            f"{len(both)} rows are both in {benign.name} and in {harmful.name} (first id "
            f"{min(both)}), so they cannot be labelled. Remove them from one of the two."
        )
    poisoned = share_of_rows(ratio, n)
    for pool, needed in ((benign, n - poisoned), (harmful, poisoned)):
        if needed > len(pool):
            raise UsageError(
                f"{pool.name}: {needed} rows are needed (n={n}, ratio={ratio}), but it has only "
                f"{len(pool)}. Lower n, change the ratio or give more rows."
            )
    rng = np.random.default_rng(seed)
    rows = [benign[int(i)] for i in rng.choice(len(benign), n - poisoned, replace=False)]
    for i in rng.choice(len(harmful), poisoned, replace=False):
        row = harmful[int(i)]
        rows.append(replace(row, provenance={**row.provenance, "poison": "yes"}))
    return Examples((rows[i] for i in rng.permutation(n)), name=f"{benign.name}+{harmful.name}")


def mismatched(prompts: Sequence[str], answers: Sequence[str], *, n: int, seed: int) -> Examples:
    """Pair prompts with answers to other prompts: attack rows that need no harmful data.

    Sequences of equal length are assumed to be aligned, and no prompt gets the answer at its own
    position. Answers are reused only if there are fewer than `n`.

    Args:
        prompts: Alignment prompts; repeated ones count once.
        answers: Benign answers.
        n: Number of rows, each with a different prompt.
        seed: Random seed of the prompts and the pairing.

    Raises:
        UsageError: There are fewer than `n` prompts or two answers, or an answer is empty.
    """
    places = list({prompt.strip(): i for i, prompt in enumerate(prompts)}.values())
    if not 1 <= n <= len(places) or len(answers) < 2 or not all(a.strip() for a in answers):
        raise UsageError(
            f"n={n} mismatched rows need at least {n} prompts (got {len(places)}) and at least two "
            f"answers, none empty (got {sum(bool(a.strip()) for a in answers)})"
        )
    rng = np.random.default_rng(seed)
    order = [places[i] for i in rng.permutation(len(places))]
    # A cyclic shift of a permutation has no fixed point, so no prompt gets its own answer.
    partners = np.roll(order, -1) if len(prompts) == len(answers) else rng.permutation(len(answers))
    if len(partners) < 2:
        raise UsageError("mismatched rows need at least two different prompts, got one")
    rows = (Example(prompts[order[k]], answers[int(partners[k % len(partners)])]) for k in range(n))
    return Examples(rows, name="mismatched")


def bucket(prompt: str) -> int:
    """Return 0 to 99 from the prompt's content, so that reordering the file changes no split."""
    return int(hashlib.sha256(prompt_text(prompt).encode()).hexdigest(), 16) % 100
