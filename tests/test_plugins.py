"""Plug-ins are found by name, and options are checked before anything is built."""

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast import plugins
from holdfast.errors import UsageError


@dataclass(frozen=True)
class Toy:
    text: str = "none"
    share: float = 0.5
    count: int = 3
    flag: bool = False
    rows: object = None
    hidden: int = field(default=1, init=False)


@dataclass(frozen=True)
class Needy:
    path: str


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


# ---------------------------------------------------------------------------------------- parse


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("world", ("world", {})),
        ("sst2,train=a/b.tsv,n=3", ("sst2", {"train": "a/b.tsv", "n": 3})),
        ("m, rho = 0.1 ,on=true,off=false,none=null", (
            "m", {"rho": 0.1, "on": True, "off": False, "none": None})),
        ("m,key=a=b", ("m", {"key": "a=b"})),
        ("m,key=", ("m", {"key": None})),
        ("pack.mod:Class,k=1", ("pack.mod:Class", {"k": 1})),
    ],
)  # fmt: skip
def test_parse(spec: str, expected: tuple[str, dict[str, object]]) -> None:
    assert plugins.parse(spec) == expected


def test_parse_refuses_an_option_without_value() -> None:
    with pytest.raises(UsageError, match="'sst2,fast': 'fast' is not key=value"):
        plugins.parse("sst2,fast")


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
        ("shares=1", "unknown option 'shares'; it has count, flag, rows, share, text"),
        ("hidden=2", "unknown option 'hidden'"),
        ("share=much", "share='much' is not a number"),
        ("count=1.5", "count=1.5 must be int"),
        ("count=true", "count=True must be int"),  # though bool is a subclass of int
        ("flag=1", "flag=1 must be bool"),
    ],
)
def test_make_refuses(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plugins.make("judges", f"{OWN},{options}")


def test_make_names_a_missing_option() -> None:
    with pytest.raises(UsageError, match="Needy needs path: give it as '.*:Needy,path=...'"):
        plugins.make("judges", f"{__name__}:Needy")
