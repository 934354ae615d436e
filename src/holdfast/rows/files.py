"""Data files, folders and hub data sets as tables of raw rows."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import DataError, UsageError
from holdfast.rows.formats import READERS
from holdfast.rows.tables import Raw, RowError, Table, printable

MOST_NAMES = 12
"""Names that a message lists."""
_SPLIT = re.compile(
    r"(?:^|[-_./])(train|test|validation|valid|dev|eval)(?:$|[-_./])", re.IGNORECASE
)
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")


def is_file(spec: str) -> bool:
    """Return whether a spec names a file or a folder rather than a hub data set."""
    path = Path(spec).expanduser()
    if spec.startswith((".", "/", "~")) or path.suffix.lower() in {*READERS, *_UNPACKERS}:
        return True
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def open_table(spec: str, split: str) -> Table:
    """Open a file, a folder, or a hub data set ("name" or "name:config").

    Args:
        spec: The file, folder or data set.
        split: Split of a folder or hub data set; "" for the only one, and for "train" of the hub.

    Raises:
        DataError: The file does not exist or cannot be read at all.
        UsageError: It is neither a file nor a data set on the hub, or the split does not exist.
    """
    if not is_file(spec):
        return _hub(spec, split or "train")
    path = Path(spec).expanduser()
    try:
        return _folder(path, split) if path.is_dir() else _file(path)
    except ValueError as error:
        raise DataError(f"{printable(spec)!r}: not a path ({error}); check it") from error


def has_splits(spec: str) -> bool:
    """Return whether a spec names a data set in which a split can be chosen, not a single file."""
    return not is_file(spec) or Path(spec).expanduser().is_dir()


def _file(path: Path) -> Table:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    suffix, content = _unpacked(path, content)
    reader = READERS.get(suffix)
    if reader is None:
        suffixes = f"{', '.join(list(READERS)[:5])}"
        kind = f"{suffix} is not a format that is read" if suffix else "the name has no suffix"
        raise DataError(f"{path}: {kind}; convert or rename the file to one of {suffixes}")
    if not content.strip():
        raise DataError(f"{path}:1: the file is empty; give one that has rows")
    return reader(str(path), content)


# ------------------------------------------------------------------------- compressed files


def _zstd(content: bytes) -> bytes:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd")
    return bytes(stream.read())


_UNPACKERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    ".gz": (b"\x1f\x8b", gzip.decompress),
    ".bz2": (b"BZh", bz2.decompress),
    ".xz": (b"\xfd7zXZ\x00", lzma.decompress),
    ".zst": (b"\x28\xb5\x2f\xfd", _zstd),
    ".zip": (b"PK\x03\x04", bytes),
}
"""Suffix of a compressed file -> first bytes of its content, and what unpacks it."""


def _unpacked(path: Path, content: bytes) -> tuple[str, bytes]:
    """Return the suffix of the data in a file, and the data; its first bytes say how it is packed.

    Raises:
        DataError: It cannot be unpacked, or an archive holds several data files.
    """
    suffix = path.suffix.lower()
    packed = next((s for s, (magic, _) in _UNPACKERS.items() if content.startswith(magic)), "")
    if not packed:
        if suffix in _UNPACKERS and content.strip():
            raise DataError(f"{path}: not a {suffix} file; rename it, or pack it again")
        return _inner_suffix(path), content
    try:
        if packed == ".zip":
            return _of_archive(path, content)
        return _inner_suffix(path), _UNPACKERS[packed][1](content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as e:
        raise DataError(f"{path}: cannot be unpacked ({e}); is the file cut off?") from e


def _inner_suffix(path: Path) -> str:
    packed = path.suffix.lower() in _UNPACKERS
    return Path(path.stem).suffix.lower() if packed else path.suffix.lower()


def _of_archive(path: Path, content: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [name for name in archive.namelist() if Path(name).suffix.lower() in READERS]
        members = [name for name in members if not name.startswith("__MACOSX/")]
        if len(members) != 1:
            files = _listed(members) or "none"
            raise DataError(
                f"{path}: an archive must hold one data file, and this one holds {files}; unpack "
                "it and give the file"
            )
        return Path(members[0]).suffix.lower(), archive.read(members[0])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return printable(", ".join(names[:MOST_NAMES])) + more


# --------------------------------------------------------------------------------- folders


def _folder(path: Path, split: str) -> Table:
    """Return the rows of a folder that `datasets` wrote, or of one that is laid out as on the hub.

    Raises:
        DataError: It is another folder, or several splits are there and none is named.
    """
    saved = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    if saved or (path / "dataset_dict.json").is_file():
        return _saved(path, split)
    splits = _files_by_split(path)
    if splits is None:
        raise DataError(f"{path}: is a directory; give one of the files in it{_examples(path)}")
    name = _one_split(path, list(splits), split)
    return _together([_file(file) for file in splits[name]])


def _examples(path: Path) -> str:
    files = _data_files(path)
    names = [str(file.relative_to(path)) for file in files]
    return f": {_listed(names)}" if names else ""


def _data_files(path: Path) -> list[Path]:
    def is_data(file: Path) -> bool:
        hidden = any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        suffix = Path(file.name).suffix.lower()
        packed = suffix in _UNPACKERS and _inner_suffix(file) in READERS
        # Settings such as dataset_infos.json are no rows.
        settings = file.name in ("dataset_infos.json", "dataset_info.json", "state.json")
        return file.is_file() and not hidden and not settings and (suffix in READERS or packed)

    return sorted(file for file in path.rglob("*") if is_data(file))


def _files_by_split(path: Path) -> dict[str, list[Path]] | None:
    """Return the data files of each split; None if the names do not say which split they are."""
    splits: dict[str, list[Path]] = {}
    for file in _data_files(path):
        names = _SPLIT.findall(str(file.relative_to(path)).replace("\\", "/"))
        if not names:
            return None
        splits.setdefault(_SHARD.sub("", names[-1].lower()), []).append(file)
    return splits or None


def _one_split(path: Path, names: Sequence[str], split: str) -> str:
    if split in names:
        return split
    if len(names) == 1 and not split:
        return names[0]
    if split:
        raise UsageError(f"{path}: no split {split!r}; its splits are {_listed(names)}")
    raise UsageError(
        f"{path}: has the splits {_listed(names)}; name one: '{path},split={names[0]}'"
    )


def _saved(path: Path, split: str) -> Table:
    """Return the rows of a folder that `save_to_disk` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the data set again") from error
    if isinstance(saved, datasets.DatasetDict):
        saved = saved[_one_split(path, list(saved), split)]
    elif split and split not in (str(saved.split), ""):
        raise UsageError(
            f"{path}: no split {split!r}; it holds one data set (split {saved.split}), so leave "
            "split= out"
        )
    return dataset_table(str(path), saved)


def dataset_table(name: str, dataset: Any) -> Table:
    """Return a `datasets.Dataset` as a table."""
    rows = (Raw(f"{name}: row {n}", row) for n, row in enumerate(dataset, start=1))
    return Table(list(dataset.column_names), rows, uniform="Json(" not in str(dataset.features))


def _together(tables: Sequence[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]

    def rows() -> Iterator[Raw | RowError]:
        for table in tables:
            yield from table.rows

    columns = dict.fromkeys(column for table in tables for column in table.columns)
    return Table(list(columns), rows(), uniform=False)


# ------------------------------------------------------------------------------------- hub


def _hub(spec: str, split: str) -> Table:
    import datasets

    name, _, config = spec.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{printable(spec)!r}: no such file, and the hub could not be read: {error}. Give the "
            "path of a file, or check the data set's name and split and the network."
        ) from error
    return dataset_table(spec, dataset)
