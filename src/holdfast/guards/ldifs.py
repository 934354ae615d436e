"""LDIFS: the customer's loss, and a price on moving the hidden states.

Mukhoti et al., *Fine-tuning can cripple your foundation model*, TMLR 2024, arXiv 2308.13320; as a
guard of language models in the comparisons of Huang et al. With h_l the hidden states that layer l
puts out for the batch's tokens, and theta_0 the aligned weights,

    l(theta) + lam/2 mean_l ||h_l(theta) - h_l(theta_0)||^2.

The norm is over the width and the square is averaged over the batch's tokens, padding left out.
The paper's features are those of an image encoder, one vector per image.

Against a published copy for language models: no term is dropped (it leaves out those above 0.1),
the reference pass keeps no graph, and the states are the residual stream after each block (after
the last one, as it leaves the final norm) instead of the MLPs' output. Its strength is therefore
not comparable: `lam` = 1 is ours.
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
    """Keeps hidden states near; one backward pass, one more forward, one copy of the weights."""

    neutral: ClassVar[Mapping[str, Any]] = {"lam": 0.0}

    lam: float = Field(default=1.0, ge=0)
    """Strength of the penalty."""

    def begin(self, tuning: Tuning) -> None:
        """Keep the aligned weights."""
        tuning.memory["start"] = copies(tuning.parameters)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Add the price of moving the hidden states."""
        if not self.lam:
            return super().loss(tuning, batch)
        start = at(tuning, tuning.memory["start"], **batch, output_hidden_states=True)
        here = tuning.model(**batch, output_hidden_states=True)
        moved = hidden_distance(
            here.hidden_states[1:], start.hidden_states[1:], batch["attention_mask"]
        )
        return cast(Tensor, here.loss + self.lam / 2 * moved)


def hidden_distance(
    here: Sequence[Tensor],  # L of (B, T, d)
    there: Sequence[Tensor],  # L of (B, T, d)
    mask: Tensor,  # (B, T), 0 at padding
) -> Tensor:
    """Return the mean over layers and tokens of the squared distance, a float32 scalar."""
    attended = mask.bool()
    return torch.stack(
        [
            (a.float() - b.float()).square().sum(2)[attended].mean()
            for a, b in zip(here, there, strict=True)
        ]
    ).mean()
