"""Every file of the zoo in the stages that read rows: the same seven rows, or one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.examples import example_id
from zoo.machine import assert_done, assert_one_message, contents, holdfast
from zoo.members import OneOf, Read, Refused
from zoo.open_faults import cases
from zoo.rows import HUGE, ROWS, pairs


def expected_rows(read: Read) -> list[tuple[str, str]]:
    """Return prompt and response as a member has them."""
    before = f"{read.system}\n\n" if read.system else ""
    return [(before + prompt.replace(" a ", f" a{read.between}"), r) for prompt, r in pairs()]


@pytest.mark.parametrize("name", cases("rows", ROWS))
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
    expected = ROWS[name].expected
    if isinstance(expected, OneOf):
        expected = expected.message if ended.code else expected.value
    if isinstance(expected, Refused):
        assert_one_message(ended, out)
        assert expected.matches(ended.message), ended.message
        return
    assert_done(ended, out)
    rows = stored(out)
    assert rows == sorted(expected_rows(expected))
    (scores,) = out.glob("scores/*.json")
    ids = json.loads(scores.read_text("utf-8"))["ids"]
    assert sorted(ids) == sorted(example_id(p, r) for p, r in expected_rows(expected))
    (entry,) = out.glob("manifest/*.json")
    (record,) = json.loads(entry.read_text("utf-8"))["rows"].values()
    assert len(record.get("left_out") or []) == expected.left_out or expected.left_out


def stored(out: Path) -> list[tuple[str, str]]:
    """Return prompt and response of the rows that a run keeps, sorted."""
    (path,) = out.glob("rows/*.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    # A prompt that leaves no room for an answer is kept, and left out by the stage.
    return sorted((r["prompt"], r["response"]) for r in rows if r["prompt"].strip() != HUGE.strip())
