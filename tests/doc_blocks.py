"""The code blocks of the documentation, and how each kind is run or checked.

A block is a fence with a language. The comment `<!-- not run: REASON -->` in the line before it
says that it cannot be run here; its commands must still exist, with their options.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "README.ja.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)$")
_REASON = re.compile(r"\s*<!-- not run: (?P<reason>.+) -->$")

FILES = {"BASE": "world", "rows=400": "rows=24"}
"""Placeholder in the documentation -> what stands for it here."""

SMALL: Mapping[str, Mapping[str, str]] = {
    "align": {"--epochs": "8", "--lr": "1e-3", "--max-length": "64", "--limit": "48"},
    "score": {"--limit": "48", "--agreement": "-1"},
    "group": {"--limit": "48"},
    "validate-estimator": {"--limit": "48", "--seeds": "1"},
    "screen": {"--limit": "48"},
    "attack": {
        "--steps": "8",
        "--lr": "4e-4",
        "--poison-ratio": "0.5",
        "--epochs": "0",
        "--every": "1",
        "--rows": "24",
        "--batch-size": "8",
        "--max-length": "64",
        "--max-new-tokens": "12",
        "--task-rows": "4",
        "--track-rows": "24",
        "--limit": "48",
        "--jobs": "1",
    },
    "adapt": {"--trials": "2", "--steps": "2", "--floor": "0", "--limit": "48"},
    "evaluate": {"--max-new-tokens": "12", "--task-rows": "4", "--limit": "16"},
    "run": {"--jobs": "1"},
}
"""Command -> options that keep it small; they replace those in the block."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: File it stands in.
        line: Line of its fence.
        language: Language of the fence.
        code: Its text, without the indentation of the fence.
        reason: Why it is not run; "" if it is.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def module(self) -> str:
        """Name of the module that a block is, if its first line is `# name.py`."""
        match = re.match(r"# (\w+)\.py\n", self.code)
        return match[1] if match and self.language == "python" else ""


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
        indent = len(fence["indent"])
        code = "\n".join(line[indent:] for line in lines[number + 1 : end]) + "\n"
        note = _REASON.match(lines[number - 1]) if number else None
        reason = note["reason"] if note else ""
        yield Block(page, number + 1, fence["language"], code, reason)
        number = end + 1


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page that stand in no fence."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def commands(code: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as lists of words."""
    joined = re.sub(r"\\\n\s*", " ", code)
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        command: list[str] = []
        for word in words:
            if word == "&&":
                yield command
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):
                command.append(word)
        if command:
            yield command


def small(words: list[str]) -> list[str]:
    """Return a holdfast command with placeholders filled and sizes cut down."""
    name = words[1]
    sizes = SMALL.get(name, {})
    filled = [FILES.get(word, word) for word in words]
    kept: list[str] = []
    skip = False
    for word in filled:
        if skip:
            skip = False
        elif word in sizes:
            skip = True
        else:
            kept.append(word)
    used = {"--jobs"} & set(words) if name == "run" else set(sizes)
    added = [text for option in sizes if option in used for text in (option, sizes[option])]
    return [*kept, *added]
