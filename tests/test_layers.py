"""A module imports only from its own layer or a lower one, wherever the import stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast.plugins import KINDS

ROOT = Path(holdfast.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LAYERS = (
    {
        *("errors", "examples", "contracts", "artifacts", "runs", "plugins", "interrupt"),
        *("progress", "mishaps"),
    },
    {
        *("data", "text", "models", "losses", "weights", "directions", "generate", "stats"),
        "attention",
        *("svg", "charts", "sections", "finetune", "forgetting", "group_sampler", "groups"),
        "proxy_attack",
        *("factors", "screening", "crossfit", "similarity"),
        *(
            "agreement",
            "validation",
            "cost",
            "flip_step",
            "distributed",
            "trl_rows",
            "batches",
            *("survival", "power", "adaptive", "provenance", "differences", "comparing"),
            *("pairing", "answering", "general"),
        ),
        "world",
        *("jobs", "workers", "cluster"),
    },
    set(KINDS),
    {"stages", "reports", "cli", "__main__"},
)
CIRCULAR = {("contracts", "artifacts"), ("artifacts", "contracts")}
"""Pairs of values and contracts that may name each other, for type checkers only."""

LONGEST_FILE, LONGEST_FUNCTION = 520, 70
LONGER: dict[str, int] = {}
"""Files that are longer than the rule has it, and how long they may be; none may be added."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def layer(name: str) -> int:
    top = name.partition(".")[0]
    found = [i for i, names in enumerate(LAYERS) if top in names]
    assert len(found) == 1, f"{name}: say in LAYERS which layer it is of"
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
def test_a_module_imports_only_from_its_own_layer_or_below(name: str, path: Path) -> None:
    mine, top = layer(name), name.partition(".")[0]
    for imported, line in imports(path):
        where = f"{path}:{line}: {name} imports {imported}"
        theirs, other = layer(imported), imported.partition(".")[0]
        assert theirs <= mine, f"{where}, of a higher layer ({theirs} above {mine})"
        if mine == theirs == 2:
            assert other == top, f"{where}: plug-in folders never import one another"


def test_layer_zero_has_no_circle() -> None:
    edges = {
        (name, imported.partition(".")[0])
        for name, path in MODULES.items()
        if name and layer(name) == 0
        for imported, _ in imports(path)
    } - CIRCULAR
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
    assert [layer(name) for name in sorted(found)] == [3, 0, 2, 3]


@pytest.mark.parametrize("path", [pytest.param(p, id=name_of(p) or "root") for p in FILES])
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = LONGER.get(path.relative_to(ROOT).as_posix(), LONGEST_FILE)
    assert text.count("\n") <= limit, f"{path}: split it by what its parts are for"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{path}:{node.lineno}: {node.name}"
