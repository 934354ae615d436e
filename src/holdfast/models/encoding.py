"""Encoding rows as tokens: prompts, answers and padded batches.

Responses are truncated on the right at `max_length` or at the model's context, whichever is
shorter. A prompt that leaves no room for an answer cannot be used: `rows_that_fit` leaves such
rows out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.options import Options
from holdfast.rows.readers import warn_once

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


NO_ROOM = "prompt leaves no room for an answer"
"""The reason with which `rows_that_fit` and `answerable` leave rows out."""
IGNORE = -100
"""Label of tokens excluded from the loss, as in transformers."""
PLAIN_PROMPT = "User: {prompt}\nAssistant: "
"""Format of a prompt for a tokenizer without a chat template."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one row: the prompt, then the answer from position `start`."""

    ids: tuple[int, ...]
    start: int


def prompt_texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return the text of each prompt up to where the answer begins."""
    if not tokenizer.chat_template:
        return [PLAIN_PROMPT.format(prompt=prompt) for prompt in prompts]
    return chat_texts(tokenizer, [[("user", p)] for p in prompts], add_generation_prompt=True)


def answer_texts(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, befores: Sequence[str] | None = None
) -> list[str]:
    """Return the text after each prompt in training: the response in the chat template's format.

    Args:
        tokenizer: With or without a chat template.
        examples: The rows.
        befores: Their `prompt_texts`, if already computed (filling in a template is slow).
    """
    if not tokenizer.chat_template:
        return examples.responses
    wholes = chat_texts(
        tokenizer,
        [[("user", row.prompt), ("assistant", row.response)] for row in examples],
        add_generation_prompt=False,
    )
    befores = prompt_texts(tokenizer, examples.prompts) if befores is None else befores
    return [
        whole[len(before) :] if whole.startswith(before) else response
        for whole, before, response in zip(wholes, befores, examples.responses, strict=True)
    ]


def chat_texts(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Sequence[tuple[str, str]]],
    *,
    add_generation_prompt: bool,
) -> list[str]:
    """Format conversations, each a sequence of (role, text) turns, with the chat template."""
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in turns]
    if not chats:
        return []
    texts = tokenizer.apply_chat_template(
        chats, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return [str(text) for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt, with special tokens added once."""
    return _encode_texts(tokenizer, prompt_texts(tokenizer, prompts))


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=not tokenizer.chat_template)["input_ids"]
    if tokenizer.chat_template:
        return cast("list[list[int]]", encoded)
    # Some tokenizers append the end token to every text, but an answer follows here.
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int
) -> list[Encoded]:
    """Encode rows, each with a final end token; long rows are truncated on the right.

    Raises:
        UsageError: A prompt leaves no room for its answer.
    """
    encoded: list[Encoded] = []
    for row, (prompt, answer) in zip(examples, _tokens(tokenizer, examples), strict=True):
        if len(prompt) >= max_length:
            raise UsageError(
                f"{examples.name}: the prompt of row {len(encoded) + 1} (id {row.id}) has "
                f"{len(prompt)} tokens and leaves no room for an answer in {max_length}; raise "
                "max_length (--estimator NAME,max_length=N for an estimator, --max-length N "
                "elsewhere) or remove the row"
            )
        encoded.append(Encoded(tuple([*prompt, *answer][:max_length]), len(prompt)))
    return encoded


