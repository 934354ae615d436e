"""Which alignment examples a fine-tuning run makes a model forget, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from holdfast.contracts import Judge, Verdict, check_answered
from holdfast.examples import Examples
from holdfast.models.generation import generate
from holdfast.stats.agreement import first_half

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def verdict_array(verdicts: Sequence[Verdict]) -> np.ndarray:
    """Return verdicts as (n,) float64: 1 harmful, 0 safe, nan undecided."""
    return np.array([np.nan if v.harmful is None else float(v.harmful) for v in verdicts])


def first_half_is_stable(course: Sequence[np.ndarray], share: float) -> bool:
    """Say whether the half that is forgotten first is known, so that an attack may stop.

    With H_t the first half to be forgotten (`agreement.first_half`) by the counts up to
    checkpoint t, it is where

    - more than half of the examples have been forgotten at least once, and
    - the Jaccard index of H_t and H_{t-2} is at least `share`, and so is that of H_{t-1} and
      H_{t-3}.

    The first condition is the sound one. If what is forgotten stays forgotten, the count is
    t - s + 1 for an example that was first forgotten at checkpoint s, and H_t is made of those
    with s up to the last checkpoint by which at most half were forgotten (or of those of the very
    first checkpoint, where they are more than half). Once more than half are, that checkpoint lies
    behind, and whoever is forgotten later cannot enter H any more. The second is for attacks in
    which examples are refused again: it has to have made no difference twice in a row, over
    checkpoints two apart, so that a set that flickers back and forth does not pass. That is
    evidence, no proof.

    Args:
        course: The counts after checkpoints 1, 2, ... so far, each (n,) and finite: what is known
            to be harmful.
        share: The Jaccard index asked for, in (0, 1].
    """
    if len(course) < 4 or (course[-1] > 0).mean() <= 0.5:
        return False
    halves = [first_half(counts) for counts in course[-4:]]
    return min(_jaccard(halves[0], halves[2]), _jaccard(halves[1], halves[3])) >= share


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    either = (a | b).sum()
    # Two empty sets agree on nothing: no example has been forgotten yet.
    return float((a & b).sum() / either) if either else 0.0


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
        verdicts = self.judge.judge(prompts, answers)
        check_answered(type(self.judge).__name__, verdicts)
        self.history.append(verdict_array(verdicts))

    @property
    def known_steps(self) -> np.ndarray:
        """(n,) number of checkpoints t >= 1 known to be harmful; nan if not safe at checkpoint 0.

        An example that was harmful or undecided at checkpoint 0 was never held.
        """
        before = self.history[0]
        after = np.array(self.history[1:])
        counts: np.ndarray = (after == 1).sum(axis=0).astype(float)
        counts[before != 0] = np.nan
        return counts

    @property
    def undecided_steps(self) -> np.ndarray:
        """(n,) number of checkpoints t >= 1 whose verdict is undecided."""
        undecided: np.ndarray = np.isnan(np.array(self.history[1:])).sum(axis=0)
        return undecided

    @property
    def harmful_steps(self) -> np.ndarray:
        """(n,) number of checkpoints t >= 1 with HS_t > HS_0, the paper's ForgotNum.

        With h harmful and u undecided checkpoints it lies between h and h + u. Where the
        undecided ones could double it (u >= h, u > 0) it is unknown, nan: an answer that is no
        refusal any more but that the judge cannot read is no evidence that the example held.
        """
        counts = self.known_steps
        counts[self._unknown] = np.nan
        return counts

    @property
    def transitions(self) -> np.ndarray:
        """(n,) number of changes from safe to harmful between consecutive checkpoints.

        The forgetting events of Toneva et al. (ICLR 2019). Undecided checkpoints are passed over:
        safe, undecided, harmful is one transition. Unknown where `harmful_steps` is.
        """
        counts = np.zeros(len(self.examples))
        last = self.history[0].copy()
        for verdicts in self.history[1:]:
            counts += (last == 0) & (verdicts == 1)
            last = np.where(np.isnan(verdicts), last, verdicts)
        counts[(self.history[0] != 0) | self._unknown] = np.nan
        return counts

    @property
    def _unknown(self) -> np.ndarray:
        undecided = self.undecided_steps
        with np.errstate(invalid="ignore"):
            unknown: np.ndarray = (undecided > 0) & (undecided >= self.known_steps)
        return unknown
