"""How did the alignment go, group by group?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from holdfast.charts.figures import Axis, Figure, Line, LineChart, numbers
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.results.run_dir import Entry, RunDir
from holdfast.stats.intervals import Interval, mean_interval
from holdfast.stats.wording import between
from holdfast.texts import Text

Log = Sequence[Mapping[str, Any]]
PLAIN, LOSS, SHARE, GAP = "loss", "loss_", "q_", "perturbation_gap"
POINTS = 60
"""A curve is shown as means over this many stretches of the run."""


class Training(Analysis):
    """Reads what the methods logged: losses by group, the adversary's distribution, and the gap."""

    needs: ClassVar[tuple[str, ...]] = ("align",)

    part: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the run that counts as its beginning and as its end."""

    def run(self, run: RunDir) -> Section:
        """Return a line per model and quantity, and the curves of the models that have groups."""
        lines, findings = [], []
        figures: dict[str, Figure] = {}
        for entry in run.require("align"):
            curves = _curves(_log(run, entry))
            ends = {name: self._ends(curve) for name, curve in curves.items()}
            unknown = mean_interval([]), mean_interval([])
            for name, (first, last) in (ends or {PLAIN: unknown}).items():
                lines.append(_line(entry.name, name, first, last, len(curves.get(name, ()))))
            findings.append(_finding(entry.name, curves, ends))
            figures |= _figures(entry.name, curves)
        return Section(
            title=Text("How did the training go?"),
            findings=tuple(findings),
            tables={Text("Beginning and end of the training"): SectionTable.of(lines)},
            figures=figures,
            note=Text(
                "Losses are per answer token, on the batches that were drawn and at the weights "
                "at which they were trained: under the perturbation where the method has one. "
                "Consecutive logged steps are correlated, so the t intervals are too narrow. A "
                "group's loss also reflects how freely its answers are worded, which training "
                "cannot remove: the group with the larger loss need not be forgotten first."
            ),
        )

    def _ends(self, curve: pd.Series) -> tuple[Interval, Interval]:
        n = max(1, math.ceil(self.part * len(curve)))
        return mean_interval(curve.iloc[:n]), mean_interval(curve.iloc[-n:])


def _log(run: RunDir, entry: Entry) -> Log:
    for name in entry.outputs:
        if name.endswith(".training.json"):
            log: Log = json.loads(Path(run.path(name)).read_text(encoding="utf-8"))["log"]
            return log
    return []


def _curves(log: Log) -> dict[str, pd.Series]:
    """Return each quantity over the steps at which it was logged."""
    names = dict.fromkeys(key for line in log for key in line)
    wanted = [n for n in names if n in (PLAIN, GAP) or n.startswith((LOSS, SHARE))]
    found = {}
    for name in wanted:
        points = {int(line["step"]): float(line[name]) for line in log if name in line}
        found[name] = pd.Series(points, name=name).sort_index()
    return found


def _title(name: str) -> Text:
    if name == GAP:
        return Text("the loss that the perturbation adds")
    if name.startswith(SHARE):
        return Text("the probability of the group {group}", group=name.removeprefix(SHARE))
    if name != PLAIN:
        return Text("the loss of the group {group}", group=name.removeprefix(LOSS))
    return Text("the loss")


def _line(
    model: str, name: str, first: Interval, last: Interval, steps: int
) -> dict[str, str | float]:
    return {
        Text("model"): model,
        Text("quantity"): _title(name),
        Text("beginning"): first.value,
        Text("end"): last.value,
        Text("low"): last.low,
        Text("high"): last.high,
        Text("steps"): steps,
    }


def _finding(
    model: str, curves: Mapping[str, pd.Series], ends: Mapping[str, tuple[Interval, Interval]]
) -> Text:
    """Say in one sentence where the training of a model ended."""
    if not curves:
        return Text(
            "{model}: the loss is unknown (n=0), because the run was too short to log it.",
            model=model,
        )
    grouped = [name for name in curves if name != PLAIN]
    parts = tuple(
        Text(
            "{quantity} is {value}",
            quantity=_title(name),
            value=between(ends[name][1], ".3g"),
        )
        for name in grouped
    )
    if not grouped:
        first, last = ends[PLAIN]
        change = {"value": between(last, ".3g"), "before": between(first, ".3g")}
        parts = (Text("the loss is {value}, down from {before} at the beginning", **change),)
        if last.value >= first.value:
            parts = (Text("the loss is {value}, from {before} at the beginning", **change),)
    steps = max(len(curves[name]) for name in grouped or [PLAIN])
    return Text(
        "{model}, n={n:d} logged steps: at the end {parts:semicolon}.",
        model=model,
        n=steps,
        parts=parts,
    )


def _figures(model: str, curves: Mapping[str, pd.Series]) -> dict[str, Figure]:
    nats = Axis(title=Text("nats per answer token"))
    share = Axis(title=Text("probability of a group"), ends=(0.0, 1.0), percent=True)
    kinds: tuple[tuple[Text, str, Axis], ...] = (
        (Text("Loss by group: {model}", model=model), LOSS, nats),
        (Text("Distribution over groups: {model}", model=model), SHARE, share),
        (Text("Loss that the perturbation adds: {model}", model=model), GAP, nats),
    )
    figures: dict[str, Figure] = {}
    for title, prefix, y in kinds:
        lines = [
            Line(name.removeprefix(prefix) or Text("added loss"), *_smooth(curve))
            for name, curve in curves.items()
            if name.startswith(prefix) and name != PLAIN
        ]
        if lines:
            x = Axis(title=Text("optimizer step"))
            figures[title] = LineChart(title=title, x=x, y=y, lines=tuple(lines))
    return figures


def _smooth(curve: pd.Series) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return positions and means over stretches of the same number of logged steps."""
    parts = np.array_split(np.arange(len(curve)), min(POINTS, len(curve)))
    steps, values = curve.index.to_numpy(float), curve.to_numpy(float)
    return numbers([steps[p].mean() for p in parts]), numbers([values[p].mean() for p in parts])
