"""Folders of models: finding them, which of their files are read, and their hash.

A model is a folder with a full model, or a folder with an adapter whose configuration names its
base, which can again be an adapter. Everything that is known from the names of the files and from
their JSON is checked here, before any weight is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from holdfast.errors import UsageError
from holdfast.models.gguf_files import SUFFIX
from holdfast.models.imports import RECORD, imported_folder, is_import
from holdfast.results.contents import content_hash

HUB = "hub:"
"""Prefix of a hub id without an organisation, e.g. "hub:gpt2"."""
WORLD_BASE = Path(__file__).parents[1] / "world" / "base"
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".spm", ".tiktoken")
"""Suffixes of the files that make up a model; pickled weights are never read."""
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG = "config.json"

_INDEX = ".safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)
_PLACE = ("base_model_name_or_path", "revision")
"""Settings of an adapter that say where its base is; its content is in the hash instead."""
_CODE = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
_RANK_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Parts:
    """The folders that a model is read from.

    Attributes:
        base: A full model.
        adapters: Adapters in the order in which they are applied.
    """

    base: Path
    adapters: tuple[Path, ...] = ()

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer: the last adapter that has one, else the base."""
        for folder in reversed(self.adapters):
            if has_tokenizer(folder):
                return folder
        return self.base


