"""A proxy attack: a copy of the model, fine-tuned as an attacker might, is watched forgetting."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.rows.readers import mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Look = Callable[["PreTrainedModel"], bool]
"""Reads the attacked model, in eval mode, at a checkpoint; True ends the attack there."""


@dataclass(frozen=True)
class ProxyAttack:
    """Options of estimators that attack a copy of the model: harmful rows hidden in ordinary ones.

    There are `repeats` attacks on each proxy task, every one with other rows, another order and a
    seed of its own that is derived from the estimator's; the first uses that seed itself, so that
    more repeats leave the earlier attacks as they were.

    Attributes:
        harmful: The attacker's harmful rows. They may ask the alignment prompts (attackers do
            that), but no alignment row may be among them.
        benign: The ordinary rows; not a downstream task's, so that the scores are good for any.
        proxies: Ordinary rows of several kinds, an attack on each; `benign` is not used then.
        repeats: Attacks on each proxy task.
        ratio: Harmful share of the rows.
        rows: Rows of an attack.
        learning_rate: Of an attack.
        steps: Its optimizer steps.
        every: Steps between checkpoints; the last step is always one.
        batch_size: Rows per step.
        max_length: Tokens kept per row.
    """

    harmful: Examples
    benign: Examples | None = None
    proxies: tuple[Examples, ...] = ()
    repeats: int = 1
    ratio: float = 0.1
    rows: int = 400
    learning_rate: float = 1e-4
    steps: int = 100
    every: int = 10
    batch_size: int = 16
    max_length: int = 256

    @property
    def planned(self) -> int:
        """Checkpoints of an attack that runs to its end, checkpoint 0 not counted."""
        return math.ceil(self.steps / self.every)

    def plan(self, examples: Examples, seed: int) -> list[tuple[Examples, int]]:
        """Check the options and draw every attack's rows; return the rows and seed of each.

        All is drawn before anything runs: the last proxy may be the one that has too few rows.

        Raises:
            UsageError: An option out of range, no ordinary rows, fewer than two examples, or
                alignment rows among the harmful ones.
        """
        self._check()
        check_examples(examples, self.harmful)
        tasks = self.proxies or (() if self.benign is None else (self.benign,))
        if not tasks:
            raise UsageError(
                "a proxy attack hides harmful rows in ordinary ones: give these with --benign, or "
                "several kinds of them with --proxy"
            )
        seeds = attack_seeds(seed, self.repeats * len(tasks))
        return [
            (mix(tasks[i % len(tasks)], self.harmful, n=self.rows, ratio=self.ratio, seed=s), s)
            for i, s in enumerate(seeds)
        ]

    def attack(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Examples,
        seed: int,
        look: Look,
    ) -> int:
        """Fine-tune a copy of the model and look at it at every checkpoint.

        Returns:
            The optimizer steps done: fewer than `steps` where a look ended it.
        """
        from holdfast.models.encoding import check_context, encode
        from holdfast.tuning.loop import FinetuneConfig, finetune

        check_context(model, encode(tokenizer, rows, self.max_length), rows.name)
        attacked, last = copy.deepcopy(model), 0
        if not hasattr(attacked, "merge_and_unload"):  # peft keeps adapters in float32 itself
            attacked.float()  # a step of 1e-5 is lost in most weights of bfloat16: a weak attack
        config = FinetuneConfig(
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            max_length=self.max_length,
            seed=seed,
            every=self.every,
        )

        def snapshot(step: int, loss: float) -> bool:
            nonlocal last
            last = step
            attacked.eval()  # finetune puts it back into training mode
            return look(attacked)

        finetune(attacked, tokenizer, rows, config, on_snapshot=snapshot)
        return last

    def _check(self) -> None:
        for name in ("repeats", "rows", "steps", "every", "batch_size", "max_length"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate={self.learning_rate} must be above 0 and finite")


def attack_seeds(seed: int, n: int) -> list[int]:
    """Return `n` seeds of which the first is `seed`; asking for more leaves the first ones."""
    derived = np.random.SeedSequence(seed).generate_state(max(n - 1, 1))
    return [seed, *(int(s) for s in derived[: n - 1])]


def check_examples(examples: Examples, harmful: Examples) -> None:
    """Refuse rows that order nothing, or that the harmful rows would teach to be kept.

    Raises:
        UsageError: Fewer than two examples, or harmful rows among them.
    """
    if len(examples) < 2:
        raise UsageError(
            f"{examples.name}: {len(examples)} alignment rows; scores order rows, and that takes "
            "at least 2"
        )
    both = set(examples.ids) & set(harmful.ids)
    if both:
        raise UsageError(
            f"{len(both)} rows are both in {examples.name} and in {harmful.name} (first id "
            f"{min(both)}): the attack would train the model to keep what it is to forget. Remove "
            "them from the harmful rows; the same prompts with other answers may stay."
        )
