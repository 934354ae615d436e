"""How far along the attacker's road each example holds: one gradient, a few forward passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from holdfast.contracts import Estimate, Estimator
from holdfast.data import mismatched
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.half_flip import Margins, half_flip_step

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.weights import Geometry

SOURCES = ("auto", "harmful", "mismatched", "affirmative")
VARIANTS = ("half_flip", "critical_step")
GEOMETRIES = ("sign", "l2")


@dataclass(frozen=True)
class AttackDirection(Estimator):
    """Walk from the aligned weights down the attacker's first gradient and watch the refusals go.

    With g the gradient of the loss on the attacker's kind of rows, the weights are moved to
    theta + a d, d the unit vector along -sign(g), and each example's refusal margin is read at its
    first answer token: the log-probability of the set of tokens with which refusals begin, against
    the best other token. An example whose margin falls below zero is answered, not refused.
    The sign is what Adam's first step takes, and attackers use Adam; -g itself agrees less with
    what attacks forget (docs/estimators.md).

    - half_flip: the step a at which half of a small sample has flipped is found by false
      position; every example's margin there, negated, is its score. One pass and some.
    - critical_step: each example's own a, where its margin changes sign; the score is -log a.
      Two to three passes: outward from the half-flip step, only those still undecided.

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
        geometry: "sign", or "l2" for the gradient itself.
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
    geometry: str = "sign"
    rows: int = 32
    flip: float = 0.5
    sample: int = 32
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
        self._check("variant", VARIANTS)
        self._check("source", SOURCES)
        self._check("geometry", GEOMETRIES)
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
        from holdfast.models import encode_scored
        from holdfast.weights import restored, trainable

        encoded = encode_scored(model, tokenizer, examples, self.max_length)
        tokens = refusal_tokens(encoded)
        pad = cast(int, tokenizer.pad_token_id)
        parameters = trainable(model)
        direction = self.direction(model, tokenizer, examples, seed)

        def margins(size: float, positions: Sequence[int]) -> np.ndarray:
            with restored(parameters) as add:
                if size:
                    add([size * d for d in direction])
                rows = [encoded[i] for i in positions]
                found = first_margins(model, rows, tokens, pad=pad)
            return found.double().numpy()

        step = self._half_flip_step(margins, len(encoded), seed)
        everything = range(len(encoded))
        if self.variant == "half_flip":
            values = -margins(step, everything)
        else:
            values = critical_steps(margins, len(encoded), step)
        return Estimate(
            values=values,
            facts={
                "step": step,
                "refusal_tokens": len(tokens),
                "source": self._source(),
            },
        )

    def _check(self, option: str, known: tuple[str, ...]) -> None:
        value = getattr(self, option)
        if value not in known:
            raise UsageError(f"{option}={value!r} must be one of {', '.join(known)}")

    def _source(self) -> str:
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

        rows = self._attack_rows(examples, seed)
        geometry = cast("Geometry", self.geometry)
        return descent(model, tokenizer, rows, self.max_length, geometry=geometry)

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
        what = f"the direction of source {self._source()!r}; try another source"
        return half_flip_step(margins, n, flip=self.flip, sample=self.sample, seed=seed, what=what)


def critical_steps(margins: Margins, n: int, half: float) -> np.ndarray:
    """Return -log of the step at which each margin crosses zero, (n,).

    From `half`, where about half have crossed, the search goes outward by factors of sqrt(2) to
    half/8 and 8 half, each way with those examples only whose crossing still lies ahead, which is
    two to three passes in all; the crossing is interpolated linearly. Beyond the ends examples are
    ordered by their margin there: those that are not refused at step 0 come first of all, those
    that never cross last. A margin that falls, rises and falls again has several crossings; the
    one found is the next to `half`.

    Args:
        margins: Step size and positions to margins.
        n: Number of examples.
        half: The step at which about half have crossed.
    """
    steps = np.full(n, math.nan)
    at_half = margins(half, range(n))
    rungs = [half * 2 ** (k / 2) for k in range(1, 7)]
    never = _walk(margins, [half, *rungs], at_half, np.flatnonzero(at_half >= 0), steps)
    falls = [half**2 / rung for rung in rungs]
    early = _walk(margins, [half, *falls, 0.0], at_half, np.flatnonzero(at_half < 0), steps)
    # A margin of exactly zero crosses at once; a millionth of the half step keeps its log finite.
    scores: np.ndarray = -np.log(np.maximum(steps, half * 1e-6))
    crossed = scores[~np.isnan(steps)]
    for i, margin in never.items():
        scores[i] = -math.log(rungs[-1] * math.sqrt(2)) - margin
    for i, margin in early.items():
        scores[i] = max([-math.log(falls[-1] / math.sqrt(2)), *crossed]) - margin
    return scores


def _walk(
    margins: Margins,
    rungs: Sequence[float],
    first: np.ndarray,
    alive: np.ndarray,
    steps: np.ndarray,
) -> dict[int, float]:
    """Fill in where margins change sign between rungs; return the last margin of those left."""
    before, last = first.copy(), rungs[0]
    for rung in rungs[1:]:
        if not len(alive):
            break
        now = margins(rung, alive.tolist())
        crossed = (now < 0) != (before[alive] < 0)
        share = before[alive] / (before[alive] - np.where(crossed, now, before[alive] + 1))
        steps[alive[crossed]] = (last + (rung - last) * share)[crossed]
        before[alive] = now
        alive, last = alive[~crossed], rung
    return {int(i): float(before[i]) for i in alive}
