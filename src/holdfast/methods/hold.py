"""Hold, holdfast's own method: group DRO at the weights that an attack would reach.

VAA (arXiv 2506.03850) and SAM train at theta + eps, with eps pointing up the *safety* loss.
Fine-tuning does not move there: a customer's optimizer descends the loss of *its own* rows. Hold
therefore simulates a short attack before it computes the safety gradient, to first order, as TAR
(arXiv 2408.00761) and MAML do:

    theta_0 = theta,   theta_{j+1} = theta_j - reach s(g_j),   g_j = grad of l_attack(theta_j),
    min_theta max_q sum_i q_i f_i(theta_k) + benign [ l_benign - comply mean log(1 - p(S)) ](theta),
    f_i = l_i - refuse mean log p(S),

with s the sign (Adam's first step, so what attackers use), and q moved by the adversary of group
DRO over vulnerable and invulnerable examples (smoothed sampler, step size 0.1). S is the set of
tokens that alignment responses begin with, and p(S) the probability that a response begins with one
of them, which decides between refusal and compliance. Under the attack, p(S) must stay high for
restricted prompts; at theta, it must stay low for benign prompts, except for a row's own first
token. Preference rows have no such token, so both terms are skipped for them. In a share `clean` of
the updates, theta_k is theta itself, which keeps refusals well worded there. There are no second
derivatives, no entropy objective and no unlearning; benign rows are trained at theta only.

One attack spans many updates: it takes one step every `every` updates and continues from there, as
in "free" adversarial training (Shafahi et al. 2019, arXiv 1904.12843), until it reaches a length
drawn from 1 ... k_t; then a new one begins. k_t grows linearly over the run from 1 to
`inner_steps`: attacks of full length from the first update on ruin the model. A step uses
`attack_share` rows for each safety row of a batch, so an update costs 1 + attack_share / every
passes, whatever the length of the attack. The attack is stored as step counts, one byte per weight,
and the weights are restored from their rounding error, another byte (`weights.displace`). `every=0`
simulates a whole attack, with k drawn from 1 ... k_t, for every micro-batch, which takes k passes.

The attacker's rows need no harmful data: `attack_rows="base"`, the default, uses the first words of
the model's own answers to the restricted prompts, before it is aligned.

`mixture="coin"`, the default, tosses a coin for every update, and the reward of the adversary is
the loss under the attack. `mixture="both"` mixes (1 - clean) of the gradient at theta_k with clean
of that at theta, which takes another pass over the safety rows, and the reward is the difference of
the two losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from holdfast.models.losses import first_answer_positions, refusal_tokens
from holdfast.models.processes import is_sharded, world_size
from holdfast.models.templates import frame_of
from holdfast.models.weights import consume, displace, pieces, step_along
from holdfast.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWER_TOKENS = 8
"""Length of the base's own answers: long enough to comply, short enough to be cheap."""
SMALLEST = 1e-6
"""Reward in nats if an attack does not raise a loss; rewards must be positive."""
SMOOTHING = 0.9
"""Share of itself that a running mean keeps at every update."""


