"""The rows that a run's results depend on, stored in the run by content.

`rows/<name>.jsonl` has one row per line. `<name>` is the beginning of the file's sha256, so jobs
with the same rows share a file, and a changed file is detected. Only the ids of harmful rows are
stored unless the user allows storing their text. `rows/left_out/<name>.jsonl` lists the rows of a
data set that were not used, with the reasons.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.examples import Example, Examples, Withheld, count_reasons
from holdfast.results.files import sha256_file, write_text

DIGITS = 16
"""Hexadecimal digits of the sha256 in a file name: 64 bits, enough to make collisions unlikely."""
WITHHELD = (
    "the run stores only the ids of harmful rows. Give the file they came from, or make the run "
    "with --keep-harmful-rows"
)
"""Why the text of a harmful row is not available, and the way out."""


class StoredRows:
    """The folder `rows` of a run.

    Args:
        folder: The folder; created when the first rows are stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, rows: Examples) -> str:
        """Store rows unless the run already has them, and return the name of their file."""
        return self._write(self.folder, [_line(row, rows.ids_only) for row in rows])

    def record(self, rows: Examples) -> dict[str, Any]:
        """Store rows and the rows left out of them, and return their record for the manifest.

        Returns:
            "file", "source", "n" and, if any rows were left out, "left_out".
        """
        record: dict[str, Any] = {"file": self.store(rows), "source": rows.name, "n": len(rows)}
        left_out = self.record_left_out(rows)
        return {**record, "left_out": left_out} if left_out else record

    def record_left_out(self, rows: Examples) -> dict[str, Any]:
        """Store the rows that were left out of a data set.

        Returns:
            "file", "source" and "reasons" (reason -> count); empty if no row was left out.
        """
        if not rows.left_out:
            return {}
        lines = [_dumped(asdict(row)) for row in rows.left_out]
        file = self._write(self.folder / "left_out", lines)
        return {"file": file, "source": rows.name, "reasons": count_reasons(rows.left_out)}

    def load(self, name: str, *, source: str = "") -> Examples:
        """Read stored rows.

        Args:
            name: The name that `store` returned.
            source: Name of the rows in messages; the path of the file if empty.

        Raises:
            DataError: The file is missing or was changed.
        """
        path = self._path(self.folder, name)
        if not path.is_file():
            raise DataError(
                f"{path}: no such file, but the results of the run depend on its rows; restore it"
            )
        if not _intact(path):
            raise DataError(f"{path}: was changed after the run stored its rows; restore the file")
        with path.open(encoding="utf-8") as lines:
            rows = [_row(json.loads(line)) for line in lines]
        return Examples(rows, name=source or str(path))

    def changed(self) -> Iterator[Path]:
        """Yield the files that were changed after they were stored."""
        for path in sorted(self.folder.rglob("*.jsonl")):
            if not _intact(path):
                yield path

    def has(self, name: str) -> bool:
        """Return whether the folder has rows of this name."""
        return self._path(self.folder, name).is_file()

    def _write(self, folder: Path, lines: list[str]) -> str:
        text = "".join(f"{line}\n" for line in lines)
        name = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        path = self._path(folder, name)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        return name

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}.jsonl"


def _intact(path: Path) -> bool:
    return sha256_file(path).startswith(path.stem)


def _dumped(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(row: Example, ids_only: bool) -> str:
    if ids_only:
        content = {"prompt_id": row.prompt_id}
    else:
        content = {"prompt": row.prompt, "response": row.response}
    provenance = dict(row.provenance)
    category = provenance.pop("category", "")
    return _dumped({"id": row.id, **content, "category": category, "provenance": provenance})


def _row(raw: Mapping[str, Any]) -> Example:
    provenance = dict(raw["provenance"])
    if raw["category"]:
        provenance["category"] = raw["category"]
    if "prompt" in raw:
        return Example(raw["prompt"], raw["response"], provenance)
    return Withheld(raw["id"], raw["prompt_id"], provenance, WITHHELD)
