"""Running the command line inside the test process, and looking at what it left behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.results.run_dir import RunDir
from zoo.members import OneOf, Refused

BOOKKEEPING = ("manifest", "failed", "rows", "sources", "work/locks")
"""What a run directory holds beside the outputs of finished jobs."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code.
        out: All that came on standard output, of libraries too.
        err: All that came on standard error.
        questions: How often something was read from standard input.
    """

    code: int
    out: str
    err: str
    questions: int

    @property
    def message(self) -> str:
        """The error message."""
        return self.err[self.err.find("error ") :]


class Yes(io.TextIOBase):
    """A standard input that says y to every question, and counts them."""

    def __init__(self) -> None:
        self.questions = 0

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        self.questions += 1
        return "y\n"

    def read(self, size: int = -1, /) -> str:
        return self.readline()

    def isatty(self) -> bool:
        return False


def holdfast(*arguments: object, folder: Path) -> Ended:
    """Run the function behind the console script as a shell would.

    Args:
        arguments: The command line.
        folder: Where it runs; what it writes there is seen by `litter`.
    """
    from holdfast.cli import main
    from holdfast.rows.readers import warn_once

    warn_once.cache_clear()
    answers = Yes()
    with pytest.MonkeyPatch.context() as patch, _captured() as (out, err), _fresh_logging():
        patch.setattr(sys, "argv", ["holdfast", *map(str, arguments)])
        patch.setattr(sys, "stdin", answers)
        patch.setenv("COLUMNS", "400")
        patch.setattr("typer.rich_utils.MAX_WIDTH", 400)
        patch.chdir(folder)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:  # noqa: BLE001  # a traceback is what must not be there
            logging.getLogger().exception("Traceback")
            code = -1
    return Ended(code, out.read_text(), err.read_text(), answers.questions)


@contextlib.contextmanager
def _captured() -> Iterator[tuple[Path, Path]]:
    """Send both streams to files: Python's, and those below, which other languages write to."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        paths = (Path(folder, "out"), Path(folder, "err"))
        for number, (name, path) in enumerate(zip(("stdout", "stderr"), paths, strict=True), 1):
            stack.enter_context(_redirected(number, name, path))
        kept = tuple(_Text() for _ in paths)
        stack.callback(lambda: [text.load(path) for text, path in zip(kept, paths, strict=True)])
        yield kept  # type: ignore[misc]


class _Text:
    """The content of a file after the file is gone."""

    def __init__(self) -> None:
        self.text = ""

    def load(self, path: Path) -> None:
        self.text = path.read_text("utf-8", errors="replace")

    def read_text(self) -> str:
        return self.text


@contextlib.contextmanager
def _redirected(number: int, name: str, path: Path) -> Iterator[None]:
    saved = os.dup(number)
    stream = path.open("w", encoding="utf-8")
    before = getattr(sys, name)
    os.dup2(stream.fileno(), number)
    setattr(sys, name, stream)
    try:
        yield
    finally:
        stream.flush()
        os.dup2(saved, number)
        os.close(saved)
        setattr(sys, name, before)
        # A handler may have kept the stream: closed, it would complain at the next command.
        stream.close()


@contextlib.contextmanager
def _fresh_logging() -> Iterator[None]:
    """Log as a new process does: to standard error, from the level of warnings on."""
    from transformers.utils import logging as hf_logging

    hf_logging.get_logger()
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    root.handlers.clear()
    library = [h for h in logging.getLogger("transformers").handlers if hasattr(h, "setStream")]
    streams = [handler.setStream(sys.stderr) for handler in library]
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for handler, stream in zip(library, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)


def contents(folder: Path) -> dict[str, str]:
    """Return path -> hash of every file under a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def half_written(out: Path) -> list[str]:
    """Return the files of a run directory that no finished job made, and damaged ones."""
    if not out.exists():
        return []
    run = RunDir(out)
    outputs = {name for entry in run.entries() for name in entry.outputs}
    files = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    strays = [
        name
        for name in files
        if name not in outputs and not any(name.startswith(f"{part}/") for part in BOOKKEEPING)
    ]
    return [*strays, *run.verify()]


def assert_one_message(ended: Ended, out: Path) -> None:
    """Check that a command ended with one message and left nothing half written."""
    assert "Traceback" not in ended.err, ended.err[-3000:]
    assert ended.code in (1, 2), ended.err
    lines = ended.err.strip().splitlines()
    assert len(lines) <= 3, ended.err
    assert sum(line.startswith("error ") for line in lines) == 1, ended.err
    assert len(ended.message) < 1000, "a message that nobody reads"
    assert ended.out == ""
    assert ended.questions == 0, "it asked on standard input"
    assert half_written(out) == []


def assert_done(ended: Ended, out: Path) -> None:
    """Check that a command ended well and printed JSON only."""
    import json

    assert "Traceback" not in ended.err, ended.err[-3000:]
    assert ended.code == 0, ended.err
    assert ended.questions == 0, "it asked on standard input"
    json.loads(ended.out)
    assert half_written(out) == []


def settled(ended: Ended, out: Path, expected: Any) -> Any:
    """Check how a command ended; return what its result must be, None after the right refusal."""
    if isinstance(expected, OneOf):
        expected = expected.message if ended.code else expected.value
    if isinstance(expected, Refused):
        assert_one_message(ended, out)
        assert expected.matches(ended.message), ended.message
        return None
    assert_done(ended, out)
    return expected