def resolve(source: str, revision: str | None = None) -> Path:
    """Return the local directory of a model.

    Args:
        source: "world", a directory, a GGUF file or "package:NAME" (converted, see `imports`), or
            a hub id (downloaded); only "ORGANISATION/NAME" and "hub:NAME" are looked up on the hub.
        revision: Branch, tag or commit on the hub; None for the newest.

    Raises:
        UsageError: There is no such model.
    """
    if source != "world" and not Path(source).is_dir() and is_import(source):
        if revision:
            raise UsageError(
                f"{source}: a GGUF file has no revision {revision!r}; omit the revision"
            )
        return imported_folder(source)
    path = WORLD_BASE if source == "world" else Path(source)
    if path.is_dir():
        if revision:
            raise UsageError(
                f"{source}: a directory has no revision {revision!r}; omit the revision, or give a "
                "hub id"
            )
        if not any((path / name).is_file() for name in (CONFIG, ADAPTER)):
            inside = sorted(p.parent.name for p in path.glob(f"*/{ADAPTER}"))
            hint = f"; it holds the adapter {path / inside[0]}" if inside else ""
            files = sorted(path.glob(f"*{SUFFIX}"))
            hint = f"; it holds the GGUF file {files[0]}, which can be given" if files else hint
            raise UsageError(
                f"{source}: the directory is not a model (no config.json){hint}; "
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
    return _download(source, hub_id, revision)


def _download(source: str, hub_id: str, revision: str | None) -> Path:
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


def parts_of(path: Path) -> Parts:
    """Return the folders that a model is read from, checked as far as names and JSON tell.

    Args:
        path: Folder of the model, see `resolve`.

    Raises:
        UsageError: The base of an adapter is missing, weights are only in pickles, quantized or
            in no format that is read, or the model needs code of its own.
    """
    adapters: list[Path] = []
    folder = path
    while (folder / ADAPTER).is_file():
        if any(folder.samefile(other) for other in adapters):
            raise UsageError(
                f"{path}: the adapter {folder} is its own base; set base_model_name_or_path in "
                f"{folder / ADAPTER} to the model it was trained on"
            )
        _check_adapter(folder)
        adapters.insert(0, folder)
        folder = _base_of(folder)
    _check_full_model(folder)
    for part in (*adapters, folder):
        _check_tokenizer_code(part)
    return Parts(folder, tuple(adapters))


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that the weights of a full model are read from; they need not exist."""
    name = read_settings(folder / CONFIG).get("transformers_weights")
    if name is None:
        single = folder / "model.safetensors"
        name = single.name if single.is_file() else f"model{_INDEX}"
    file = folder / str(name)
    if not str(name).endswith(_INDEX):
        return [file]
    if not file.is_file():
        return []
    return [folder / shard for shard in _shards(file)]


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index names, sorted."""
    shards = read_settings(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UsageError(f"{index}: has no weight_map, so no weights can be found; save it again")
    for tensor, shard in shards.items():
        if not isinstance(shard, str):
            raise UsageError(
                f"{index}: weight_map names {shard!r:.40} as the file of {tensor}, which is no "
                "file name; save the model again"
            )
    return sorted(set(shards.values()))


def read_settings(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UsageError: It is missing, or not such a file.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{file}: cannot be loaded as JSON ({_first_line(error)}); save the model again"
        ) from error
    if not isinstance(settings, dict):
        raise UsageError(f"{file}: cannot be loaded: it must hold a JSON object")
    return settings


def hash_model(path: Path) -> str:
    """Return a SHA-256 over the names and contents of all files that a model is read from.

    The base of an adapter is part of it by its content, wherever it lies.

    Raises:
        UsageError: See `parts_of`.
    """
    parts = parts_of(path)
    base = _hash_folder(parts.base, weight_files(parts.base))
    if not parts.adapters:
        return base
    digest = hashlib.sha256(f"base {base}\n".encode())
    for folder in parts.adapters:
        digest.update(f"adapter {_hash_folder(folder, ())}\n".encode())
    return digest.hexdigest()


def _hash_folder(folder: Path, weights: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    files = {file.name: file for file in folder.iterdir() if file.suffix in MODEL_SUFFIXES}
    # Shards and further templates can lie in folders of their own.
    further = [*weights, *folder.glob("additional_chat_templates/*.jinja")]
    files |= {_relative(file, folder): file for file in further}
    for name, file in sorted(files.items()):
        if not file.is_file() or name == RECORD:
            continue
        if name == ADAPTER:
            settings = read_settings(file)
            content = {key: settings[key] for key in sorted(settings) if key not in _PLACE}
            digest.update(f"{name} {json.dumps(content, sort_keys=True)}\n".encode())
        else:
            digest.update(f"{name} {content_hash(file)}\n".encode())
    return digest.hexdigest()


def _relative(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


# ---------------------------------------------------------------------------------------- checks


def _check_adapter(folder: Path) -> None:
    if (folder / CONFIG).is_file() and any(folder.glob("model*.safetensors")):
        raise UsageError(
            f"{folder}: holds a full model and an adapter, and which of them is meant cannot be "
            f"known; move {ADAPTER} and its weights to a folder of their own"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise _no_weights(folder, ADAPTER_WEIGHTS)


def _base_of(folder: Path) -> Path:
    settings = read_settings(folder / ADAPTER)
    name = settings.get("base_model_name_or_path")
    way_out = f"set base_model_name_or_path in {folder / ADAPTER} to its directory or hub id"
    if not name or not isinstance(name, str):
        raise UsageError(f"{folder}: the adapter does not say what its base model is; {way_out}")
    if Path(name).is_dir():
        return resolve(name)
    hub_id = name if "/" in name or name.startswith(HUB) else f"{HUB}{name}"
    try:
        return resolve(hub_id, settings.get("revision") or None)
    except UsageError as error:
        raise UsageError(
            f"{folder}: the adapter's base model {name!r} cannot be read; {way_out}"
        ) from error


def _check_full_model(folder: Path) -> None:
    settings = read_settings(folder / CONFIG)
    quantization = settings.get("quantization_config") or settings.get("compression_config")
    if quantization:
        kind = quantization.get("quant_method", "") if isinstance(quantization, dict) else ""
        raise UsageError(
            f"{folder}: cannot be loaded: its weights are quantized ({kind or 'unknown method'}), "
            "and holdfast reads only full weights; give the model that it was quantized from"
        )
    _check_code(folder, settings)
    if any(_RANK_SHARD.fullmatch(file.name) for file in folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder}: cannot be loaded: it is a distributed checkpoint, one file per process; "
            "save the model as a whole with save_pretrained"
        )
    files = weight_files(folder)
    if not files:
        raise _no_weights(folder, "model.safetensors")
    _check_one_model(folder, files)
    for file in files:
        if file.suffix != ".safetensors" or not file.is_file():
            raise _no_weights(folder, _relative(file, folder))


def _check_one_model(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder with a model in one file beside a model in shards."""
    index = folder / f"model{_INDEX}"
    if files != [folder / "model.safetensors"] or not index.is_file():
        return
    shards = [shard for shard in _shards(index) if shard != files[0].name]
    if shards and all((folder / shard).is_file() for shard in shards):
        raise UsageError(
            f"{folder}: holds a model in {files[0].name} and one in the files of {index.name}, and "
            f"which of them is meant cannot be known; remove {files[0].name}, or the index and its "
            "files"
        )


def _no_weights(folder: Path, name: str) -> UsageError:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    pickles = [pickle for pickle in pickles if pickle != "training_args.bin"]
    if pickles:
        return UsageError(
            f"{folder}: cannot be loaded: no file {name}, and {pickles[0]} is a pickle, which can "
            "run code and is never read; load it where you trust it, and save it again with "
            "save_pretrained"
        )
    return UsageError(
        f"{folder}: cannot be loaded: no file {name}; give a directory written by save_pretrained"
    )


def _check_code(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a model that only its own code can run; classes of transformers are used if named."""
    code = settings.get("auto_map")
    if not isinstance(code, dict):
        return
    for use in _CODE:
        _check_class(folder, code.get(use), "model")


def _check_tokenizer_code(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    code = read_settings(file).get("auto_map") if file.is_file() else None
    classes = code.get("AutoTokenizer") if isinstance(code, dict) else code
    _check_class(folder, classes, "tokenizer")


def _check_class(folder: Path, reference: object, what: str) -> None:
    names = list(_class_names(reference))
    if not names or any(name in _classes_of_transformers() for name in names):
        return
    raise UsageError(
        f"{folder}: cannot be loaded: its {what} needs code from its own folder ({reference}), and "
        f"such code is never run; give a model and tokenizer that transformers knows"
    )


def _class_names(reference: object) -> Iterator[str]:
    """Yield the class names, in lower case, of "module.Class" or of a list of such references."""
    for text in reference if isinstance(reference, list | tuple) else [reference]:
        if isinstance(text, str):
            yield text.rpartition(".")[2].lower()


@lru_cache(maxsize=1)
def _classes_of_transformers() -> frozenset[str]:
    import transformers

    return frozenset(name.lower() for name in dir(transformers))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
