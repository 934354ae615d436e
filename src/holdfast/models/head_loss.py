"""The loss of answer tokens from hidden states, in blocks: memory for logits has a bound.

The output layer of Gemma 3 has 262 144 rows: the logits of one position take a megabyte, and a
training step holds them several times. Here each block of logits is turned into its part of the
loss and of the gradients at once, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989), so that
at most `BLOCK_BYTES` of them exist. Nothing is computed twice.

This bypasses the model's own code behind the output layer, so it is used only for a linear layer
and only if the model's logits are those of `Readout`, which is checked once for every model. Other
models, and weights that are sharded over processes, go through `heads.logits_at`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.models.heads import (
    has_own_loss,
    last_states,
    logits_at,
    mean_nll,
    output_layer,
    predicting,
    reading_at,
    states_before,
    tokens_at,
    unwrapped,
    values_at,
    with_columns,
)
from holdfast.models.processes import is_sharded

BLOCK_BYTES = 400 * 2**20
"""Most bytes of float32 logits that exist at a time."""

_reads_last_states: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_readouts: WeakKeyDictionary[nn.Module, Readout | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class Readout:
    """What a model does to hidden states to get logits: cap * tanh(scale * (W h + b) / cap).

    Attributes:
        layer: The output layer.
        scale: Factor on the logits.
        cap: Soft cap of the logits; 0 for none.
    """

    layer: nn.Linear
    scale: float = 1.0
    cap: float = 0.0

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (N, V) of hidden states (N, H)."""
        logits = F.linear(states, self.layer.weight, self.layer.bias) * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def nll(self, states: Tensor, tokens: Tensor, num_items: Tensor | float | None) -> Tensor:
        """Return the summed loss of tokens (N,) divided by `num_items`, or the mean."""
        dtype = computed_in(self.layer)
        divisor = len(tokens) if num_items is None else float(num_items)
        with torch.autocast(states.device.type, enabled=False):
            apply: Any = _BlockwiseNll.apply
            loss = apply(states, self.layer.weight, self.layer.bias, tokens, divisor, self, dtype)
        return cast(Tensor, loss)


def answer_loss(
    model: nn.Module, batch: Mapping[str, Any], num_items: Tensor | float | None = None
) -> Tensor:
    """Return the loss over a batch's labelled tokens, as transformers computes it.

    Args:
        model: A causal language model.
        batch: Its inputs with labels (B, T).
        num_items: Divisor of the summed loss; None for the mean over the batch.
    """
    if has_own_loss(model):
        count = {} if num_items is None else {"num_items_in_batch": num_items}
        return cast(Tensor, model(**batch, **count).loss)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    mask = predicting(batch["labels"])
    tokens = tokens_at(batch["labels"], mask)
    values, readout = _states_or_logits(model, inputs, mask)
    if readout is None:
        return mean_nll(values, tokens, num_items)
    return readout.nll(values, tokens, num_items)


