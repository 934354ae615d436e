"""Hold: group DRO at the weights that an attacker's first steps would reach. holdfast's own method.

VAA (arXiv 2506.03850) and SAM train at theta + eps with eps up the *safety* loss. Fine-tuning does
not go there: a customer's optimizer goes down the loss of *its* rows. Hold therefore plays a short
attack before it takes the safety gradient, first order as TAR (arXiv 2408.00761) and MAML do,

    theta_0 = theta,   theta_{j+1} = theta_j - reach s(g_j),   g_j = grad of l_attack(theta_j),
    min_theta max_q sum_i q_i f_i(theta_k) + benign [ l_benign - comply mean log(1 - p(S)) ](theta),
    f_i = l_i - refuse mean log p(S),

with s the sign (Adam's first step, so what attackers use), and q moved by the adversary of group
DRO over vulnerable and invulnerable examples. S are the tokens that alignment answers begin with,
p(S) the chance of one at an answer's first token, which decides whether there is an answer: under
the attack restricted prompts must keep it, and at theta benign ones must not have it, except for a
row's own first token. Rows of preferences have no such token, and those terms do not apply to them.
A share `clean` of the updates takes theta for theta_k, so that refusals stay well worded there.
What it is not: no second derivatives, no entropy objective, nothing is unlearnt; benign rows see
theta only.

The attack lasts: it takes one step every `every` updates, on from where it stands, as the attack of
"free" adversarial training does (Shafahi et al. 2019, arXiv 1904.12843), until it has a length
drawn from 1 ... inner_steps; then a new one begins. A step is made of `attack_share` as many rows
as a batch has safety rows, so an update costs 1 + attack_share / every passes, whatever the
attack's length. `every=0` plays a whole attack anew for every update, k drawn from 1 ...
inner_steps, at k passes. Where a lasting attack stands is kept as a number of steps, one byte a
weight, and the weights come back by what rounding loses, another byte (`weights.displaced`).

The attacker's rows need no harmful data: `attack_rows="base"`, the default, takes the first words
with which the model answers the restricted prompts before it is aligned. "mismatched" pairs them
with unrelated benign answers, "affirmative" with `prefix`, "harmful" takes --harmful.

What else there is, all of it off or neutral by default unless said so:

- `mixture`: "coin", the default, throws a coin for every update, and the adversary is paid by the
  loss under the attack; "both" takes (1 - clean) of the gradient at theta_k and clean of that at
  theta, at another `clean` passes over the safety rows, and pays by the gap between the two.
- `growth`: inner_steps is reached at the end ("linear", the default) or from the start; with
  `over_refusal` above 0 the attack grows while the share of held-out benign prompts that the model
  would refuse stays below that, and shrinks where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.methods._attacker import MOST_STEPS, SOURCES, LastingAttack, attacker_rows
from holdfast.methods._batches import Batch, Items, Stream, size, weighted
from holdfast.methods._perturbing import PER, Move, Part, PerturbingTrainer, WeightPerturbingTrainer
from holdfast.methods.base import not_negative, one_of
from holdfast.methods.group_dro import GroupDro, GroupDroOptions, dealt
from holdfast.models.encoding import IGNORE, Encoded
from holdfast.models.generation import generate
from holdfast.models.losses import first_margins, refusal_tokens
from holdfast.models.modes import evaluating
from holdfast.models.processes import is_sharded, world
from holdfast.models.weights import consumed, displaced, step_along

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWER_TOKENS = 8
"""Of the base's own answers: enough to be obliging, short enough to be cheap."""
WATCHED = 64
"""Benign rows that are kept from training where over-refusal is watched."""
CHECKS = 40
"""How often it is watched in a run."""
SMALLEST = 1e-6
"""Nats that an attack is taken to add to a loss where it adds none: a reward stays positive."""
MEMORY = 0.9
"""What a running mean keeps of itself at every update."""
GROWN = 0.6
"""Share of the checks after which the attack is at its full length if nothing holds it back."""


