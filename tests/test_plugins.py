"""Plug-ins are found by name, and options are checked before anything is built."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from holdfast import plugins
from holdfast.contracts import Plugin
from holdfast.errors import UsageError
from holdfast.options import Supplied


class Toy(Plugin):
    text: str = "none"
    """Any text."""
    share: float = 0.5
    """Any number."""
    count: int = 3
    """Any whole number."""
    flag: bool = False
    """Either of two."""
    rows: Supplied[object] = None
    hidden: ClassVar[int] = 1


class Needy(Plugin):
    path: str
    """Where it is."""


OWN = f"{__name__}:Toy"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Let holdfast.judges be an empty folder to put plug-in files in."""
    fake = types.ModuleType("holdfast.judges")
    fake.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "holdfast.judges", fake)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("holdfast.judges."):
            del sys.modules[name]


# ------------------------------------------------------------------------------- available, find


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plug_in_that_ships_is_found(kind: str) -> None:
    names = plugins.available(kind)
    assert names == sorted(names)
    assert "base" not in names
    for name in names:
        assert plugins.find(kind, name).__module__ == f"holdfast.{kind}.{name}"


def test_a_file_is_a_plug_in(package: Path) -> None:
    (package / "mine.py").write_text(
        "from pathlib import Path\n"  # imported classes, private ones and configs do not count
        "class _Helper: ...\n"
        "class MineOptions: ...\n"
        "class Mine: ...\n"
    )
    for name in ("base.py", "_private.py"):
        (package / name).write_text("")
    assert plugins.available("judges") == ["mine"]
    assert plugins.find("judges", "mine").__name__ == "Mine"


def test_an_unknown_name_lists_those_there_are(package: Path) -> None:
    for name in ("one", "two"):
        (package / f"{name}.py").write_text("")
    with pytest.raises(UsageError, match=r"'tow' is not one of the judges: one, two\. Use one"):
        plugins.find("judges", "tow")


@pytest.mark.parametrize(("source", "count"), [("", 0), ("class A: ...\nclass B: ...\n", 2)])
def test_a_file_must_have_exactly_one_class(package: Path, source: str, count: int) -> None:
    (package / "odd.py").write_text(source)
    with pytest.raises(UsageError, match=f"exactly one public class, not {count}"):
        plugins.find("judges", "odd")


def test_a_class_of_ones_own() -> None:
    assert plugins.find("judges", OWN) is Toy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Class", "module 'no_such_module' cannot be imported"),
        (f"{__name__}:Missing", "has no class 'Missing'"),
    ],
)
def test_a_class_of_ones_own_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plugins.find("judges", name)


def test_a_module_that_lacks_a_dependency_names_it(package: Path) -> None:
    (package / "heavy.py").write_text("import not_installed_xyz\nclass Heavy: ...\n")
    with pytest.raises(UsageError, match="'heavy': module 'not_installed_xyz' cannot be imp"):
        plugins.find("judges", "heavy")


# ----------------------------------------------------------------------------------------- make


def test_make_reads_options_by_type() -> None:
    made = plugins.make("judges", f"{OWN},text=7,share=1,count=4,flag=true")
    assert made == Toy(text="7", share=1.0, count=4, flag=True)
    assert isinstance(made.share, float)
    # YAML 1.1 reads 1e-5 as a string, for lack of a dot
    assert plugins.make("judges", f"{OWN},share=1e-5").share == 1e-5


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("0123456", "0123456"),  # YAML would read an octal number
        ("{response}", "{response}"),  # and a mapping
        ("USER: {prompt} ASSISTANT: {response}", "USER: {prompt} ASSISTANT: {response}"),
        ("true", "true"),
        ("", ""),
        ("'quoted: so'", "quoted: so"),
    ],
)
def test_a_text_is_what_it_says(given: str, text: str) -> None:
    assert plugins.make("judges", f"{OWN},text={given}").text == text


def test_make_takes_fields_from_the_caller() -> None:
    rows = object()
    assert plugins.make("judges", OWN, rows=rows).rows is rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "shares=1",
            "shares is not an option. Did you mean share. The options are count, flag",
        ),
        ("hidden=2", "hidden is not an option. The options are"),
        ("rows=2", "rows is not an option. The options are"),
        ("share=much", "share=much must be a number"),
        ("count=1.5", "count=1.5 must be a whole number"),
        ("count=true", "count=true must be a whole number"),  # though bool is a subclass of int
        ("flag=1", "flag=1 must be true or false"),
        ("text=[a,b]", r"text=.a,b. must be text"),
        ("text", r"'text' is not key=value .character \d+.; a spec is name,key=value"),
    ],
)
def test_make_refuses(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plugins.make("judges", f"{OWN},{options}")


def test_make_names_a_missing_option() -> None:
    with pytest.raises(UsageError, match="Needy: path is required; give it as '.*:Needy,path=...'"):
        plugins.make("judges", f"{__name__}:Needy")


class Stranger:
    """A class that has no options."""


@pytest.mark.parametrize("name", ["Stranger", "OWN"])
def test_what_is_not_a_plug_in_is_refused(name: str) -> None:
    with pytest.raises(
        UsageError, match="is not a plug-in: derive it from a class of holdfast.con"
    ):
        plugins.make("judges", f"{__name__}:{name}")