class HoldOptions(Options):
    """Options of Hold; the defaults are those of the published results."""

    owner: ClassVar[str] = "hold"

    attack_rows: Source = "base"
    """Rows of the simulated attacker: restricted prompts with the model's own answers (base), with
    unrelated benign answers (mismatched) or with `prefix` (affirmative), or the harmful rows.
    Change it if the model already refuses."""
    prefix: str = "Sure, here is"
    """Answer of affirmative rows, in the language of the prompts."""
    reach: float = Field(default=7e-4, ge=0)
    """Distance that an attack step moves each weight. Raise it if the alignment breaks too soon,
    lower it if benign prompts are refused; `reach` times `inner_steps` should be close to the
    distance that a real attack moves a weight."""
    inner_steps: int = Field(default=48, ge=1, le=MOST_STEPS)
    """Length of the longest attack in steps; change it together with `reach`."""
    every: int = Field(default=2, ge=0)
    """Updates per step of the attack. Raise it to save time; 0 simulates a whole attack for every
    micro-batch, as FSDP2 requires."""
    attack_share: float = Field(default=0.25, gt=0, le=1)
    """Rows of an attack step per safety row of a batch; use 1 if batches have few safety rows."""
    clean: float = Field(default=0.25, ge=0, lt=1)
    """Share of updates without an attack; raise it if refusals become badly worded."""
    mixture: Literal["coin", "both"] = "coin"
    """Gradient of an update: with or without the attack by a coin toss, or a mixture of both,
    which lasts slightly longer and takes more time."""
    refuse: float = Field(default=3.0, ge=0)
    """Weight of the first token on restricted prompts; raise it if they are answered."""
    comply: float = Field(default=10.0, ge=0)
    """Weight of the first token on benign prompts; raise it if they are refused."""
    benign: float = Field(default=4.0, gt=0)
    """Weight of the benign rows; raise it if the model loses other abilities."""
    control: Control = ""
    """Ablation that removes information from the groups; empty for none."""


