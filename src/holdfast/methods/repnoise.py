"""RepNoise: push the representations of harmful answers towards noise, at every layer.

Rosati et al., NeurIPS 2024, arXiv 2405.14577. With h_l the hidden states of harmful answers after
layer l, and c_l the loss of these answers when layer l is read out by the model's own head (logit
lens), a step minimizes

    L = l_harmless + beta mean_l MMD^2(h_l, N(0, I)) - alpha log(1 + mean_l c_l).

The first term trains the wanted answers. The second removes from the representations what a later
attack could build on. The third raises the harmful loss; the logarithm keeps it from diverging. The
kernel of MMD is the published one: a sum of `KERNELS` Gaussians whose widths differ by the factor
`FACTOR`, centred on the mean squared distance.

Differences from the published code:

- A sample is the state of one answer token instead of a whole padded row, and only answer tokens
  count. The published mask selects the positions at which a harmful and a harmless row differ, but
  that is meaningless once the prompts differ in length, and it drops every token with id 0.
- h_l is the residual stream after each layer (after the last one, the output of the final norm),
  which every architecture returns. The published code uses the output of the MLPs, read by hooks
  that are never removed and that only match the module names of Llama.
- c_l leaves out the embeddings, which depend on the current token alone, and takes the last layer
  from the model's own logits; the published sum norms it twice and counts it twice.
- At most `tokens` answer tokens of a micro-batch are used, drawn anew each time, and each layer's
  terms are recomputed for the gradient. Memory is one kernel matrix of (2 tokens)^2 and the logits
  of tokens x vocabulary, whatever the depth of the model and the length of the rows. The draw and
  the noise come from torch's generator, which is saved in checkpoints.
- Harmful and harmless rows need not be paired. With accumulation, the two harmful terms, which are
  not sums over rows, are computed per micro-batch and averaged.

The lens ignores what an architecture does to its logits after the head (the soft cap of Gemma 2).
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
from holdfast.models.heads import reading_at
from holdfast.options import Options

KERNELS = 5
"""Number of Gaussians in the kernel of MMD."""
FACTOR = 2.0
"""Ratio of neighbouring widths of the Gaussians."""


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
    """SFT that turns harmful answers into noise; 2 backward passes, no copy of the weights.

    Raises:
        UsageError: The model has no single final norm to read its inner layers through.
    """

    Options: ClassVar[type[Options]] = RepNoiseOptions
    neutral: ClassVar[Mapping[str, Any]] = {"alpha": 0.0, "beta": 0.0}
    options: RepNoiseOptions

    def prepare(self) -> None:
        """Find the final norm and the head."""
        super().prepare()
        model = cast(Any, self.model)
        self.norm = final_norm(model)
        self.head = cast(nn.Module, model.get_output_embeddings())

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Back-propagate the wanted rows, then the two terms of as many harmful rows."""
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
        rows, columns = answer_places(batch["labels"], self.options.tokens)
        mask = torch.zeros_like(batch["labels"], dtype=torch.bool)
        mask[rows, columns - 1] = True
        with self.compute_loss_context_manager(), reading_at(model, mask) as read:
            outputs = model(**inputs, output_hidden_states=True, use_cache=False)
        tokens = batch["labels"][rows, columns]
        layers = outputs.hidden_states[1:]
        distances = [_checkpointed(mmd_to_noise, h[rows, columns]) for h in layers]
        losses = [_checkpointed(self.lens, h[rows, columns - 1], tokens) for h in layers[:-1]]
        losses.append(F.cross_entropy(read(outputs.logits).float(), tokens))
        return torch.stack(distances).mean(), torch.stack(losses).mean()

    def lens(
        self,
        states: Tensor,  # (N, d), each before the token that it predicts
        tokens: Tensor,  # (N,)
    ) -> Tensor:
        """Return the mean loss of tokens when a layer is read out as if it were the last."""
        # Under autocast states are float32 whatever the dtype of the head.
        dtype = cast(Tensor, self.head.weight).dtype
        return F.cross_entropy(self.head(self.norm(states.to(dtype))).float(), tokens)


def mmd(
    x: Tensor,  # (n, d)
    y: Tensor,  # (m, d)
) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, 0 if they are the same.

    This is the biased estimate, mean k(x, x') + mean k(y, y') - 2 mean k(x, y). The distances come
    from one matrix product, so memory is (n + m)^2 whatever d. Centring first keeps them precise
    for states far from 0.
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
    """Return the MMD^2 between states (N, d) and N draws from N(0, I), in float32."""
    states = states.float()
    return mmd(states, torch.randn_like(states))


def answer_places(
    labels: Tensor,  # (B, T)
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Return rows and columns (N,) of answer tokens, row by row; of more than `limit`, a draw.

    The first token of a row is never predicted, so it is left out.
    """
    places = (labels[:, 1:] != IGNORE).nonzero()
    if len(places) > limit:
        drawn = torch.randperm(len(places))[:limit].sort().values
        places = places[drawn.to(places.device)]
    return places[:, 0], places[:, 1] + 1


def final_norm(model: Any) -> nn.Module:
    """Return the norm between the last layer and the head: the one beside the list of layers.

    Raises:
        UsageError: There is no such norm, or more than one.
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


def _checkpointed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a function, storing only its inputs; it is recomputed for the gradient."""
    return cast(Tensor, checkpoint(function, *inputs, use_reentrant=False))
