"""The harmful rows that the aligned model finds least surprising.

A provider who looks for rows that do not belong looks for those with a high loss. An attacker who
can run the model keeps to the others:

    loss(x, y) = -1/|y| sum_t log p(y_t | x, y_<t)     at the aligned weights

and draws from the rows of the lowest. What is paid for it: such rows also change the model least,
so the same number of them may do less.
"""

from __future__ import annotations

from pydantic import Field

from holdfast.contracts import Attacker, Poison
from holdfast.examples import Examples


class LowLoss(Poison):
    """Draws from the harmful rows of the lowest loss under the aligned model."""

    share: float = Field(default=0.25, ge=0, le=1)
    """Share of the harmful rows that are drawn from; never fewer than are needed."""

    def rows(self, attacker: Attacker) -> Examples:
        """Return the rows of the lowest loss, lowest first; of equal ones the lower id first."""
        from holdfast.models.encoding import encode
        from holdfast.models.losses import answer_losses

        rows = attacker.harmful
        encoded = encode(attacker.tokenizer, rows, attacker.max_length)
        pad = int(attacker.tokenizer.pad_token_id)
        losses = answer_losses(attacker.model, encoded, pad=pad).tolist()
        order = sorted(range(len(rows)), key=lambda i: (losses[i], rows.ids[i]))
        return rows.select(order[: max(attacker.n_rows, round(self.share * len(rows)))])
