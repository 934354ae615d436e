"""How far along the attacker's road each example holds: one gradient, a few forward passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from holdfast.contracts import Estimate, Estimator
from holdfast.data import mismatched
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOURCES = ("auto", "harmful", "mismatched", "affirmative")
VARIANTS = ("half_flip", "critical_step")
FIRST_STEP = 0.1
"""Where the search for the step begins; where it ends does not depend on it."""

Margins = Callable[[float, Sequence[int]], "np.ndarray"]
"""Maps a step size and row positions to those rows' margins after the step."""


@dataclass(frozen=True)
class AttackDirection(Estimator):
    """Walk from the aligned weights down the attacker's first gradient and watch the refusals go.

    With g the gradient of the loss on the attacker's kind of rows, the weights are moved to
    theta - a g / ||g||, and each example's refusal margin is read at its first answer token: the
    log-probability of the set of tokens with which refusals begin, against the best other token.
    An example whose margin falls below zero is answered instead of refused.

    - half_flip: the step a at which half of a small sample has flipped is found by bisection;
      every example's margin there, negated, is its score. One pass over the data and some.
    - critical_step: each example's own a, where its margin changes sign; the score is -log a.
      Around ten passes, fewer and fewer examples each.

    It is not a per-example gradient method, and no influence function: nothing is linearized; the
    margin is measured where the attack leads. The size of the step has no free constant.

    Attributes:
        harmful: Rows such as the attacker would use; a few are enough. Optional.
        benign: Ordinary instructions with answers, for source "mismatched".
        variant: "half_flip" or "critical_step".
        source: Where the direction comes from: "harmful" rows; "mismatched": the alignment
            prompts paired with unrelated benign answers; "affirmative": the alignment prompts
            answered with `prefix`. "auto" takes harmful rows where there are any, else
            mismatched. Only "harmful" needs harmful data.
        prefix: How an obliging answer begins, for source "affirmative".
        rows: Rows behind the gradient.
        flip: Share of the sample that must have flipped.
        sample: Examples on which the step is found.
        max_length: Tokens kept per row.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful", "benign"})

    harmful: Examples | None = None
    benign: Examples | None = None
    variant: str = "half_flip"
    source: str = "auto"
    prefix: str = "Sure, here is"
    rows: int = 32
    flip: float = 0.5
    sample: int = 64
    max_length: int = 256

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Score every example; the weights are restored exactly, and the mode is put back."""
        if self.variant not in VARIANTS:
            raise UsageError(f"variant={self.variant!r} must be one of {', '.join(VARIANTS)}")
        was_training = model.training
        model.eval()
        try:
            return self._estimate(model, tokenizer, examples, seed)
        finally:
            model.train(was_training)

    def _estimate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        seed: int,
    ) -> Estimate:
        from holdfast.losses import first_margins, refusal_tokens
        from holdfast.models import encode
        from holdfast.weights import restored, trainable

        started = time.monotonic()
        encoded = encode(tokenizer, examples, self.max_length)
        tokens = refusal_tokens(encoded)
        pad = cast(int, tokenizer.pad_token_id)
        parameters = trainable(model)
        direction = self.direction(model, tokenizer, examples, seed)
        passes = 0.0

        def margins(size: float, positions: Sequence[int]) -> np.ndarray:
            nonlocal passes
            passes += len(positions) / len(encoded)
            with restored(parameters) as add:
                if size:
                    add([size * d for d in direction])
                rows = [encoded[i] for i in positions]
                found = first_margins(model, rows, tokens, pad=pad)
            return found.double().numpy()

        step = self._half_flip_step(margins, len(encoded), seed)
        everything = range(len(encoded))
        if self.variant == "half_flip":
            values, details = -margins(step, everything), {}
        else:
            free = margins(0.0, everything)
            values, details = critical_steps(margins, free, step), {"margin": free}
        return Estimate(
            values=values,
            details=details,
            facts={
                "seconds": time.monotonic() - started,
                "passes": passes,
                "step": step,
                "refusal_tokens": len(tokens),
                "source": self._source(),
            },
        )

    def _source(self) -> str:
        if self.source not in SOURCES:
            raise UsageError(f"source={self.source!r} must be one of {', '.join(SOURCES)}")
        if self.source != "auto":
            return self.source
        return "harmful" if self.harmful is not None else "mismatched"

    def direction(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        seed: int,
    ) -> list[torch.Tensor]:
        """Return the attacker's first step, normalized, one tensor per trainable parameter."""
        from holdfast.directions import descent

        return descent(model, tokenizer, self._attack_rows(examples, seed), self.max_length)

    def _attack_rows(self, examples: Examples, seed: int) -> Examples:
        source, rng = self._source(), np.random.default_rng(seed)
        if source == "harmful":
            if self.harmful is None:
                raise UsageError("source=harmful needs harmful rows: give --harmful")
            size = min(self.rows, len(self.harmful))
            return self.harmful.select(rng.choice(len(self.harmful), size, replace=False).tolist())
        size = min(self.rows, len(examples))
        if source == "affirmative":
            chosen = rng.choice(len(examples), size, replace=False)
            return Examples(
                (Example(examples[i].prompt, self.prefix) for i in chosen), name="affirmative"
            )
        if self.benign is None:
            raise UsageError("source=mismatched needs benign rows: give --benign")
        return mismatched(examples.prompts, self.benign.responses, n=size, seed=seed)

    def _half_flip_step(self, margins: Margins, n: int, seed: int) -> float:
        """Find the step at which a share `flip` of a sample has flipped, by doubling and halving.

        Raises:
            UsageError: The model refuses too little to begin with, or never lets go.
        """
        rng = np.random.default_rng(seed)
        chosen = rng.choice(n, min(self.sample, n), replace=False).tolist()

        def flipped(size: float) -> float:
            return float((margins(size, chosen) < 0).mean())

        if flipped(0.0) >= self.flip:
            raise UsageError(
                f"{flipped(0.0):.0%} of the examples are not refused by this model: there is "
                "nothing to forget. Score the aligned model, not its base."
            )
        low, high = 0.0, FIRST_STEP
        while flipped(high) < self.flip:
            low, high = high, 2 * high
            if high > 1e4:
                raise UsageError(
                    f"no step up to {high:g} along this direction flips {self.flip:.0%} of the "
                    f"examples (source {self._source()!r}); try another source"
                )
        # Three halvings of an interval that doubling found leave the step known to 1/8.
        halvings = 3 if low else 6
        for _ in range(halvings):
            middle = (low + high) / 2
            low, high = (middle, high) if flipped(middle) < self.flip else (low, middle)
        return high


