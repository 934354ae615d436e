"""Hashes of the contents of files and folders, independent of their location."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from holdfast.results.files import sha256_file, sha256_json


def content_hash(path: Path) -> str:
    """Return the sha256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return _sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_json([[file.relative_to(path).as_posix(), _sha256(file)] for file in files])


def existing(text: str) -> Path | None:
    """Return the path that a text names, or None if nothing exists there."""
    path = Path(text).expanduser()
    try:
        return path if text and path.exists() else None
    except OSError:  # the text is too long for a path
        return None


def _sha256(file: Path) -> str:
    state = file.stat()
    stamp = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    return _sha256_once(file.resolve(), stamp)


@lru_cache(maxsize=4096)
def _sha256_once(file: Path, stamp: tuple[int, ...]) -> str:
    """Hash a file, once for as long as its stamp stays the same.

    The stamp has the time of the last change of the inode, which copying with the old time of
    modification does not keep.
    """
    del stamp
    return sha256_file(file)
