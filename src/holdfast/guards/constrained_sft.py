"""Constrained SFT: limit how far each answer token moves from the aligned model, the first most.

Qi et al., *Safety Alignment Should Be Made More Than Just a Few Tokens Deep*, ICLR 2025,
arXiv 2406.05946. With pi_0 the aligned model and t the position in the answer, from 1, the loss is

    - sum_t 2/beta_t log sigmoid(beta_t log pi(y_t)/pi_0(y_t)),

whose gradient is that of SFT with every token weighted by

    w_t = 2 (1 - sigmoid(beta_t log pi(y_t)/pi_0(y_t))):

1 at the aligned weights, and near 0 once a token has become exp(1/beta_t) times as likely. The code
computes -mean_t w_t log pi(y_t) with w_t held constant, which has that gradient, as a mean over
answer tokens as in plain fine-tuning. Defaults are the paper's: beta_1 = 0.5, beta_2..5 = 2, then
0.1. As in the published code, w_t is at least 0.001.

It is not a penalty: it needs no safety rows, and of the aligned model only the probabilities of the
customer's own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from holdfast.guards.base import Guard, at, copies
from holdfast.models.heads import logits_at, predicting, reading_at, tokens_at
from holdfast.tuning.loop import Tuning

EARLY = 5
"""Number of first answer tokens under the strong constraint."""
LEAST_WEIGHT = 1e-3


class ConstrainedSft(Guard):
    """Weights tokens by how far they moved; one backward and one extra forward pass, one copy."""

    neutral: ClassVar[Mapping[str, Any]] = {"first": 0.0, "early": 0.0, "rest": 0.0}

    first: float = Field(default=0.5, ge=0)
    """Strength beta on the answer's first token."""
    early: float = Field(default=2.0, ge=0)
    """Strength beta on the second to the fifth token."""
    rest: float = Field(default=0.1, ge=0)
    """Strength beta on all other tokens."""

    def begin(self, tuning: Tuning) -> None:
        """Store the aligned weights."""
        tuning.memory["start"] = copies(tuning.parameters)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Return the weighted mean over answer tokens."""
        if not (self.first or self.early or self.rest):
            return super().loss(tuning, batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask = predicting(batch["labels"])
        tokens = tokens_at(batch["labels"], mask)
        with reading_at(tuning.model, mask) as read:
            start = at(tuning, tuning.memory["start"], **inputs)
            before = _log_probs(read(start.logits), tokens)
        now = _log_probs(logits_at(tuning.model, inputs, mask), tokens)
        gain = self.betas(mask)[mask] * (now.detach() - before)
        weights = (2 * torch.sigmoid(-gain)).clamp(min=LEAST_WEIGHT)
        return -(weights * now).mean()

    def betas(self, answer: Tensor) -> Tensor:
        """Return beta at every position, given the mask of answer tokens, both (B, T)."""
        place = answer.cumsum(1)
        late = torch.where(place > EARLY, self.rest, self.early)
        return torch.where(place <= 1, self.first, late)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log pi of each token, (N,), from the logits (N, V) that predict it."""
    return -F.cross_entropy(logits.float(), tokens, reduction="none")
