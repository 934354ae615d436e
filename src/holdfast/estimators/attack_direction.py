"""Scores examples by how far along the attacker's first gradient they still refuse."""

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
"""Share flipped at the step from which the search for critical steps begins."""
MOST_TOKENS = 16
"""With more first tokens than this, the answers have no common beginning."""
PREFIX = 3
"""Answer tokens in the prefix margin; alignment is a few tokens deep (Qi et al. 2024)."""
CONTRAST = 5
"""Tokens of both answers in the contrast; tokens they share cancel out."""


class AttackDirection(Estimator):
    """Moves the weights along the attacker's first gradient and measures which refusals flip.

    With g the gradient of the loss on rows like the attacker's, the weights move to theta + a d,
    where d is the unit vector along -sign(g). Each example's refusal margin is measured there at
    its first answer token: the log-probability of the set of tokens with which refusals begin,
    minus that of the best other token. An example with a negative margin is answered, not refused.
    The sign is the first step of Adam, which attackers use; -g itself agrees less with what attacks
    forget, and further steps of Adam do not agree more (docs/estimators.md).

    - first_flips: finds the step a at which the first tenth of a small sample has flipped, by false
      position. The score is the negated margin there. It costs little more than one pass. Further
      along, the order of the examples that hold longest is lost (docs/estimators.md).
    - critical_step: finds each example's own a, where its margin changes sign. The score is -log a.
      It costs two to three passes: the search goes outward from the step that flips half, with
      only the examples that have not crossed yet.
    - derivative: the score is the negated derivative of the margin along d at the aligned weights,
      by forward-mode differentiation. It ignores margin and curvature and serves as an ablation.

    It uses no per-example gradients and no influence functions: the margin is measured where the
    attack leads. The step size has no free constant.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful", "benign", "base"})

    harmful: Supplied[Examples | None] = None
    benign: Supplied[Examples | None] = None
    base: Supplied[str | None] = None
    variant: Literal["first_flips", "critical_step", "derivative"] = "first_flips"
    """Where the margin is measured, as described above: where a tenth of a sample has flipped,
    where each example flips, or at the aligned weights.
    """
    source: Literal["auto", "harmful", "base", "mismatched", "affirmative"] = "auto"
    """Rows behind the direction. harmful: harmful rows. base: the first answer token of the model
    before its alignment, as a distribution, on the alignment prompts. mismatched: the alignment
    prompts with unrelated benign answers. affirmative: the prompts with `prefix`. auto: harmful,
    base or mismatched, the first for which there is data. Only harmful needs harmful rows.
    """
    prefix: str = "Sure, here is"
    """Beginning of a compliant answer, for source=affirmative."""
    quantity: Literal["auto", "margin", "contrast", "prefix"] = "auto"
    """Quantity to measure. margin: the refusal margin described above. contrast: with no
    common beginning, the log-probability of the model's own first tokens minus that of its
    base's. prefix: without a base, the log-probability of each of the answer's first three tokens
    minus that of the best other token, averaged; it mistakes a change of wording for forgetting
    (docs/estimators.md). auto: margin if at most 16 tokens begin 95 % of the answers, else contrast
    with a base and prefix without one.
    """
    geometry: Literal["sign", "l2"] = "sign"
    """Direction of a step: the sign of the gradient, or the gradient itself (l2)."""
    steps: int = Field(default=1, ge=1)
    """Number of the attacker's steps. With more than one, these are steps of Adam of size
    `step_size`, and the direction points to where they lead.
    """
    step_size: float = Field(default=1e-4, gt=0)
    """Learning rate of Adam, with steps above 1."""
    repeats: int = Field(default=1, ge=1)
    """Number of directions, each from different rows. Scores are averaged, and their spread gives
    the standard error; with one direction it is unknown.
    """
    rows: int = Field(default=128, ge=1)
    """Largest number of rows behind the gradient, or of prompts with source=base."""
    flip: float = Field(default=0.1, gt=0, lt=1)
    """Share of the sample that must flip, with variant=first_flips."""
    sample: int = Field(default=32, ge=1)
    """Number of examples used to find the step size."""
    max_length: int = Field(default=256, ge=1)
    """Number of tokens kept of each row."""
    batch_size: int = Field(default=32, ge=1)
    """Number of rows per batch of the gradient; margins, which need no graph, use up to four times
    as many. A smaller batch takes less memory and gives the same scores.
    """

    @model_validator(mode="after")
    def _check_steps(self) -> AttackDirection:
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
        """Score every example; the weights and the training mode are restored exactly."""
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
        base = self._base_for_direction(model)
        read = self._reader(model, encoded, cast(int, tokenizer.pad_token_id))
        if read.quantity == "contrast":
            read = replace(read, pairs=self._pairs(model, tokenizer, examples, base))
        positions = read.readable
        if len(positions) < 2:
            raise UsageError(
                f"quantity=contrast: the model and its base both give an answer to only "
                f"{len(positions)} of {len(encoded)} rows; use quantity=margin or quantity=prefix"
            )
        draws = []
        steps = []
        for draw in range(self.repeats):
            direction = self._direction(model, tokenizer, examples, seed, draw, base)
            values = np.full(len(encoded), math.nan)
            values[positions], step = self._values(model, read, direction, positions, seed)
            draws.append(values)
            steps.append(step)
        return Estimate(
            values=np.mean(draws, axis=0),
            errors=standard_error(draws),
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
        rows: Sequence[int],
        seed: int,
    ) -> tuple[np.ndarray, float]:
        """Return the scores of the rows along a direction, and the step they were taken at."""
        from holdfast.models.weights import reversible_steps, trainable
        from holdfast.tuning.directions import forward_derivative

        if self.variant == "derivative":
            _, slopes = forward_derivative(model, direction, lambda: read.tensor(rows))
            return -slopes.double().numpy(), 0.0

        def margins(size: float, positions: Sequence[int]) -> np.ndarray:
            with reversible_steps(trainable(model)) as add:
                if size:
                    add(size * d for d in direction)  # a generator, to avoid a third copy
                return read([rows[i] for i in positions])

        n = len(rows)
        flip = self.flip if self.variant == "first_flips" else HALF
        what = f"this direction (source {self._source()!r}); try another source"
        step = flip_step(margins, n, flip=flip, sample=self.sample, seed=seed, what=what)
        if self.variant == "first_flips":
            return -margins(step, range(n)), step
        return critical_steps(margins, n, step), step

    def _reader(self, model: PreTrainedModel, encoded: list[Encoded], pad: int) -> _Reader:
        from holdfast.models.losses import refusal_tokens

        quantity: str = self.quantity
        if quantity == "auto":
            if len(refusal_tokens(encoded, coverage=0.95)) <= MOST_TOKENS:
                quantity = "margin"
            else:
                quantity = "prefix" if self.base is None else "contrast"
        tokens = refusal_tokens(encoded)
        return _Reader(model, encoded, quantity, tokens, pad, batch_size=self.batch_size)

    def _pairs(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        base: Loaded | None,
    ) -> list[Pair]:
        """Return the first answer tokens of the model and of its base; None for an empty answer."""
        from holdfast.models.encoding import Encoded, encode
        from holdfast.models.generation import generate

        loaded = base or self._load_base(str(model.device))
        prompts = list(dict.fromkeys(examples.prompts))
        sides: list[dict[str, Encoded]] = []
        for answerer, own_tokenizer in ((model, tokenizer), (loaded.model, loaded.tokenizer)):
            with nullcontext() if answerer is model else count_tokens(answerer):
                answers = generate(
                    answerer,
                    own_tokenizer,
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
        own, other = sides
        return [(own.get(prompt), other.get(prompt)) for prompt in examples.prompts]

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
        """Return the attacker's direction: a unit vector, one tensor per trainable parameter."""
        return self._direction(model, tokenizer, examples, seed, 0, self._base_for_direction(model))

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
        """Return the rows behind one direction; with source=base only their prompts matter.

        With several directions each takes at most half of the rows, or all would be the same.
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
                raise UsageError(self._missing_rows())
            n = min(len(sampled), len({prompt.strip() for prompt in examples.prompts}))
            return mismatched(examples.prompts, self.benign.responses, n=n, seed=seed + 1000 * draw)
        drawn = examples.select(sampled)
        if source == "base":
            return drawn
        return Examples.from_answers(drawn.prompts, [self.prefix] * len(drawn), name=source)

    def _missing_rows(self) -> str:
        if self.source == "auto":
            return (
                "attack_direction needs rows or a model for the attacker's direction: give "
                "--base (the model before its alignment; the best choice), --harmful or --benign"
            )
        return "source=mismatched needs benign rows: give --benign"

    def _draw(self, rng: np.random.Generator, n: int) -> list[int]:
        most = n if self.repeats == 1 else max(1, n // 2)
        return [int(i) for i in rng.choice(n, min(self.rows, most), replace=False)]

    def _base_for_direction(self, model: PreTrainedModel) -> Loaded | None:
        """Load the base onto the model's device if the direction needs it, once for all draws."""
        return self._load_base(str(model.device)) if self._source() == "base" else None

    def _load_base(self, device: str = "cpu") -> Loaded:
        from holdfast.models import checkpoints

        if self.base is None:
            setting = "source=base" if self._source() == "base" else "quantity=contrast"
            raise UsageError(f"{setting} needs the model before its alignment: give --base")
        return checkpoints.load(self.base, device=device)


