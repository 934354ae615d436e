"""Loading, saving and identifying causal language models and their tokenizers."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import HoldfastError, UsageError
from holdfast.models import adapters
from holdfast.models.endings import GENERATION_SETTINGS
from holdfast.models.folders import (
    HUB as HUB,
)
from holdfast.models.folders import (
    MODEL_SUFFIXES as MODEL_SUFFIXES,
)
from holdfast.models.folders import (
    WORLD_BASE as WORLD_BASE,
)
from holdfast.models.folders import (
    Parts,
    has_tokenizer,
    parts_of,
    read_settings,
    weight_files,
)
from holdfast.models.folders import (
    hash_model as hash_model,
)
from holdfast.models.folders import (
    resolve as resolve,
)
from holdfast.models.imports import (
    is_import as is_import,
)
from holdfast.models.load_checks import check_numbers, reading
from holdfast.models.memory import BYTES_TO_TRAIN, check_memory
from holdfast.models.reading import (
    read_classifier,
    read_language_model,
    stored_dtype,
    to_dtype,
    weight_count,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROCESSOR_TEMPLATE = "chat_template.json"
"""File in which older multimodal models keep their chat template; tokenizers do not read it."""


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, its source and its content hash."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    hash: str


def pick_device(name: str = "auto") -> torch.device:
    """Return the device with this name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        UsageError: No such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one per process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name!r} is not a device; use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name!r}: this machine has no CUDA device; use cpu")
    return device


def load(
    source: str, *, device: str = "auto", revision: str | None = None, training: bool = False
) -> Loaded:
    """Load a causal language model, see `resolve`.

    An adapter is merged into its base, both in float32, and the logits are checked before and
    after. Weights are float32 on a CPU and as stored on other devices. Code from the model's
    repository is never run, and nothing is asked about it.

    Args:
        source: See `resolve`.
        device: See `pick_device`.
        revision: Branch, tag or commit on the hub; None for the newest.
        training: Whether all weights will be trained, which takes four times their memory.

    Raises:
        UsageError: The model is too large for the free memory, the source is not a causal language
            model, some of its weights are missing, do not fit or are not numbers, or its tokenizer
            does not fit the model.
    """
    target = pick_device(device)
    path = resolve(source, revision)
    parts = parts_of(path)
    with reading(source, "a causal language model"):
        _check_memory(parts, target, source, training)
        model = read_language_model(parts.base, dtype_on(target, parts), source)
        for folder in parts.adapters:
            model = adapters.apply(model, folder)
    with reading(source, "a tokenizer"):
        tokenizer = load_tokenizer(parts.tokenizer)
        check_same_words(parts, tokenizer)
    prepare_tokenizer(tokenizer, source)
    check_fit(model, tokenizer, source)
    check_numbers(model, source)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if parts.adapters and target.type != "cpu":
        to_dtype(model, stored_dtype(weight_files(parts.base)))
    model.eval()
    return Loaded(_on(target, model), tokenizer, source, hash_model(path))


def _check_memory(parts: Parts, target: torch.device, source: str, training: bool) -> None:
    """Refuse a model that is too large, from the headers of its files, before it is read."""
    count = weight_count(weight_files(parts.base))
    check_memory(count * dtype_on(target, parts).itemsize, source, device=target)
    if training:
        what = "weights, gradients and the two moments of AdamW in float32"
        check_memory(count * BYTES_TO_TRAIN, source, what=what, device=target)


def _on(target: torch.device, model: PreTrainedModel) -> PreTrainedModel:
    moved: Any = model
    return cast("PreTrainedModel", moved.to(target))


