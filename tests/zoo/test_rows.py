"""Every file of the zoo in the stages that read rows: the same seven rows, or one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.examples import example_id
from zoo.machine import assert_done, assert_one_message, contents, holdfast, settled
from zoo.members import Read
from zoo.rows import HUGE, ROWS, pairs


def expected_rows(read: Read) -> list[tuple[str, str]]:
    """Return prompt and response as a member has them."""
    before = f"{read.system}\n\n" if read.system else ""
    return [(before + prompt.replace(" a ", f" a{read.between}"), r) for prompt, r in pairs()]


@pytest.mark.parametrize("name", ROWS)
def test_the_same_rows_or_one_message(zoo: Any, name: str) -> None:
    folder = zoo.fresh(f"rows-{name}")
    files = folder / "files"
    files.mkdir()
    spec = ROWS[name].build(files)
    before = contents(files)
    out = folder / "run"
    model = ("--model", zoo["plain"], "--estimator", "loss", "--device", "cpu")
    many = ("--max-left-out", 0.2)
    ended = holdfast("score", *model, "--data", spec, *many, "--out", out, "--json", folder=folder)
    assert contents(files) == before
    expected = settled(ended, out, ROWS[name].expected)
    if expected is None:
        return
    rows = stored(out)
    assert rows == sorted(expected_rows(expected))
    (scores,) = out.glob("scores/*.json")
    found = json.loads(scores.read_text("utf-8"))
    ids = [i for i, value in zip(found["ids"], found["values"], strict=True) if value is not None]
    assert sorted(ids) == sorted(example_id(p, r) for p, r in expected_rows(expected))
    assert left_out(out) == expected.left_out


def stored(out: Path) -> list[tuple[str, str]]:
    """Return prompt and response of the rows that a run keeps, sorted."""
    (path,) = out.glob("rows/*.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    # A prompt that leaves no room for an answer is kept, and left out by the stage.
    return sorted((r["prompt"], r["response"]) for r in rows if r["prompt"].strip() != HUGE.strip())


def left_out(out: Path) -> int:
    """Return how many rows the only job of a run left out: when they were read, and later."""
    (path,) = out.glob("manifest/*.json")
    entry = json.loads(path.read_text("utf-8"))
    (record,) = entry["rows"].values()
    records = [record.get("left_out"), *entry["facts"].get("left_out", {}).values()]
    return sum(sum(found["reasons"].values()) for found in records if found)


ROLES: dict[str, tuple[str, ...]] = {
    "aligned on": ("align", "--data", "FILE", "--epochs", "1", "--max-length", "48"),
    "ordinary": ("align", "--data", "SAFETY", "--benign", "FILE", "--epochs", "1"),
    "poison": ("attack", "--test", "TEST", "--harmful", "FILE"),
    "tracked": ("attack", "--test", "TEST", "--harmful", "HARMFUL", "--track", "FILE"),
    "asked": ("evaluate", "--test", "FILE"),
    "asked in vain": ("evaluate", "--test", "TEST", "--over-refusal", "FILE"),
}
"""What rows are used for -> a command, with names in place of files."""
ATTACK = tuple("--poison-ratio 0.5 --steps 1 --every 1 --rows 4 --batch-size 2".split())


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ROWS)
def test_every_use_of_rows_is_done_or_one_message(zoo: Any, name: str, role: str) -> None:
    folder = zoo.fresh(f"rows-{name}")
    files = folder / "files"
    files.mkdir()
    names = {"FILE": ROWS[name].build(files), "SAFETY": zoo.rows["safety.jsonl"]}
    names |= {"TEST": zoo.rows["prompts.jsonl"], "HARMFUL": zoo.rows["harmful.jsonl"]}
    command = [names.get(word, word) for word in ROLES[role]]
    if command[0] == "attack":
        command += ["--task", zoo.rows.task, "--task-rows", "0", "--max-length", "48", *ATTACK]
    model = ("--model", zoo["plain"], "--device", "cpu", "--max-left-out", 0.2)
    ended = holdfast(*command, *model, "--out", folder / "run", "--json", folder=folder)
    if ended.code:
        assert_one_message(ended, folder / "run")
    else:
        assert_done(ended, folder / "run")
