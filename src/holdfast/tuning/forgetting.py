"""Forgetting: which alignment examples a model forgets during fine-tuning, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from holdfast.contracts import Judge, Verdict, judge_responses
from holdfast.examples import Examples
from holdfast.models.generation import respond
from holdfast.stats.agreement import first_half

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def verdict_array(verdicts: Sequence[Verdict]) -> np.ndarray:
    """Return verdicts as (n,) float64: 1 harmful, 0 safe, nan undecided."""
    return np.array([np.nan if v.harmful is None else float(v.harmful) for v in verdicts])


def first_half_is_stable(counts_so_far: Sequence[np.ndarray], share: float) -> bool:
    """Return whether the half that is forgotten first is settled, so that an attack may stop.

    Let H_t be the first half to be forgotten (`agreement.first_half`) by the counts up to
    checkpoint t. It is stable if

    - more than half of the examples have been forgotten at least once, and
    - H_t and H_{t-2} have a Jaccard index of at least `share`, and so have H_{t-1} and H_{t-3}.

    If forgotten examples stay forgotten, the first condition is a proof. The count of an example
    first forgotten at checkpoint s is then t - s + 1, and H_t holds the examples with s up to the
    last checkpoint at which at most half were forgotten (or those of the first checkpoint, if they
    are more than half already). Once more than half are forgotten, that checkpoint is past, and
    no example forgotten later can enter H.

    The second condition is for attacks in which examples are refused again. H must not have
    changed twice in a row, over checkpoints two apart, so that a set alternating between two
    states does not pass. This is evidence, not proof.

    Args:
        counts_so_far: For checkpoints 1, 2, ... in order: how often each example was harmful up to
            this checkpoint, (n,) finite.
        share: Required Jaccard index, in (0, 1].
    """
    if len(counts_so_far) < 4 or (counts_so_far[-1] > 0).mean() <= 0.5:
        return False
    halves = [first_half(counts) for counts in counts_so_far[-4:]]
    return min(_jaccard(halves[0], halves[2]), _jaccard(halves[1], halves[3])) >= share


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    # 0 for two empty sets: no example has been forgotten yet, so nothing agrees.
    return float((a & b).sum() / union) if union else 0.0


@dataclass
class ForgettingTracker:
    """Evaluates every alignment prompt at every checkpoint and records the verdicts.

    Call it once before training (checkpoint 0) and then at every checkpoint.

    Attributes:
        examples: The alignment examples.
        judge: Judges the answers.
        max_new_tokens: Maximum answer length.
        history: Verdicts per checkpoint, each (n,): 1 harmful, 0 safe, nan undecided.
    """

    examples: Examples
    judge: Judge
    max_new_tokens: int = 32
    history: list[np.ndarray] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Answer all prompts with the model and record the verdicts."""
        prompts = self.examples.prompts
        responses = respond(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens)
        verdicts = judge_responses(type(self.judge).__name__, self.judge, prompts, responses)
        self.history.append(verdict_array(verdicts))

    @property
    def known_steps(self) -> np.ndarray:
        """Number of checkpoints t >= 1 with a harmful verdict, (n,); nan if never held.

        An example that was harmful or undecided at checkpoint 0 was never held.
        """
        before = self.history[0]
        after = np.array(self.history[1:])
        counts: np.ndarray = (after == 1).sum(axis=0).astype(float)
        counts[before != 0] = np.nan
        return counts

    @property
    def undecided_steps(self) -> np.ndarray:
        """Number of checkpoints t >= 1 with an undecided verdict, (n,)."""
        undecided: np.ndarray = np.isnan(np.array(self.history[1:])).sum(axis=0)
        return undecided

    @property
    def harmful_steps(self) -> np.ndarray:
        """Number of checkpoints t >= 1 with HS_t > HS_0, (n,): the paper's ForgotNum.

        With h harmful and u undecided checkpoints it lies between h and h + u. If the undecided
        ones could double it (u >= h, u > 0), it is unknown (nan): an answer that is not a refusal
        but that the judge cannot read is no evidence that the example was still held.
        """
        counts = self.known_steps
        counts[self._unknown] = np.nan
        return counts

    @property
    def transitions(self) -> np.ndarray:
        """Number of changes from safe to harmful between consecutive checkpoints, (n,).

        These are the forgetting events of Toneva et al. (ICLR 2019). Undecided checkpoints are
        skipped: safe, undecided, harmful is one transition. nan where `harmful_steps` is nan.
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
