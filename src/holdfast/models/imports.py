"""GGUF files as models: each is converted once, into a cache keyed by its content.

The cache is the folder `models` in `$HOLDFAST_CACHE`, else in the user's cache. A folder in it
records what it was made from, and is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from holdfast.errors import HoldfastError, UsageError
from holdfast.models import packages
from holdfast.models.gguf_files import SUFFIX, gguf_package, is_gguf, read_header
from holdfast.results.contents import content_hash
from holdfast.results.files import write_text

logger = logging.getLogger(__name__)

RECORD = "holdfast_source.json"
"""File in an imported folder that says what the model was made from."""
CACHE = "HOLDFAST_CACHE"
"""Environment variable with the folder of the cache."""
CONVERTER = 1
"""Version of the conversion; another one converts every file again."""


def is_import(source: str) -> bool:
    """Return whether a model is a GGUF file or a package that carries one."""
    if source.startswith(packages.PREFIX):
        return True
    path = Path(source)
    return source.lower().endswith(SUFFIX) or is_gguf(path)


def imported_folder(source: str) -> Path:
    """Return the folder with the model of a GGUF file or package, converted if it is not yet.

    Args:
        source: Path of a GGUF file, or "package:NAME".

    Raises:
        UsageError: There is no such file or package, or the file is not read, see `gguf_rules`.
        HoldfastError: The cache cannot be written.
    """
    parts = _parts(source)
    gguf_package(source)
    digest = _content_of(parts)
    key = hashlib.sha256(f"{digest} {_versions()}".encode()).hexdigest()[:16]
    folder = _cache() / f"{_stem(parts)}-{key}"
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _intact(folder):
                _convert(source, parts, digest, folder)
    except OSError as error:
        raise HoldfastError(
            f"{source}: the converted model cannot be written to {folder} "
            f"({error.strerror or error}); free some space there, or set {CACHE} to another folder"
        ) from error
    return folder


def read_record(folder: Path) -> dict[str, Any]:
    """Return what an imported folder was made from: `name` and `sha256` of the file; else {}."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def described(folder: Path) -> str:
    """Return the file that an imported folder was made from, with its hash; else ""."""
    record = read_record(folder)
    if "name" not in record or "sha256" not in record:
        return ""
    package = f" of {record['package']}" if record.get("package") else ""
    return f"{record['name']}{package}, SHA-256 {record['sha256']}"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what a folder was made from, with the hash of each of its files."""
    files = {
        path.name: content_hash(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != RECORD
    }
    write_text(folder / RECORD, json.dumps({**record, "files": files}, indent=2) + "\n")


def _parts(source: str) -> list[Path]:
    if source.startswith(packages.PREFIX):
        return packages.files_of_package(source)
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"{source}: there is no such file; give the path of a GGUF file")
    return [path]


def _content_of(parts: Sequence[Path]) -> str:
    """Return the SHA-256 of the file that the parts make up."""
    if len(parts) == 1:
        return content_hash(parts[0])
    stamps = tuple((part.stat().st_size, part.stat().st_mtime_ns) for part in parts)
    return _content_of_parts(tuple(part.resolve() for part in parts), stamps)


@lru_cache(maxsize=16)
def _content_of_parts(parts: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    del stamps
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _versions() -> str:
    """Return the versions that the content of a converted folder depends on."""
    libraries = " ".join(f"{name} {version(name)}" for name in ("gguf", "transformers"))
    return f"converter {CONVERTER} {libraries}"


def _cache() -> Path:
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen).expanduser() / "models"
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "holdfast" / "models"


def _stem(parts: Sequence[Path]) -> str:
    name = parts[0].name
    return name[: name.lower().index(SUFFIX)] if SUFFIX in name.lower() else name


def _intact(folder: Path) -> bool:
    """Return whether a folder of the cache holds what was written to it."""
    files = read_record(folder).get("files")
    if not isinstance(files, dict) or not files:
        return False
    paths = {name: folder / name for name in files}
    return all(path.is_file() and content_hash(path) == files[name] for name, path in paths.items())


def _convert(source: str, parts: Sequence[Path], digest: str, folder: Path) -> None:
    from holdfast.models.conversion import convert

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        file = _whole(parts, Path(temporary))
        read_header(file, source)
        logger.warning("%s: is converted once, to %s", source, folder)
        staged = Path(temporary) / "model"
        convert(file, source, staged)
        write_record(staged, _record(source, file.name, digest))
        if folder.exists():  # damaged
            shutil.rmtree(folder)
        os.replace(staged, folder)


def _whole(parts: Sequence[Path], temporary: Path) -> Path:
    """Return one file with the content of all parts."""
    if len(parts) == 1:
        return parts[0]
    whole = temporary / f"{_stem(parts)}{SUFFIX}"
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, file, 1 << 20)
    return whole


def _record(source: str, name: str, digest: str) -> dict[str, Any]:
    record = {"name": name, "sha256": digest, "converted_with": _versions()}
    if source.startswith(packages.PREFIX):
        package = distribution(source.removeprefix(packages.PREFIX))
        record["package"] = f"{package.metadata['Name']} {package.version}"
    return record
