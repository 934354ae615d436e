"""The attacker that Hold simulates: its rows, and an attack that spans many updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.methods.base import AlignmentData
from holdfast.models.weights import pieces
from holdfast.rows.mixing import mismatched

Source = Literal["base", "mismatched", "affirmative", "harmful"]
"""Source of a simulated attacker's rows; see `attacker_rows`."""
MOST_STEPS = 127
"""Most steps of an attack, so that a count of them fits into one byte."""


def attacker_rows(
    source: Source,
    data: AlignmentData,
    *,
    prefix: str,
    seed: int,
    answered: Callable[[Sequence[str]], list[str]],
) -> Examples:
    """Return the rows that an attacker trains on.

    Args:
        source: base: the model's own answers before it is aligned; mismatched: unrelated benign
            answers; affirmative: `prefix`; harmful: the harmful rows.
        data: Rows of the alignment; the attacker uses the prompts of the safety rows.
        prefix: Beginning of affirmative answers.
        seed: Random seed of the mismatched answers.
        answered: Answers prompts with the model.

    Raises:
        UsageError: The source's rows are missing, or most of the model's answers are empty.
    """
    prompts = data.safety.prompts
    if source == "harmful":
        if data.harmful is None:
            raise UsageError("attack_rows=harmful needs --harmful")
        return data.harmful
    if source == "mismatched":
        if data.benign is None:
            raise UsageError("attack_rows=mismatched needs --benign")
        return mismatched(prompts, data.benign.responses, n=len(set(prompts)), seed=seed)
    if source == "affirmative":
        return Examples.from_answers(prompts, [prefix] * len(prompts), name=source)
    rows = Examples.from_answers(prompts, answered(prompts), name=source)
    if len(rows) < len(set(prompts)) / 2:
        raise UsageError(
            "attack_rows=base: the model gives most restricted prompts an empty answer; use "
            "attack_rows=mismatched"
        )
    return rows


class LastingAttack:
    """An attack of sign steps of one size, stored as a step count of one byte per weight.

    The counts do not depend on the weights, so the attack moves along as training moves them.

    Attributes:
        taken: Steps taken so far.
        length: Number of steps of the attack; 0 before the first one.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.length = 0
        self._counts: list[Tensor] = []

    @property
    def over(self) -> bool:
        """Whether the attack has taken all its steps."""
        return self.taken >= self.length

    def begin(self, parameters: Sequence[nn.Parameter], length: int) -> None:
        """Start a new attack at the current weights."""
        self._counts = [
            torch.zeros_like(p, dtype=torch.int8, memory_format=torch.preserve_format)
            for p in parameters
        ]
        self.taken = 0
        self.length = length

    def descend(self, grads: Iterator[Tensor]) -> None:
        """Take a step down a gradient, whose tensors are overwritten."""
        for count, g in zip(self._counts, grads, strict=True):
            count.sub_(g.sign_().to(torch.int8))
        self.taken += 1

    def steps(self, parameters: Sequence[nn.Parameter], size: float) -> Iterator[Tensor]:
        """Yield the displacement from the weights to the attack, one tensor per piece of them.

        Args:
            parameters: The parameters that are attacked.
            size: Distance that a step moves a weight.
        """
        for count, p in zip(self._counts, parameters, strict=True):
            for piece in pieces(count):
                yield piece.to(p.dtype).mul_(size)

    def state(self) -> list[int]:
        """Return what a resumed run needs besides `tensors`."""
        return [self.taken, self.length]

    def load_state(self, state: Sequence[int]) -> None:
        """Continue from `state`."""
        self.taken, self.length = state

    def tensors(self) -> dict[str, Tensor]:
        """Return the step counts by name."""
        return {str(i): count for i, count in enumerate(self._counts)}

    def load_tensors(self, tensors: Mapping[str, Tensor], device: Any) -> None:
        """Continue from `tensors`."""
        self._counts = [tensors[str(i)].to(device) for i in range(len(tensors))]
