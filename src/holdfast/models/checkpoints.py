"""Loading, saving and adapting causal language models, and turning rows into tokens."""

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
"""Files that make up a model; weights in pickle formats are never read."""


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    hash: str


def pick_device(name: str = "auto") -> torch.device:
    """Return the device that a name means; "auto" takes an accelerator where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one accelerator for each of torchrun's
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name!r} is no device; use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name!r}: this machine has no CUDA device; use cpu")
    return device


def load(source: str, *, device: str = "auto", revision: str | None = None) -> Loaded:
    """Load a causal language model from "world", a directory, or a hub id at a revision.

    A directory with a LoRA adapter is loaded with its base and merged. Weights are float32 on a
    CPU; elsewhere as stored. Code from the model's repository is never run.

    Raises:
        UsageError: Not a model; the message says what was missing.
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
            model.requires_grad_(True)  # peft has frozen all of it
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **kind)
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: cannot be loaded as a causal language model ({first}); "
            "give a directory written by save_pretrained, or a hub id"
        ) from error
    prepare_tokenizer(tokenizer, source)
    check_fit(model, tokenizer, source)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    return Loaded(model.to(target), tokenizer, source, hash_model(path))


def loading_options(target: torch.device) -> dict[str, Any]:
    """Return how any model is loaded: float32 on a CPU, elsewhere as stored; no pickled weights."""
    return {"dtype": "float32" if target.type == "cpu" else "auto", "use_safetensors": True}


def tokenizer_of(source: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone, ready for batches.

    Raises:
        UsageError: No tokenizer, or one without an end token.
    """
    try:
        tokenizer = load_tokenizer(resolve(source))
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{source}: its tokenizer cannot be loaded ({first})") from error
    prepare_tokenizer(tokenizer, source)
    return tokenizer


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is stored in a model's directory."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = path / "tokenizer_config.json"
    declared = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    # AutoTokenizer gives some architectures (Qwen2) their usual tokenizer though another is
    # stored, and would turn every word into nonsense without a word.
    if declared.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return cast("PreTrainedTokenizerBase", PreTrainedTokenizerFast.from_pretrained(path))
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path))


def resolve(source: str, revision: str | None = None) -> Path:
    """Return the local directory of a model: "world", a directory, or a hub id (downloaded).

    Args:
        source: The model. Only "ORGANISATION/NAME" and "hub:NAME" are looked up on the hub.
        revision: Branch, tag or commit on the hub; None for the newest.

    Raises:
        UsageError: Neither a model directory nor a model on the hub.
    """
    path = WORLD_BASE if source == "world" else Path(source)
    if path.is_dir():
        if revision:
            raise UsageError(
                f"{source}: a directory has no revision {revision!r}; leave it out, or give a "
                "hub id"
            )
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(
                f"{source}: the directory is no model (no config.json); "
                "give one written by save_pretrained, or a hub id"
            )
        return path
    hub_id = source.removeprefix(HUB)
    local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if local or (hub_id == source and "/" not in source):
        raise UsageError(
            f"{source}: no such model directory; a model on the hub is ORGANISATION/NAME or "
            f"{HUB}NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [f"*{suffix}" for suffix in MODEL_SUFFIXES]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source}: no such directory, and the hub could not be read: {first}"
        ) from error


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give a tokenizer what batches need: an end token and a padding token.

    Raises:
        UsageError: No end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"{source}: the tokenizer has no end-of-sequence token, so answers could not end; "
            "set tokenizer.eos_token and save it again"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so the end token can stand in for it.
        tokenizer.pad_token = tokenizer.eos_token


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a tokenizer with tokens that the model does not know.

    Raises:
        UsageError: Its greatest id is beyond the embedding, so that some text would end a stage.
    """
    rows = cast("Any", model.get_input_embeddings()).weight.shape[0]
    token, most = max(tokenizer.get_vocab().items(), key=lambda found: found[1])
    if most >= rows:
        raise UsageError(
            f"{source}: the tokenizer's {token!r} has the id {most}, and the model embeds {rows} "
            "tokens, from 0 on; give the tokenizer that it was trained with, or call "
            f"model.resize_token_embeddings({most + 1}), and save both again"
        )


def hash_model(path: Path) -> str:
    """Return a sha256 over the names and contents of a model directory's files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in MODEL_SUFFIXES and file.is_file():
            state = file.stat()
            file_hash = _sha256(file.resolve(), state.st_size, state.st_mtime_ns)
            digest.update(f"{file.name} {file_hash}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Hash a file once: every attack on a model asks for the hash of its weights."""
    del size, changed
    return sha256_file(file)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> list[Path]:
    """Write a model directory atomically (safetensors) and return its files.

    Raises:
        HoldfastError: It could not be written; what was there before is still there.
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


def _swap(made: Path, path: Path, aside: Path) -> None:
    """Put a directory in the place of another, which cannot be done in one step."""
    if not path.exists():
        os.replace(made, path)
        return
    try:
        os.replace(path, aside)
        os.replace(made, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