def critical_steps(margins: Margins, free: np.ndarray, half: float) -> np.ndarray:
    """Return -log of the step at which each margin crosses zero, (n,).

    The steps tried grow by sqrt(2) from half/8 to 8 half; the crossing is interpolated linearly.
    Examples below zero from the start come before all that cross, those that never cross after
    them, each ordered among themselves by their margin.

    Args:
        margins: Step size and positions to margins.
        free: (n,) margins at step 0.
        half: The step at which about half have crossed.
    """
    ladder = [half * 2 ** (k / 2) for k in range(-6, 7)]
    steps = np.full(len(free), math.nan)
    before, at = free.copy(), 0.0
    alive = [i for i in range(len(free)) if free[i] >= 0]
    for rung in ladder:
        if not alive:
            break
        now = margins(rung, alive)
        for i, margin in zip(alive, now, strict=True):
            if margin < 0:
                steps[i] = at + (rung - at) * before[i] / (before[i] - margin)
            before[i] = margin
        alive = [i for i, margin in zip(alive, now, strict=True) if margin >= 0]
        at = rung
    # A margin of exactly zero crosses at once; half a millionth keeps its logarithm finite.
    scores: np.ndarray = -np.log(np.maximum(steps, half * 1e-6))
    crossed = ~np.isnan(steps)
    first = max([-math.log(ladder[0] / math.sqrt(2)), *scores[crossed]])
    never = ~crossed & (free >= 0)
    scores[never] = -np.log(ladder[-1] * math.sqrt(2)) - before[never]
    scores[free < 0] = first - free[free < 0]
    return scores