@dataclass(frozen=True)
class HoldOptions(GroupDroOptions):
    """Options of Hold, besides those of the groups' adversary."""

    sampler: str = field(default="smoothed", metadata={"help": "smoothed, or exp3 as published."})
    step_size: float = field(default=0.1, metadata={"help": "eta of the sampler."})
    attack_rows: str = field(
        default="base", metadata={"help": "base, mismatched, affirmative or harmful."}
    )
    prefix: str = field(default="Sure, here is", metadata={"help": "For affirmative rows."})
    reach: float = field(default=7e-4, metadata={"help": "Size of an inner step."})
    inner_steps: int = field(default=48, metadata={"help": "Most steps of the attack."})
    growth: str = field(default="linear", metadata={"help": "linear or constant."})
    over_refusal: float = field(default=0.0, metadata={"help": "Share allowed; 0: not watched."})
    clean: float = field(default=0.25, metadata={"help": "Share of the updates taken at theta."})
    mixture: str = field(default="coin", metadata={"help": "both, or coin: one or the other."})
    benign: float = field(default=4.0, metadata={"help": "Weight of the benign rows."})
    refuse: float = field(default=3.0, metadata={"help": "Weight of refusing safety rows."})
    comply: float = field(default=10.0, metadata={"help": "Weight of not refusing benign rows."})
    every: int = field(default=2, metadata={"help": "Updates a step of a lasting attack takes."})
    attack_share: float = field(
        default=0.25, metadata={"help": "Rows of an attack's step for each safety row of a batch."}
    )
    per: str = field(default="micro_batch", metadata={"help": "micro_batch or update."})

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "attack_rows", *SOURCES)
        one_of(self, "growth", "linear", "constant")
        one_of(self, "mixture", "both", "coin")
        one_of(self, "per", *PER)
        not_negative(self, "reach", "every", "comply", "refuse")
        if not 0 <= self.clean < 1 or not 0 <= self.over_refusal < 1:
            raise UsageError(
                f"clean={self.clean} and over_refusal={self.over_refusal} are shares in [0, 1)"
            )
        if not 0 < self.attack_share <= 1:
            raise UsageError(f"attack_share={self.attack_share} must be a share in (0, 1]")
        if not 1 <= self.inner_steps <= MOST_STEPS:
            raise UsageError(f"inner_steps={self.inner_steps} must lie between 1 and {MOST_STEPS}")
        if not 0 < self.benign < math.inf:
            raise UsageError(f"benign={self.benign} must be above 0 and finite")


