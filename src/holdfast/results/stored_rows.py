"""The rows that a run was made from: stored in it once, by content.

`rows/<name>.jsonl` has one row per line, and `<name>` is the beginning of the file's sha256, so two
jobs with the same rows share a file and a changed file gives itself away. Rows that are harmful are
stored as ids unless the user allows their text. `rows/left_out/<name>.jsonl` lists the rows of a
data set that were not used, with the reason.
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
"""Hexadecimal digits of the sha256 in a file's name: 64 bits, so two files never share one."""
WAY_OUT = (
    "the run keeps only ids of harmful rows. Give the file they came from, or make the run with "
    "--keep-harmful-rows"
)


class StoredRows:
    """The folder `rows` of a run.

    Args:
        folder: The folder; created with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, rows: Examples) -> str:
        """Store rows, unless they are there already, and return the name of their file."""
        return self._write(self.folder, [_line(row, rows.ids_only) for row in rows])

    def record(self, rows: Examples) -> dict[str, Any]:
        """Store rows and what was left out of them, and return what a manifest entry says of it.

        Returns:
            "file", "source", "n" and, if any were left out, "left_out".
        """
        record: dict[str, Any] = {"file": self.store(rows), "source": rows.name, "n": len(rows)}
        left_out = self.record_left_out(rows)
        return {**record, "left_out": left_out} if left_out else record

    def record_left_out(self, rows: Examples) -> dict[str, Any]:
        """Store what was left out of rows.

        Returns:
            "file", "source" and "reasons" (reason -> number); empty if nothing was left out.
        """
        if not rows.left_out:
            return {}
        lines = [_dumped(asdict(row)) for row in rows.left_out]
        file = self._write(self.folder / "left_out", lines)
        return {"file": file, "source": rows.name, "reasons": count_reasons(rows.left_out)}

    def load(self, name: str, *, source: str = "") -> Examples:
        """Read stored rows.

        Args:
            name: As `keep` returned it.
            source: What to call them in messages; the file if empty.

        Raises:
            DataError: The file is missing or was changed.
        """
        path = self._path(self.folder, name)
        if not path.is_file():
            raise DataError(f"{path}: no such file, and the run's results were made from its rows")
        if not _intact(path):
            raise DataError(f"{path}: was changed after the run stored its rows; restore the file")
        with path.open(encoding="utf-8") as lines:
            rows = [_row(json.loads(line)) for line in lines]
        return Examples(rows, name=source or str(path))

    def changed(self) -> Iterator[Path]:
        """Yield the files whose content is not what it was when they were stored."""
        for path in sorted(self.folder.rglob("*.jsonl")):
            if not _intact(path):
                yield path

    def has(self, name: str) -> bool:
        """Return whether the rows of this name are there."""
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
    texts = (
        {"prompt_id": row.prompt_id}
        if ids_only
        else {"prompt": row.prompt, "response": row.response}
    )
    category = row.provenance.get("category", "")
    others = {key: value for key, value in row.provenance.items() if key != "category"}
    return _dumped({"id": row.id, **texts, "category": category, "provenance": others})


def _row(raw: Mapping[str, Any]) -> Example:
    provenance = dict(raw["provenance"])
    if raw["category"]:
        provenance["category"] = raw["category"]
    if "prompt" in raw:
        return Example(raw["prompt"], raw["response"], provenance)
    return Withheld(raw["id"], raw["prompt_id"], provenance, WAY_OUT)