def load_classifier(
    source: str, *, device: str = "auto", revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier and its tokenizer from a directory or a hub id.

    Raises:
        UsageError: The source is not a classifier, or some of its weights are missing, do not fit
            or are not numbers.
    """
    target = pick_device(device)
    parts = parts_of(resolve(source, revision))
    if parts.adapters:
        raise UsageError(
            f"{source}: is an adapter, and classifiers are read only as full models; merge it into "
            "its base and save the result with save_pretrained"
        )
    with reading(source, "a sequence classifier"):
        model = read_classifier(parts.base, dtype_on(target, parts), source)
    with reading(source, "a tokenizer"):
        tokenizer = load_tokenizer(parts.tokenizer)
    check_numbers(model, source)
    model.eval()
    return _on(target, model), tokenizer


def dtype_on(target: torch.device, parts: Parts) -> torch.dtype:
    """Return the type to read weights in: float32 on a CPU or under adapters, else as stored."""
    import torch

    if target.type == "cpu" or parts.adapters:
        return torch.float32
    return stored_dtype(weight_files(parts.base))


def weights_in(path: Path, source: str) -> int:
    """Return the number of weights of a model; only the headers of its files are read.

    Args:
        path: Folder of the model, see `resolve`.
        source: The model, for messages.

    Raises:
        UsageError: A file is damaged.
    """
    with reading(source, "a causal language model"):
        return weight_count(weight_files(parts_of(path).base))


def tokenizer_of(source: str) -> PreTrainedTokenizerBase:
    """Load only a model's tokenizer, ready for batches.

    Raises:
        UsageError: There is no tokenizer, or it has no end-of-sequence token.
    """
    folder = parts_of(resolve(source)).tokenizer
    with reading(source, "a tokenizer"):
        tokenizer = load_tokenizer(folder)
    prepare_tokenizer(tokenizer, source)
    return tokenizer


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer stored in a model's directory.

    Raises:
        UsageError: The directory has no vocabulary.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = path / "tokenizer_config.json"
    declared = read_settings(config) if config.is_file() else {}
    # For some architectures (Qwen2) AutoTokenizer silently loads the usual tokenizer instead of the
    # stored one, which garbles all text.
    fast = declared.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    loader: Any = PreTrainedTokenizerFast if fast else AutoTokenizer
    tokenizer = loader.from_pretrained(path, trust_remote_code=False)
    # Without the files of a vocabulary, transformers silently makes a tokenizer of none.
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if tokenizer.get_vocab().keys() <= special:
        raise UsageError(
            f"{path}: has no vocabulary (tokenizer.json), so every text would be empty; save the "
            "tokenizer there with save_pretrained"
        )
    template = path / PROCESSOR_TEMPLATE
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = read_settings(template).get("chat_template")
    return cast("PreTrainedTokenizerBase", tokenizer)


def check_same_words(parts: Parts, tokenizer: PreTrainedTokenizerBase) -> None:
    """Reject an adapter's tokenizer in which a word of its base has another id, or none.

    Added tokens may have gone: trainers rename reserved ones.

    Raises:
        UsageError: There is such a word; its embedding would be that of another word.
    """
    if parts.tokenizer == parts.base or not has_tokenizer(parts.base):
        return
    ids = tokenizer.get_vocab()
    own = load_tokenizer(parts.base)
    reserved = {*own.get_added_vocab(), *own.all_special_tokens}
    for token, number in own.get_vocab().items():
        if token not in ids and token not in reserved:
            raise UsageError(
                f"{parts.tokenizer}: the tokenizer does not belong to the adapter's base "
                f"{parts.base}: it has no token {token!r}; give the tokenizer the adapter was "
                "trained with"
            )
        if ids.get(token, number) != number:
            raise UsageError(
                f"{parts.tokenizer}: the tokenizer does not belong to the adapter's base "
                f"{parts.base}: token {token!r} has id {ids[token]} in one and {number} in the "
                "other; give the tokenizer the adapter was trained with"
            )


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Check that a tokenizer has an end token, and set a padding token if it has none.

    Raises:
        UsageError: There is no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"{source}: the tokenizer has no end-of-sequence token, so answers could not end; "
            "set tokenizer.eos_token and save it again"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so the end token can serve as padding.
        tokenizer.pad_token = tokenizer.eos_token


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Reject a tokenizer with token ids beyond the model's embedding.

    Raises:
        UsageError: The highest id has no row in the embedding, so some text would crash a stage.
    """
    rows = cast("Any", model.get_input_embeddings()).weight.shape[0]
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= rows:
        raise UsageError(
            f"{source}: token {token!r} of the tokenizer has id {highest}, but the model embeds "
            f"only ids 0 to {rows - 1}; use the tokenizer the model was trained with, or call "
            f"model.resize_token_embeddings({highest + 1}) and save both again"
        )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> list[Path]:
    """Write a model directory atomically (safetensors) and return its files.

    Raises:
        HoldfastError: The model could not be written; a previous model at `path` is kept.
    """
    from safetensors import SafetensorError

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        staged = Path(temporary) / "model"
        try:
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
            _keep_generation_settings(model, staged)
        except SafetensorError as error:
            raise HoldfastError(
                f"{path}: the model could not be written ({error}). Is the disk full? "
                "Finished work is kept; free some space and rerun the same command."
            ) from error
        _swap(staged, path, Path(temporary) / "old")
    return sorted(p for p in path.rglob("*") if p.is_file())


def _keep_generation_settings(model: PreTrainedModel, staged: Path) -> None:
    """Copy the generation settings of the folder that a model was read from.

    No stage uses them, but whoever serves the saved model expects them.
    """
    source = getattr(model, "name_or_path", "")
    settings = Path(source, GENERATION_SETTINGS)
    if source and settings.is_file():
        shutil.copyfile(settings, staged / GENERATION_SETTINGS)


def _swap(staged: Path, path: Path, aside: Path) -> None:
    """Move a staged directory to `path`; a directory already there is moved aside first."""
    if not path.exists():
        os.replace(staged, path)
        return
    try:
        os.replace(path, aside)
        os.replace(staged, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
