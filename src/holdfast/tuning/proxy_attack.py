"""A proxy attack: a copy of the model, fine-tuned as an attacker might, is watched forgetting."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.options import Options, Supplied
from holdfast.rows.mixing import mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Look = Callable[["PreTrainedModel"], bool]
"""Reads the attacked model, in eval mode, at a checkpoint; True ends the attack there."""


class ProxyAttack(Options):
    """Options of estimators that attack a copy of the model: harmful rows hidden in ordinary ones.

    There are `repeats` attacks on each proxy task, every one with other rows, another order and a
    seed of its own that is derived from the estimator's; the first uses that seed itself, so that
    more repeats leave the earlier attacks as they were.
    """

    harmful: Supplied[Examples]
    benign: Supplied[Examples | None] = None
    proxies: Supplied[tuple[Examples, ...]] = ()
    repeats: int = Field(default=1, ge=1)
    """Number of attacks on each proxy task."""
    ratio: float = Field(default=0.1, ge=0, le=1)
    """Harmful share of an attack's rows."""
    rows: int = Field(default=400, ge=1)
    """Number of rows of an attack."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of an attack."""
    steps: int = Field(default=100, ge=1)
    """Number of optimizer steps of an attack."""
    every: int = Field(default=10, ge=1)
    """Steps between checkpoints; the last step is always one."""
    batch_size: int = Field(default=16, ge=1)
    """Number of rows per step."""
    max_length: int = Field(default=256, ge=1)
    """Number of tokens kept of each row."""

    @property
    def planned_checkpoints(self) -> int:
        """Checkpoints of an attack that runs to its end, checkpoint 0 not counted."""
        return math.ceil(self.steps / self.every)

    def plan(self, examples: Examples, seed: int) -> list[tuple[Examples, int]]:
        """Draw every attack's rows; return the rows and seed of each.

        All is drawn before anything runs: the last proxy may be the one that has too few rows.

        Raises:
            UsageError: No ordinary rows, fewer than two examples, or alignment rows among the
                harmful ones.
        """
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
        from holdfast.tuning.loop import FinetuneConfig, finetune

        attacked = copy.deepcopy(model)
        last = 0
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
    shared = set(examples.ids) & set(harmful.ids)
    if shared:
        raise UsageError(
            f"{len(shared)} rows are both in {examples.name} and in {harmful.name} (first id "
            f"{min(shared)}): the attack would train the model on what it should forget. "
            "Remove them from the harmful rows; the same prompts with other answers may stay."
        )
