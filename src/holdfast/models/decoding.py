"""Continuing rows of tokens with a causal language model, a batch at a time.

In float32 the tokens are those of `generate` of transformers. Three things make it faster: the
tokens with which all rows begin pass through the model once, keys and values are written into room
set aside for them instead of being copied for every new token, and rows that have ended leave the
batch. Architectures that need more than attention to the tokens so far (state spaces, several
position ids, positions that are scaled by the longest row) are continued by `generate` itself.

In bfloat16 a rounded copy of the weights computes, which takes half of their memory for as long as
it is in use. Under `torch.autocast`, every pass would convert all frozen weights again.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LogitsProcessorList
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from holdfast.errors import HoldfastError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

Rows = Sequence[Sequence[int]]
"""Tokens of each row."""
Choose = Callable[[Tensor, Tensor, int], Tensor]
"""Maps logits (B, V) float32, the rows they belong to (B,), as positions in the batch, and the
number of tokens added so far to the next tokens (B,)."""
M = TypeVar("M", bound=nn.Module)

ENDED_SHARE = 1 / 8
"""Ended rows leave once they are this share of a batch, because the other rows are copied then."""
LEAST_SHARED = 512
"""A common beginning is computed separately if that saves as many tokens: it takes a pass."""
_PREPARING = (
    "generate",
    "prepare_inputs_for_generation",
    "_prepare_cache_for_generation",
    "_prepare_position_ids_for_generation",
    "_update_model_kwargs_for_generation",
)
"""Methods that architectures override if their passes need other inputs than `_Passes` gives."""


def greedy(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """Choose the most likely token of each row."""
    return logits.argmax(-1)


class Decoder:
    """Continues batches of rows that may begin with the same tokens."""

    def __init__(self, model: PreTrainedModel, settings: GenerationConfig, rows: Rows) -> None:
        """Compute the common beginning of the rows, if that saves time.

        Args:
            model: In evaluation mode.
            settings: End tokens, padding token and number of new tokens; see `own_settings`.
            rows: All rows that will be continued, at least one.
        """
        self.model = model
        self.settings = settings
        self.passes = _Passes(model) if attends_only(model) else None
        self.beginning: list[tuple[Tensor, Tensor]] = []
        shared = shared_length(rows)
        if self.passes is not None and shared * (len(rows) - 1) >= LEAST_SHARED:
            self.beginning = self.passes.states(rows[0][:shared])

    @torch.no_grad()
    def __call__(self, rows: Rows, choose: Choose = greedy) -> list[list[int]]:
        """Return the tokens added to each row, which may include end tokens and padding.

        Raises:
            HoldfastError: A logit was nan or infinite.
        """
        check = _LogitsCheck()
        ids, mask = pad_left(rows, cast(int, self.settings.pad_token_id))
        ids = ids.to(self.model.device)
        mask = mask.to(self.model.device)
        if self.passes is None:
            added = self._generate(ids, mask, choose, check)
        else:
            added = self._decode(self.passes, ids, mask, choose, check)
        check.raise_if_broken()
        return added

    def _decode(
        self, passes: _Passes, ids: Tensor, mask: Tensor, choose: Choose, check: _LogitsCheck
    ) -> list[list[int]]:
        n = self.settings.max_new_tokens
        ends = torch.tensor(self.settings.eos_token_id or [], device=ids.device)
        cache = passes.cache(ids.shape[1] + n - 1)
        self._begin(cache, mask)
        rows = torch.arange(len(ids), device=ids.device)
        added: list[list[int]] = [[] for _ in ids]
        ids = ids[:, cache.get_seq_length() :]
        ended = torch.zeros_like(rows, dtype=torch.bool)
        for step in range(n):
            logits = check(passes(ids, mask, cache))
            tokens = choose(logits, rows, step)
            open_rows = ~ended
            for row, token in zip(
                rows[open_rows].tolist(), tokens[open_rows].tolist(), strict=True
            ):
                added[row].append(token)
            ended |= torch.isin(tokens, ends)
            number = int(ended.sum())
            if number == len(rows) or step == n - 1:
                break
            ids = tokens[:, None]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            if number >= ENDED_SHARE * len(rows):
                left = (~ended).nonzero()[:, 0]
                cache.batch_select_indices(left)
                ids, mask, rows, ended = ids[left], mask[left], rows[left], ended[left]
        return added

    def _begin(self, cache: Cache, mask: Tensor) -> None:
        """Fill a cache with the common beginning, as far as all rows of a batch have it.

        The beginning has T tokens. In the first T columns of a batch, a row with p tokens of
        padding has padding and then the first T - p of them.
        """
        if not self.beginning:
            return
        length = self.beginning[0][0].shape[2]
        padding = (mask == 0).sum(1, keepdim=True)
        columns = torch.arange(length, device=mask.device) - padding
        # The keys under padding are masked: any numbers will do.
        columns = columns.clamp(min=0)
        for layer, (keys, values) in zip(_rooms(cache), self.beginning, strict=True):
            layer.update(_shifted(keys, columns), _shifted(values, columns))

    def _generate(
        self, ids: Tensor, mask: Tensor, choose: Choose, check: _LogitsCheck
    ) -> list[list[int]]:
        processors = LogitsProcessorList([check, _OnlyChosen(choose)])
        output = self.model.generate(  # type: ignore[operator]  # stubs lack this mixin
            input_ids=ids,
            attention_mask=mask,
            generation_config=self.settings,
            logits_processor=processors,
        )
        added: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return added


class _Passes:
    """Forward passes of a model over new tokens, after those in a cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.parameters = inspect.signature(_unwrapped(model).forward).parameters
        self.cache_name = _cache_name(self.parameters)
        self.layers = len(DynamicCache(config=_unwrapped(model).config).layers)

    def cache(self, room: int) -> Cache:
        """Return an empty cache with room for a number of tokens."""
        return Cache(layers=[_Room(room) for _ in range(self.layers)])

    @torch.no_grad()
    def states(self, tokens: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values of one row of tokens, (1, heads, T, d) in each layer."""
        ids = torch.tensor([tokens], device=self.model.device)
        cache = self.cache(len(tokens))
        self(ids, torch.ones_like(ids), cache)
        return [(layer.all_keys, layer.all_values) for layer in _rooms(cache)]

    def __call__(self, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Return the logits after the last token, (B, V) float32, and add the tokens to the cache.

        Args:
            ids: New tokens, (B, T).
            mask: 0 for padding, which is on the left; (B, tokens in the cache + T).
            cache: Changed in place.
        """
        new = ids.shape[1]
        optional: dict[str, Any] = {}
        if "position_ids" in self.parameters:
            optional["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        if "logits_to_keep" in self.parameters and new > 1:
            # As a number it would leave a view of the hidden states whose product with the
            # vocabulary copies the vocabulary's weights once for every row.
            optional["logits_to_keep"] = torch.tensor([new - 1], device=ids.device)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            return_dict=True,
            **{self.cache_name: cache},
            **optional,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


class _Room(DynamicLayer):
    """A layer's keys and values, written into room for a number of tokens.

    A sliding window is left to the mask: tokens outside it stay in the cache.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.length = 0
        self.all_keys = torch.empty(0)
        self.all_values = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.all_keys = _with_room(key_states, self.room)
        self.all_values = _with_room(value_states, self.room)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.all_keys[:, :, self.length : end] = key_states
        self.all_values[:, :, self.length : end] = value_states
        self.length = end
        self._show()
        return self.all_keys[:, :, :end], self.all_values[:, :, :end]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.all_keys = self.all_keys[indices]
        self.all_values = self.all_values[indices]
        self._show()

    def _show(self) -> None:
        self.keys = self.all_keys[:, :, : self.length]
        self.values = self.all_values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length


def _rooms(cache: Cache) -> list[_Room]:
    return cast("list[_Room]", cache.layers)


def _with_room(states: Tensor, room: int) -> Tensor:
    rows, heads, _, width = states.shape
    return states.new_empty(rows, heads, room, width)


def _shifted(states: Tensor, columns: Tensor) -> Tensor:
    """Return the states (1, heads, T, d) of one row at the columns (B, T) of many."""
    return states[0][:, columns].transpose(0, 1)


class _OnlyChosen:
    """Logits processor that leaves, for each row, only the chosen token."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(scores), device=scores.device)
        tokens = self.choose(scores, rows, self.step)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _LogitsCheck:
    """Notes whether a logit was nan or infinite.

    Of such logits, greedy decoding takes an arbitrary token, often the first of the vocabulary
    again and again.
    """

    def __init__(self) -> None:
        self.broken: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the last input, the logits (B, V); processors of transformers get ids first."""
        logits = inputs[-1]
        # The largest logit is nan if one of them is. -inf is allowed: it rules a token out.
        broken = ~logits.amax(-1).isfinite().all()
        self.broken = broken if self.broken is None else self.broken | broken
        return logits

    def raise_if_broken(self) -> None:
        """Raise HoldfastError if there was such a logit."""
        if self.broken is not None and bool(self.broken):
            raise HoldfastError(
                "the model's logits became nan or infinite, so what it answers means nothing; it "
                "may overflow in its number format (try it on the CPU, in float32), "
                "or be damaged: give an earlier checkpoint"
            )


def pad_left(rows: Rows, pad: int) -> tuple[Tensor, Tensor]:
    """Return tokens and mask, each (B, T), with the padding on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def shared_length(rows: Rows) -> int:
    """Return the number of tokens with which all rows begin; two of each row are not counted.

    One token goes through the model to be continued. With one more, a pass over what follows the
    beginning is never mistaken for one that adds a token to an answer (`cost.measure_cost`).
    """
    # Rows between the smallest and the largest begin with what these two have in common.
    smallest = min(map(list, rows))
    largest = max(map(list, rows))
    most = max(0, min(map(len, rows)) - 2)
    differing = (i for i in range(most) if smallest[i] != largest[i])
    return next(differing, most)


def attends_only(model: PreTrainedModel) -> bool:
    """Return whether a model's passes depend on nothing but the tokens so far and their positions.

    Then keys and values can be computed for a part of the tokens, shifted, and dropped row by row.
    """
    if not _adapters_are_lora(model):
        return False
    inner: Any = _unwrapped(model)
    config = inner.config.get_text_config(decoder=True)
    prepares_itself = any(
        getattr(type(inner), name, None) is not getattr(GenerationMixin, name, None)
        for name in _PREPARING
    )
    if prepares_itself or config.is_encoder_decoder or inner._is_stateful:
        return False
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    # Positions that depend on the longest row, and windows that begin at multiples of their size.
    scaled = any(kind in str(getattr(config, "rope_parameters", "")) for kind in _SCALED)
    if scaled or getattr(config, "attention_chunk_size", None):
        return False
    layers = DynamicCache(config=inner.config).layers
    names = inspect.signature(inner.forward).parameters
    return (
        bool(layers)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        and {_cache_name(names), "attention_mask"} <= set(names)
    )


_SCALED = ("dynamic", "longrope")
"""Types of rotary positions that change with the longest row of a batch."""


def _adapters_are_lora(model: Any) -> bool:
    """Return whether a model has no adapters, or LoRA that is active for all tokens."""
    configs = getattr(model, "peft_config", {}).values()
    return all(
        config.peft_type == "LORA" and not getattr(config, "alora_invocation_tokens", None)
        for config in configs
    )


def _unwrapped(model: Any) -> Any:
    """Return the model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _cache_name(parameters: Any) -> str:
    """Return what this version of transformers calls the cache."""
    return "cache" if "cache" in parameters else "past_key_values"


def bfloat16_copy(model: M) -> M:
    """Return a copy whose weights are rounded to bfloat16; buffers stay as they are."""
    rounded = {
        id(weight): nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, cast("dict[int, Any]", rounded))
