"""Folders import only from lower floors, wherever the import stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.plugins import KINDS

ROOT = Path(holdfast.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = (
    {"errors", "texts"},
    {"specs", "option_types"},
    {"options"},
    {"examples", "runtime", "stats", "charts"},
    {"world", "policy"},
    {"rows"},
    {"results"},
    {"contracts", "plugins", "models", "jobs", "groups"},
    {"tuning", "screening"},
    set(KINDS),
    {"reports"},
    {"stages"},
    {"trl", "in_memory"},
    {"cli"},
    {"__main__"},
)
"""Folders, and the few modules beside them, from the ground up; data flows one way.

A folder imports only from lower floors. Folders of one floor never import one another.
"""

LONGEST_FILE, LONGEST_FUNCTION = 520, 70
LONGER: dict[str, int] = {}
"""Files that are longer than the rule has it, and how long they may be; none may be added."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def folder_of(name: str) -> str:
    return name.partition(".")[0]


def floor(name: str) -> int:
    found = [i for i, folders in enumerate(FLOORS) if folder_of(name) in folders]
    assert len(found) == 1, f"{name}: say in FLOORS where its folder stands"
    return found[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module of holdfast that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from holdfast import models` is the module, `from holdfast.models import load` too.
            names = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix("holdfast.") in MODULES
                else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name.startswith("holdfast."):
                yield name.removeprefix("holdfast."), node.lineno


CODE = [pytest.param(n, p, id=n) for n, p in MODULES.items() if n]  # the root names everything


@pytest.mark.parametrize(("name", "path"), CODE)
def test_a_folder_imports_only_from_lower_floors(name: str, path: Path) -> None:
    for imported, line in imports(path):
        if folder_of(imported) != folder_of(name):
            where = f"{path}:{line}: {name} imports {imported}"
            assert floor(imported) < floor(name), f"{where}, which is not on a lower floor"


def test_no_modules_import_one_another_in_a_circle() -> None:
    edges = {(name, other) for name, path in MODULES.items() for other, _ in imports(path) if name}
    while edges:
        leaves = {b for _, b in edges} - {a for a, _ in edges}
        assert leaves, f"these import one another in a circle: {sorted(edges)}"
        edges = {(a, b) for a, b in edges if b not in leaves}


def test_the_rule_can_be_broken(tmp_path: Path) -> None:
    """The reader sees imports inside functions and under TYPE_CHECKING."""
    file = tmp_path / "x.py"
    file.write_text(
        "import holdfast.stages.align\nif TYPE_CHECKING:\n    from holdfast import cli, errors\n"
        "def f():\n    from holdfast.methods.sft import Sft\n"
    )
    found = {name for name, _ in imports(file)}
    assert found == {"stages.align", "cli", "errors", "methods.sft"}
    assert sorted(found, key=floor) == ["errors", "methods.sft", "stages.align", "cli"]


@pytest.mark.parametrize("path", [pytest.param(p, id=name_of(p) or "root") for p in FILES])
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = LONGER.get(path.relative_to(ROOT).as_posix(), LONGEST_FILE)
    assert text.count("\n") <= limit, f"{path}: split it by what its parts are for"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{path}:{node.lineno}: {node.name}"


def test_no_two_public_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    # The SVG charts share names with the figures that replace them.
    for name, path in ((n, p) for n, p in MODULES.items() if n != "charts.charts"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    twins = {name: places for name, places in homes.items() if len(places) > 1}
    assert twins == {}
