"""Writing any model as a folder with the full model and a record of what it was made from."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from holdfast.errors import UsageError
from holdfast.models import checkpoints, imports
from holdfast.models.folders import hash_model, parts_of


def import_model(source: str, out: Path) -> dict[str, Any]:
    """Write a model to a folder: safetensors, tokenizer, chat template, end tokens, and its source.

    Args:
        source: A GGUF file, "package:NAME", a directory, an adapter or a hub id. Adapters are
            merged into their base.
        out: The folder; it must not hold anything else.

    Returns:
        The folder, the hash of the model in it, and the name and SHA-256 of the source.

    Raises:
        UsageError: The source is not read, or the folder holds something else.
        HoldfastError: The folder cannot be written.
    """
    path = checkpoints.resolve(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty; give --out a folder that is not there")
    if checkpoints.is_import(source):
        _copy(path, out)
    else:
        _save(source, path, out)
    record = imports.read_record(out)
    return {
        "model": str(out),
        "hash": hash_model(out),
        "name": record["name"],
        "sha256": record["sha256"],
    }


def _copy(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        staged = Path(temporary) / "model"
        shutil.copytree(folder, staged)
        if out.exists():
            out.rmdir()
        staged.rename(out)


def _save(source: str, path: Path, out: Path) -> None:
    digest = hash_model(path)
    name = path.resolve().name if Path(source).is_dir() else source
    adapters = [folder.resolve().name for folder in parts_of(path).adapters]
    loaded = checkpoints.load(source, device="cpu")
    if out.exists():
        out.rmdir()
    checkpoints.save(loaded.model, loaded.tokenizer, out)
    imports.write_record(out, {"name": name, "sha256": digest, "merged_adapters": adapters})
