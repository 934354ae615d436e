"""A run's configuration: what is wrong with it is one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import UsageError
from holdfast.stages import pipeline

EMPTY = """
out: {out}
model: world
data: {{alignment: "world:alignment", harmful: "world:harmful", test: "world:test"}}
methods: {{sam: {{options: }}}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "out: Field required"),
        ("vars:", "out: Field required"),
        ("vars: [a, b]", r"vars: \['a', 'b'\] is no mapping of names to values"),
        ("vars: {A: '{b: c'}\nout: ${A}", "with its variables filled in no YAML"),
        ("- a list", "not a YAML mapping"),
        ("out: ${NOBODY_SET_THIS}", "variable 'NOBODY_SET_THIS' is not set"),
        ("a: [", "not a YAML mapping"),
    ],
)
def test_what_is_no_configuration_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        pipeline.load(path)


def test_a_variable_may_break_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("out: ${A}")
    with pytest.raises(UsageError, match="with its variables filled in no YAML"):
        pipeline.load(path, {"A": "{b: c"})


def test_a_variable_that_is_misspelt_is_no_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("vars: {SEEDS: 3}\nout: ${OUT}")
    with pytest.raises(UsageError, match=r"--set MODLE: .* has no such variable; it has OUT, SEED"):
        pipeline.load(path, {"OUT": "a", "MODLE": "x"})
    with pytest.raises(UsageError, match="is a directory; give a configuration file"):
        pipeline.load(tmp_path)


def test_options_that_are_not_there_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(EMPTY.format(out=tmp_path))
    with pytest.raises(UsageError, match="options: Input should be a valid dictionary"):
        pipeline.load(path)
