"""What the specs of files and models stood for, so that a run goes on without them.

`sources/<hash>.json` records, for every data file, model and plug-in with files that a stage read,
the content it had. When the file or folder is gone, the record takes its place: rows are read from
the run's own `rows/`, and hashes of models are those they had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples, Withheld
from holdfast.results.files import SCHEMA, read_json, sha256_json, write_json
from holdfast.results.run_dir import Entry, RunDir, in_dry_run, is_first_process
from holdfast.rows.provenance import selected
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.tables import is_file

logger = logging.getLogger(__name__)

ROWS = "rows"
"""Kind of source: a data file or a hub data set."""


class Sources:
    """The folder `sources` of a run.

    Args:
        run: The run.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def rows(self, spec: str, options: ReadOptions, *, ids_only: bool = False) -> Examples:
        """Read rows, and keep them in the run.

        If the file is gone, the rows that the run kept of it are returned, and that is logged once.

        Args:
            spec: See `rows.readers.read`.
            options: See `rows.readers.read`.
            ids_only: Keep the ids of the rows without their text.

        Raises:
            DataError: The file cannot be read, and the run kept no rows of it.
            UsageError: The options are wrong, or the hub has no such data set.
        """
        reading = {
            "columns": dict(options.columns),
            "limit": options.limit,
            "split": options.split,
            "needs_response": options.needs_response,
        }

        def load() -> Examples:
            rows = read(spec, options)
            return Examples(rows, name=rows.name, left_out=rows.left_out, ids_only=ids_only)

        return load() if spec.startswith("world:") else self.load_rows(ROWS, spec, load, reading)

    def load_rows(
        self,
        what: str,
        spec: str,
        load: Callable[[], Examples],
        options: Mapping[str, Any] | None = None,
    ) -> Examples:
        """Load rows and keep them in the run; if that fails, return those it kept before.

        Args:
            what: Kind of source, e.g. "task train".
            spec: What is loaded.
            load: Loads it.
            options: How; rows that were loaded with others are other rows.

        Raises:
            UsageError: As `load` does, if the run kept no rows of this source, or the source still
                exists.
        """
        options = options or {}
        try:
            rows = load()
        except UsageError:
            contents = self._of_missing(what, spec, options)
            if contents is None or not self.run.rows.has(contents["file"]):
                raise
            _say_once(f"{spec}: no longer there; its rows are read from {self.run.rows.folder}")
            return self.run.rows.load(contents["file"], source=spec)
        if self._may_write:
            self._record(
                what, spec, options, {"file": self.run.rows.store(rows), "hash": rows.hash}
            )
        return rows

    def contents(
        self, what: str, spec: str, find: Callable[[], Mapping[str, str]]
    ) -> Mapping[str, str]:
        """Return the hashes of what a spec names; those recorded, if it is gone.

        Args:
            what: Kind of thing, e.g. "model".
            spec: Path, hub id, or plug-in with options.
            find: Computes the hashes.

        Raises:
            HoldfastError: As `find` does, if nothing was recorded.
        """
        try:
            hashes = find()
        except HoldfastError:
            recorded = self._of_missing(what, spec, {})
            if recorded is None:
                raise
            _say_once(f"{what} {spec}: no longer there; the run goes on with the hash it had")
            return recorded
        if self._may_write:
            self._record(what, spec, {}, hashes)
        return hashes

    def recorded(self, what: str, spec: str) -> Mapping[str, str] | None:
        """Return the hashes recorded of a spec, None if there are none."""
        return self._of_missing(what, spec, {})

    def label(self, label: str) -> Mapping[str, str] | None:
        """Return what was recorded of the model of a label: "hash" and "place"."""
        return self._of_missing("label", label, {})

    def set_label(self, label: str, contents: Mapping[str, str]) -> None:
        """Record the model of a label."""
        if self._may_write:
            self._record("label", label, {}, contents)

    def of(self, entry: Entry, label: str) -> Examples:
        """Return rows that a finished job was made from.

        Harmful rows of which only ids were kept are read from their file, if it is still there.

        Args:
            entry: The job.
            label: Which rows, e.g. "data".

        Raises:
            UsageError: The job has no such rows, or their file is missing or was changed.
        """
        if label not in entry.rows:
            raise UsageError(
                f"{self.run.root}: {entry.stage} {entry.name!r} was made without {label} rows"
            )
        record = entry.rows[label]
        rows = self.run.rows.load(record["file"], source=record["source"])
        if not any(isinstance(row, Withheld) for row in rows):
            return rows
        return self._with_texts(rows)

    def _with_texts(self, rows: Examples) -> Examples:
        """Return the rows with their text if their file still has all of them, else as they are."""
        for path in self.run.path("sources").glob("*.json"):
            source = read_json(path, "source")
            if source["what"] != ROWS or source["spec"] != rows.name:
                continue
            try:
                texts = {row.id: row for row in read(source["spec"], _options(source["options"]))}
            except UsageError:
                continue
            if all(identity in texts for identity in rows.ids):
                found = [texts[identity] for identity in rows.ids]
                return Examples(found, name=rows.name, ids_only=True)
        return rows

    @property
    def _may_write(self) -> bool:
        return is_first_process() and not in_dry_run()

    def _of_missing(
        self, what: str, spec: str, options: Mapping[str, Any]
    ) -> Mapping[str, str] | None:
        """Return what was recorded of a spec whose file or folder is gone; None otherwise."""
        if what == ROWS and Path(selected(spec)[0]).expanduser().exists():
            return None
        for spelling in _spellings(what, spec):
            path = self._path(what, spelling, options)
            if path.is_file():
                contents: Mapping[str, str] = read_json(path, "source")["contents"]
                return contents
        return None

    def _record(
        self, what: str, spec: str, options: Mapping[str, Any], contents: Mapping[str, str]
    ) -> None:
        for spelling in _spellings(what, spec):
            path = self._path(what, spelling, options)
            value = {
                "what": what,
                "spec": spelling,
                "options": dict(options),
                "contents": dict(contents),
            }
            if not path.is_file() or read_json(path, "source") != value:
                write_json(path, {"kind": "source", "schema": SCHEMA, **value})

    def _path(self, what: str, spec: str, options: Mapping[str, Any]) -> Path:
        return self.run.path("sources", f"{sha256_json([what, spec, options])[:16]}.json")


def _spellings(what: str, spec: str) -> list[str]:
    """Return a spec as it was given and, if it is the path of something, its absolute path."""
    if what == "label":
        return [spec]
    source = selected(spec)[0] if what == ROWS else spec
    path = Path(source).expanduser()
    if path.is_absolute() or not (path.exists() or is_file(source)):
        return [spec]
    return [spec, f"{path.absolute()}{spec.removeprefix(source)}"]


def _options(options: Mapping[str, Any]) -> ReadOptions:
    return ReadOptions(**options, max_left_out=1.0)


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
