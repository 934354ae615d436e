"""Importing is light and silent: nothing heavy, nothing printed."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

ROOT = Path(holdfast.__file__).parent
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages([str(ROOT)], "holdfast.")
    if not m.name.endswith(".__main__")  # importing that one runs the program
)
HEAVY = ("torch", "transformers", "peft", "datasets", "pandas", "sklearn", "scipy", "matplotlib")
# Modules that are nothing but computation with tensors or tables; whoever needs one imports it in
# the function that does.
COMPUTING = (
    "holdfast.trl",
    *("holdfast.analyses.", "holdfast.guards.", "holdfast.methods.", "holdfast.tuning."),
    *(
        f"holdfast.models.{m}"
        for m in "attention decoding generation head_loss heads losses processes weights".split()
    ),
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} says nothing of itself"


def test_the_package_and_its_command_line_import_nothing_heavy() -> None:
    code = (
        "import sys, holdfast, holdfast.cli, holdfast.contracts, holdfast.plugins; "
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
    assert done.stderr == ""


def test_what_is_not_computation_imports_nothing_heavy() -> None:
    """Configurations of all stages, judges, estimators, run directories, statistics, reports."""
    light = [name for name in MODULES if not name.startswith(COMPUTING)]
    assert {"holdfast.stages.align", "holdfast.stages.attacking.config"} <= set(light)
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    if heavy:\n"
        "        sys.exit(f'{name} imports {heavy}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names_can_be_looked_up() -> None:
    for name in getattr(holdfast, "__all__", ()):
        assert getattr(holdfast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        holdfast.nothing  # noqa: B018


def test_nothing_prints() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"
