"""Records of the data files, models and plug-in files that a run has read.

`sources/<hash>.json` records the content of every source that a stage reads. If the file or folder
is missing later, the run continues from the record: rows are read from the run's own `rows/`, and
the recorded hash of a model is used.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples, Withheld
from holdfast.results.files import SCHEMA, read_json, sha256_json, write_json
from holdfast.results.run_dir import Entry, RunDir, in_dry_run, is_first_process
from holdfast.rows.files import is_file
from holdfast.rows.marks import check_marks
from holdfast.rows.readers import ReadOptions, is_shipped, read
from holdfast.rows.remedies import FileRemedies
from holdfast.rows.row_specs import parse_rows
from holdfast.specs import Spec, write

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
        """Read rows and store them in the run.

        If the file is missing, return the rows that the run stored of it, with one warning.

        Args:
            spec: See `rows.readers.read`.
            options: See `rows.readers.read`.
            ids_only: Store the ids of the rows without their text.

        Raises:
            DataError: The file cannot be read, and the run has not stored its rows; or rows are
                marked as the opposite of what they are used for.
            UsageError: The options are wrong, or the hub has no such data set.
        """
        reading = {
            "columns": dict(options.columns),
            "limit": options.limit,
            "split": options.split,
            "needs_response": options.needs_response,
        }

        def load() -> Examples:
            rows = read(spec, replace(options, use=None))
            return Examples(rows, name=rows.name, left_out=rows.left_out, ids_only=ids_only)

        # Not in `load`: of a hub data set, the rows that the run stored would be used instead.
        def check(rows: Examples) -> None:
            check_marks(rows, options.use, FileRemedies(spec))

        if not is_shipped(spec):
            return self.load_rows(ROWS, spec, load, reading, check)
        rows = load()
        check(rows)
        return rows

    def load_rows(
        self,
        kind: str,
        spec: str,
        load: Callable[[], Examples],
        options: Mapping[str, Any] | None = None,
        check: Callable[[Examples], None] | None = None,
    ) -> Examples:
        """Load rows and store them in the run; if the source is missing, return the stored rows.

        Args:
            kind: Kind of source, e.g. "task train".
            spec: Spec of the source.
            load: Function that loads the rows.
            options: Options they are loaded with; part of the record's key.
            check: Raises an error for rows that must be neither used nor stored.

        Raises:
            UsageError: `check` refused the rows; or `load` failed, and the run has not stored them,
                or the source exists.
        """
        options = options or {}
        try:
            rows = load()
        except UsageError:
            contents = self._of_missing(kind, spec, options)
            if contents is None or not self.run.rows.has(contents["file"]):
                raise
            _warn_once(f"{spec} is missing; its rows are read from {self.run.rows.folder}")
            rows = self.run.rows.load(contents["file"], source=spec)
            if check is not None:
                check(rows)
            return rows
        if check is not None:
            check(rows)
        if self._may_write:
            contents = {"file": self.run.rows.store(rows), "hash": rows.hash}
            self._record(kind, spec, options, contents)
        return rows

    def contents(
        self, kind: str, spec: str, find: Callable[[], Mapping[str, str]]
    ) -> Mapping[str, str]:
        """Return the hashes of a source; if it is missing, return the recorded hashes.

        Args:
            kind: Kind of source, e.g. "model".
            spec: Path, hub id, or plug-in with options.
            find: Function that computes the hashes.

        Raises:
            HoldfastError: `find` failed, and the run has no record of the source.
        """
        try:
            hashes = find()
        except HoldfastError:
            recorded = self._of_missing(kind, spec, {})
            if recorded is None:
                raise
            _warn_once(f"{kind} {spec} is missing; the run continues with the recorded hash")
            return recorded
        if self._may_write:
            self._record(kind, spec, {}, hashes)
        return hashes

    def models(self) -> dict[str, Mapping[str, str]]:
        """Return the record of every model that was read from outside the run, by its spec.

        Records that cannot be read are left out; `RunDir.verify` names them.
        """
        found: dict[str, Mapping[str, str]] = {}
        for path in sorted(self.run.path("sources").glob("*.json")):
            with contextlib.suppress(UsageError):
                record = read_json(path, "source")
                if record["what"] == "model":
                    found[record["spec"]] = record["contents"]
        return found

    def recorded(self, kind: str, spec: str) -> Mapping[str, str] | None:
        """Return the recorded hashes of a source, or None."""
        return self._of_missing(kind, spec, {})

    def label(self, label: str) -> Mapping[str, str] | None:
        """Return the record of the model with a label, "hash" and "place", or None."""
        return self._of_missing("label", label, {})

    def set_label(self, label: str, contents: Mapping[str, str]) -> None:
        """Record the model with a label."""
        if self._may_write:
            self._record("label", label, {}, contents)

    def of(self, entry: Entry, label: str) -> Examples:
        """Return rows that the result of a finished job depends on.

        If the run stores only the ids of harmful rows, their text is read from the original file,
        if that still exists.

        Args:
            entry: Manifest entry of the job.
            label: Label of the rows, e.g. "data".

        Raises:
            UsageError: The job has no such rows, or their file is missing or was changed.
        """
        if label not in entry.rows:
            raise UsageError(
                f"{self.run.root}: {entry.stage} {entry.name!r} does not depend on {label} rows"
            )
        record = entry.rows[label]
        rows = self.run.rows.load(record["file"], source=record["source"])
        if not any(isinstance(row, Withheld) for row in rows):
            return rows
        return self._with_texts(rows)

    def _with_texts(self, rows: Examples) -> Examples:
        """Return the rows with their text if the original file still has all of them."""
        for path in self.run.path("sources").glob("*.json"):
            source = read_json(path, "source")
            if source["what"] != ROWS or source["spec"] != rows.name:
                continue
            try:
                texts = {row.id: row for row in read(source["spec"], _options(source["options"]))}
            except UsageError:
                continue
            if all(row_id in texts for row_id in rows.ids):
                original = [texts[row_id] for row_id in rows.ids]
                return Examples(original, name=rows.name, ids_only=True)
        return rows

    @property
    def _may_write(self) -> bool:
        return is_first_process() and not in_dry_run()

    def _of_missing(
        self, kind: str, spec: str, options: Mapping[str, Any]
    ) -> Mapping[str, str] | None:
        """Return the record of a source that no longer exists; None if it exists or is unknown."""
        if kind == ROWS and Path(parse_rows(spec).source).expanduser().exists():
            return None
        for spelling in _spellings(kind, spec):
            path = self._path(kind, spelling, options)
            if path.is_file():
                contents: Mapping[str, str] = read_json(path, "source")["contents"]
                return contents
        return None

    def _record(
        self, kind: str, spec: str, options: Mapping[str, Any], contents: Mapping[str, str]
    ) -> None:
        for spelling in _spellings(kind, spec):
            path = self._path(kind, spelling, options)
            value = {
                "what": kind,
                "spec": spelling,
                "options": dict(options),
                "contents": dict(contents),
            }
            if not path.is_file() or read_json(path, "source") != value:
                write_json(path, {"kind": "source", "schema": SCHEMA, **value})

    def _path(self, kind: str, spec: str, options: Mapping[str, Any]) -> Path:
        return self.run.path("sources", f"{sha256_json([kind, spec, options])[:16]}.json")


def _spellings(kind: str, spec: str) -> list[str]:
    """Return a spec as given and, if it is an existing relative path, its absolute path."""
    if kind == "label":
        return [spec]
    parsed = parse_rows(spec).spec if kind == ROWS else Spec(spec)
    path = Path(parsed.name).expanduser()
    if path.is_absolute() or not (path.exists() or is_file(parsed.name)):
        return [spec]
    absolute = str(path.absolute())
    return [spec, write(absolute, parsed.options) if kind == ROWS else absolute]


def _options(options: Mapping[str, Any]) -> ReadOptions:
    return ReadOptions(**options, max_left_out=1.0)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
