"""The training analysis on a log that was written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.analyses.training import Training
from holdfast.charts.figures import LineChart
from holdfast.results.files import write_json
from holdfast.results.run_dir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Return a run with one alignment of 20 steps, the groups by turns."""
    made = RunDir(tmp_path)
    log = []
    for step in range(20):
        group = ("calm", "frail")[step % 2]
        entry = {"step": step, f"loss_{group}": 4.0 - step / 10, "q_calm": 0.5 - step / 100}
        log.append({**entry, "q_frail": 0.5 + step / 100, "perturbation_gap": 0.1})
    log.append({"step": 20, "loss": 3.0, "train_loss": 2.5})
    with made.job("align", "hold-s0", config={}, inputs={}) as job:
        path = made.path("models", "hold-s0.training.json")
        write_json(path, {"kind": "training", "schema": 1, "log": log})
        job.outputs.append(path)
    return made


def test_beginning_and_end_of_each_quantity(run: RunDir) -> None:
    section = Training().run(run)
    table = next(iter(section.tables.values())).frame.set_index("quantity")
    frail = table.loc["the loss of the group frail"]
    # Seen at steps 1, 3, ... 19: the first of ten is step 1, the last step 19.
    assert (frail["beginning"], frail["end"], frail["steps"]) == (3.9, 2.1, 10)
    share = table.loc["the probability of the group frail"]
    assert share["beginning"] == pytest.approx((0.50 + 0.51) / 2)
    assert share["end"] == pytest.approx((0.68 + 0.69) / 2)
    assert table.loc["the loss that the perturbation adds"]["end"] == 0.1
    assert table.loc["the loss"]["steps"] == 1
    assert "the mean of the run" not in table.index  # train_loss is no curve
    assert [t.partition(":")[0] for t in section.figures] == [
        "Loss by group",
        "Distribution over groups",
        "Loss that the perturbation adds",
    ]
    (sentence,) = section.findings
    assert sentence.startswith("hold-s0, n=20 logged steps: at the end the loss of the group calm")
    assert "the loss of the group frail is 2.1 [unknown]" in sentence


def test_a_figure_names_the_groups(run: RunDir) -> None:
    figures = Training().run(run).figures
    loss, share = (
        figures[f"{title}: hold-s0"] for title in ("Loss by group", "Distribution over groups")
    )
    assert isinstance(loss, LineChart)
    assert isinstance(share, LineChart)
    assert {line.label for line in loss.lines} == {"calm", "frail"}
    assert {line.label for line in share.lines} == {"calm", "frail"}
