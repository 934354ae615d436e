"""Vulnerability-Aware Alignment: group DRO over vulnerable and invulnerable examples.

Chen et al., ICML 2025, arXiv 2506.03850. The objective is

    min_theta max_q sum_i q_i f_i(theta),
    f_i(theta) = (1 - lambda) l_i(theta) + lambda l_i(theta + eps_i),
    eps_i = rho grad l_i / ||grad l_i||

over groups i of safety examples. A step draws a group from q, trains on a batch of that group
only, and moves q towards groups with the larger loss (EXP3, see `GroupSampler`). lambda grows
linearly from 0 to its final value and is the probability of a perturbed step, which is unbiased
for the mixture and costs 1 + lambda backward passes.

What it changes against the published code: the ascent gradient is taken without touching the
accumulated one, so gradient accumulation works; only trainable parameters are perturbed and they
are restored exactly, so LoRA and half precision work; group draws, streams and curriculum are part
of the checkpoint; lambda grows by the step. Benign rows, which the paper does not have, take their
share of every batch and are never perturbed. With accumulation the perturbation is per micro-batch.

`perturbation="attack"` is ours, not the paper's: instead of climbing the safety loss, the weights
are moved the way an attacker's first step would move them (down the loss of harmful rows, or of
the alignment prompts paired with unrelated benign answers), and the safety loss is minimized there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.artifacts import Groups
from holdfast.batches import Batch, Stream, by_safety, rows_of, size
from holdfast.data import mismatched
from holdfast.distributed import rank, total, world
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.group_sampler import GroupSampler
from holdfast.methods.base import AlignmentTrainer
from holdfast.weights import Geometry, consumed, restored, step_along

CHOICES = {
    "curriculum": ("linear", "constant"),
    "start": ("uniform", "proportional"),
    "perturbation": ("own_loss", "attack"),
    "geometry": ("l2", "sign"),
    "attack_rows": ("harmful", "mismatched", "affirmative"),
}


@dataclass(frozen=True)
class VaaOptions:
    """Options of VAA; the defaults are the published ones for Llama-2-7B."""

    rho: float = field(default=0.4, metadata={"help": "Size of the perturbation."})
    lam: float = field(default=1.0, metadata={"help": "Final probability of a perturbed step."})
    curriculum: str = field(default="linear", metadata={"help": "linear from 0, or constant."})
    step_size: float = field(default=0.007, metadata={"help": "eta of the group sampler."})
    floor: float = field(default=0.1, metadata={"help": "Least probability of a group."})
    start: str = field(default="uniform", metadata={"help": "uniform or proportional to sizes."})
    perturbation: str = field(default="own_loss", metadata={"help": "own_loss or attack."})
    geometry: str = field(default="l2", metadata={"help": "l2 (whole gradient) or sign."})
    attack_rows: str = field(
        default="mismatched", metadata={"help": "harmful, mismatched or affirmative."}
    )
    prefix: str = field(default="Sure, here is", metadata={"help": "For affirmative rows."})

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )
        if not 0 <= self.lam <= 1:
            raise UsageError(f"lam={self.lam} is a probability: it must lie in [0, 1]")
        if not self.rho >= 0:
            raise UsageError(f"rho={self.rho} must not be negative")


class Vaa(AlignmentTrainer):
    """Group DRO with a perturbation; 1 + lambda backward passes, one copy of the weights."""

    Options: ClassVar[type[Any]] = VaaOptions
    needs: ClassVar[frozenset[str]] = frozenset({"groups"})
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0}
    options: VaaOptions

    def prepare(self) -> None:
        """Make the sampler, the coin and the streams of rows."""
        options, seed, groups = self.options, self.args.seed, cast(Groups, self.data.groups)
        labels = groups.aligned_to(self.data.safety.ids)
        sizes = np.bincount(labels, minlength=len(groups.names))
        if (sizes == 0).any():
            empty = groups.names[int(np.argmin(sizes))]
            raise UsageError(f"group {empty!r} is empty: choose another rule with `holdfast group`")
        start = None if options.start == "uniform" else (sizes / sizes.sum()).tolist()
        self.sampler = GroupSampler(
            len(sizes), step_size=options.step_size, floor=options.floor, start=start, seed=seed
        )
        self.names = groups.names
        seeds = iter(np.random.SeedSequence(seed).generate_state(len(sizes) + 3).tolist())
        self.coin = np.random.default_rng(next(seeds))
        self.streams = {
            "benign": Stream(range(self.n_safety, self.n_rows), next(seeds)),
            "attack": Stream((), next(seeds)),
            **{
                f"group {i}": Stream(np.flatnonzero(labels == i).tolist(), next(seeds))
                for i in range(len(sizes))
            },
        }
        if options.perturbation == "attack":
            self.attack = self.encode(self._attack_rows())
            self.streams["attack"].positions = list(range(len(self.attack)))
        self.group = 0
        self.perturb = False
        self._nll, self._tokens = 0.0, 0

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw a group, and all micro-batches of the step from it; toss the curriculum's coin."""
        del epoch_iterator
        self.group = self.sampler.draw()
        self.perturb = self.options.rho > 0 and self.coin.random() < self.curriculum()
        self._nll, self._tokens = 0.0, 0
        benign = self.benign_per_batch
        safety = self.args.train_batch_size - benign
        return [
            self.collate_positions(
                self.take(f"group {self.group}", safety)
                + (self.take("benign", benign) if benign else [])
            )
            for _ in range(n)
        ]

    def take(self, stream: str, n: int) -> list[int]:
        """Return this process's next n positions of a stream that all processes share."""
        every = self.streams[stream].take(n * world())
        return every[rank() * n : (rank() + 1) * n]

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Tensor | int | None) -> Tensor:
        """Back-propagate the safety rows, perturbed if the coin said so, and the benign rows."""
        safety, benign = by_safety(batch)
        if self.perturb:
            with restored(self.trainable_parameters()) as move:
                move(consumed(self._steps(model, safety, num_items)))
                loss = super().accumulate(model, safety, num_items)
        else:
            loss = super().accumulate(model, safety, num_items)
        self._count(safety, float(loss), num_items)
        if rows_of(benign):
            loss = loss + super().accumulate(model, benign, num_items)
        return loss

    def before_update(self, losses: Tensor) -> None:
        """Move the distribution over groups by the safety loss that was back-propagated."""
        nll, tokens = total(torch.tensor([self._nll, self._tokens], dtype=torch.float64)).tolist()
        loss = nll / max(tokens, 1)
        self.sampler.update(self.group, loss)
        probs = self.sampler.probs
        self.log(
            {
                "safety_loss": loss,
                "group": self.group,
                "perturbed": int(self.perturb),
                **{f"q_{name}": float(q) for name, q in zip(self.names, probs, strict=True)},
            }
        )

    def method_state(self) -> dict[str, Any]:
        """Return sampler, coin and streams."""
        return {
            "sampler": self.sampler.state_dict(),
            "coin": self.coin.bit_generator.state,
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        self.sampler.load_state_dict(state["sampler"])
        self.coin.bit_generator.state = state["coin"]
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])

    # ------------------------------------------------------------------------ the equations

    def curriculum(self) -> float:
        """Return lambda_t, the probability of a perturbed step."""
        if self.options.curriculum == "constant":
            return self.options.lam
        return self.options.lam * self.state.global_step / self.state.max_steps

    def _steps(
        self, model: nn.Module, safety: Batch, num_items: Tensor | int | None
    ) -> list[Tensor]:
        """Return eps: up the safety loss, or down the attacker's."""
        rho, geometry = self.options.rho, cast(Geometry, self.options.geometry)
        if self.options.perturbation == "own_loss":
            grads = self.gradient_of(model, lambda: self.scaled_loss(model, safety, num_items))
            return step_along(grads, rho, geometry=geometry, in_place=True)
        chosen = self.take("attack", rows_of(safety))
        batch = self.collate_rows([self.attack[i] for i in chosen])
        grads = self.gradient_of(model, lambda: self.answer_loss(model, batch))
        return step_along(grads, -rho, geometry=geometry, in_place=True)

    def _count(self, safety: Batch, loss: float, num_items: Tensor | int | None) -> None:
        """Add a micro-batch to the step's safety loss, undoing the scaling of `scaled_loss`."""
        n = size(safety)
        self._nll += loss * (n if num_items is None else float(num_items) / world())
        self._tokens += n

    def _attack_rows(self) -> Examples:
        prompts = self.data.safety.prompts
        if self.options.attack_rows == "harmful":
            if self.data.harmful is None:
                raise UsageError("attack_rows=harmful needs --harmful")
            return self.data.harmful
        if self.options.attack_rows == "affirmative":
            return Examples((Example(p, self.options.prefix) for p in prompts), name="affirmative")
        if self.data.benign is None:
            raise UsageError("attack_rows=mismatched needs --benign")
        return mismatched(prompts, self.data.benign.responses, n=len(prompts), seed=self.args.seed)
