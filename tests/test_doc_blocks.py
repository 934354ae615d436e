"""Every code block of the documentation runs on a small run, or says why not and still parses."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import holdfast
import holdfast.trl
from doc_blocks import PAGES, ROOT, Block, blocks, commands, prose, small
from holdfast.cli import app, main

BLOCKS = [block for page in PAGES for block in blocks(page)]
WORLD = ROOT / "src" / "holdfast" / "world" / "base"
LANGUAGES = {"python", "sh", "yaml", "json", "text", "mermaid"}
SLOW = {
    "alignment.md",
    "api.md",
    "attacks.md",
    "estimation.md",
    "provider.md",
    "quickstart.md",
    "researcher.md",
    "running.md",
}
"""Pages whose blocks take more than some seconds."""


def runnable(page: Path) -> bool:
    return any(
        block.language in {"python", "sh"} and not block.reason and not block.module
        for block in blocks(page)
    )


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


RUN_PAGES = [
    pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] * (page.name in SLOW))
    for page in PAGES
    if runnable(page)
]


def invoke(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def write_rows(path: Path, rows: Any) -> None:
    records = [
        {"prompt": row.prompt, "response": row.response, **dict(row.provenance)} for row in rows
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")


def write_chat(path: Path, rows: Any) -> None:
    """Write rows in the conversational form that TRL takes."""
    records = [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for row in rows
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")


def write_files(folder: Path) -> None:
    """Write the files that the documentation names, with rows of the embedded world."""
    from holdfast import world
    from holdfast.plugins import make

    write_rows(folder / "alignment.jsonl", world.rows("alignment")[:48])
    write_rows(folder / "alpaca.jsonl", world.rows("benign")[:48])
    chat = [*world.rows("alignment")[:48], *world.rows("benign")[:48]]
    write_chat(folder / "chat.jsonl", chat)
    write_rows(folder / "borderline.jsonl", world.rows("borderline")[:16])
    write_rows(folder / "pool.jsonl", world.rows("harmful")[:48])
    write_rows(folder / "prompts.jsonl", world.rows("test")[:16])
    write_rows(folder / "validation.jsonl", world.rows("test")[16:32])
    write_rows(folder / "collected.jsonl", world.rows("alignment")[48:56])
    write_rows(folder / "new.jsonl", world.rows("alignment")[56:64])
    sentiment = make("tasks", "world_sentiment").load("train")
    lines = [f"{row.prompt}\t{i % 2}" for i, row in enumerate(sentiment[:80])]
    (folder / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines[:60]]) + "\n")
    (folder / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines[60:]]) + "\n")
    topics = [f'{i % 4 + 1},"{row.prompt}","{row.prompt}"' for i, row in enumerate(sentiment[:80])]
    (folder / "news.csv").write_text("\n".join(topics[:60]) + "\n")
    (folder / "news-test.csv").write_text("\n".join(topics[60:]) + "\n")
    write_judge_rows(folder / "labelled.jsonl")
    (folder / "runs").mkdir()
    (folder / "runs" / "a.yaml").write_text(RUN, encoding="utf-8")


RUN = """
model: world
out: runs/b
data: {alignment: alignment.jsonl, test: prompts.jsonl, harmful: pool.jsonl}
align: {epochs: 1, max_length: 64}
methods: {sft: {}}
attack: {tasks: [world_sentiment], steps: 2, rows: 24, max_length: 64, task_rows: 4}
"""
"""The configuration that stands for `runs/a.yaml`."""


def write_judge_rows(path: Path) -> None:
    from holdfast import world

    answers = [(row, "harmful") for row in world.rows("harmful")[:60]]
    refusals = [(row, "safe") for row in world.rows("alignment")[:60]]
    others = [(row, "other") for row in world.rows("benign")[:60]]
    records = [
        {"prompt": row.prompt, "response": row.response, "label": label}
        for row, label in [*answers, *refusals, *others]
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")


ALIGN = "holdfast align --model BASE --data alignment.jsonl --benign alpaca.jsonl --out runs/a"
SHARED_RUN = (
    ALIGN,
    "holdfast score --model sft-s0 --base BASE --data alignment.jsonl --out runs/a",
    "holdfast group --data alignment.jsonl --out runs/a",
    f"{ALIGN} --method hold",
)
"""What a reader of the how-tos has already, in a small form."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files and the run that the documentation names.

    Processes of one test session build it once.
    """
    from filelock import FileLock

    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / "docs"
    with FileLock(session / "docs.lock"):
        if not folder.exists():
            build(folder)
    return folder


def build(folder: Path) -> None:
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir()
    write_files(unfinished)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(unfinished)
        for line in SHARED_RUN:
            assert invoke(small(line.split()), monkeypatch) == 0, line
    unfinished.rename(folder)


@pytest.fixture
def workplace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of the folder, as working directory and on the import path."""
    folder = tmp_path / "workplace"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.timeout(900)  # the first one builds the run, also on a busy machine
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL sets options that are to be renamed
@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks(page):
        if block.module:
            (workplace / f"{block.module}.py").write_text(block.code, encoding="utf-8")
    for block in blocks(page):
        if block.reason or block.module:
            continue
        if block.language == "python":
            code = block.code.replace('"BASE"', repr(str(WORLD)))
            exec(compile(code, str(block), "exec"), names)  # noqa: S102 - the page's own code
        elif block.language == "sh":
            run_shell(block, monkeypatch)


