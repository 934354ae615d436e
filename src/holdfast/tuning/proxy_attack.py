"""Proxy attacks: fine-tune a copy of the model like an attacker, to observe what it forgets."""

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
"""Reads the attacked model, in evaluation mode, at a checkpoint; True ends the attack."""


class ProxyAttack(Options):
    """Options of estimators that attack a copy of the model with harmful rows among benign ones.

    Each proxy task is attacked `repeats` times, with different rows, order and seed. The first
    attack uses the estimator's seed and the others use seeds derived from it, so that more repeats
    do not change the earlier attacks.
    """

    harmful: Supplied[Examples]
    benign: Supplied[Examples | None] = None
    proxies: Supplied[tuple[Examples, ...]] = ()
    repeats: int = Field(default=1, ge=1)
    """Number of attacks on each proxy task."""
    ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of harmful rows in an attack."""
    rows: int = Field(default=400, ge=1)
    """Number of rows of an attack."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Learning rate of an attack."""
    steps: int = Field(default=100, ge=1)
    """Number of optimizer steps of an attack."""
    every: int = Field(default=10, ge=1)
    """Steps between checkpoints; the last step is always a checkpoint."""
    batch_size: int = Field(default=16, ge=1)
    """Number of rows per step."""
    max_length: int = Field(default=256, ge=1)
    """Maximum number of tokens per row."""

    @property
    def planned_checkpoints(self) -> int:
        """Number of checkpoints of a complete attack, without checkpoint 0."""
        return math.ceil(self.steps / self.every)

    def plan(self, examples: Examples, seed: int) -> list[tuple[Examples, int]]:
        """Draw the rows of every attack; return the rows and seed of each.

        All rows are drawn before any attack runs, so that a proxy with too few rows fails early.

        Raises:
            UsageError: There are no benign rows, there are fewer than two examples, or some
                alignment rows are also harmful rows.
        """
        check_examples(examples, self.harmful)
        tasks = self.proxies or (() if self.benign is None else (self.benign,))
        if not tasks:
            raise UsageError(
                "a proxy attack hides harmful rows among benign ones; give benign rows with "
                "--benign, or several kinds of them with --proxy"
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
        """Fine-tune a copy of the model and call `look` at every checkpoint.

        Returns:
            Number of optimizer steps; fewer than `steps` if `look` ended the attack.
        """
        from holdfast.tuning.loop import FinetuneConfig, finetune

        attacked = copy.deepcopy(model)
        last = 0
        # In bfloat16 most weights lose a step of 1e-5, which would weaken the attack. Adapters need
        # no conversion: peft keeps them in float32.
        if not hasattr(attacked, "merge_and_unload"):
            attacked.float()
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
            attacked.eval()  # finetune sets training mode again
            return look(attacked)

        finetune(attacked, tokenizer, rows, config, on_snapshot=snapshot)
        return last


def attack_seeds(seed: int, n: int) -> list[int]:
    """Return `n` seeds, the first of which is `seed`; a larger `n` only adds seeds at the end."""
    derived = np.random.SeedSequence(seed).generate_state(max(n - 1, 1))
    return [seed, *(int(s) for s in derived[: n - 1])]


def check_examples(examples: Examples, harmful: Examples) -> None:
    """Reject examples that cannot be ranked, or that the attack would train on.

    Raises:
        UsageError: There are fewer than two examples, or some of them are harmful rows too.
    """
    if len(examples) < 2:
        raise UsageError(
            f"{examples.name}: {len(examples)} alignment rows; scores rank rows, so give at least 2"
        )
    shared = set(examples.ids) & set(harmful.ids)
    if shared:
        raise UsageError(
            f"{len(shared)} rows are both in {examples.name} and in {harmful.name} (first id "
            f"{min(shared)}): the attack would train the model on the rows it should "
            "forget. Remove them from the harmful rows; the same prompts with other answers may "
            "stay."
        )
