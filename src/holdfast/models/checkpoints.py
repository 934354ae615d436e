"""Loading, saving and identifying causal language models and their tokenizers."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast.errors import HoldfastError, UsageError
from holdfast.models.adapters import without_peft_warning
from holdfast.results.files import sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


HUB = "hub:"
"""Prefix of a hub id without an organisation, e.g. "hub:gpt2"."""
WORLD_BASE = Path(__file__).parents[1] / "world" / "base"
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of the files that make up a model; pickled weights are never read."""


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


def load(source: str, *, device: str = "auto", revision: str | None = None) -> Loaded:
    """Load a causal language model from "world", a directory, or a hub id at a revision.

    A LoRA adapter is loaded with its base model and merged. Weights are float32 on a CPU and as
    stored on other devices. Code from the model's repository is never run.

    Raises:
        UsageError: The source is not a model, or its tokenizer does not fit the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    target = pick_device(device)
    path = resolve(source, revision)
    hf_logging.disable_progress_bar()
    kind = loading_options(target)
    try:
        if (path / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            with without_peft_warning():
                model = AutoPeftModelForCausalLM.from_pretrained(path, **kind).merge_and_unload()
            model.requires_grad_(True)  # peft froze all weights
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **kind)
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: cannot be loaded as a causal language model ({reason}); "
            "give a directory written by save_pretrained, or a hub id"
        ) from error
    prepare_tokenizer(tokenizer, source)
    check_fit(model, tokenizer, source)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    return Loaded(model.to(target), tokenizer, source, hash_model(path))


def loading_options(target: torch.device) -> dict[str, Any]:
    """Return options of from_pretrained: float32 on a CPU, else as stored; no pickled weights."""
    return {"dtype": "float32" if target.type == "cpu" else "auto", "use_safetensors": True}


def tokenizer_of(source: str) -> PreTrainedTokenizerBase:
    """Load only a model's tokenizer, ready for batches.

    Raises:
        UsageError: There is no tokenizer, or it has no end-of-sequence token.
    """
    try:
        tokenizer = load_tokenizer(resolve(source))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: its tokenizer cannot be loaded ({reason}); save it with save_pretrained"
        ) from error
    prepare_tokenizer(tokenizer, source)
    return tokenizer


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer stored in a model's directory."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = path / "tokenizer_config.json"
    declared = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    # For some architectures (Qwen2) AutoTokenizer silently loads the usual tokenizer instead of the
    # stored one, which garbles all text.
    if declared.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return cast("PreTrainedTokenizerBase", PreTrainedTokenizerFast.from_pretrained(path))
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path))


def resolve(source: str, revision: str | None = None) -> Path:
    """Return the local directory of a model: "world", a directory, or a hub id (downloaded).

    Args:
        source: The model; only "ORGANISATION/NAME" and "hub:NAME" are looked up on the hub.
        revision: Branch, tag or commit on the hub; None for the newest.

    Raises:
        UsageError: Neither a model directory nor a model on the hub.
    """
    path = WORLD_BASE if source == "world" else Path(source)
    if path.is_dir():
        if revision:
            raise UsageError(
                f"{source}: a directory has no revision {revision!r}; omit the revision, or give a "
                "hub id"
            )
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(
                f"{source}: the directory is not a model (no config.json); "
                "give one written by save_pretrained, or a hub id"
            )
        return path
    hub_id = source.removeprefix(HUB)
    local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if local or (hub_id == source and "/" not in source):
        raise UsageError(
            f"{source}: no such model directory; for a model on the hub give ORGANISATION/NAME or "
            f"{HUB}NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: no such directory, and the hub could not be read: {reason}"
        ) from error


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


def hash_model(path: Path) -> str:
    """Return a SHA-256 over the names and contents of a model directory's files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in MODEL_SUFFIXES and file.is_file():
            state = file.stat()
            file_hash = _sha256(file.resolve(), state.st_size, state.st_mtime_ns)
            digest.update(f"{file.name} {file_hash}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Return the hash of a file, cached: every attack on a model needs the hash of its weights."""
    del size, changed
    return sha256_file(file)


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
        except SafetensorError as error:
            raise HoldfastError(
                f"{path}: the model could not be written ({error}). Is the disk full? "
                "Finished work is kept; free some space and rerun the same command."
            ) from error
        _swap(staged, path, Path(temporary) / "old")
    return sorted(p for p in path.rglob("*") if p.is_file())


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
