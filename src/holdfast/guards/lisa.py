"""Lisa: lazy safety alignment, two states with a pull to where each began.

Huang et al., NeurIPS 2024, arXiv 2405.18641. With f the loss on safety rows and h the customer's,

    w~    <- K1 steps on f(w) + rho/2 ||w - w_t||^2,    from w_t,
    w_t+1 <- K2 steps on h(w) + rho/2 ||w - w~||^2,     from w~.

Each state is pulled to the weights at which it began, so one anchor is enough: it is taken anew at
every switch. Defaults are the paper's: K1 = 100, K2 = 900, rho = 1.

The customer's number of steps stays what it was: K2 counts his, and the K1 safety steps come on
top, before his first and after every K2 of his. Tunings shorter than K2 see safety rows at the
start alone: choose smaller ones for these, e.g. 10 and 90.

Deviations: the published code takes both states out of one number of steps, and leaves the pull
off during the first tenth of them, which the paper does not have. Safety batches are drawn without
replacement within a batch and independently between batches, so that a resumed run needs no more
than the step to draw the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from holdfast.examples import Examples
from holdfast.guards.base import Guard, copies
from holdfast.options import Supplied
from holdfast.tuning.loop import Tuning


class Lisa(Guard):
    """Alternate safety and customer steps: 1 + K1/K2 backward passes, one copy of the weights."""

    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0, "safety_steps": 0}

    safety: Supplied[Examples]
    rho: float = Field(default=1.0, ge=0)
    """Strength of the pull towards the last switch."""
    safety_steps: int = Field(default=100, ge=0)
    """K1, the number of optimizer steps on safety rows at a time."""
    user_steps: int = Field(default=900, ge=1)
    """K2, the number of the customer's steps between them."""

    def extra(self, tuning: Tuning) -> Iterator[Examples]:
        """Go through the safety state when it is due; both switches refresh the anchor."""
        rounds, inside = divmod(tuning.done, self.user_steps)
        if inside:
            return
        tuning.memory["anchor"] = copies(tuning.parameters)
        for i in range(self.safety_steps):
            yield self.drawn(tuning, rounds * self.safety_steps + i)
        tuning.memory["anchor"] = copies(tuning.parameters)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Add the pull, in both states."""
        loss = super().loss(tuning, batch)
        if not self.rho:
            return loss
        pairs = zip(tuning.parameters, tuning.memory["anchor"], strict=True)
        # mse_loss keeps no squares for the backward pass, as a product would.
        return loss + self.rho / 2 * sum(F.mse_loss(p, a, reduction="sum") for p, a in pairs)

    def drawn(self, tuning: Tuning, number: int) -> Examples:
        """Return the safety rows of the step of that number."""
        size = min(tuning.config.batch_size, len(self.safety))
        rng = np.random.default_rng([tuning.config.seed, number])
        return self.safety.select(rng.choice(len(self.safety), size, replace=False).tolist())
