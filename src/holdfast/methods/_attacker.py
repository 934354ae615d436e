"""The attacker that Hold plays: its rows, and an attack that lasts over many updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.methods.base import AlignmentData
from holdfast.rows.mixing import mismatched

Source = Literal["base", "mismatched", "affirmative", "harmful"]
"""Where the rows of a simulated attacker come from, see `attacker_rows`."""
MOST_STEPS = 127
"""So that where an attack stands fits into a byte."""


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
        source: base: what the model answers before it is aligned; mismatched:
            unrelated benign answers; affirmative: `prefix`; harmful: the harmful rows.
        data: Rows of the alignment; the prompts are those of the safety rows.
        prefix: Of affirmative answers.
        seed: Of the draw of mismatched answers.
        answered: Answers prompts with the model.

    Raises:
        UsageError: The rows that the source needs are missing, or the model has no answers.
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
    found = Examples.from_answers(prompts, answered(prompts), name=source)
    if len(found) < len(set(prompts)) / 2:
        raise UsageError(
            "attack_rows=base: the model answers most restricted prompts with nothing; take "
            "attack_rows=mismatched"
        )
    return found


class LastingAttack:
    """Sign steps of one size, counted: one byte a weight says where they led.

    A count depends on no weight, so the attack goes along when training moves the weights.

    Attributes:
        taken: Steps taken so far.
        length: Steps after which it is over; 0 before the first attack.
    """

    def __init__(self) -> None:
        self.taken = self.length = 0
        self._counts: list[Tensor] = []

    @property
    def over(self) -> bool:
        """Whether it has its length."""
        return self.taken >= self.length

    def begin(self, parameters: Sequence[nn.Parameter], length: int) -> None:
        """Start another one at the weights as they are."""
        self._counts = [
            torch.zeros_like(p, dtype=torch.int8, memory_format=torch.preserve_format)
            for p in parameters
        ]
        self.taken, self.length = 0, length

    def descend(self, grads: Iterator[Tensor]) -> None:
        """Take a step down a gradient, which is used up."""
        for count, g in zip(self._counts, grads, strict=True):
            count.sub_(g.sign_().to(torch.int8))
        self.taken += 1

    def steps(self, parameters: Sequence[nn.Parameter], size: float) -> Iterator[Tensor]:
        """Yield the way from the weights to where it stands, a tensor per parameter."""
        for count, p in zip(self._counts, parameters, strict=True):
            yield count.to(p.dtype).mul_(size)

    def state(self) -> list[int]:
        """Return what a resumed run needs besides `tensors`."""
        return [self.taken, self.length]

    def load_state(self, state: Sequence[int]) -> None:
        """Continue from `state`."""
        self.taken, self.length = state

    def tensors(self) -> dict[str, Tensor]:
        """Return where it stands."""
        return {str(i): count for i, count in enumerate(self._counts)}

    def load_tensors(self, tensors: Mapping[str, Tensor], device: Any) -> None:
        """Continue from `tensors`."""
        self._counts = [tensors[str(i)].to(device) for i in range(len(tensors))]
