"""Files of a run: atomic writes, hashes, and artifacts that are validated when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from holdfast.errors import MismatchError, UsageError

SCHEMA = 2
"""Schema version of all files that holdfast writes and reads."""


# --------------------------------------------------------------------------------------- writing


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see either the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    # mkstemp creates files that only the owner can read; the umask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def to_json(value: Any) -> Any:
    """Convert a value to JSON types: arrays to lists, paths to text, nan and infinities to null."""
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return to_json(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [to_json(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(to_json(value), ensure_ascii=False, indent=1) + "\n")


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    text = json.dumps(to_json(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --------------------------------------------------------------------------------------- reading


def read_json(path: Path, kind: str, remedy: str = "make it again") -> dict[str, Any]:
    """Read a JSON file and check its kind and schema.

    Args:
        path: The file.
        kind: The kind of file that it must be, e.g. "scores".
        remedy: What the user can do if the file is missing or damaged.

    Returns:
        The content of the file, without `kind` and `schema`.

    Raises:
        UsageError: The file is missing or is not JSON.
        MismatchError: The file is of another kind or schema version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; {remedy}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise MismatchError(
            f"{path}: expected a {kind!r} file, got a JSON {type(value).__name__}; {remedy}"
        )
    if value.get("kind") != kind:
        raise MismatchError(
            f"{path}: kind: expected {kind!r}, got {value.get('kind')!r}; give a {kind!r} file, or "
            f"{remedy}"
        )
    if value.get("schema") != SCHEMA:
        raise MismatchError(
            f"{path}: schema: this version reads {SCHEMA}, got {value.get('schema')!r}; {remedy}"
        )
    del value["kind"], value["schema"]
    return value


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _plain_number(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


Number = Annotated[float, BeforeValidator(_number), PlainSerializer(_plain_number, return_type=Any)]
"""A float field of an artifact; JSON has null for nan, and "inf" or "-inf" for infinities."""


def _vector(values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    numbers = TypeAdapter(list[float | None]).validate_python(values)
    return np.array(
        [math.nan if number is None else number for number in numbers], dtype=np.float64
    )


def _labels(values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return np.array(TypeAdapter(list[int]).validate_python(values), dtype=np.int64)


Vector = Annotated[np.ndarray, PlainValidator(_vector)]
"""A field of float64 numbers, (n,); JSON has null for nan."""
Labels = Annotated[np.ndarray, PlainValidator(_labels)]
"""A field of int64 numbers, (n,)."""


@dataclass(frozen=True)
class Artifact:
    """Base class of results that are saved as one JSON file; subclasses are frozen dataclasses.

    A file has exactly the fields of the class. A missing key, an unknown key or a value of the
    wrong type is an error that names the file, the key and the way out.

    Attributes:
        kind: The kind of artifact, stored in the file.
        remedy: What the user can do if a file is missing or damaged.
    """

    kind: ClassVar[str]
    remedy: ClassVar[str]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, {"kind": self.kind, "schema": SCHEMA, **_dumped(self)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file written by `save`.

        Raises:
            UsageError: The file is missing or is not JSON.
            MismatchError: The file is of another kind or schema version, has a missing or unknown
                key, or a value of the wrong type.
        """
        raw = read_json(Path(path), cls.kind, cls.remedy)
        for name in (field.name for field in fields(cls)):
            if name not in raw:
                raise MismatchError(f"{path}: {name}: this key is missing; {cls.remedy}")
        try:
            value: Self = _adapter(cls).validate_python(raw)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise MismatchError(
                f"{path}: {place}: {problem['msg']} (got {problem['input']!r:.60}); {cls.remedy}"
            ) from error
        except UsageError as error:
            raise MismatchError(f"{path}: {error}; {cls.remedy}") from error
        # Pydantic fills in defaults and converts "3" to 3; an intact file needs neither.
        if place := _difference(raw, to_json(_dumped(value))):
            raise MismatchError(f"{path}: {place}; {cls.remedy}")
        return value


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def _dumped(value: Artifact) -> dict[str, Any]:
    content: dict[str, Any] = _adapter(type(value)).dump_python(value)
    return content


def _difference(raw: Any, written: Any) -> str:
    """Return the first difference between two JSON values in words; "" if they are equal."""
    if isinstance(raw, dict) and isinstance(written, dict):
        for key in (*raw, *written):
            if key not in raw:
                return f"{key}: this key is missing"
            if key not in written:
                return f"{key}: unknown key"
        pairs = [(key, raw[key], written[key]) for key in raw]
    elif isinstance(raw, list) and isinstance(written, list) and len(raw) == len(written):
        pairs = list(zip(range(len(raw)), raw, written, strict=True))
    else:
        # In Python True equals 1; in a file they are different values.
        same = raw == written and isinstance(raw, bool) == isinstance(written, bool)
        return "" if same else f": expected {written!r:.60}, got {raw!r:.60}"
    for key, old, new in pairs:
        if difference := _difference(old, new):
            return _inside(key, difference)
    return ""


def _inside(key: str | int, difference: str) -> str:
    return f"{key}{difference}" if difference.startswith(":") else f"{key}.{difference}"


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Convert a JSON list of numbers to an array, null to nan."""
    return np.array(
        [math.nan if value is None else float(value) for value in values], dtype=np.float64
    )
