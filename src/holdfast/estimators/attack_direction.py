"""How far along the attacker's road each example holds: one gradient, a few forward passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from holdfast.contracts import Estimate, Estimator
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models.cost import count_tokens
from holdfast.options import Supplied
from holdfast.rows.mixing import mismatched
from holdfast.stats.intervals import standard_error
from holdfast.tuning.flip_step import Margins, flip_step
from holdfast.tuning.proxy_attack import check_examples

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.checkpoints import Loaded
    from holdfast.models.encoding import Encoded

    Pair = tuple[Encoded | None, Encoded | None]

HALF = 0.5
"""Share flipped from which critical steps are searched: most of them lie near."""
MOST_TOKENS = 16
"""Where more tokens than these begin the answers, they share no way to begin."""
PREFIX = 3
"""Answer tokens behind the prefix margin; alignment is a few tokens deep (Qi et al. 2024)."""
CONTRAST = 5
"""Tokens of both answers behind the contrast; those they share say nothing."""


class AttackDirection(Estimator):
    """Walk from the aligned weights down the attacker's first gradient and watch the refusals go.

    With g the gradient of the loss on the attacker's kind of rows, the weights are moved to
    theta + a d, d the unit vector along -sign(g), and each example's refusal margin is read at its
    first answer token: the log-probability of the set of tokens with which refusals begin, against
    the best other token. An example whose margin falls below zero is answered, not refused.
    The sign is what Adam's first step takes, and attackers use Adam; -g itself agrees less with
    what attacks forget, and further steps of Adam no more (docs/estimators.md).

    - first_flips: the step a at which the first tenth of a small sample has flipped is found by
      false position; every example's margin there, negated, is its score. One pass and some.
      Further along, the order of those that hold longest is lost (docs/estimators.md).
    - critical_step: each example's own a, where its margin changes sign; the score is -log a.
      Two to three passes: outward from the step that flips half, only those still undecided.
    - derivative: the margin's exact derivative along d at the aligned weights, negated, by
      forward-mode differentiation. It sees neither margin nor curve: an ablation.

    It is not a per-example gradient method, and no influence function: the margin is measured
    where the attack leads. The size of the step has no free constant.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful", "benign", "base"})

    harmful: Supplied[Examples | None] = None
    benign: Supplied[Examples | None] = None
    base: Supplied[str | None] = None
    variant: Literal["first_flips", "critical_step", "derivative"] = "first_flips"
    """How far to walk along the direction, as described above: until a tenth of a sample has
    flipped, until each example flips, or not at all.
    """
    source: Literal["auto", "harmful", "base", "mismatched", "affirmative"] = "auto"
    """Where the direction comes from. harmful: harmful rows. base: how the model would have begun
    its answers to the alignment prompts before it was aligned, as a distribution over tokens.
    mismatched: the alignment prompts with unrelated benign answers. affirmative: the prompts with
    `prefix`. auto: the first of these for which there is data. Only harmful needs harmful rows.
    """
    prefix: str = "Sure, here is"
    """Beginning of a compliant answer, for source=affirmative."""
    quantity: Literal["auto", "margin", "contrast", "prefix"] = "auto"
    """What is read. margin: the refusal margin described above. contrast: for answers without a
    common beginning, the log-probability of the first tokens the model answers now, less that of
    the first tokens its base answers. prefix: without a base, the mean over the first three tokens
    of the row's answer of each token's log-probability against the best other token, which mistakes
    a change of wording for forgetting (docs/estimators.md). auto: margin where 16 tokens or fewer
    begin 95 % of the answers.
    """
    geometry: Literal["sign", "l2"] = "sign"
    """sign of the gradient, or l2 for the gradient itself."""
    steps: int = Field(default=1, ge=1)
    """Number of the attacker's steps; more than one are steps of Adam of size `step_size`, and the
    direction is where they lead.
    """
    step_size: float = Field(default=1e-4, gt=0)
    """Step of each coordinate, if steps is above 1."""
    repeats: int = Field(default=1, ge=1)
    """Number of directions, each from other rows. Scores are averaged, and their spread is the
    standard error; with one direction, errors are unknown.
    """
    rows: int = Field(default=128, ge=1)
    """Number of rows behind the gradient, or of prompts for source=base; fewer if there are fewer.
    """
    flip: float = Field(default=0.1, gt=0, lt=1)
    """Share of the sample that must have flipped, for variant=first_flips."""
    sample: int = Field(default=32, ge=1)
    """Number of examples on which the step size is found."""
    max_length: int = Field(default=256, ge=1)
    """Number of tokens kept of each row."""
    batch_size: int = Field(default=32, ge=1)
    """Number of rows in the gradient's pass at a time. Margins, which need no graph, are read for
    up to four times as many. A smaller batch takes less memory and gives the same scores.
    """

    @model_validator(mode="after")
    def _one_step_from_base(self) -> AttackDirection:
        if self.steps > 1 and self._source() == "base":
            raise ValueError(f"steps={self.steps}: source=base takes one step; use another source")
        return self

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Score every example; the weights are restored exactly, and the mode is put back."""
        from holdfast.models.modes import evaluation_mode

        if self._source() == "harmful" and self.harmful is not None:
            check_examples(examples, self.harmful)
        with evaluation_mode(model):
            return self._estimate(model, tokenizer, examples, seed)

    def _estimate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        seed: int,
    ) -> Estimate:
        from holdfast.models.encoding import encode_rows_to_rank

        encoded = encode_rows_to_rank(model, tokenizer, examples, self.max_length)
        base = self._base_beside(model)
        read = self._reader(model, encoded, cast(int, tokenizer.pad_token_id))
        if read.quantity == "contrast":
            read = replace(read, pairs=self._pairs(model, tokenizer, examples, base))
        known = read.known
        found = []
        steps = []
        if len(known) < 2:
            raise UsageError(
                f"quantity=contrast: of {len(known)} rows alone both the model and its base answer "
                "anything; try quantity=margin or quantity=prefix"
            )
        for draw in range(self.repeats):
            direction = self._direction(model, tokenizer, examples, seed, draw, base)
            values = np.full(len(encoded), math.nan)
            values[known], step = self._values(model, read, direction, known, seed)
            found.append(values)
            steps.append(step)
        return Estimate(
            values=np.mean(found, axis=0),
            errors=standard_error(found),
            facts={
                "step": float(np.mean(steps)),
                "repeats": self.repeats,
                "quantity": read.quantity,
                "refusal_tokens": len(read.tokens),
                "source": self._source(),
            },
        )

    def _values(
        self,
        model: PreTrainedModel,
        read: _Reader,
        direction: Sequence[torch.Tensor],
        known: Sequence[int],
        seed: int,
    ) -> tuple[np.ndarray, float]:
        """Return the scores of these rows along a direction, and the step they were taken at."""
        from holdfast.models.weights import reversible_steps, trainable
        from holdfast.tuning.directions import forward_derivative

        if self.variant == "derivative":
            _, slopes = forward_derivative(model, direction, lambda: read.tensor(known))
            return -slopes.double().numpy(), 0.0

        def margins(size: float, positions: Sequence[int]) -> np.ndarray:
            with reversible_steps(trainable(model)) as add:
                if size:
                    add(size * d for d in direction)  # one at a time: no third copy of the weights
                return read([known[i] for i in positions])

        n = len(known)
        flip = self.flip if self.variant == "first_flips" else HALF
        step = flip_step(margins, n, flip=flip, sample=self.sample, seed=seed, what=self._what())
        if self.variant == "first_flips":
            return -margins(step, range(n)), step
        return critical_steps(margins, n, step), step

    def _what(self) -> str:
        return f"this direction (source {self._source()!r}); try another source"

    def _reader(self, model: PreTrainedModel, encoded: list[Encoded], pad: int) -> _Reader:
        from holdfast.models.losses import refusal_tokens

        quantity: str = self.quantity
        if quantity == "auto":
            common = len(refusal_tokens(encoded, coverage=0.95)) <= MOST_TOKENS
            otherwise = "prefix" if self.base is None else "contrast"
            quantity = "margin" if common else otherwise
        tokens = refusal_tokens(encoded)
        return _Reader(model, encoded, quantity, tokens, pad, batch_size=self.batch_size)

    def _pairs(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        base: Loaded | None,
    ) -> list[Pair]:
        """Return how the model and its base begin to answer each row; None is an empty answer."""
        from holdfast.models.encoding import Encoded, encode
        from holdfast.models.generation import generate

        asked = base or self._loaded_base(str(model.device))
        prompts = list(dict.fromkeys(examples.prompts))
        sides: list[dict[str, Encoded]] = []
        for who, words in ((model, tokenizer), (asked.model, asked.tokenizer)):
            with count_tokens(who) if who is not model else nullcontext():
                answers = generate(
                    who,
                    words,
                    prompts,
                    max_new_tokens=CONTRAST,
                    batch_size=4 * self.batch_size,
                )
            rows = Examples.from_answers(prompts, answers, name=examples.name)
            cut = [
                Encoded(row.ids[: row.start + CONTRAST], row.start)
                for row in encode(tokenizer, rows, self.max_length)
            ]
            sides.append(dict(zip(rows.prompts, cut, strict=True)))
        return [(sides[0].get(p), sides[1].get(p)) for p in examples.prompts]

    def _source(self) -> str:
        if self.source != "auto":
            return self.source
        if self.harmful is not None:
            return "harmful"
        return "base" if self.base is not None else "mismatched"

    def direction(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        seed: int,
    ) -> list[torch.Tensor]:
        """Return the attacker's direction, a unit vector, one tensor per trainable parameter."""
        return self._direction(model, tokenizer, examples, seed, 0, self._base_beside(model))

    def _direction(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        seed: int,
        draw: int,
        base: Loaded | None,
    ) -> list[torch.Tensor]:
        from holdfast.tuning.directions import (
            descent_direction,
            descent_direction_to_base,
            finetuning_direction,
        )
        from holdfast.tuning.loop import FinetuneConfig

        geometry = self.geometry
        rows = self._attack_rows(examples, seed, draw)
        if base is not None:
            with count_tokens(base.model):
                return descent_direction_to_base(
                    base,
                    model,
                    tokenizer,
                    rows.prompts,
                    geometry=geometry,
                    batch_size=self.batch_size,
                )
        if self.steps > 1:
            config = FinetuneConfig(
                learning_rate=self.step_size,
                steps=self.steps,
                batch_size=min(16, len(rows)),
                max_length=self.max_length,
                seed=seed,
            )
            return finetuning_direction(model, tokenizer, rows, config)
        return descent_direction(
            model,
            tokenizer,
            rows,
            self.max_length,
            geometry=geometry,
            batch_size=self.batch_size,
        )

    def _attack_rows(self, examples: Examples, seed: int, draw: int = 0) -> Examples:
        """Return the rows behind the direction number `draw`; of source "base" the prompts count.

        Several draws take at most half of what there is, or they would all be the same.
        """
        source = self._source()
        rng = np.random.default_rng([seed, draw] if draw else seed)
        if source == "harmful":
            if self.harmful is None:
                raise UsageError("source=harmful needs harmful rows: give --harmful")
            return self.harmful.select(self._draw(rng, len(self.harmful)))
        sampled = self._draw(rng, len(examples))
        if source == "mismatched":
            if self.benign is None:
                raise UsageError(self._lacking())
            mixed = seed + 1000 * draw
            n = min(len(sampled), len({prompt.strip() for prompt in examples.prompts}))
            return mismatched(examples.prompts, self.benign.responses, n=n, seed=mixed)
        drawn = examples.select(sampled)
        if source == "base":
            return drawn
        return Examples.from_answers(drawn.prompts, [self.prefix] * len(drawn), name=source)

    def _lacking(self) -> str:
        if self.source == "auto":
            return (
                "attack_direction needs something to take the attacker's direction from: give "
                "--base (the model before its alignment, which does best), --harmful or --benign"
            )
        return "source=mismatched needs benign rows: give --benign"

    def _draw(self, rng: np.random.Generator, n: int) -> list[int]:
        most = n if self.repeats == 1 else max(1, n // 2)
        return [int(i) for i in rng.choice(n, min(self.rows, most), replace=False)]

    def _base_beside(self, model: PreTrainedModel) -> Loaded | None:
        """Load the base where the model is, if it is to be asked: once for all draws."""
        return self._loaded_base(str(model.device)) if self._source() == "base" else None

    def _loaded_base(self, device: str = "cpu") -> Loaded:
        from holdfast.models import checkpoints

        if self.base is None:
            setting = "source=base" if self._source() == "base" else "quantity=contrast"
            raise UsageError(f"{setting} needs the model before its alignment: give --base")
        return checkpoints.load(self.base, device=device)


@dataclass(frozen=True)
class _Reader:
    """Reads how well each example is held at the model's present weights."""

    model: PreTrainedModel
    encoded: list[Encoded]
    quantity: str
    tokens: torch.Tensor
    pad: int
    pairs: Sequence[Pair] = ()
    batch_size: int = 32

    @property
    def known(self) -> list[int]:
        """Positions of the rows that can be read: of others one of the two answers is empty."""
        if self.quantity != "contrast":
            return list(range(len(self.encoded)))
        return [i for i, pair in enumerate(self.pairs) if None not in pair]

    def __call__(self, positions: Sequence[int]) -> np.ndarray:
        """Return the margins of the rows at these positions, float64."""
        return self.tensor(positions).double().numpy()

    def tensor(self, positions: Sequence[int]) -> torch.Tensor:
        """Return the same as a tensor, which forward-mode differentiation can follow."""
        from holdfast.models.losses import contrasts, first_margins, prefix_margins

        if self.quantity == "contrast":
            own, other = zip(*(self.pairs[i] for i in positions), strict=True)
            return contrasts(self.model, own, other, pad=self.pad, batch_size=2 * self.batch_size)
        rows = [self.encoded[i] for i in positions]
        if self.quantity == "prefix":
            return prefix_margins(
                self.model, rows, PREFIX, pad=self.pad, batch_size=2 * self.batch_size
            )
        return first_margins(
            self.model, rows, self.tokens, pad=self.pad, batch_size=4 * self.batch_size
        )


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
    before = first.copy()
    last = rungs[0]
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
