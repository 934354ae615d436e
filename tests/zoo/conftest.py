"""The zoo's members are built once per test process, when they are first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoo import (  # noqa: F401  # they register their members
    adapters,
    decoding,
    shapes,
    stages,
    strange,
    templates,
)
from zoo.machine import Ended, holdfast
from zoo.models import MODELS


class Zoo:
    """Members by name, and what stages gave for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executed = folder / "EXECUTED"
        self.rows = stages.Rows.write(folder)
        self.numbers: dict[tuple[str, str], Any] = {}
        self.runs = 0

    def __getitem__(self, name: str) -> Path:
        folder = self.folder / "models" / name
        if not folder.exists():
            MODELS[name].build(folder, self)
        return folder

    def was_executed(self) -> bool:
        """Return whether code of a member was run, and forget it."""
        executed = self.executed.exists()
        self.executed.unlink(missing_ok=True)
        return executed

    def fresh(self, name: str) -> Path:
        """Return a new empty folder."""
        self.runs += 1
        folder = self.folder / "runs" / f"{name}-{self.runs}"
        folder.mkdir(parents=True)
        return folder

    def run(self, stage: str, model: Path, out: Path) -> Ended:
        """Run a stage on a model."""
        other = self["always_refuses" if stage == "base" else "plain"]
        command = stages.STAGES[stage].command(self.rows, other, model, out)
        return holdfast(*command, "--out", out, "--device", "cpu", "--json", folder=out.parent)

    def numbers_of(self, stage: str, name: str) -> Any:
        """Return what a stage gives for a member, which must be right itself."""
        if (stage, name) not in self.numbers:
            out = self.fresh(name) / "run"
            ended = self.run(stage, self[name], out)
            assert ended.code == 0, ended.err
            self.numbers[stage, name] = stages.STAGES[stage].numbers(out)
        return self.numbers[stage, name]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Return the zoo."""
    return Zoo(tmp_path_factory.mktemp("zoo"))
