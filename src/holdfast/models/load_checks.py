"""Checks on models that a library loads: errors as one message, no weights random or left over."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST_REASON = 300
"""Characters that a message quotes of a library's error."""

_LEFT_OVER = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|^v_head\.")
"""Weights that take no part in the answers: recomputed buffers, and the value head of TRL's PPO."""
_SENSES = re.compile(r"vision|visual|audio|image|multi_modal|mm_projector")
"""Weights of a multimodal model that are not used when it is read as a language model."""


@contextlib.contextmanager
def reading(source: str, what: str) -> Iterator[None]:
    """Turn what transformers, peft and safetensors raise into one message, and keep them silent.

    Args:
        source: The model, for the message.
        what: What it is read as, with article.

    Raises:
        UsageError: The block raised anything but an error of this package or of memory.
    """
    with _silence():
        try:
            yield
        except (HoldfastError, MemoryError):
            raise
        except Exception as error:  # a damaged file or setting can raise anything
            if type(error).__name__ == "OutOfMemoryError":
                raise
            raise UsageError(
                f"{source}: cannot be loaded as {what} ({reason(error)}); give a directory written "
                "by save_pretrained, or a hub id"
            ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)


def reason(error: BaseException) -> str:
    """Return the first line of an error, shortened; with its type where the line says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    if not isinstance(error, OSError | ValueError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def check_report(report: Mapping[str, Any], source: str, config: Any) -> None:
    """Refuse a model of which not every weight was in its files, or not every one was used.

    Raises:
        UsageError: A weight is of another size, missing or left over.
    """
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise UsageError(
            f"{source}: {name} has size {list(stored)} in the file, but {list(expected)} by "
            "config.json; give the config.json that the weights were saved with"
        )
    if missing := sorted(report["missing_keys"]):
        raise UsageError(
            f"{source}: lacks {_listed(missing)}, which would be initialised at random; give a "
            "complete model of the kind that its config.json describes"
        )
    ignored = [_LEFT_OVER]
    if any(name.endswith("ForConditionalGeneration") for name in config.architectures or ()):
        ignored.append(_SENSES)
    left = [n for n in report["unexpected_keys"] if not any(rule.search(n) for rule in ignored)]
    if left:
        raise UsageError(
            f"{source}: its files hold {_listed(sorted(left))}, for which the model described by "
            "its config.json has no place; give the config.json that the weights were saved with"
        )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more weights"


def check_numbers(model: PreTrainedModel, source: str) -> None:
    """Refuse a model with a weight that is nan or infinite.

    Raises:
        UsageError: There is such a weight.
    """
    import torch

    for name, weight in model.named_parameters():
        if weight.numel() and not all(map(torch.isfinite, weight.detach().aminmax())):
            raise UsageError(
                f"{source}: {name} holds nan or infinite values, so the model would answer at "
                "random or not at all; give an earlier checkpoint"
            )
