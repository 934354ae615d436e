"""Adds the generated pages to the documentation: no list of options is written by hand."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

from holdfast.cli.pages import pages


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files