def _tokens(
    tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens of each prompt and of its answer, with the end token."""
    if not examples:
        return
    befores = prompt_texts(tokenizer, examples.prompts)
    prompts = _encode_texts(tokenizer, befores)
    texts = answer_texts(tokenizer, examples, befores)
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for prompt, answer in zip(prompts, answers, strict=True):
        end = [] if tokenizer.eos_token_id in answer else [tokenizer.eos_token_id]
        yield prompt, [*answer, *end]


def context_length(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens of a model's input; None if its config has no limit."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit


def usable_length(model: PreTrainedModel, max_length: int) -> int:
    """Return `max_length` or the model's context length, whichever is shorter."""
    limit = context_length(model)
    return max_length if limit is None else min(max_length, limit)


def rows_that_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
) -> Examples:
    """Return the rows whose prompt leaves room for an answer in `max_length` and in the context.

    Raises:
        UsageError: No row is left.
    """
    length = usable_length(model, max_length)
    prompts = encode_prompts(tokenizer, examples.prompts)
    too_long = {i: NO_ROOM for i, ids in enumerate(prompts) if len(ids) >= length}
    if not too_long:
        return examples
    first = min(too_long)
    if len(too_long) == len(examples):
        raise UsageError(
            f"{examples.name}: no prompt leaves room for an answer in {length} tokens (the "
            f"first has {len(prompts[first])}); raise max_length (--estimator NAME,max_length=N "
            "for an estimator, --max-length N elsewhere), or use a model with a longer context"
        )
    warn_once(
        f"{examples.name}: {len(too_long)} of {len(examples)} rows left out, because the prompt "
        f"leaves no room for an answer in {length} tokens (first: {examples.ids[first]})"
    )
    return examples.without(too_long)


def answerable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Examples,
    max_new_tokens: int,
) -> Examples:
    """Return the rows whose prompt leaves room for an answer of this length in the context.

    Raises:
        UsageError: No row is left.
    """
    limit = context_length(model)
    if limit is None or not prompts:
        return prompts
    return rows_that_fit(model, tokenizer, prompts, limit - max_new_tokens + 1)


def encode_rows_that_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
) -> list[Encoded]:
    """Encode the rows whose prompt leaves room for an answer, within the model's context.

    Raises:
        UsageError: There are no rows, or none fits.
    """
    if not examples:
        raise UsageError(f"{examples.name}: no rows to train on; give at least one")
    rows = rows_that_fit(model, tokenizer, examples, max_length)
    return encode(tokenizer, rows, usable_length(model, max_length))


Owner = TypeVar("Owner")


def fields_that_fit(
    owner: Owner, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Owner:
    """Return a copy of a value whose row fields hold only the rows that fit.

    Args:
        owner: A plug-in or a dataclass with fields of type `Examples`.
        model: The model whose context limits the length.
        tokenizer: Its tokenizer.
        max_length: Maximum number of tokens per row.
    """
    changes = {}
    for name, rows in vars(owner).items():
        if isinstance(rows, Examples) and rows:
            fitting_rows = rows_that_fit(model, tokenizer, rows, max_length)
            if len(fitting_rows) < len(rows):
                changes[name] = fitting_rows
    if not changes:
        return owner
    if isinstance(owner, Options):
        return owner.changed(**changes)
    return cast("Owner", dataclasses.replace(cast(Any, owner), **changes))


def encode_rows_to_rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
) -> list[Encoded]:
    """Encode rows that will be ranked, within the model's context.

    Raises:
        UsageError: There are fewer than two rows, or a prompt leaves no room for its answer.
    """
    if len(examples) < 2:
        raise UsageError(
            f"{examples.name}: scores rank examples, and {len(examples)} cannot be ranked; "
            "give at least 2 rows"
        )
    return encode(tokenizer, examples, usable_length(model, max_length))


def check_context(model: PreTrainedModel, rows: Sequence[Encoded], name: str) -> None:
    """Check that no row is longer than the model's context.

    Raises:
        UsageError: A row is too long.
    """
    limit = context_length(model)
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(row.ids) > limit:
            raise UsageError(
                f"{name}: row {number} has {len(row.ids)} tokens, but the model's context is "
                f"{limit}; remove the row"
            )


def collate(
    rows: Sequence[Encoded], pad: int, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Pad rows on the right; return input_ids, attention_mask and labels, each (B, T)."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        mask[i, :length] = 1
        labels[i, row.start : length] = ids[i, row.start : length]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}