@dataclass(frozen=True)
class _Reader:
    """Measures how firmly the model refuses each example at its current weights."""

    model: PreTrainedModel
    encoded: list[Encoded]
    quantity: str
    tokens: torch.Tensor
    pad: int
    pairs: Sequence[Pair] = ()
    batch_size: int = 32

    @property
    def readable(self) -> list[int]:
        """Positions of the rows that can be measured; a contrast needs two non-empty answers."""
        if self.quantity != "contrast":
            return list(range(len(self.encoded)))
        return [i for i, pair in enumerate(self.pairs) if None not in pair]

    def __call__(self, positions: Sequence[int]) -> np.ndarray:
        """Return the margins of the rows at the positions, (n,) float64."""
        return self.tensor(positions).double().numpy()

    def tensor(self, positions: Sequence[int]) -> torch.Tensor:
        """Return the margins as a tensor, for forward-mode differentiation."""
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
    half/8 and 8 half, with only the examples whose crossing still lies ahead: two to three passes
    in all. Crossings are interpolated linearly. Beyond the ends, examples are ordered by their
    margin there: those not refused at step 0 score highest, those that never cross lowest. If a
    margin crosses several times, the crossing nearest to `half` counts.

    Args:
        margins: Returns the margins at a step size, given the positions of the examples.
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
    """Fill in the steps at which margins change sign; return the last margins of the others."""
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
        alive = alive[~crossed]
        last = rung
    return {int(i): float(before[i]) for i in alive}
