"""Low-loss harmful rows, which an outlier filter misses.

A provider who filters outliers removes rows with a high loss. An attacker who can run the model
computes

    loss(x, y) = -1/|y| sum_t log p(y_t | x, y_<t)     at the aligned weights

and draws from the rows with the lowest loss. These rows also change the model least, so the same
number of them may do less damage.
"""

from __future__ import annotations

from pydantic import Field

from holdfast.contracts import Attacker, Poison
from holdfast.examples import Examples


class LowLoss(Poison):
    """Draws from the harmful rows with the lowest loss under the aligned model."""

    share: float = Field(default=0.25, ge=0, le=1)
    """Share of the harmful rows to draw from, or more if more rows are needed."""

    def rows(self, attacker: Attacker) -> Examples:
        """Return the rows with the lowest loss, lowest first; ties go by id."""
        from holdfast.models.encoding import encode
        from holdfast.models.losses import answer_losses

        rows = attacker.harmful
        encoded = encode(attacker.tokenizer, rows, attacker.max_length)
        pad = int(attacker.tokenizer.pad_token_id)
        losses = answer_losses(attacker.model, encoded, pad=pad).tolist()
        order = sorted(range(len(rows)), key=lambda i: (losses[i], rows.ids[i]))
        size = max(attacker.n_rows, round(self.share * len(rows)))
        return rows.select(order[:size])
