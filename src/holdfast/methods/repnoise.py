"""RepNoise: push what the model thinks of harmful answers towards noise, at every layer.

Rosati et al., NeurIPS 2024, arXiv 2405.14577. With h_l the hidden states of harmful answers after
layer l, and c_l the loss of these answers when layer l is read out by the model's own head (logit
lens), a step minimizes

    L = l_harmless + beta mean_l MMD^2(h_l, N(0, I)) - alpha log(1 + mean_l c_l).

The first term keeps the wanted answers, the second takes from the harmful ones what a later attack
would build on, the third raises their loss; the logarithm keeps that from running away. MMD is the
published one: a sum of `KERNELS` Gaussians whose widths are `FACTOR` apart, around the mean squared
distance.

What it changes against the published code:

- A sample is the state of one answer token, not a whole padded row, and only answer tokens count.
  The published mask takes the positions at which a harmful and a harmless row differ, which says
  nothing once prompts differ in length, and drops every token of id 0.
- h_l is the residual stream after each layer (after the last one, as it leaves the final norm),
  which every architecture hands out; published, the MLP's output, caught by hooks that are never
  removed and that only Llama's names fit.
- c_l leaves out the embeddings, which know the current token alone, and takes the last layer from
  the model's own logits; the published sum norms it twice and counts it twice.
- At most `tokens` answer tokens of a micro-batch are looked at, drawn anew each time, and each
  layer's terms are computed again for the gradient: memory is one layer's (2 tokens)^2 kernel and
  tokens x vocabulary logits, whatever the depth and the length of the rows. The draw and the noise
  come from torch's generator, which is part of a checkpoint.
- Harmful and harmless rows need not come in pairs. With accumulation the two harmful terms, which
  are no sums over rows, are per micro-batch and averaged.

The lens leaves out what an architecture does to its logits after the head (Gemma 2's soft cap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast.errors import UsageError
from holdfast.methods._batches import Batch, Items, rows_of
from holdfast.methods._harmful import HarmfulTrainer
from holdfast.models.encoding import IGNORE
from holdfast.options import Options

KERNELS, FACTOR = 5, 2.0
"""How many Gaussians make up the kernel of MMD, and the ratio of neighbouring widths."""


class RepNoiseOptions(Options):
    """Options of RepNoise; alpha and beta are those of the authors' loss."""

    owner: ClassVar[str] = "repnoise"

    alpha: float = Field(default=1.0, ge=0)
    """Weight of the harmful rows' loss."""
    beta: float = Field(default=0.001, ge=0)
    """Weight of the distance to noise."""
    tokens: int = Field(default=256, ge=1)
    """Harmful response tokens used per micro-batch."""


class RepNoise(HarmfulTrainer):
    """SFT, and harmful answers turned to noise; 2 backward passes, no copy of the weights.

    Raises:
        UsageError: The model has no final norm by which its inner layers could be read out.
    """

    Options: ClassVar[type[Options]] = RepNoiseOptions
    neutral: ClassVar[Mapping[str, Any]] = {"alpha": 0.0, "beta": 0.0}
    options: RepNoiseOptions

    def prepare(self) -> None:
        """Find the final norm and the head, which read every layer out."""
        super().prepare()
        model = cast(Any, self.model)
        self.norm, self.head = final_norm(model), cast(nn.Module, model.get_output_embeddings())

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Back-propagate the wanted rows, then the two terms of as many harmful ones."""
        loss = super().accumulate(model, batch, num_items)
        if self.options.alpha == self.options.beta == 0:
            return loss
        noise, harmful = self.harmful_terms(model, self.harmful_batch(rows_of(batch)))
        terms = self.options.beta * noise - self.options.alpha * torch.log1p(harmful)
        terms = terms / self.current_gradient_accumulation_steps
        self.accelerator.backward(terms)
        self.note({"mmd": float(noise.detach()), "harmful_loss": float(harmful.detach())})
        return loss + terms.detach()

    def harmful_terms(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return mean_l MMD^2(h_l, N(0, I)) and mean_l c_l."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with self.compute_loss_context_manager():
            found = model(**inputs, output_hidden_states=True, use_cache=False)
        rows, columns = answer_places(batch["labels"], self.options.tokens)
        wanted = batch["labels"][rows, columns]
        layers = found.hidden_states[1:]
        noise = [_again(mmd_to_noise, h[rows, columns]) for h in layers]
        losses = [_again(self.lens, h[rows, columns - 1], wanted) for h in layers[:-1]]
        losses.append(F.cross_entropy(found.logits[rows, columns - 1].float(), wanted))
        return torch.stack(noise).mean(), torch.stack(losses).mean()

    def lens(
        self,
        states: Tensor,  # (N, d), each before the token that it should predict
        wanted: Tensor,  # (N,)
    ) -> Tensor:
        """Return the mean loss of tokens when a layer is read out as if it were the last."""
        # Under autocast states come in float32 whatever the head's weights are.
        kind = cast(Tensor, self.head.weight).dtype
        return F.cross_entropy(self.head(self.norm(states.to(kind))).float(), wanted)


def mmd(
    x: Tensor,  # (n, d)
    y: Tensor,  # (m, d)
) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, 0 where they are the same.

    The biased estimate, mean k(x, x') + mean k(y, y') - 2 mean k(x, y). The distances come from one
    product, so memory is (n + m)^2 whatever d; centring first keeps it exact for states far from 0.
    """
    both = torch.cat([x, y])
    both = both - both.mean(0)
    products = both @ both.T
    norms = products.diagonal()
    squares = (norms[:, None] + norms - 2 * products).clamp(min=0)
    width = squares.detach().sum() / (len(both) * (len(both) - 1))
    widths = [width * FACTOR ** (i - KERNELS // 2) for i in range(KERNELS)]
    kernel = torch.stack([torch.exp(-squares / w) for w in widths]).sum(0)
    signs = torch.cat([x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), -1 / len(y))])
    return signs @ kernel @ signs


def mmd_to_noise(states: Tensor) -> Tensor:
    """Return the MMD^2 of states (N, d) to as many draws from N(0, I), in float32."""
    states = states.float()
    return mmd(states, torch.randn_like(states))


def answer_places(
    labels: Tensor,  # (B, T)
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Return rows and columns of at most `limit` answer tokens, (N,) each; of more, a random draw.

    The first token of a row is never predicted and never among them.
    """
    places = (labels[:, 1:] != IGNORE).nonzero()
    if len(places) > limit:
        places = places[torch.randperm(len(places))[:limit].to(places.device)]
    return places[:, 0], places[:, 1] + 1


def final_norm(model: Any) -> nn.Module:
    """Return the norm between a model's last layer and its head: the one beside the layers.

    Raises:
        UsageError: There is none, or more than one.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        parts = list(module.children())
        if any(isinstance(part, nn.ModuleList) and len(part) == depth for part in parts):
            norms = [part for part in parts if type(part).__name__.lower().endswith("norm")]
            if len(norms) == 1:
                return cast(nn.Module, norms[0])
    raise UsageError(
        f"repnoise reads every layer through the model's final norm and head, and "
        f"{model.config.model_type!r} as configured has no single final norm; use another method"
    )


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a function and keep its inputs only; for the gradient it is computed again."""
    return cast(Tensor, checkpoint(function, *inputs, use_reentrant=False))
