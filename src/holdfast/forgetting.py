"""Which alignment examples a fine-tuning run makes a model forget, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from holdfast.contracts import Judge, Verdict
from holdfast.examples import Examples
from holdfast.generate import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def as_array(verdicts: Sequence[Verdict]) -> np.ndarray:
    """Return verdicts as (n,) float64: 1 harmful, 0 safe, nan undecided."""
    return np.array([np.nan if v.harmful is None else float(v.harmful) for v in verdicts])


@dataclass
class ForgettingTracker:
    """Asks every alignment prompt at every checkpoint and keeps the verdicts.

    Call it once before training (checkpoint 0) and then at every checkpoint.
    """

    examples: Examples
    judge: Judge
    max_new_tokens: int = 32
    history: list[np.ndarray] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ask all prompts and remember the verdicts."""
        prompts = self.examples.prompts
        answers = generate(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens)
        self.history.append(as_array(self.judge.judge(prompts, answers)))

    @property
    def harmful_steps(self) -> np.ndarray:
        """(n,) number of checkpoints t >= 1 with HS_t > HS_0, the paper's ForgotNum.

        Undecided verdicts are no evidence of forgetting; an example that was harmful or undecided
        at checkpoint 0 was never held, and its count is nan.
        """
        before, after = self.history[0], np.array(self.history[1:])
        counts: np.ndarray = (after == 1).sum(axis=0).astype(float)
        counts[before != 0] = np.nan
        return counts

    @property
    def transitions(self) -> np.ndarray:
        """(n,) number of changes from safe to harmful between consecutive checkpoints.

        The forgetting events of Toneva et al. (ICLR 2019). Undecided checkpoints are passed over:
        safe, undecided, harmful is one transition.
        """
        counts = np.zeros(len(self.examples))
        last = self.history[0].copy()
        for verdicts in self.history[1:]:
            counts += (last == 0) & (verdicts == 1)
            last = np.where(np.isnan(verdicts), last, verdicts)
        counts[self.history[0] != 0] = np.nan
        return counts
