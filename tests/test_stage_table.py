"""Adding a stage is one entry in the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import holdfast
from holdfast import in_memory
from holdfast.stages.table import STAGES

PROGRAM = """
import sys
from holdfast.stages import table
from holdfast.stages.config import StageConfig


class ToyConfig(StageConfig):
    size: int = 3


def toy(config):
    return config.size


def shown(size):
    return {"size": size}


table.STAGES["toy"] = table.Stage(
    name="toy",
    summary="Make a toy.",
    config="__main__:ToyConfig",
    function="__main__:toy",
    example="toy --out runs/a",
    presenter="__main__:shown",
)

from holdfast.stages.planned_jobs import PlannedJob

call = PlannedJob("toy", "a", ToyConfig(out="x", size=5))
assert PlannedJob.read(__import__("json").loads(call.line)) == call
assert call() == 5
from holdfast.cli import main

sys.argv = ["holdfast", *sys.argv[1:]]
main()
"""


def run_with_toy(tmp_path: Path, *words: str) -> str:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), *words], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_stage_is_added_by_one_entry(tmp_path: Path) -> None:
    listing = run_with_toy(tmp_path, "--help")
    assert "toy" in listing
    assert "Make a toy." in listing
    help_text = run_with_toy(tmp_path, "toy", "--help")
    assert "--size" in help_text
    assert "holdfast toy --out runs/a" in help_text
    assert json.loads(run_with_toy(tmp_path, "toy", "--out", "x", "--json")) == {"size": 3}


def test_the_stages_are_public_names() -> None:
    for stage in STAGES.values():
        config, function = stage.load()
        assert config.__name__ in holdfast.__all__
        assert getattr(holdfast, config.__name__) is config
        # Four names take a model in memory instead of a configuration.
        public = getattr(in_memory, function.__name__, function)
        assert getattr(holdfast, function.__name__) is public


def test_the_table_is_light() -> None:
    code = "import sys, holdfast.stages.table; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
