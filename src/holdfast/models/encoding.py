"""Encoding rows as tokens: prompts, answers and padded batches.

What stands around prompts and answers comes from the chat template (`templates.Frame`).

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
from holdfast.models import templates
from holdfast.options import Options
from holdfast.rows.readers import warn_once

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


NO_ROOM = "prompt leaves no room for an answer"
"""The reason with which `rows_that_fit` and `answerable` leave rows out."""
IGNORE = -100
"""Label of tokens excluded from the loss, as in transformers."""
WORTH_A_PASS = 256
"""Padding tokens that cost more than one more pass, which reads and writes all weights again."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one row.

    Attributes:
        ids: Prompt, lead and answer.
        start: Position of the answer's first token.
        lead: Number of tokens before `start` that the model writes itself before its answer: the
            end of a think block that the prompt opens. They are learned with the answer.
    """

    ids: tuple[int, ...]
    start: int
    lead: int = 0

    @property
    def learned_from(self) -> int:
        """Position of the first token that counts in the loss."""
        return self.start - self.lead


def prompt_texts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return the text with which the model is asked each prompt."""
    frame = templates.frame_of(tokenizer)
    return [frame.prompt(prompt) for prompt in prompts]


def chat_texts(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Sequence[tuple[str, str]]],
    *,
    add_generation_prompt: bool,
) -> list[str]:
    """Format conversations, each a sequence of (role, text) turns, with the chat template.

    Raises:
        UsageError: The template fails, or leaves out a text.
    """
    return [
        templates.render(tokenizer, chat, add_generation_prompt=add_generation_prompt)
        for chat in turns
    ]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens with which the model is asked each prompt, with special tokens added once.

    Raises:
        UsageError: The chat template cannot be used.
    """
    return _encode_texts(tokenizer, prompt_texts(tokenizer, prompts))


def encode_openings(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt up to where the answer itself begins, after any thoughts.

    Raises:
        UsageError: The chat template cannot be used.
    """
    lead = _lead_tokens(tokenizer)
    return [[*ids, *lead] for ids in encode_prompts(tokenizer, prompts)]


def _lead_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    lead = templates.frame_of(tokenizer).lead
    if not lead:
        return []
    return cast("list[int]", tokenizer(lead, add_special_tokens=False)["input_ids"])


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    # A chat template writes the special tokens itself.
    plain = templates.template_of(tokenizer) is None
    encoded = tokenizer(list(texts), add_special_tokens=plain)["input_ids"]
    if not plain:
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
    lead = _lead_tokens(tokenizer)
    for row, (prompt, answer) in zip(examples, _tokens(tokenizer, examples), strict=True):
        start = len(prompt) + len(lead)
        if start >= max_length:
            raise UsageError(
                f"{examples.name}: the prompt of row {len(encoded) + 1} (id {row.id}) has "
                f"{start} tokens and leaves no room for an answer in {max_length}; raise "
                "max_length (--estimator NAME,max_length=N for an estimator, --max-length N "
                "elsewhere) or remove the row"
            )
        ids = [*prompt, *lead, *answer]
        encoded.append(Encoded(tuple(ids[:max_length]), start, len(lead)))
    return encoded


def _tokens(
    tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens of each prompt and of its answer up to the token that ends the turn."""
    if not examples:
        return
    frame = templates.frame_of(tokenizer)
    end, end_token = templates.end_of_turn(frame, tokenizer)
    frame = dataclasses.replace(frame, after=end)
    texts = [frame.answer(response) for response in examples.responses]
    prompts = encode_prompts(tokenizer, examples.prompts)
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for prompt, answer in zip(prompts, answers, strict=True):
        ended = bool(end_token) or (answer and answer[-1] == tokenizer.eos_token_id)
        yield prompt, answer if ended else [*answer, tokenizer.eos_token_id]


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
    prompts = encode_openings(tokenizer, examples.prompts)
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


def parts_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Part the rows of a step so that short ones are not padded to the longest.

    Args:
        lengths: Tokens of each row.

    Returns:
        The positions of the rows of each part, in their order; one part if parting them saves
        fewer than `WORTH_A_PASS` tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [sorted(part) for part in _parted(order, lengths)]


def _parted(order: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Part positions that are sorted by length where that saves most, and the parts again."""
    longest = lengths[order[-1]] if order else 0
    saved = [(longest - lengths[order[n - 1]]) * n for n in range(1, len(order))]
    if not saved or max(saved) < WORTH_A_PASS:
        return [order]
    n_short = saved.index(max(saved)) + 1
    return [*_parted(order[:n_short], lengths), *_parted(order[n_short:], lengths)]


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
        labels[i, row.learned_from : length] = ids[i, row.learned_from : length]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}
