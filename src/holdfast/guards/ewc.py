"""EWC: penalise moving the weights that the safe answers depend on.

Kirkpatrick et al., PNAS 2017, arXiv 1612.00796. theta_0 are the aligned weights, i safety rows:

    l(theta) + lam sum_j F_j (theta_j - theta_0j)^2,    F_j = mean_i (d l_i/d theta_j)^2 at theta_0.

l is the customer's loss, and l_i the mean loss per answer token of row i on its safe answer (the
empirical Fisher). The paper's factor 1/2 is part of `lam`.

Deviations: a published version for language models sums squared gradients of whole batches, which
depends on their number and falls with their size, so its lam = 1e9 does not apply here.
`fisher_batch` above 1 also squares the gradients of batch means, to save backward passes, but
averages them. `lam` = 1000 is ours and not tuned.
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
from holdfast.models.head_loss import answer_loss
from holdfast.models.losses import chunks
from holdfast.models.modes import evaluation_mode
from holdfast.models.weights import gradients
from holdfast.options import Supplied
from holdfast.tuning.loop import Tuning


class Ewc(Guard):
    """Holds weights by their Fisher information; one backward pass, and first one per Fisher batch.

    It keeps two copies of the trainable weights, one of them in float32.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    neutral: ClassVar[Mapping[str, Any]] = {"lam": 0.0}

    safety: Supplied[Examples]
    lam: float = Field(default=1000.0, ge=0)
    """Strength of the penalty."""
    fisher_rows: int = Field(default=256, ge=1)
    """Largest number of safety rows, drawn with the tuning's seed, to estimate F from."""
    fisher_batch: int = Field(default=1, ge=1)
    """Number of rows per squared gradient; 1 is the mean over examples."""

    def begin(self, tuning: Tuning) -> None:
        """Store the aligned weights and estimate their Fisher information."""
        tuning.memory["start"] = copies(tuning.parameters)
        tuning.memory["fisher"] = self.fisher(tuning)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss with the penalty on moving the weights."""
        loss = super().loss(tuning, batch)
        if not self.lam:
            return loss
        start = tuning.memory["start"]
        fisher = tuning.memory["fisher"]
        terms = zip(tuning.parameters, start, fisher, strict=True)
        return loss + self.lam * sum((f * (p - s).square()).sum() for p, s, f in terms)

    def fisher(self, tuning: Tuning) -> list[Tensor]:
        """Return F at the current weights, one float32 tensor per trainable parameter."""
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
                grads = gradients(answer_loss(tuning.model, batch), tuning.parameters)
                for f, g in zip(information, grads, strict=True):
                    f.add_(g.float().square_(), alpha=1 / len(batches))
        return information
