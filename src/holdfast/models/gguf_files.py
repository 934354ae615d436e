"""The headers of GGUF files: settings and tensors, checked against the size of the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Libraries read beyond the end of
a truncated file without an error, so every length is checked here before anything else reads the
file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import UsageError

SUFFIX = ".gguf"
INSTALL = "pip install 'gguf>=0.17'"

_MAGIC = b"GGUF"
_OTHER_MAGICS = (b"ggml", b"ggmf", b"ggjt", b"lmgg", b"fmgg", b"tjgg")
_VERSIONS = (2, 3)
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Number of a type of setting -> its letter in `struct`."""
_STRING = 8
_ARRAY = 9
_ALIGNMENT = 32
"""Alignment of the tensors where `general.alignment` is missing."""
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a GGUF file.

    Attributes:
        name: Its name in the file, e.g. "blk.0.attn_q.weight".
        shape: Sizes, the slowest first, as in torch.
        kind: Number of its type, see `gguf.GGMLQuantizationType`.
        start: Offset of its data in bytes, from the start of the file.
        size: Bytes of its data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes:
        settings: Key -> value; arrays are lists.
        tensors: The tensors, in the order of the file.
    """

    settings: dict[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        """Name of the architecture, e.g. "llama"."""
        return str(self.settings.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that is called a GGUF file, or begins as one."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_header(path: Path, name: str) -> GgufHeader:
    """Read the header of a GGUF file, and check that the file holds all of its tensors.

    Args:
        path: The file.
        name: The model in messages.

    Raises:
        UsageError: It is no GGUF file, is truncated, or has a type of tensor that cannot be read.
    """
    size = path.stat().st_size
    if size < len(_MAGIC):
        raise _truncated(name, size, size)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Cursor(content, name).header()


def _truncated(name: str, needed: int, size: int) -> UsageError:
    return UsageError(
        f"{name}: is truncated: the file has {size:,} bytes and should have at least {needed:,}; "
        "download or copy it again"
    )


def _damaged(name: str, what: str) -> UsageError:
    return UsageError(f"{name}: is damaged: {what}; download or copy it again")


class _Cursor:
    """Reads the header of a GGUF file from its beginning.

    Args:
        content: The bytes of the file.
        name: The model in messages.
    """

    def __init__(self, content: mmap.mmap, name: str) -> None:
        self._content = content
        self._name = name
        self._at = 0

    def header(self) -> GgufHeader:
        """Read the whole header."""
        self._check_start()
        n_tensors, n_settings = self._take("QQ")
        settings: dict[str, Any] = {}
        for _ in range(n_settings):
            key = self._text()
            (kind,) = self._take("I")
            if key in settings:
                raise _damaged(self._name, f"{key} is there twice")
            settings[key] = self._value(kind)
        entries = [self._entry() for _ in range(n_tensors)]
        counts = Counter(entry[0] for entry in entries)
        for tensor, count in counts.items():
            if count > 1:
                raise _damaged(self._name, f"tensor {tensor} is there twice")
        start = self._data_start(settings)
        tensors = tuple(self._tensor(*entry, start) for entry in entries)
        return GgufHeader(settings, tensors)

    def _check_start(self) -> None:
        magic = self._content[:4]
        if magic in _OTHER_MAGICS:
            raise UsageError(
                f"{self._name}: is in a format that came before GGUF ({magic.decode()}); convert "
                "the original model to GGUF, or give that model"
            )
        if magic != _MAGIC:
            raise UsageError(
                f"{self._name}: is not a GGUF file: it begins with {bytes(magic)!r} instead of "
                "b'GGUF'; give a GGUF file, or a directory written by save_pretrained"
            )
        self._at = 4
        (version,) = self._take("I")
        if version and version & 0xFFFF == 0:
            raise UsageError(
                f"{self._name}: is a big-endian GGUF file, which is not read; give the "
                "little-endian file"
            )
        if version not in _VERSIONS:
            raise UsageError(
                f"{self._name}: is GGUF version {version}; versions 2 and 3 are read; convert the "
                "model again with a current llama.cpp"
            )

    def _take(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        start = self._claim(struct.calcsize(layout))
        return struct.unpack_from(layout, self._content, start)

    def _claim(self, n_bytes: int) -> int:
        """Return the current offset and step over bytes that must be in the file."""
        start = self._at
        if start + n_bytes > len(self._content):
            raise _truncated(self._name, start + n_bytes, len(self._content))
        self._at = start + n_bytes
        return start

    def _text(self) -> str:
        (length,) = self._take("Q")
        start = self._claim(length)
        try:
            return self._content[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise _damaged(self._name, f"the text at byte {start:,} is not UTF-8") from error

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise _damaged(self._name, f"a setting has the unknown type {kind}")
        item_kind, length = self._take("IQ")
        if item_kind in _SCALARS:
            if length > len(self._content):
                raise _truncated(self._name, self._at + length, len(self._content))
            return list(self._take(f"{length}{_SCALARS[item_kind]}"))
        return [self._value(item_kind) for _ in range(length)]

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        tensor = self._text()
        (n_dimensions,) = self._take("I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise _damaged(self._name, f"{tensor} has {n_dimensions} dimensions")
        shape = self._take(f"{n_dimensions}Q")
        kind, offset = self._take("IQ")
        return tensor, tuple(reversed(shape)), kind, offset

    def _data_start(self, settings: dict[str, Any]) -> int:
        alignment = settings.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _damaged(self._name, f"general.alignment is {alignment!r}")
        return -(-self._at // alignment) * alignment

    def _tensor(
        self, tensor: str, shape: tuple[int, ...], kind: int, offset: int, start: int
    ) -> TensorInfo:
        block, block_bytes = _block_of(kind, tensor, self._name)
        if math.prod(shape) % block or (shape and shape[-1] % block):
            raise _damaged(self._name, f"a row of {tensor} is no multiple of {block} values")
        size = math.prod(shape) // block * block_bytes
        if start + offset + size > len(self._content):
            raise _truncated(self._name, start + offset + size, len(self._content))
        return TensorInfo(tensor, shape, kind, start + offset, size)


def _block_of(kind: int, tensor: str, name: str) -> tuple[int, int]:
    """Return values and bytes of a block of a type of tensor."""
    gguf = gguf_package(name)
    sizes = {int(key): value for key, value in gguf.GGML_QUANT_SIZES.items()}
    if kind not in sizes:
        raise UsageError(
            f"{name}: {tensor} has the type {kind}, which the installed gguf package does not "
            "know; update it with pip install -U gguf, or give the model in another quantization"
        )
    block, block_bytes = sizes[kind]
    return int(block), int(block_bytes)


def gguf_package(name: str) -> Any:
    """Import the package gguf.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name}: GGUF files are read with the package gguf, which is not installed; run "
            f"{INSTALL}"
        ) from error
    return gguf
