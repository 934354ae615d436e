"""TAR: train for the model that an attacker's fine-tuning would leave.

Tamirisa et al., ICLR 2025, arXiv 2408.00761. Every optimizer step simulates an attack: from theta,
an adversary takes K steps of AdamW on harmful rows, theta = theta_0 -> theta_1 -> ... -> theta_K.
Along this path, the gradients of a tamper-resistance loss on harmful rows held out from the
adversary are summed. Then the weights are restored, and the optimizer uses

    g = c_tr sum_k w_k grad L_tr(theta_k) + c_ret grad [ l(theta) + rep d(theta) ],

    L_tr = mean over answer tokens of sum_v p(v) log p(v)        (negative entropy),
    w_k ~ exp(schedule (k - K)), sum_k w_k = 1,
    d(theta) = mean over layers and tokens of ||h(theta) - h(start)||,

with l the ordinary loss of safety and benign rows. The gradient is first order: the one at theta_k
stands in for the one with respect to theta. L_tr is entropy rather than the negated loss because
entropy flattens the adversary's loss at a high value.

Published for Llama-3-8B (the authors' scripts): K = 64 with the loss at every 4th step, c_tr = 4,
c_ret = 1, schedule 0.0625, an adversary's rate of 2e-6, 2e-5 or 4e-5, and 750 steps at 2e-5 with
rep = 1, from a model whose harmful representations were randomized; for refusals K = 8 and c_tr =
0.1, with a preference loss instead of entropy. The defaults here are for small models and runs.

Deviations:

- There is no preference loss, which would need pairs of rows.
- rep is 0 by default. The published runs start from a good model that they must preserve; here the
  model is still learning its alignment, so keeping the initial hidden states would work against it,
  and the frozen copy takes the memory of another model.
- Entropy covers answer tokens; published, all positions including prompt and padding.
- The weights w_k add up to 1, so that c_tr means the same for every K.
- The adversary's rate is drawn log-uniformly from the range of the three published ones. It has no
  warmup (in the published code a constant factor), no weight decay and no clipping.
- The adversary starts with a new optimizer for every attack.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.methods._batches import Batch, Items, Stream, weighted
from holdfast.methods._harmful import HarmfulTrainer
from holdfast.models.heads import logits_at, predicting
from holdfast.models.weights import preserve_weights
from holdfast.options import Options

SPAN = 20.0
"""Ratio of the adversary's largest to its smallest learning rate, 4e-5 to 2e-6 as published."""


