"""EWC: the customer's loss, and a price on moving the weights that the safe answers rest on.

Kirkpatrick et al., PNAS 2017, arXiv 1612.00796. With theta_0 the aligned weights, i safety rows:

    l(theta) + lam sum_j F_j (theta_j - theta_0j)^2,    F_j = mean_i (d l_i/d theta_j)^2 at theta_0.

l_i is the mean loss per answer token of row i, on the answer that is wanted (the empirical Fisher).
The factor 1/2 of the paper is part of `lam`.

Deviations: a published copy for language models takes F as the sum over squared gradients of whole
batches, which depends on how many there are and falls with the batch's size; its lam = 1e9 means
nothing here. `fisher_batch` above 1 squares batch means as well, to save backward passes, but still
averages. `lam` = 1000 is ours, and untuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from holdfast.examples import Examples
from holdfast.guards.base import Guard, copies
from holdfast.models.encoding import collate, encode
from holdfast.models.losses import chunks
from holdfast.models.modes import evaluation_mode
from holdfast.models.weights import gradients
from holdfast.options import Supplied
from holdfast.tuning.loop import Tuning


class Ewc(Guard):
    """Holds weights by their Fisher information; one backward pass and one per Fisher batch before.

    Two copies of the trainable weights, one in float32.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    neutral: ClassVar[Mapping[str, Any]] = {"lam": 0.0}

    safety: Supplied[Examples]
    lam: float = Field(default=1000.0, ge=0)
    """Strength of the penalty."""
    fisher_rows: int = Field(default=256, ge=1)
    """Safety rows from which F is estimated, at most; a sample drawn with the tuning's seed."""
    fisher_batch: int = Field(default=1, ge=1)
    """Number of rows per squared gradient; 1 is the mean over examples."""

    def begin(self, tuning: Tuning) -> None:
        """Keep the aligned weights, and estimate how much each matters to the safety rows."""
        tuning.memory["start"] = copies(tuning.parameters)
        tuning.memory["fisher"] = self.fisher(tuning)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Add the price of moving the weights."""
        loss = super().loss(tuning, batch)
        if not self.lam:
            return loss
        start = tuning.memory["start"]
        fisher = tuning.memory["fisher"]
        terms = zip(tuning.parameters, start, fisher, strict=True)
        return loss + self.lam * sum((f * (p - s).square()).sum() for p, s, f in terms)

    def fisher(self, tuning: Tuning) -> list[Tensor]:
        """Return F at the weights as they are, float32, one tensor per trainable parameter."""
        config = tuning.config
        pad = cast(int, tuning.tokenizer.pad_token_id)
        order = np.random.default_rng(config.seed).permutation(len(self.safety))
        sample = self.safety.select(order[: self.fisher_rows].tolist())
        rows = encode(tuning.tokenizer, sample, config.max_length)
        batches = list(chunks(range(len(rows)), self.fisher_batch))
        information = [torch.zeros_like(p, dtype=torch.float32) for p in tuning.parameters]
        with evaluation_mode(tuning.model):
            for indices in batches:
                batch = collate([rows[i] for i in indices], pad, tuning.model.device)
                grads = gradients(tuning.model(**batch).loss, tuning.parameters)
                for f, g in zip(information, grads, strict=True):
                    f.add_(g.float().square_(), alpha=1 / len(batches))
        return information
