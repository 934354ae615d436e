"""Safe instructions: mix safety rows into the customer's rows.

Bianchi et al., *Safety-Tuned LLaMAs*, ICLR 2024, arXiv 2309.07875. The customer's rows D become

    D + k rows of the safety set,   k = round(share |D|), or `number`.

The loss and the number of steps do not change, so the customer's own rows are seen
1 / (1 + k / |D|) times as often. The paper adds a few per cent to a general instruction set before
release; adding them to a customer's upload follows later comparisons. The default of 3 % is the
smallest share that helped in the paper.
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
    """Mixes safety rows into the customer's; one backward pass, no extra memory."""

    needs: ClassVar[frozenset[str]] = frozenset({"safety"})
    neutral: ClassVar[Mapping[str, Any]] = {"share": 0.0, "number": 0}

    safety: Supplied[Examples]
    share: float = Field(default=0.03, ge=0)
    """Number of safety rows per row of the customer's."""
    number: int = Field(default=0, ge=0)
    """Number of safety rows in total, instead of `share`; 0 uses `share`."""

    def rows(self, rows: Examples, *, seed: int) -> Examples:
        """Return the customer's rows and drawn safety rows that are not among them."""
        size = self.number or round(self.share * len(rows))
        customer_ids = set(rows.ids)
        pool = [row for row in self.safety if row.id not in customer_ids]
        if size > len(pool):
            raise UsageError(
                f"{self.safety.name}: safe_instr needs {size} safety rows, but only {len(pool)} "
                "are not among the customer's. Lower share or number, or give more rows."
            )
        drawn = np.random.default_rng(seed).choice(len(pool), size, replace=False)
        return Examples([*rows, *(pool[i] for i in drawn.tolist())], name=rows.name)
