"""Rows as tokens: prompts, answers, and padded batches.

Responses are cut on the right at `max_length` or at the model's context, whichever is shorter. A
prompt that leaves no room for an answer cannot be used: `rows_that_fit` leaves such rows out.
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
"""Why `rows_that_fit` and `answerable` leave rows out."""
IGNORE = -100
"""Label of tokens that do not count in the loss, as in transformers."""
PLAIN_PROMPT = "User: {prompt}\nAssistant: "
"""How a prompt is shown to a model whose tokenizer has no chat template."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as tokens: the prompt's, then the answer's from position `start` on."""

    ids: tuple[int, ...]
    start: int


def prompt_texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return the texts that the model sees before it answers."""
    if not tokenizer.chat_template:
        return [PLAIN_PROMPT.format(prompt=prompt) for prompt in prompts]
    return chat_texts(tokenizer, [[("user", p)] for p in prompts], add_generation_prompt=True)


def answer_texts(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, befores: Sequence[str] | None = None
) -> list[str]:
    """Return what follows each prompt in training: the response as the template writes it.

    Args:
        tokenizer: With or without a chat template.
        examples: Rows.
        befores: Their `prompt_texts`, where the caller has them: a template is slow to fill in.
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
    """Return what the chat template makes of conversations, each of (role, text) turns."""
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in turns]
    if not chats:
        return []
    texts = tokenizer.apply_chat_template(
        chats, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return [str(text) for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt; the template's special tokens are added once."""
    return _encode_texts(tokenizer, prompt_texts(tokenizer, prompts))


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=not tokenizer.chat_template)["input_ids"]
    if tokenizer.chat_template:
        return cast("list[list[int]]", encoded)
    # Some tokenizers end every text, but an answer is to follow.
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int
) -> list[Encoded]:
    """Turn rows into tokens that end with the end token; long ones are cut on the right.

    Raises:
        UsageError: A prompt leaves no room for its answer.
    """
    encoded: list[Encoded] = []
    for row, tokens in zip(examples, _tokens(tokenizer, examples), strict=True):
        prompt, answer = tokens
        if len(prompt) >= max_length:
            raise UsageError(
                f"{examples.name}: the prompt of row {len(encoded) + 1} (id {row.id}) has "
                f"{len(prompt)} tokens and leaves no room for an answer in {max_length}; raise "
                "max_length (of an estimator --estimator NAME,max_length=N, elsewhere "
                "--max-length N) or remove the row"
            )
        encoded.append(Encoded(tuple([*prompt, *answer][:max_length]), len(prompt)))
    return encoded


def _tokens(
    tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens of each prompt and of its answer, which ends with the end token."""
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
    """Return how many tokens a model can take, None if it does not say."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit


def usable_length(model: PreTrainedModel, max_length: int) -> int:
    """Return `max_length`, or the model's context if that is shorter."""
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
            f"{examples.name}: every prompt leaves no room for an answer in {length} tokens (the "
            f"first has {len(prompts[first])}); raise max_length (of an estimator --estimator "
            "NAME,max_length=N, elsewhere --max-length N), or take a model with a longer context"
        )
    warn_once(
        f"{examples.name}: {len(too_long)} of {len(examples)} rows left out, since the prompt "
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
    """Turn the rows whose prompt leaves room for an answer into tokens that the model can take.

    Raises:
        UsageError: There are no rows, or none is left.
    """
    if not examples:
        raise UsageError(f"{examples.name}: no rows to train on")
    rows = rows_that_fit(model, tokenizer, examples, max_length)
    return encode(tokenizer, rows, usable_length(model, max_length))


Owner = TypeVar("Owner")


def fields_that_fit(
    owner: Owner, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Owner:
    """Return a value with those of its own rows that leave room for an answer, see `rows_that_fit`.

    Args:
        owner: Has fields that are rows: a plug-in, or a dataclass.
        model: Whose context counts.
        tokenizer: Its tokenizer.
        max_length: Tokens kept per row.
    """
    changes = {}
    for name, rows in vars(owner).items():
        if isinstance(rows, Examples) and rows:
            fit = rows_that_fit(model, tokenizer, rows, max_length)
            if len(fit) < len(rows):
                changes[name] = fit
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
    """Turn rows that are to be ranked into tokens that the model can take.

    Raises:
        UsageError: Fewer than two rows; a prompt leaves no room for its answer.
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
        UsageError: A row is.
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
    """Pad rows on the right into input_ids, attention_mask and labels, each (B, T)."""
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