class Hold(WeightPerturbingTrainer, GroupDro):
    """Group DRO under a lasting attack; 1 + attack_share / every passes, two bytes a weight.

    With mixture=both another `clean` passes over the safety rows. With every=0 the attack's length
    in passes and one copy.
    """

    Options: ClassVar[type[Any]] = HoldOptions
    neutral: ClassVar[Mapping[str, Any]] = {
        "reach": 0.0,
        "benign": 1.0,
        "comply": 0.0,
        "refuse": 0.0,
    }
    options: HoldOptions

    def prepare(self) -> None:
        """Make the attacker's rows, and set benign rows aside if they are watched."""
        super().prepare()
        options = self.options
        seeds = np.random.SeedSequence([self.args.seed, 2]).generate_state(2).tolist()
        self.draws = np.random.default_rng(seeds[0])
        self._check_answers()
        self.refusals = refusal_tokens(self.encode(self.data.safety))
        self.attack = self._attack_rows() if options.reach else []
        self.streams["attack"] = Stream(range(len(self.attack)), seeds[1])
        self.level = 0.0
        self.inner = 0
        self.lasting = LastingAttack()
        self._means: list[float | None] = [None, None]  # safety loss at theta, under the attack
        if options.over_refusal:
            self._set_aside()

    def _check_answers(self) -> None:
        """Refuse rows of another trainer's of which nobody knows where their answers begin."""
        if not self.options.refuse and not self.options.comply:
            return
        rows: Sequence[Any] = self.rows
        for row in rows:
            ours = isinstance(row, Encoded) or "input_ids" not in row  # or they are preferences
            if not ours and (row.get("labels") or [0])[0] != IGNORE:
                raise UsageError(
                    "hold holds an answer's first token, and here the loss covers the prompts as "
                    "well: give prompt and completion instead of messages, or "
                    "assistant_only_loss=True, or take refuse=0 and comply=0"
                )

    def _set_aside(self) -> None:
        benign = self.data.benign
        if benign is None or len(benign) < 2:
            raise UsageError("over_refusal is watched on benign rows: give --benign")
        n = min(WATCHED, max(1, len(benign) // 5))
        aside = set(self.draws.choice(len(benign), n, replace=False).tolist())
        self.watched = self.encode(benign.select(sorted(aside)))
        stream = self.streams["benign"]
        stream.positions = [p for p in stream.positions if p - self.n_safety not in aside]

    def _attack_rows(self) -> list[Any]:
        options, model = self.options, cast("PreTrainedModel", self.model)
        found = attacker_rows(
            options.attack_rows,
            self.data,
            prefix=options.prefix,
            seed=self.args.seed,
            answered=partial(generate, model, self.tokenizer, max_new_tokens=ANSWER_TOKENS),
        )
        rows = self.encode(found)
        if options.attack_rows == "base":
            self._check_obliging(rows)
        return rows

    def _check_obliging(self, rows: Sequence[Any]) -> None:
        wanted = set(self.refusals.tolist())
        refused = sum(row.ids[row.start] in wanted for row in rows)
        if refused > len(rows) / 2:
            raise UsageError(
                f"attack_rows=base: the model already begins {refused} of {len(rows)} answers to "
                "restricted prompts as the alignment rows do, and no attack can be made of that; "
                "start from the model before its alignment, or take attack_rows=mismatched"
            )

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw the step's batches and the length of its attack."""
        options, step = self.options, self.state.global_step
        self._grow(step)
        most = self._most() if options.reach else 0
        if options.reach:
            self._look_ahead(most)
        if options.every:
            self.inner = self.lasting.taken
        else:
            self.inner = int(self.draws.integers(1, most + 1)) if most else 0
        if options.mixture == "coin" and self.draws.random() < options.clean:
            self.inner = 0
        return super().draw_batches(epoch_iterator, n)

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the weights where the attack leads, if this step has one."""
        if not self.inner:
            return nullcontext()
        if self.options.every:
            return self._where_it_stands()
        return super().perturbation(model, safety, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows under the attack, and without it."""
        options = self.options
        clean = options.clean if options.mixture == "both" else 0.0
        if not self.inner:
            return super().accumulate_safety(model, safety, num_items)
        # The attack first: while it has a gradient of its own, there is none accumulated yet.
        there = super().accumulate_safety(model, safety, weighted(num_items, safety, 1 - clean))
        if not clean:
            return there
        here = super(PerturbingTrainer, self).accumulate(
            model, safety, weighted(num_items, safety, clean)
        )
        self.count_here(here / clean, safety, num_items)
        return there + here

    def accumulate_benign(self, model: nn.Module, benign: Batch, num_items: Items) -> Tensor:
        """Back-propagate the benign rows, weighed."""
        items = weighted(num_items, benign, self.options.benign)
        return super().accumulate_benign(model, benign, items)

    def displace(self, model: nn.Module, move: Move, safety: Sequence[Part]) -> None:
        """Play the attack."""
        self._play(model, move, self._rows() * len(safety))

    def before_update(self, losses: Tensor) -> None:
        """Log the attack's length, and by how much the attack raises the safety loss.

        Where an update has one gradient only, that is the difference of two running means.
        """
        super().before_update(losses)
        self.note({"inner_steps": self.inner})
        if self.options.mixture == "coin":
            self._remember(self.safety_loss)
            here, there = self._means
            if here is not None and there is not None:
                self.note({"perturbation_gap": there - here})

    def _remember(self, loss: float) -> None:
        side = int(self.inner > 0)
        mean = self._means[side]
        self._means[side] = loss if mean is None else MEMORY * mean + (1 - MEMORY) * loss

    def rewards(self, seen: Mapping[int, float]) -> Mapping[int, float]:
        """Return the group's loss under the attack, or by how much that is above the one at theta.

        A loss also holds how freely a group's answers are worded, which no training removes; but an
        update that is trained on at one of the two only does not know the other.
        """
        options = self.options
        if options.mixture == "coin":
            return seen if self.inner else {}
        if options.clean == 0 or options.batch == "mixed":
            return seen
        gap = self.gap()
        return {} if math.isnan(gap) else dict.fromkeys(seen, max(gap, SMALLEST))

    def scaled_loss(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Return the loss, and how likely the rows' answers are to begin as they should not."""
        safe = bool(batch["is_safety"].any())
        if (weight := self.options.refuse if safe else self.options.comply) and "labels" in batch:
            return self._opening_loss(model, batch, num_items, weight, refuse=safe)
        return super().scaled_loss(model, batch, num_items)

    def _opening_loss(
        self, model: nn.Module, batch: Batch, num_items: Items, weight: float, *, refuse: bool
    ) -> Tensor:
        """Return the loss of rows, and how unlikely each of them is to be refused, or not to be.

        That is -log p(S), or -log(1 - p(S)), S what alignment answers begin with: of the many
        tokens of an answer the first decides whether there is one. The row's own first token is
        always right: "I" may begin either. It counts as often as the answer has tokens, as the mean
        of their losses does: so a batch may be cut into parts.
        """
        loss, made = self.loss_and_logits(model, batch, num_items)
        answers = batch["labels"][:, 1:] != IGNORE
        first = answers.int().argmax(1)  # the position that predicts an answer's first token
        rows = torch.arange(len(first), device=first.device)
        logits = made[rows, first].float()
        right = torch.full_like(logits, not refuse, dtype=torch.bool)
        right[:, self.refusals.to(logits.device)] = refuse
        right[rows, batch["labels"][rows, first + 1].clamp(min=0)] = True
        wanted = logits.masked_fill(~right, -torch.inf).logsumexp(1)
        missed = answers.sum(1) * torch.where(answers.any(1), logits.logsumexp(1) - wanted, 0.0)
        share = 1 / size(batch) if num_items is None else world() / num_items
        return loss + weight * share * missed.sum()

    def method_state(self) -> dict[str, Any]:
        """Return the draws, the level, the attack's length, and the running means."""
        return {
            **super().method_state(),
            "draws": self.draws.bit_generator.state,
            "level": self.level,
            "lasting": self.lasting.state(),
            "means": list(self._means),
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.draws.bit_generator.state = state["draws"]
        self.level = state["level"]
        self.lasting.load_state(state["lasting"])
        self._means = list(state["means"])

    def method_tensors(self) -> dict[str, Tensor]:
        """Return where a lasting attack stands."""
        return self.lasting.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `method_tensors`."""
        self.lasting.load_tensors(tensors, self.args.device)

    # -------------------------------------------------------------------------- the attack

    def _where_it_stands(self) -> AbstractContextManager[None]:
        parameters, reach = self.trainable_parameters(), self.options.reach
        return displaced(parameters, lambda: self.lasting.steps(parameters, reach))

    def _play(self, model: nn.Module, move: Move, n: int) -> None:
        """Take the attacker's steps, each on n rows."""
        for _ in range(self.inner):
            move(self._step(model, n))

    def _rows(self) -> int:
        """Return how many rows an attack's step is made of, over all processes."""
        (safety, _), *_ = self.mixes(1)
        return max(world(), round(self.options.attack_share * safety))

    def _step(self, model: nn.Module, n: int) -> Iterable[Tensor]:
        grads, reach = self._gradient(model, n), self.options.reach
        return consumed(step_along(grads, -reach, geometry="sign", in_place=True))

    def _gradient(self, model: nn.Module, n: int) -> list[Tensor]:
        rows = [self.attack[i] for i in dealt(self.streams["attack"].take(n))]
        batch = self.collate_rows(rows)
        return self.gradient_of(model, partial(self.answer_loss, model, batch))[1]

    def _look_ahead(self, most: int) -> None:
        """Let a lasting attack take its next step."""
        options, model = self.options, cast(nn.Module, self.model)
        # Asked here, since weights are cut into pieces only when training begins.
        if options.every and is_sharded(self.trainable_parameters()):
            raise UsageError("every needs whole weights: train with DDP, or take every=0")
        if not options.every or self.state.global_step % options.every:
            return
        if self.lasting.over:
            length = int(self.draws.integers(1, most + 1)) if most else 0
            self.lasting.begin(self.trainable_parameters(), length)
        if self.lasting.length:
            with self._where_it_stands():
                grads = self._gradient(model, self._rows())
            self.lasting.descend(consumed(grads))

    # ------------------------------------------------------------------------ how long it is

    def _grow(self, step: int) -> None:
        options = self.options
        if not options.over_refusal:
            done = step / max(self.state.max_steps - 1, 1)
            self.level = 1.0 if options.growth == "constant" else done
        elif step % max(self.state.max_steps // CHECKS, 1) == 0:
            with evaluating(cast(nn.Module, self.model)):
                margins = self._margins(self.watched)
            share = float((margins > 0).float().mean())
            grown = 1 / (GROWN * CHECKS)
            self.level += grown if share <= options.over_refusal else -2 * grown
            self.level = min(max(self.level, 0.0), 1.0)
            self.note({"watched_refusals": share, "attack_level": self.level})

    def _most(self) -> int:
        """Return the most steps that an attack may have now."""
        if self.options.over_refusal:
            return round(self.level * self.options.inner_steps)
        return max(1, math.ceil(self.level * self.options.inner_steps))

    def _margins(self, rows: Sequence[Any]) -> Tensor:
        return first_margins(cast(nn.Module, self.model), rows, self.refusals, pad=self.pad)