class Hold(WeightPerturbingTrainer, GroupDro):
    """Group DRO under a lasting attack; 1 + attack_share / every passes, two bytes per weight.

    mixture=both takes another pass over the safety rows. every=0 takes one pass per attack step and
    one copy of the weights instead.
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
        """Options of the adversary of the groups; only `control` can be set."""
        return GroupDroOptions(sampler="smoothed", step_size=0.1, control=self.options.control)

    def prepare(self) -> None:
        """Make the attacker's rows and set up the attack."""
        super().prepare()
        options = self.options
        seeds = np.random.SeedSequence([self.args.seed, 2]).generate_state(2).tolist()
        self.draws = np.random.default_rng(seeds[0])
        self._check_first_tokens()
        self.refusals = refusal_tokens(self.encode(self.data.safety))
        opening = frame_of(self.tokenizer).opening
        self.opening = self.tokenizer(opening, add_special_tokens=False)["input_ids"]
        self.attack = self._attack_rows() if options.reach else []
        self.streams["attack"] = Stream(range(len(self.attack)), seeds[1])
        self.attack_steps = 0  # steps of the attack under which the current update is trained
        self.lasting = LastingAttack()
        self._clean_loss: float | None = None  # running means of the safety loss
        self._attacked_loss: float | None = None

    def _check_first_tokens(self) -> None:
        """Reject rows of TRL's whose labels do not show where the answer begins."""
        if not self.options.refuse and not self.options.comply:
            return
        for row in cast("Sequence[Any]", self.rows):
            is_preference = not isinstance(row, Encoded) and "input_ids" not in row
            if isinstance(row, Encoded) or is_preference:
                continue
            prompt_is_masked = (row.get("labels") or [0])[0] == IGNORE
            if not prompt_is_masked:
                raise UsageError(
                    "hold trains the first token of an answer, but here the loss covers the "
                    "prompt as well: give prompt and completion instead of messages, set "
                    "assistant_only_loss=True, or use refuse=0 and comply=0"
                )

    def _attack_rows(self) -> list[Any]:
        options = self.options
        model = cast("PreTrainedModel", self.model)
        rows = self.encode(
            attacker_rows(
                options.attack_rows,
                self.data,
                prefix=options.prefix,
                seed=self.args.seed,
                answered=partial(generate, model, self.tokenizer, max_new_tokens=ANSWER_TOKENS),
            )
        )
        if options.attack_rows == "base":
            self._check_obliging(rows)
        return rows

    def _check_obliging(self, rows: Sequence[Any]) -> None:
        refusals = set(self.refusals.tolist())
        refused = sum(row.ids[row.start] in refusals for row in rows)
        if refused > len(rows) / 2:
            raise UsageError(
                f"attack_rows=base: the model already begins {refused} of {len(rows)} answers to "
                "restricted prompts like the alignment rows, so its answers make no attack; start "
                "from the model before its alignment, or use attack_rows=mismatched"
            )

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw the step's batches and the length of its attack."""
        options = self.options
        longest = self._longest_attack() if options.reach else 0
        if options.reach:
            self._advance_attack(longest)
        if options.every:
            self.attack_steps = self.lasting.taken
        else:
            self.attack_steps = self._draw_length(longest)
        if options.mixture == "coin" and self.draws.random() < options.clean:
            self.attack_steps = 0
        return super().draw_batches(epoch_iterator, n)

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the weights at the end of the attack, if this update has one."""
        if not self.attack_steps:
            return nullcontext()
        if self.options.every:
            return self._at_lasting_attack()
        return super().perturbation(model, safety, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows under the attack, and with mixture=both without it too."""
        options = self.options
        if not self.attack_steps:
            return super().accumulate_safety(model, safety, num_items)
        clean = options.clean if options.mixture == "both" else 0.0
        # The attack comes first: it computes gradients of its own, and nothing is accumulated yet.
        items = weighted(num_items, safety, 1 - clean)
        attacked_loss = super().accumulate_safety(model, safety, items)
        if not clean:
            return attacked_loss
        items = weighted(num_items, safety, clean)
        clean_loss = super(PerturbingTrainer, self).accumulate(model, safety, items)
        self.count_here(clean_loss / clean, safety, num_items)
        return attacked_loss + clean_loss

    def accumulate_benign(self, model: nn.Module, benign: Batch, num_items: Items) -> Tensor:
        """Back-propagate the benign rows, weighted by `benign`."""
        items = weighted(num_items, benign, self.options.benign)
        return super().accumulate_benign(model, benign, items)

    def displace(self, model: nn.Module, move: Move, safety: Sequence[Part]) -> None:
        """Simulate a whole attack."""
        n_rows = self._rows_per_step() * len(safety)
        for _ in range(self.attack_steps):
            grads = self._attack_gradient(model, n_rows)
            move(consume(step_along(grads, -self.options.reach, geometry="sign", in_place=True)))

    def before_update(self, losses: Tensor) -> None:
        """Log the attack's length, and how much the attack raises the safety loss.

        With mixture=coin an update measures the loss only with or only without the attack, so the
        logged value is the difference of two running means.
        """
        super().before_update(losses)
        self.note({"inner_steps": self.attack_steps})
        if self.options.mixture == "both":
            return
        if self.attack_steps:
            self._attacked_loss = _running_mean(self._attacked_loss, self.safety_loss)
        else:
            self._clean_loss = _running_mean(self._clean_loss, self.safety_loss)
        if self._clean_loss is not None and self._attacked_loss is not None:
            self.note({"perturbation_gap": self._attacked_loss - self._clean_loss})

    def rewards(self, observed: Mapping[int, float]) -> Mapping[int, float]:
        """Return the loss of a group under the attack; if known, how much the attack raises it.

        The increase is the better reward: the loss itself also depends on how freely the answers of
        a group are worded, which training cannot change. With mixture=coin only the loss is known.
        """
        options = self.options
        if options.mixture == "coin":
            return observed if self.attack_steps else {}
        if options.clean == 0:
            return observed
        gap = self.gap()
        return {} if math.isnan(gap) else dict.fromkeys(observed, max(gap, SMALLEST))

    def scaled_loss(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Return the loss plus the weighted loss of the answers' first tokens."""
        safe = bool(batch["is_safety"].any())
        weight = self.options.refuse if safe else self.options.comply
        if not weight or "labels" not in batch:
            return super().scaled_loss(model, batch, num_items)
        # The template's empty think block begins every answer alike and decides nothing.
        first = first_answer_positions(batch["labels"], self.opening)
        loss, logits = self.loss_and_logits(model, batch, num_items, first)
        share = 1 / size(batch) if num_items is None else world_size() / num_items
        return loss + weight * share * self._first_token_loss(batch, first, logits, refuse=safe)

    def _first_token_loss(
        self, batch: Batch, first: Tensor, logits: Tensor, *, refuse: bool
    ) -> Tensor:
        """Return -log p(S) to refuse or -log(1 - p(S)) to comply, summed over answer tokens.

        S holds the tokens that alignment responses begin with: the first token of a response
        decides whether it is a refusal. The first token of the row itself is always right, as "I"
        may begin either. A row counts as often as its answer has tokens, as in the mean token loss,
        so splitting a batch does not change the sum.

        Args:
            batch: The rows.
            first: (B,) positions that predict the first tokens.
            logits: (B, V) at these positions.
            refuse: Whether the rows are to be refused.
        """
        is_answer = batch["labels"][:, 1:] != IGNORE
        rows = torch.arange(len(first), device=first.device)
        first_logits = logits.float()
        first_tokens = batch["labels"][rows, first + 1].clamp(min=0)
        right = torch.full_like(first_logits, not refuse, dtype=torch.bool)
        right[:, self.refusals.to(first_logits.device)] = refuse
        right[rows, first_tokens] = True
        right_mass = first_logits.masked_fill(~right, -torch.inf).logsumexp(1)
        loss = torch.where(is_answer.any(1), first_logits.logsumexp(1) - right_mass, 0.0)
        return (is_answer.sum(1) * loss).sum()

    def method_state(self) -> dict[str, Any]:
        """Return the random draws, the progress of the attack, and the running means."""
        return {
            **super().method_state(),
            "draws": self.draws.bit_generator.state,
            "lasting": self.lasting.state(),
            "means": [self._clean_loss, self._attacked_loss],
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.draws.bit_generator.state = state["draws"]
        self.lasting.load_state(state["lasting"])
        self._clean_loss, self._attacked_loss = state["means"]

    def method_tensors(self) -> dict[str, Tensor]:
        """Return the step counts of the lasting attack."""
        return self.lasting.tensors()

    def load_method_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `method_tensors`."""
        self.lasting.load_tensors(tensors, self.args.device)

    # -------------------------------------------------------------------------- the attack

    def _at_lasting_attack(self) -> AbstractContextManager[None]:
        """Hold the weights at the current point of the lasting attack."""
        parameters = self.trainable_parameters()
        moved = [piece for p in parameters for piece in pieces(p)]
        return displace(moved, lambda: self.lasting.steps(parameters, self.options.reach))

    def _advance_attack(self, longest: int) -> None:
        """Take the next step of the lasting attack if it is due; begin a new one after the last."""
        options = self.options
        # Checked here because FSDP2 shards the weights only when training begins.
        if options.every and is_sharded(self.trainable_parameters()):
            raise UsageError("every above 0 needs whole weights: train with DDP, or use every=0")
        if not options.every or self.state.global_step % options.every:
            return
        if self.lasting.over:
            self.lasting.begin(self.trainable_parameters(), self._draw_length(longest))
        if self.lasting.length:
            with self._at_lasting_attack():
                grads = self._attack_gradient(cast(nn.Module, self.model), self._rows_per_step())
            self.lasting.descend(consume(grads))

    def _attack_gradient(self, model: nn.Module, n_rows: int) -> list[Tensor]:
        positions = dealt(self.streams["attack"].take(n_rows))
        batch = self.collate_rows([self.attack[i] for i in positions])
        _, grads = self.gradient_of(model, partial(self.answer_loss, model, batch))
        return grads

    def _rows_per_step(self) -> int:
        """Return the number of rows of an attack step, over all processes."""
        safety, _ = self.mixes(1)[0]
        return max(world_size(), round(self.options.attack_share * safety))

    def _draw_length(self, longest: int) -> int:
        return int(self.draws.integers(1, longest + 1)) if longest else 0

    def _longest_attack(self) -> int:
        """Return the current length limit of attacks; it grows over the run to inner_steps."""
        done = self.state.global_step / max(self.state.max_steps - 1, 1)
        return max(1, math.ceil(done * self.options.inner_steps))


def _running_mean(mean: float | None, value: float) -> float:
    return value if mean is None else SMOOTHING * mean + (1 - SMOOTHING) * value
