"""Loading, saving and adapting causal language models, and turning rows into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from holdfast.errors import UsageError
from holdfast.examples import Examples

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    if not examples:
        return []
    befores = prompt_texts(tokenizer, examples.prompts)
    prompts = _encode_texts(tokenizer, befores)
    texts = answer_texts(tokenizer, examples, befores)
    answers = tokenizer(texts, add_special_tokens=False)["input_ids"]
    encoded: list[Encoded] = []
    for row, prompt, answer in zip(examples, prompts, answers, strict=True):
        if len(prompt) >= max_length:
            raise UsageError(
                f"{examples.name}: the prompt of row {len(encoded) + 1} (id {row.id}) has "
                f"{len(prompt)} tokens and leaves no room for an answer in {max_length}; raise "
                "max_length (of an estimator --estimator NAME,max_length=N, elsewhere "
                "--max-length N) or drop it"
            )
        end = [] if tokenizer.eos_token_id in answer else [tokenizer.eos_token_id]
        encoded.append(Encoded(tuple([*prompt, *answer, *end][:max_length]), len(prompt)))
    return encoded


def encode_scored(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
) -> list[Encoded]:
    """Turn rows that are to be ranked into tokens that the model can take.

    Raises:
        UsageError: Fewer than two rows; a prompt without room for its answer; a row longer than
            the model's context.
    """
    if len(examples) < 2:
        raise UsageError(
            f"{examples.name}: scores rank examples, and {len(examples)} cannot be ranked; "
            "give at least 2 rows"
        )
    encoded = encode(tokenizer, examples, max_length)
    check_context(model, encoded, examples.name)
    return encoded


def check_context(model: PreTrainedModel, rows: Sequence[Encoded], name: str) -> None:
    """Raise UsageError if a row is longer than the model's context, where the model states one."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for number, row in enumerate(rows, start=1):
        if limit is not None and len(row.ids) > limit:
            raise UsageError(
                f"{name}: row {number} has {len(row.ids)} tokens, but the model's context holds "
                f"{limit}; set max_length={limit} or less (rows are then cut) or drop it"
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
