"""Batched generation, greedy or sampled; in float32 the text does not depend on the batch.

In bfloat16 (`precision.computing`) rounding can turn a token where two are almost equally likely,
and with it the rest of the answer; `benchmarks/answers.py` measures how often verdicts change. The
logits are then compared, and sampled from, in float32 and float64 as ever.

The random numbers of a sampled answer depend on its prompt, not on its place in a batch: the t-th
token is the first whose cumulative probability, in vocabulary order, exceeds the t-th number of a
generator seeded by the prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import UsageError
from holdfast.models.decoding import Choose, Decoder, bfloat16_copy, greedy
from holdfast.models.encoding import encode_prompts
from holdfast.models.endings import own_settings
from holdfast.models.modes import evaluation_mode
from holdfast.models.precision import computing, in_float32
from holdfast.models.templates import frame_of
from holdfast.rows.readers import warn_once
from holdfast.rows.thoughts import Response, split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 for greedy decoding; above 0, tokens are sampled.
        top_p: Sample from the smallest set of most likely tokens with this total probability.
        seed: Random seed.
        draw: Index of the answer, if a prompt is answered several times.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    draw: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"temperature {self.temperature:g} and top_p {self.top_p:g}: temperature must not "
                "be negative, and top_p must be above 0 and at most 1"
            )

    def prompt_seed(self, prompt: str) -> int:
        """Return the 32-bit seed of the answer to a prompt."""
        text = f"{self.seed}\0{self.draw}\0{prompt}"
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)

    def uniforms(self, prompt: str, n: int) -> np.ndarray:
        """Return the random numbers in [0, 1) for the first n tokens, (n,) float64."""
        return np.random.default_rng(self.prompt_seed(prompt)).random(n)


GREEDY = Sampling()
BATCH_BYTES = 2 * 2**30
"""Memory for a batch, beside the weights; on an accelerator it is at least an eighth of all."""
FIRST_TOP_TOKENS = 32
"""How many of the most likely tokens are searched first for the set that makes up `top_p`."""


def generate(  # noqa: PLR0913  # all but three have a default
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
    sampling: Sampling = GREEDY,
) -> list[str]:
    """Answer every prompt and return the answers without thoughts, in the order of the prompts.

    An answer that does not begin in `max_new_tokens` tokens is "". For arguments and errors see
    `respond`.
    """
    responses = respond(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        sampling=sampling,
    )
    return [response.text for response in responses]


def respond(  # noqa: PLR0913  # all but three have a default
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
    sampling: Sampling = GREEDY,
) -> list[Response]:
    """Answer every prompt and return the responses in the order of the prompts.

    Rows are sorted by length to minimize padding, which is on the left and masked. The model's
    training mode and generation settings are restored afterwards; of these settings, only the end
    tokens are used.

    Raises:
        UsageError: A prompt with its answer does not fit the model's context, or the chat template
            cannot be used.
    """
    encoded = encode_prompts(tokenizer, prompts)
    _check_fits(model, prompts, encoded, max_new_tokens)
    responses = _continue(
        model,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        choosing=lambda positions: _choosing(
            sampling, [prompts[i] for i in positions], max_new_tokens
        ),
        opened=frame_of(tokenizer).opened,
    )
    report_unfinished(responses, max_new_tokens)
    return responses


def report_unfinished(responses: Sequence[Response], max_new_tokens: int) -> None:
    """Warn if responses end before their answers begin."""
    unfinished = sum(response.unfinished for response in responses)
    if unfinished:
        warn_once(
            f"{unfinished} of {len(responses)} responses end inside a think block within "
            f"{max_new_tokens} tokens, so they have no answer and are undecided; allow longer "
            "ones with --max-new-tokens N (max_new_tokens=N of a judge or estimator)"
        )


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    opened: bool = False,
) -> list[Response]:
    """Continue every row of tokens greedily, and return the responses in row order.

    Args:
        model: The model that generates.
        tokenizer: Its tokenizer.
        encoded: Rows of tokens.
        max_new_tokens: Maximum number of added tokens.
        batch_size: Rows per batch at most; the longest rows come first.
        opened: Whether the rows end inside a think block.
    """
    return _continue(
        model,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        choosing=lambda positions: greedy,
        opened=opened,
    )


def _continue(  # noqa: PLR0913  # the arguments of its two callers
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    choosing: Callable[[Sequence[int]], Choose],
    opened: bool,
) -> list[Response]:
    """Continue every row of tokens; `choosing` maps positions of rows to what chooses tokens."""
    responses = [Response("")] * len(encoded)
    if not encoded:
        return responses
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
    with ready_to_answer(model) as answering, own_settings(answering, tokenizer) as settings:
        settings.max_new_tokens = max_new_tokens
        decoder = Decoder(answering, settings, encoded)
        longest = len(encoded[order[0]]) + max_new_tokens
        size = rows_at_once(answering, len(order), longest, batch_size)
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            added = decoder([encoded[i] for i in indices], choosing(indices))
            batch = decode_responses(tokenizer, added, opened=opened)
            for i, response in zip(indices, batch, strict=True):
                responses[i] = response
    return responses


def rows_at_once(model: PreTrainedModel, rows: int, longest: int, most: int) -> int:
    """Return the number of rows per batch: batches of equal size that fit the memory for them.

    What a row takes is estimated from the configuration: keys and values of all its tokens, the
    widest activations of one layer, and its logits in float32 and float64. It does not depend on
    how much memory is free at the moment, since in bfloat16 a batch can change an answer.

    Args:
        model: Answers.
        rows: Number of all rows.
        longest: Tokens of the longest row with its answer.
        most: Rows per batch at most.
    """
    config: Any = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1
    width = config.hidden_size
    key_width = getattr(config, "head_dim", None) or width // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    states = 2 * config.num_hidden_layers * key_heads * key_width
    activations = 4 * inner + 4 * width
    bytes_per_row: int = longest * (states + activations) * model.dtype.itemsize
    bytes_per_row += config.vocab_size * (4 + 8)
    fitting = max(1, _memory(model.device) // bytes_per_row)
    batches = math.ceil(rows / min(most, fitting))
    return math.ceil(rows / batches)


def _memory(device: torch.device) -> int:
    """Return the bytes that a batch may take."""
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return max(BATCH_BYTES, total // 8)
    return BATCH_BYTES


@contextlib.contextmanager
def ready_to_answer(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Put a model into evaluation mode, or a copy in bfloat16 if that is the current precision."""
    with evaluation_mode(model), in_float32(model.device):
        if computing() == "float32":
            yield model
        else:
            yield bfloat16_copy(model)


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, tokens: list[list[int]], *, opened: bool
) -> list[Response]:
    """Return the responses that rows of generated tokens stand for.

    Some tokenizers count the tags around thoughts as special tokens, which decoding drops. Thoughts
    are therefore looked for in the text with its special tokens.

    Args:
        tokenizer: The model's tokenizer.
        tokens: Rows of generated tokens, perhaps with end and padding tokens.
        opened: Whether the prompts end inside a think block.
    """
    # Some tokenizers' files ask for blanks to be removed, which changes what the model wrote.
    as_written: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, **as_written)
    whole_texts = tokenizer.batch_decode(tokens, skip_special_tokens=False, **as_written)
    responses = [split(whole, opened=opened) for whole in whole_texts]
    special = list(filter(None, tokenizer.all_special_tokens))
    ends = list(filter(None, (tokenizer.pad_token, tokenizer.eos_token)))
    return [
        Response(
            _without(special, response.text).strip(),
            _without(ends, response.thoughts),
            response.unfinished,
        )
        if response.thoughts
        else Response(text.strip())
        for text, response in zip(texts, responses, strict=True)
    ]


