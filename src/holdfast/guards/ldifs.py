"""LDIFS: penalise moving the hidden states away from the aligned model's.

Mukhoti et al., *Fine-tuning can cripple your foundation model*, TMLR 2024, arXiv 2308.13320; Huang
et al. compare it as a guard of language models. With l the customer's loss, h_l the hidden states
that layer l outputs for the batch's tokens, and theta_0 the aligned weights, the loss is

    l(theta) + lam/2 mean_l ||h_l(theta) - h_l(theta_0)||^2.

The norm is over the width, and its square is averaged over the batch's tokens without padding. The
paper's features are those of an image encoder, one vector per image.

Differences from a published version for language models: no term is dropped (it omits those above
0.1), the reference pass builds no graph, and the states are the residual stream after each block
(after the final norm for the last one) instead of the MLP outputs. Its strengths therefore do not
carry over; `lam` = 1 is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from holdfast.guards.base import Guard, at, copies
from holdfast.tuning.loop import Tuning


class Ldifs(Guard):
    """Holds the hidden states; one backward and one extra forward pass, one copy of the weights."""

    neutral: ClassVar[Mapping[str, Any]] = {"lam": 0.0}

    lam: float = Field(default=1.0, ge=0)
    """Strength of the penalty."""

    def begin(self, tuning: Tuning) -> None:
        """Store the aligned weights."""
        tuning.memory["start"] = copies(tuning.parameters)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss with the penalty on moving the hidden states."""
        if not self.lam:
            return super().loss(tuning, batch)
        start = at(tuning, tuning.memory["start"], **batch, output_hidden_states=True)
        current = tuning.model(**batch, output_hidden_states=True)
        distance = hidden_distance(
            current.hidden_states[1:], start.hidden_states[1:], batch["attention_mask"]
        )
        return cast(Tensor, current.loss + self.lam / 2 * distance)


def hidden_distance(
    states: Sequence[Tensor],  # L of (B, T, d)
    reference: Sequence[Tensor],  # L of (B, T, d)
    mask: Tensor,  # (B, T), 0 at padding
) -> Tensor:
    """Return the mean over layers and tokens of the squared distance, a float32 scalar."""
    attended = mask.bool()
    layers = [
        (a.float() - b.float()).square().sum(2)[attended].mean()
        for a, b in zip(states, reference, strict=True)
    ]
    return torch.stack(layers).mean()
