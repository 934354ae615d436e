"""Hold: group DRO at the weights that an attacker's first steps would reach. holdfast's own method.

VAA (arXiv 2506.03850) and SAM train at theta + eps with eps up the *safety* loss. Fine-tuning does
not go there: a customer's optimizer goes down the loss of *its* rows. Hold therefore plays a short
attack before it takes the safety gradient, first order as TAR (arXiv 2408.00761) and MAML do,

    theta_0 = theta,   theta_{j+1} = theta_j - reach s(g_j),   g_j = grad of l_attack(theta_j),
    min_theta max_q sum_i q_i f_i(theta_k) + benign [ l_benign - comply mean log(1 - p(S)) ](theta),
    f_i = l_i - refuse mean log p(S),

with s the sign (Adam's first step, so what attackers use), and q moved by the adversary of group
DRO over vulnerable and invulnerable examples (smoothed sampler, step size 0.1). S is the set of
tokens that alignment responses begin with, and p(S) the probability that a response begins with one
of them, which decides between refusal and compliance: under the attack restricted prompts must keep
it high, and at theta benign prompts must keep it low, except for a row's own first token. Rows of
preferences have no such token, so both terms are skipped for them. A share `clean` of the updates
uses theta itself for theta_k, which keeps refusals well worded there. There are no second
derivatives, no entropy objective and no unlearning; benign rows see theta only.

The attack lasts: it takes one step every `every` updates and continues from where it stands, as in
"free" adversarial training (Shafahi et al. 2019, arXiv 1904.12843), until it reaches a length drawn
from 1 ... k_t; then a new one begins. k_t grows linearly over the run from 1 to `inner_steps`:
attacks of full length from the first update on ruin the model. A step uses `attack_share` rows for
each safety row of a batch, so an update costs 1 + attack_share / every passes, whatever the
attack's length. `every=0` plays a whole attack, k drawn from 1 ... k_t, for every micro-batch, at k
passes. A lasting attack is stored as a number of steps, one byte per weight, and the weights are
restored from their rounding error, another byte (`weights.displace`).

The attacker's rows need no harmful data: `attack_rows="base"`, the default, uses the first words
with which the model answers the restricted prompts before it is aligned.

`mixture="coin"`, the default, tosses a coin for every update, and the adversary is paid the loss
under the attack. `mixture="both"` takes (1 - clean) of the gradient at theta_k and clean of the one
at theta, at another `clean` passes over the safety rows, and pays the difference of the two losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.methods._attacker import MOST_STEPS, LastingAttack, Source, attacker_rows
from holdfast.methods._batches import Batch, Items, Stream, size, weighted
from holdfast.methods._perturbing import Move, Part, PerturbingTrainer, WeightPerturbingTrainer
from holdfast.methods.group_dro import Control, GroupDro, GroupDroOptions, dealt
from holdfast.models.encoding import IGNORE, Encoded
from holdfast.models.generation import generate
from holdfast.models.losses import refusal_tokens
from holdfast.models.processes import is_sharded, world_size
from holdfast.models.weights import consume, displace, step_along
from holdfast.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWER_TOKENS = 8
"""Length of the base's own answers: long enough to comply, short enough to be cheap."""
SMALLEST = 1e-6
"""Reward in nats where an attack adds nothing to a loss: a reward must stay positive."""
MEMORY = 0.9
"""Share of itself that a running mean keeps at every update."""


