"""Estimators that others must beat; not part of holdfast, but plug-ins like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from holdfast.contracts import Estimate, Estimator
from holdfast.examples import Examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FreeMargin(Estimator):
    """The refusal margin of the aligned model as it is, negated: one forward pass and no attack.

    Attributes:
        max_length: Tokens kept per row.
    """

    max_length: int = 256

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Score every example; nothing is random."""
        from holdfast.losses import first_margins, refusal_tokens
        from holdfast.models import encode

        del seed
        encoded = encode(tokenizer, examples, self.max_length)
        pad = cast(int, tokenizer.pad_token_id)
        model.eval()
        margins = first_margins(model, encoded, refusal_tokens(encoded), pad=pad)
        return Estimate(-margins.double().numpy())
