"""Where answers end: the end tokens of a model, the only generation settings taken from its files.

`generation_config.json` may ask for sampling, beams, penalties, forbidden tokens and much else.
What holdfast measures must not depend on it. Only the end tokens are taken from it, since without
them answers run on into invented turns.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError
from holdfast.models.templates import end_of_turn, frame_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

GENERATION_SETTINGS = "generation_config.json"
FILES = (GENERATION_SETTINGS, "config.json")
"""Files of a model that name end tokens."""


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end an answer, sorted.

    They are the tokenizer's end token, those of the model's generation settings and configuration,
    and the token with which the chat template ends a turn. Chat models end a turn with a special
    token (<|end|>, <end_of_turn>) that differs from the tokenizer's end of text; if it does not
    stop generation, the model invents the next turn.

    Raises:
        UsageError: An end token of the model is not a token id.
    """
    settings = (getattr(model, "generation_config", None), getattr(model, "config", None))
    declared = [getattr(setting, "eos_token_id", None) for setting in settings]
    return _end_tokens(tokenizer, declared)


def stop_tokens_of(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return `stop_tokens` of a model directory, without loading the model.

    Raises:
        UsageError: An end token of the model is not a token id.
    """
    return _end_tokens(tokenizer, [declared_end(path / name) for name in FILES])


def declared_end(path: Path) -> Any:
    """Return the end tokens that a JSON file of a model names; None if there is no such file."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return settings.get("eos_token_id") if isinstance(settings, dict) else None


def _end_tokens(tokenizer: PreTrainedTokenizerBase, declared: Iterable[Any]) -> list[int]:
    ids = {token for value in declared for token in _ids(value)}
    ids |= set(_ids(tokenizer.eos_token_id))
    end = _template_end(tokenizer)
    if end:
        ids |= set(_ids(tokenizer.convert_tokens_to_ids(end)))
    return sorted(ids)


def _template_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token with which the chat template ends a turn; "" if there is none."""
    try:
        frame = frame_of(tokenizer)
    except UsageError:
        # Guard models write other instructions for each role: they judge, and never continue.
        return ""
    return end_of_turn(frame, tokenizer)[1]


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, (list, tuple)) else [value]
    for token in values:
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise UsageError(
                f"eos_token_id {value!r} of the model's generation_config.json or config.json must "
                "be a token id or a list of them; correct the file"
            )
    return [token for token in values if token is not None and token >= 0]


def end_settings(path: Path) -> GenerationConfig:
    """Return generation settings that hold only the end tokens of a model directory.

    Raises:
        UsageError: An end token of the model is not a token id.
    """
    from transformers import GenerationConfig

    ids = sorted({token for name in FILES for token in _ids(declared_end(path / name))})
    return GenerationConfig(eos_token_id=ids or None)


@contextlib.contextmanager
def own_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[GenerationConfig]:
    """Replace a model's generation settings by greedy decoding to an end token, and put them back.

    Settings that a call of `model.generate` leaves open are filled in from the model's own, so that
    passing others is not enough.

    Raises:
        UsageError: An end token of the model is not a token id.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_tokens(model, tokenizer),
    )
    owners: list[Any] = [m for m in model.modules() if "generation_config" in vars(m)]
    previous = [module.generation_config for module in owners]
    try:
        for module in owners:
            module.generation_config = settings
        yield settings
    finally:
        for module, original in zip(owners, previous, strict=True):
            module.generation_config = original