class HoldOptions(Options):
    """Options of Hold; the defaults are those of the published results."""

    owner: ClassVar[str] = "hold"

    attack_rows: Source = "base"
    """Rows of the simulated attacker: the restricted prompts with the model's own answers (base),
    with unrelated benign answers (mismatched) or with `prefix` (affirmative), or the harmful rows.
    Change it if the model already refuses."""
    prefix: str = "Sure, here is"
    """Answer of affirmative rows; give one in the language of the prompts."""
    reach: float = Field(default=7e-4, ge=0)
    """Distance that an attack step moves each weight. Raise it if the alignment breaks too soon,
    lower it if benign prompts are refused; `reach` times `inner_steps` should be near what a real
    attack moves."""
    inner_steps: int = Field(default=48, ge=1, le=MOST_STEPS)
    """Steps of the longest attack; change it together with `reach`."""
    every: int = Field(default=2, ge=0)
    """Updates for each step of a lasting attack. Raise it to save time; 0 plays a whole attack
    for every micro-batch, as FSDP2 requires."""
    attack_share: float = Field(default=0.25, gt=0, le=1)
    """Rows of an attack step for each safety row of a batch; 1 if batches have few safety rows."""
    clean: float = Field(default=0.25, ge=0, lt=1)
    """Share of updates at the weights themselves; raise it if refusals become badly worded."""
    mixture: Literal["coin", "both"] = "coin"
    """Gradient of an update: one of the two by a coin, or both, which lasts slightly longer and
    takes more time."""
    refuse: float = Field(default=3.0, ge=0)
    """Weight of beginning to refuse restricted prompts; raise it if they are answered."""
    comply: float = Field(default=10.0, ge=0)
    """Weight of not beginning to refuse benign prompts; raise it if they are refused."""
    benign: float = Field(default=4.0, gt=0)
    """Weight of the benign rows; raise it if the model loses other abilities."""
    control: Control = ""
    """Ablation that removes information from the groups; empty for none."""


class Hold(WeightPerturbingTrainer, GroupDro):
    """Group DRO under a lasting attack; 1 + attack_share / every passes, two bytes a weight.

    With mixture=both another `clean` passes over the safety rows. With every=0 the attack's length
    in passes and one copy.
    """

    Options: ClassVar[type[Options]] = HoldOptions
    neutral: ClassVar[Mapping[str, Any]] = {
        "reach": 0.0,
        "benign": 1.0,
        "comply": 0.0,
        "refuse": 0.0,
    }
    options: HoldOptions
    per: ClassVar[Literal["micro_batch"]] = "micro_batch"

    @property
    def adversary(self) -> GroupDroOptions:
        """The groups' adversary, of which `control` alone can be set."""
        return GroupDroOptions(sampler="smoothed", step_size=0.1, control=self.options.control)

    def prepare(self) -> None:
        """Make the attacker's rows."""
        super().prepare()
        options = self.options
        seeds = np.random.SeedSequence([self.args.seed, 2]).generate_state(2).tolist()
        self.draws = np.random.default_rng(seeds[0])
        self._check_answers()
        self.refusals = refusal_tokens(self.encode(self.data.safety))
        self.attack = self._attack_rows() if options.reach else []
        self.streams["attack"] = Stream(range(len(self.attack)), seeds[1])
        self.inner = 0
        self.lasting = LastingAttack()
        self._means: list[float | None] = [None, None]  # safety loss at theta, under the attack

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
        options = self.options
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
        if options.clean == 0:
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
        share = 1 / size(batch) if num_items is None else world_size() / num_items
        return loss + weight * share * missed.sum()

    def method_state(self) -> dict[str, Any]:
        """Return the draws, the attack's length, and the running means."""
        return {
            **super().method_state(),
            "draws": self.draws.bit_generator.state,
            "lasting": self.lasting.state(),
            "means": list(self._means),
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.draws.bit_generator.state = state["draws"]
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
        return displace(parameters, lambda: self.lasting.steps(parameters, reach))

    def _play(self, model: nn.Module, move: Move, n: int) -> None:
        """Take the attacker's steps, each on n rows."""
        for _ in range(self.inner):
            move(self._step(model, n))

    def _rows(self) -> int:
        """Return how many rows an attack's step is made of, over all processes."""
        (safety, _), *_ = self.mixes(1)
        return max(world_size(), round(self.options.attack_share * safety))

    def _step(self, model: nn.Module, n: int) -> Iterable[Tensor]:
        grads, reach = self._gradient(model, n), self.options.reach
        return consume(step_along(grads, -reach, geometry="sign", in_place=True))

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
            self.lasting.descend(consume(grads))

    def _most(self) -> int:
        """Return the largest length of an attack now: it grows over the run to inner_steps."""
        done = self.state.global_step / max(self.state.max_steps - 1, 1)
        return max(1, math.ceil(done * self.options.inner_steps))