def _without(tokens: Sequence[str], text: str) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text


def _choosing(sampling: Sampling, prompts: Sequence[str], n: int) -> Choose:
    """Return how the tokens of answers to prompts are chosen."""
    if not sampling.temperature:
        return greedy
    uniforms = torch.tensor(np.array([sampling.uniforms(prompt, n) for prompt in prompts]))
    return _TokenSampler(uniforms, sampling)


class _TokenSampler:
    """Chooses, for each row, the token that its next random number selects."""

    def __init__(self, uniforms: Tensor, sampling: Sampling) -> None:
        self.uniforms = uniforms
        self.sampling = sampling

    def __call__(self, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        self.uniforms = self.uniforms.to(logits.device)
        return self._select(logits, self.uniforms[rows, step, None])[:, 0]

    def _select(self, scores: Tensor, uniform: Tensor) -> Tensor:
        last = scores.shape[-1] - 1
        # In float64, so that sums over a large vocabulary do not depend on the batch.
        probabilities = (scores.double() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            threshold = _smallest_in_nucleus(probabilities, self.sampling.top_p)
            probabilities = probabilities.where(probabilities >= threshold, 0.0)
        cumulative = probabilities.cumsum(-1)
        target = uniform * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).clamp(max=last)


def _smallest_in_nucleus(probabilities: Tensor, share: float) -> Tensor:
    """Return the smallest probability in each row's smallest set that reaches a share, (B, 1).

    A few tokens are usually enough, so the whole vocabulary is sorted only if they are not.
    """
    size = probabilities.shape[-1]
    for width in (min(FIRST_TOP_TOKENS, size), size):
        top = probabilities.topk(width).values
        short = (top.cumsum(-1) < share).sum(-1, keepdim=True)
        if int(short.max()) < width:
            break
    return top.gather(1, short.clamp(max=width - 1))


def _check_fits(
    model: PreTrainedModel,
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or not encoded:
        return
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if len(encoded[longest]) + max_new_tokens > limit:
        raise UsageError(
            f"prompt {longest + 1} of {len(prompts)} has {len(encoded[longest])} tokens; with "
            f"{max_new_tokens} new ones it exceeds the model's context of {limit}. "
            "Shorten the answers (--max-new-tokens N, or the option max_new_tokens of a judge or "
            "estimator) or remove the prompt."
        )