class TarOptions(Options):
    """Options of TAR, scaled to small models and runs."""

    owner: ClassVar[str] = "tar"

    tamper: float = Field(default=4.0, ge=0)
    """Weight c_tr of tamper resistance."""
    retain: float = Field(default=1.0, ge=0)
    """Weight c_ret of the ordinary loss."""
    rep: float = Field(default=0.0, ge=0)
    """Weight of keeping the initial hidden states."""
    inner_steps: int = Field(default=8, ge=1)
    """Steps K of the adversary."""
    every: int = Field(default=2, ge=1)
    """Steps of the adversary between evaluations of the tamper-resistance loss."""
    schedule: float = Field(default=0.0625, ge=0)
    """Growth rate of the weights w_k; 0 makes them equal."""
    attack_lr: float = Field(default=2e-4, ge=0)
    """Largest learning rate of the adversary."""
    held_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of the harmful rows that the adversary never sees."""

    @model_validator(mode="after")
    def _check_every(self) -> Self:
        if self.every > self.inner_steps:
            raise ValueError(
                f"every={self.every} must be at most inner_steps={self.inner_steps}: otherwise the "
                "loss is never evaluated"
            )
        return self


class Tar(HarmfulTrainer):
    """SFT with high entropy after simulated attacks.

    It takes 1 + K + K / every backward passes and four copies of the trainable parameters: the
    weights before the attack, the adversary's gradient and its two moments. With rep, it also takes
    a frozen copy of the model.
    """

    Options: ClassVar[type[Options]] = TarOptions
    neutral: ClassVar[Mapping[str, Any]] = {"tamper": 0.0}
    options: TarOptions

    def prepare(self) -> None:
        """Split the harmful rows, and copy the initial model if `rep` needs it."""
        super().prepare()
        options = self.options
        n_rows = len(self.harmful)
        n_held_out = max(1, round(options.held_out * n_rows))
        if n_held_out >= n_rows:
            raise UsageError(
                f"held_out={options.held_out} of {n_rows} harmful rows leaves none for the "
                "adversary; give more rows or hold out fewer"
            )
        order = np.random.default_rng(self.args.seed).permutation(n_rows).tolist()
        self.held_out = Stream(order[:n_held_out], self.args.seed + 1)
        self.stream.positions = order[n_held_out:]
        self.start: nn.Module | None = None
        if options.rep > 0:
            self.start = copy.deepcopy(cast(nn.Module, self.model)).requires_grad_(False).eval()

    # ------------------------------------------------------------------------------- hooks

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Back-propagate the retain loss, c_ret (l + rep d)."""
        retain = self.options.retain
        if retain == 0:
            return torch.zeros((), device=self.args.device)
        loss = super().accumulate(model, batch, weighted(num_items, batch, retain))
        if self.start is not None:
            share = retain * self.options.rep / self.current_gradient_accumulation_steps
            with self.compute_loss_context_manager():
                penalty = share * drift(model, self.start, batch)
            self.accelerator.backward(penalty)
            loss = loss + penalty.detach()
        return loss

    def before_update(self, losses: Tensor) -> None:
        """Simulate an attack and add the gradients of L_tr along it to that of the retain loss."""
        super().before_update(losses)
        if self.options.tamper == 0:
            return
        model = cast(nn.Module, self.model)
        parameters = self.trainable_parameters()
        positions = self.held_out.take(self.args.train_batch_size)
        unseen = self.collate_rows([self.harmful[i] for i in positions])
        rate = self.options.attack_lr * SPAN ** -float(torch.rand(()))
        weights = tamper_weights(self.options)
        mean_loss = 0.0
        with preserve_weights(parameters):
            # Share the weights but not their `.grad`, which holds the Trainer's gradient.
            leaves = [nn.Parameter(p.detach()) for p in parameters]
            adversary = torch.optim.AdamW(leaves, lr=rate, weight_decay=0.0)
            for k in range(1, self.options.inner_steps + 1):
                attack_loss = self._attack_step(model, leaves, adversary)
                if k in weights:
                    loss, grads = self.gradient_of(model, partial(self._tamper_loss, model, unseen))
                    self.add_gradient(grads, self.options.tamper * weights[k])
                    mean_loss += weights[k] * float(loss)
        self.note({"tamper_loss": mean_loss, "attack_loss": attack_loss, "attack_lr": rate})

    def method_state(self) -> dict[str, Any]:
        """Return both streams of harmful rows."""
        return {**super().method_state(), "held_out": self.held_out.state_dict()}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.held_out.load_state_dict(state["held_out"])

    # ------------------------------------------------------------------------ the equations

    def _attack_step(
        self, model: nn.Module, leaves: list[nn.Parameter], adversary: torch.optim.Optimizer
    ) -> float:
        """Let the adversary take a step; return its loss before the step."""
        batch = self.harmful_batch(self.args.train_batch_size)
        loss, grads = self.gradient_of(model, partial(self.answer_loss, model, batch))
        self.check_finite(loss)
        for p, grad in zip(leaves, grads, strict=True):
            p.grad = grad
        adversary.step()
        adversary.zero_grad()
        return float(loss)

    def _tamper_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.compute_loss_context_manager():
            logits = logits_at(model, _inputs(batch), predicting(batch["labels"]))
        loss = negative_entropy(logits)
        self.check_finite(loss)
        return loss


def tamper_weights(options: TarOptions) -> dict[int, float]:
    """Return k -> w_k for the adversary's steps after which L_tr is computed."""
    steps = range(options.every, options.inner_steps + 1, options.every)
    unnormalized = {k: math.exp(options.schedule * (k - options.inner_steps)) for k in steps}
    total = sum(unnormalized.values())
    return {k: weight / total for k, weight in unnormalized.items()}


def negative_entropy(
    logits: Tensor,  # (N, V), at the positions that predict answer tokens
) -> Tensor:
    """Return the mean over positions of sum_v p log p, in [-log V, 0] nats."""
    logp = logits.float().log_softmax(-1)
    return (logp.exp() * logp).sum(-1).mean()


def drift(model: nn.Module, start: nn.Module, batch: Batch) -> Tensor:
    """Return the mean L2 distance of the hidden states to the initial ones, by layer and token."""
    with torch.no_grad():
        initial = start(**_inputs(batch), output_hidden_states=True).hidden_states
    current = model(**_inputs(batch), output_hidden_states=True).hidden_states
    attended = batch["attention_mask"].bool()
    distances = [
        (now - before)[attended].float().norm(dim=-1).mean()
        for now, before in zip(current, initial, strict=True)
    ]
    return torch.stack(distances).mean()


def _inputs(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "use_cache": False,
    }
