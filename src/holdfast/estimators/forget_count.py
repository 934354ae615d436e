"""ForgotNum: count how often a proxy attack makes the model answer what it used to refuse."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from holdfast.contracts import Estimate, Estimator, Judge
from holdfast.data import mix
from holdfast.errors import UsageError
from holdfast.examples import Examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ForgetCount(Estimator):
    """The paper's label (arXiv 2506.03850, section 3): the reference that others must predict.

        ForgotNum_i = sum over checkpoints t of 1[HS_i(t) > HS_i(0)]

    over a proxy fine-tuning on benign instructions with a share of harmful rows. It needs a whole
    fine-tuning run, T x n generations and a judge; it is not cheap, and it is noisy where one
    attack's course depends on its draw of rows.

    Attributes:
        harmful: The harmful rows of the proxy attack.
        benign: Its benign rows; not a downstream task's, so that the scores are good for any.
        judge: Decides at every checkpoint.
        count: "harmful_steps" (the paper) or "transitions" (safe to harmful, Toneva et al. 2019).
            Both are kept in `details`.
        ratio: Harmful share of the rows.
        rows: Rows of the proxy attack.
        learning_rate: Of the proxy attack.
        steps: Its optimizer steps.
        every: Steps between checkpoints.
        batch_size: Rows per step.
        max_new_tokens: Length of the judged answers.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"harmful", "benign", "judge"})

    harmful: Examples
    benign: Examples
    judge: Judge
    count: str = "harmful_steps"
    ratio: float = 0.1
    rows: int = 400
    learning_rate: float = 1e-4
    steps: int = 100
    every: int = 10
    batch_size: int = 16
    max_new_tokens: int = 32

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Run the proxy attack on a copy of the model and count."""
        from holdfast.finetune import FinetuneConfig, finetune
        from holdfast.forgetting import ForgettingTracker

        if self.count not in ("harmful_steps", "transitions"):
            raise UsageError(f"count={self.count!r} must be harmful_steps or transitions")
        attacked = copy.deepcopy(model)
        rows = mix(self.benign, self.harmful, n=self.rows, ratio=self.ratio, seed=seed)
        tracker = ForgettingTracker(examples, self.judge, self.max_new_tokens)
        tracker(attacked, tokenizer)
        config = FinetuneConfig(
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=seed,
            every=self.every,
        )
        finetune(
            attacked,
            tokenizer,
            rows,
            config,
            on_snapshot=lambda step, loss: tracker(attacked, tokenizer),
        )
        details = {"harmful_steps": tracker.harmful_steps, "transitions": tracker.transitions}
        held = details["harmful_steps"][~np.isnan(details["harmful_steps"])]
        return Estimate(
            values=details[self.count],
            details=details,
            facts={
                "checkpoints": len(tracker.history) - 1,
                "generations": len(tracker.history) * len(examples),
                "held": len(held),
                "ever_forgotten": float((held > 0).mean()) if len(held) else math.nan,
            },
        )