def public_names(block: Block) -> Iterator[str]:
    """Yield the public names that a block uses: `h.NAME`, or imported from holdfast.trl."""
    for node in ast.walk(ast.parse(block.code)):
        match node:
            case ast.Attribute(value=ast.Name(id="h"), attr=name):
                yield name
            case ast.ImportFrom(module="holdfast.trl", names=imported):
                yield from (alias.name for alias in imported)


def test_every_public_name_has_an_example_that_runs() -> None:
    run = [block for block in BLOCKS if block.language == "python" and not block.reason]
    shown = {name for block in run for name in public_names(block)}
    public = {*holdfast.__all__, *dir(holdfast.trl)}
    assert not public - shown


def run_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(block.code):
        if words[0] == "holdfast":
            assert invoke(small(words), monkeypatch) == 0, f"{block}: {' '.join(words)}"
        else:
            check_command(words, str(block))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.reason and b.language == "sh"], ids=str)
def test_what_is_not_run_names_commands_and_options_that_exist(block: Block) -> None:
    for words in commands(block.code):
        check_command(words, str(block))


def check_command(words: list[str], where: str) -> None:
    """Check that a command exists with its options; nothing is run."""
    program = words[0]
    check: Callable[[list[str], str], None] | None = CHECKS.get(program)
    assert check is not None, f"{where}: nothing checks {program!r}"
    check(words, where)


def check_holdfast(words: list[str], where: str) -> None:
    from typer.main import get_command

    group: Any = get_command(app)
    command = group.get_command(None, words[1])
    assert command is not None, f"{where}: no command {words[1]!r}"
    arguments = [word for word in words[2:] if word != "..."]
    command.make_context(words[1], arguments)


def check_python(words: list[str], where: str) -> None:
    script = ROOT / words[1]
    assert script.is_file(), f"{where}: {words[1]} does not exist"
    sources = [script.read_text(encoding="utf-8")]
    if script.parent.name == "benchmarks":
        sources.append((script.parent / "common.py").read_text(encoding="utf-8"))
    for option in (word for word in words[2:] if word.startswith("--")):
        quoted = f'"{option}"'
        assert any(quoted in source for source in sources), f"{where}: {words[1]} has no {option}"


def check_make(words: list[str], where: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in words[1:] if "=" not in word]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), f"{where}: no target {target}"


def check_pip(words: list[str], where: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        match = re.fullmatch(r"holdfast\[([\w,-]+)\]", word)
        if match:
            missing = set(match[1].split(",")) - set(project["optional-dependencies"])
            assert not missing, f"{where}: no extra {missing}"


def check_torchrun(words: list[str], where: str) -> None:
    start = words.index("-m")
    assert words[start + 1] == "holdfast"
    check_holdfast(words[start + 1 :], where)


def check_nothing(words: list[str], where: str) -> None:
    """Accept a command of the shell or of another project."""


CHECKS: dict[str, Callable[[list[str], str], None]] = {
    "holdfast": check_holdfast,
    "python": check_python,
    "make": check_make,
    "pip": check_pip,
    "torchrun": check_torchrun,
    "dask": check_nothing,
    "export": check_nothing,
    "git": check_nothing,
    "cd": check_nothing,
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the plug-ins of all pages on the import path."""
    for block in BLOCKS:
        if block.module:
            (tmp_path / f"{block.module}.py").write_text(block.code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_configurations_are_valid(block: Block, modules: None) -> None:
    from holdfast.stages.pipeline import parse

    values = yaml.safe_load(block.code)
    if "model" in values and "methods" in values:
        parse(values, where=str(block))


def test_the_architecture_page_names_the_folders_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"\| floor \|.*?\n\n", text, re.S)
    assert table is not None
    package = ROOT / "src" / "holdfast"
    folders = {f"{path.name}/" for path in package.iterdir() if any(path.glob("*.[pyd]*"))}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    presets = {"presets/"}
    named = set(re.findall(r"`([a-z_]+/?)`", table[0]))
    assert named & {name for name in named if name.endswith("/")} == folders | presets
    assert modules <= named


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_stands_in_fences_with_a_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: give the fence a language"
    loose = [
        f"{name_of(page)}:{number}"
        for number, line in prose(page)
        if re.match(r" {4,}(holdfast|python|pip|make|from|import) ", line)
    ]
    assert loose == []


def test_what_is_not_run_says_why() -> None:
    unmarked = [
        str(block)
        for block in BLOCKS
        if not block.reason and "..." in block.code and block.language == "sh"
    ]
    assert unmarked == []
