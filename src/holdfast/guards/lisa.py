"""Lisa: lazy safety alignment, which alternates between safety rows and the customer's.

Huang et al., NeurIPS 2024, arXiv 2405.18641. With f the loss on safety rows, h the customer's,

    w~    <- K1 steps on f(w) + rho/2 ||w - w_t||^2,    from w_t,
    w_t+1 <- K2 steps on h(w) + rho/2 ||w - w~||^2,     from w~.

Each state is pulled to the weights at which it began, so one anchor, replaced at every switch, is
enough. Defaults are the paper's: K1 = 100, K2 = 900, rho = 1.

The customer gets all of his steps: K2 counts only those, and the K1 safety steps are added before
his first step and after every K2 of them. A tuning shorter than K2 sees safety rows only at the
start; use smaller values there, e.g. 10 and 90.

Deviations: the published code divides one number of steps between the states, and omits the pull
during the first tenth of them, unlike the paper. Safety batches are drawn without replacement
within a batch and independently between batches, so a resumed run can draw the next one from the
step number alone.
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
    """Alternates safety and customer steps; 1 + K1/K2 backward passes, one copy of the weights."""

    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0, "safety_steps": 0}

    safety: Supplied[Examples]
    rho: float = Field(default=1.0, ge=0)
    """Strength of the pull towards the last switch."""
    safety_steps: int = Field(default=100, ge=0)
    """K1, the number of consecutive optimizer steps on safety rows."""
    user_steps: int = Field(default=900, ge=1)
    """K2, the number of the customer's steps in between."""

    def extra(self, tuning: Tuning) -> Iterator[Examples]:
        """Yield the safety batches when they are due; both switches replace the anchor."""
        rounds, inside = divmod(tuning.done, self.user_steps)
        if inside:
            return
        tuning.memory["anchor"] = copies(tuning.parameters)
        for i in range(self.safety_steps):
            yield self.safety_batch(tuning, rounds * self.safety_steps + i)
        tuning.memory["anchor"] = copies(tuning.parameters)

    def loss(self, tuning: Tuning, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss with the pull towards the anchor."""
        loss = super().loss(tuning, batch)
        if not self.rho:
            return loss
        pairs = zip(tuning.parameters, tuning.memory["anchor"], strict=True)
        # mse_loss stores no squares for the backward pass, unlike a product.
        return loss + self.rho / 2 * sum(F.mse_loss(p, a, reduction="sum") for p, a in pairs)

    def safety_batch(self, tuning: Tuning, number: int) -> Examples:
        """Return the safety rows of a safety step, given its number."""
        size = min(tuning.config.batch_size, len(self.safety))
        rng = np.random.default_rng([tuning.config.seed, number])
        return self.safety.select(rng.choice(len(self.safety), size, replace=False).tolist())
