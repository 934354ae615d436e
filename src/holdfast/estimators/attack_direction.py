"""How far along the attacker's road each example holds: one gradient, a few forward passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from holdfast.contracts import Estimate, Estimator
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models.cost import counted
from holdfast.rows.readers import mismatched
from holdfast.stats.intervals import standard_error
from holdfast.tuning.flip_step import Margins, flip_step
from holdfast.tuning.proxy_attack import check_examples

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.checkpoints import Loaded
    from holdfast.models.encoding import Encoded
    from holdfast.models.weights import Geometry

    Pair = tuple[Encoded | None, Encoded | None]

SOURCES = ("auto", "harmful", "base", "mismatched", "affirmative")
VARIANTS = ("first_flips", "critical_step", "derivative")
GEOMETRIES = ("sign", "l2")
QUANTITIES = ("auto", "margin", "contrast", "prefix")
HALF = 0.5
"""Share flipped from which critical steps are searched: most of them lie near."""
MOST_TOKENS = 16
"""Where more tokens than these begin the answers, they share no way to begin."""
PREFIX = 3
"""Answer tokens behind the prefix margin; alignment is a few tokens deep (Qi et al. 2024)."""
CONTRAST = 5
"""Tokens of both answers behind the contrast; those they share say nothing."""


@dataclass(frozen=True)
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

    Attributes:
        harmful: Rows such as the attacker would use; a few are enough. Optional.
        benign: Ordinary instructions with answers, for source "mismatched".
        base: The model before its alignment, for source "base": "world", a directory or a hub id.
        variant: "first_flips", "critical_step" or "derivative".
        source: Where the direction comes from: "harmful" rows; "base": what the model would have
            begun its answers to the alignment prompts with before it was aligned, as a
            distribution over tokens; "mismatched": the prompts with unrelated benign answers;
            "affirmative": the prompts with `prefix`. "auto" is the first of these that there is
            anything for. Only "harmful" needs harmful data.
        prefix: How an obliging answer begins, for source "affirmative".
        quantity: What is read: "margin", the refusal margin above. For answers that begin in no
            common way, "contrast": the log-probability of the first tokens that the model answers
            now, less that of the first tokens its base answers; or, without a base, "prefix": the
            mean over the first three tokens of the row's answer of each one's log-probability
            against the best other, which takes another wording for forgetting
            (docs/estimators.md). "auto" takes the margin where 16 tokens or fewer begin 95 % of
            the answers.
        geometry: "sign", or "l2" for the gradient itself.
        steps: Steps of the attacker; more than one are steps of Adam of `step_size`, and the
            direction is where they lead.
        step_size: Of each coordinate, if steps > 1.
        repeats: Directions, each from other rows; scores are averaged, and their spread is the
            standard error. With one, errors are unknown.
        rows: Rows behind the gradient, or of source "base" prompts; as many as there are if fewer.
        flip: Share of the sample that must have flipped, for variant "first_flips".
        sample: Examples on which the step is found.
        max_length: Tokens kept per row.
        batch_size: Rows of the gradient's pass at a time; margins, which need no graph, are read
            for up to four times as many. Fewer take less memory and give the same scores.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful", "benign", "base"})

    harmful: Examples | None = None
    benign: Examples | None = None
    base: str | None = None
    variant: str = "first_flips"
    source: str = "auto"
    prefix: str = "Sure, here is"
    quantity: str = "auto"
    geometry: str = "sign"
    steps: int = 1
    step_size: float = 1e-4
    repeats: int = 1
    rows: int = 128
    flip: float = 0.1
    sample: int = 32
    max_length: int = 256
    batch_size: int = 32

    def __post_init__(self) -> None:
        self._check_options()

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Score every example; the weights are restored exactly, and the mode is put back."""
        from holdfast.models.modes import evaluating

        if self._source() == "harmful" and self.harmful is not None:
            check_examples(examples, self.harmful)
        with evaluating(model):
            return self._estimate(model, tokenizer, examples, seed)

    def _estimate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        seed: int,
    ) -> Estimate:
        from holdfast.models.encoding import encode_scored

        encoded = encode_scored(model, tokenizer, examples, self.max_length)
        base = self._base_beside(model)
        read = self._reader(model, encoded, cast(int, tokenizer.pad_token_id))
        if read.quantity == "contrast":
            read = replace(read, pairs=self._pairs(model, tokenizer, examples, base))
        known, found, steps = read.known, [], []
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
        from holdfast.models.weights import restored, trainable
        from holdfast.tuning.directions import forward_derivative

        if self.variant == "derivative":
            _, slopes = forward_derivative(model, direction, lambda: read.tensor(known))
            return -slopes.double().numpy(), 0.0

        def margins(size: float, positions: Sequence[int]) -> np.ndarray:
            with restored(trainable(model)) as add:
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

        quantity = self.quantity
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
            with counted(who) if who is not model else nullcontext():
                answers = generate(
                    who,
                    words,
                    prompts,
                    max_new_tokens=CONTRAST,
                    batch_size=4 * self.batch_size,
                )
            rows = Examples.answered(prompts, answers, name=examples.name)
            cut = [
                Encoded(row.ids[: row.start + CONTRAST], row.start)
                for row in encode(tokenizer, rows, self.max_length)
            ]
            sides.append(dict(zip(rows.prompts, cut, strict=True)))
        return [(sides[0].get(p), sides[1].get(p)) for p in examples.prompts]

    def _check_options(self) -> None:
        for option, known in (
            ("variant", VARIANTS),
            ("source", SOURCES),
            ("geometry", GEOMETRIES),
            ("quantity", QUANTITIES),
        ):
            value = getattr(self, option)
            if value not in known:
                raise UsageError(f"{option}={value!r} must be one of {', '.join(known)}")
        for option in ("steps", "repeats", "rows", "sample", "batch_size"):
            if getattr(self, option) < 1:
                raise UsageError(f"{option}={getattr(self, option)} must be at least 1")
        if not 0 < self.flip < 1 or not 0 < self.step_size < math.inf:
            raise UsageError(
                f"flip={self.flip} must be a share in (0, 1), step_size={self.step_size} above 0"
            )
        if self.steps > 1 and self._source() == "base":
            raise UsageError(f"steps={self.steps}: source=base takes one; take another source")

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
        from holdfast.tuning.directions import adam_steps, descent, descent_towards
        from holdfast.tuning.loop import FinetuneConfig

        geometry = cast("Geometry", self.geometry)
        rows = self._attack_rows(examples, seed, draw)
        if base is not None:
            with counted(base.model):
                return descent_towards(
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
            return adam_steps(model, tokenizer, rows, config)
        return descent(
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
        source, rng = self._source(), np.random.default_rng([seed, draw] if draw else seed)
        if source == "harmful":
            if self.harmful is None:
                raise UsageError("source=harmful needs harmful rows: give --harmful")
            return self.harmful.select(self._draw(rng, len(self.harmful)))
        chosen = self._draw(rng, len(examples))
        if source == "mismatched":
            if self.benign is None:
                raise UsageError(self._lacking())
            mixed = seed + 1000 * draw
            n = min(len(chosen), len({prompt.strip() for prompt in examples.prompts}))
            return mismatched(examples.prompts, self.benign.responses, n=n, seed=mixed)
        drawn = examples.select(chosen)
        if source == "base":
            return drawn
        return Examples.answered(drawn.prompts, [self.prefix] * len(drawn), name=source)

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
            what = "source=base" if self._source() == "base" else "quantity=contrast"
            raise UsageError(f"{what} needs the model before its alignment: give --base")
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