def answer_loss_and_logits(
    model: nn.Module,
    batch: Mapping[str, Any],
    columns: Tensor,  # (B,)
    num_items: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `answer_loss` and the logits (B, V) at one more position of each row.

    For a model with a loss of its own, this is the mean loss of the answer tokens.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    mask = predicting(batch["labels"])
    tokens = tokens_at(batch["labels"], mask)
    extended, places = with_columns(mask, columns)
    is_answer = mask[extended]
    values, readout = _states_or_logits(model, inputs, extended)
    if readout is None:
        return mean_nll(values[is_answer], tokens, num_items), values[places]
    return readout.nll(values[is_answer], tokens, num_items), readout.logits(values[places])


def loss_and_logits_of_one_pass(
    model: nn.Module,
    loss: Callable[[], Tensor],
    inputs: Mapping[str, Any],
    mask: Tensor,  # (B, T) bool
) -> tuple[Tensor, Tensor]:
    """Return a loss, and the logits (N, V) at the positions of a mask from the same pass.

    The logits take a pass of their own if the model's last hidden states do not give them, which is
    checked once for every model: with dropout, for example, two passes differ.

    Args:
        model: A causal language model.
        loss: Runs the model on the inputs, in whatever way, and returns the loss.
        inputs: The inputs, without labels.
        mask: The positions to read.
    """
    inner = unwrapped(model)
    with last_states(model) as passes:
        value = loss()
    if len(passes) == 1 and len(passes[0]) == len(mask):
        states = values_at(passes[0], mask)
        if inner not in _reads_last_states:
            _reads_last_states[inner] = _give_the_logits(states, model, inputs, mask)
        readout = _readouts.get(inner)
        if readout is not None and _reads_last_states[inner]:
            return value, readout.logits(states)
    return value, logits_at(model, inputs, mask)


@torch.no_grad()
def _give_the_logits(
    states: Tensor, model: nn.Module, inputs: Mapping[str, Any], mask: Tensor
) -> bool:
    """Return whether the readout of states (N, H) is what the model computes in another pass."""
    # A resumed run checks in another step than the uninterrupted one did.
    with torch.random.fork_rng([states.device] if states.is_cuda else []):
        found, readout = _states_or_logits(model, inputs, mask)
    return readout is not None and _agree(readout, states, readout.logits(found))


def readout_of(model: nn.Module) -> Readout | None:
    """Return how a model's logits come from its hidden states; None if that is not known."""
    return _readouts.get(unwrapped(model))


def _states_or_logits(
    model: nn.Module,
    inputs: Mapping[str, Any],
    mask: Tensor,  # (B, T) bool
) -> tuple[Tensor, Readout | None]:
    """Run a model, and return what it has at the positions of a mask.

    Returns:
        Its hidden states (N, H) and how to read them; or its logits (N, V) and None.
    """
    inner = unwrapped(model)
    layer = output_layer(inner)
    if type(layer) is not nn.Linear or not _can_read(layer) or not mask.any():
        return logits_at(model, inputs, mask), None
    if inner not in _readouts:
        return _first_pass(model, layer, inputs, mask)
    readout = _readouts[inner]
    if readout is None:
        return logits_at(model, inputs, mask), None
    if readout.layer is not layer:  # it was replaced, for example by one with more words
        return _first_pass(model, layer, inputs, mask)
    with states_before(layer, mask) as states:
        model(**inputs)
    return states[0], readout


def _can_read(layer: nn.Linear) -> bool:
    """Return whether an output layer can be read in blocks now."""
    if is_sharded([layer.weight]) or "forward" in vars(layer):
        return False
    # Gradients in float16 vanish unless the loss is scaled before they are computed.
    return torch.float16 not in (computed_in(layer), layer.weight.dtype)


def _first_pass(
    model: nn.Module, layer: nn.Linear, inputs: Mapping[str, Any], mask: Tensor
) -> tuple[Tensor, Readout | None]:
    """Do `_states_or_logits` for a model that was not read before, and learn how it is read."""
    inner = unwrapped(model)
    with reading_at(model, mask) as read, _capturing(layer) as captured:
        logits = read(model(**inputs).logits)
    readout = Readout(layer, *_settings(inner))
    agrees = len(captured) == 1 and _agree(readout, captured[0][0], logits)
    _readouts[inner] = readout if agrees else None
    return (captured[0][0], readout) if agrees else (logits, None)


@torch.no_grad()
def _agree(readout: Readout, states: Tensor, logits: Tensor) -> bool:
    """Return whether a readout gives a model's own logits."""
    if states.shape[:-1] != logits.shape[:-1]:
        return False
    error = float((readout.logits(states).float() - logits.float()).abs().max())
    # Half precision rounds to 1/256; another rule changes far more.
    half = torch.bfloat16 in (computed_in(readout.layer), readout.layer.weight.dtype)
    return error <= (1e-2 if half else 1e-4) * float(logits.abs().max())


def computed_in(module: nn.Module) -> torch.dtype | None:
    """Return the type to which autocast rounds at the moment; None without autocast."""
    device = next(module.parameters()).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _settings(model: nn.Module) -> tuple[float, float]:
    """Return scale and soft cap of the logits by the model's configuration."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None) or 0.0
    return float(scale) / float(divisor), float(cap)


@contextlib.contextmanager
def _capturing(layer: nn.Module) -> Iterator[list[Tensor]]:
    captured: list[Tensor] = []

    def capture(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        captured.append(inputs[0])

    handle = layer.register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()


class _BlockwiseNll(torch.autograd.Function):
    """The loss and, in the same pass, its gradients by hidden states, weight and bias."""

    @staticmethod
    def forward(  # noqa: PLR0913  # what torch passes on
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        divisor: float,
        readout: Readout,
        dtype: torch.dtype | None,
    ) -> Tensor:
        blocks = _Blocks(states, weight, bias, ctx.needs_input_grad[:3], dtype)
        size = max(1, BLOCK_BYTES // (4 * len(weight)))
        total = torch.zeros((), dtype=blocks.wide, device=states.device)
        for start in range(0, len(states), size):
            total += blocks.add(slice(start, start + size), tokens, divisor, readout)
        ctx.save_for_backward(*(g for g in blocks.gradients if g is not None))
        ctx.has = [g is not None for g in blocks.gradients]
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        factor = outputs[0]
        unit = factor.device.type == "cpu" and float(factor) == 1
        gradients = [next(saved) if has else None for has in ctx.has]
        if not unit:
            gradients = [None if g is None else g * factor for g in gradients]
        return (*gradients, None, None, None, None)


class _Blocks:
    """The gradients, to which every block of positions adds its part.

    Attributes:
        gradients: By states, weight and bias; None for what needs none, and before the first block.
        wide: Type in which losses are computed.
    """

    def __init__(
        self,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needed: tuple[bool, ...],
        dtype: torch.dtype | None,
    ) -> None:
        self.narrow = dtype or weight.dtype
        self.wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.weight_dtype = weight.dtype
        self.states = states
        self.weight = weight.detach().to(self.narrow)
        self.bias = None if bias is None else bias.detach().to(self.narrow)
        sources = (states, weight, bias)
        self.needed = [
            need and source is not None for source, need in zip(sources, needed, strict=True)
        ]
        self._by_states = torch.empty_like(states) if self.needed[0] else states
        by_states = self._by_states if self.needed[0] else None
        self.gradients: list[Tensor | None] = [by_states, None, None]

    def add(self, rows: slice, tokens: Tensor, divisor: float, readout: Readout) -> Tensor:
        """Return the summed loss of some positions, and add their gradients."""
        states = self.states[rows].to(self.narrow)
        logits = F.linear(states, self.weight, self.bias).to(self.wide)
        if readout.scale != 1:
            logits.mul_(readout.scale)
        slope = None
        if readout.cap:
            logits.div_(readout.cap).tanh_()
            slope = 1 - logits.square()
            logits.mul_(readout.cap)
        targets = tokens[rows, None]
        own = logits.gather(1, targets)
        peak = logits.amax(1, keepdim=True)
        odds = logits.sub_(peak).exp_()
        mass = odds.sum(1, keepdim=True)
        loss = (mass.log() + peak - own).sum()
        if any(self.needed):
            slopes = odds.div_(mass)
            slopes.scatter_add_(1, targets, torch.full_like(own, -1.0))
            slopes.mul_(readout.scale / divisor)
            if slope is not None:
                slopes.mul_(slope)
            self._back_propagate(rows, states, slopes.to(self.narrow))
        return loss

    def _back_propagate(self, rows: slice, states: Tensor, slopes: Tensor) -> None:
        by_states, by_weight, by_bias = self.needed
        if by_states:
            self._by_states[rows] = slopes @ self.weight
        if by_weight:
            self._add(1, slopes.T @ states)
        if by_bias:
            self._add(2, slopes.sum(0))

    def _add(self, place: int, part: Tensor) -> None:
        """Add a block's part; there is often one block only, and then nothing to add it to."""
        total = self.gradients[place]
        if total is None:
            self.gradients[place] = part.to(self.weight_dtype)
        else:
            total.add_(part)
