"""Safe instructions: safety rows mixed into the customer's rows.

Bianchi et al., *Safety-Tuned LLaMAs*, ICLR 2024, arXiv 2309.07875. The customer's rows D become

    D + k rows of the safety set,   k = round(share |D|), or `number`.

What it is not: a change of loss or of length. The number of steps stays the customer's, so his own
rows are seen 1 / (1 + k / |D|) times as often. The paper adds a few per cent to a general
instruction set before release; that the provider adds them to what a customer uploads is the use
that later comparisons make of it. Default: 3 %, the paper's least that helped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.guards.base import Guard
from holdfast.options import Supplied


class SafeInstr(Guard):
    """Mixes safety rows into the customer's; one backward pass, no memory."""

    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    neutral: ClassVar[Mapping[str, Any]] = {"share": 0.0, "number": 0}

    safety: Supplied[Examples]
    share: float = Field(default=0.03, ge=0)
    """Number of safety rows for each row of the customer's."""
    number: int = Field(default=0, ge=0)
    """Number of safety rows in total, instead of `share`; 0 uses `share`."""

    def rows(self, rows: Examples, *, seed: int) -> Examples:
        """Add the safety rows; those that the customer has already are not drawn."""
        wanted = self.number or round(self.share * len(rows))
        own = set(rows.ids)
        pool = [row for row, identity in zip(self.safety, self.safety.ids, strict=True)
                if identity not in own]  # fmt: skip
        if wanted > len(pool):
            raise UsageError(
                f"{self.safety.name}: {wanted} safety rows are wanted, it has {len(pool)} that are "
                "not among the customer's. Lower share or number, or give more rows."
            )
        drawn = np.random.default_rng(seed).choice(len(pool), wanted, replace=False)
        return Examples([*rows, *(pool[i] for i in drawn.tolist())], name=rows.name)
