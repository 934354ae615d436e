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

from holdfast.charts.charts import ChartOptions, Series, line_chart
from holdfast.contracts import Analysis, Section
from holdfast.results.run_dir import Entry, RunDir
from holdfast.stats.intervals import Interval, mean_interval

Log = Sequence[Mapping[str, Any]]
PLAIN, LOSS, SHARE, GAP = "loss", "loss_", "q_", "perturbation_gap"
POINTS = 60
"""A curve is shown as means over so many stretches of the run."""


class Training(Analysis):
    """Reads what the methods logged: losses by group, the adversary's distribution, and the gap."""

    needs: ClassVar[tuple[str, ...]] = ("align",)

    part: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the run that counts as its beginning and as its end."""

    def run(self, run: RunDir) -> Section:
        """Return a line per model and quantity, and the curves of the models that have groups."""
        lines, findings = [], []
        figures: dict[str, str] = {}
        for entry in run.require("align"):
            curves = _curves(_log(run, entry))
            ends = {name: self._ends(curve) for name, curve in curves.items()}
            unknown = mean_interval([]), mean_interval([])
            for name, (first, last) in (ends or {PLAIN: unknown}).items():
                lines.append(_line(entry.name, name, first, last, len(curves.get(name, ()))))
            findings.append(_finding(entry.name, curves, ends))
            figures |= _figures(entry.name, curves)
        return Section(
            title="How did the training go?",
            findings=tuple(findings),
            tables={"Beginning and end of the training": pd.DataFrame(lines).round(4)},
            figures=figures,
            note=(
                "Losses are per answer token, of the batches that were drawn, at the weights at "
                "which they were trained: under the perturbation where the method has one. Logged "
                "steps follow each other, so the t intervals are narrower than independent ones. A "
                "group's loss also holds how freely its answers are worded, which training cannot "
                "remove: a group with the larger loss need not be the one that is forgotten first."
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


def _title(name: str) -> str:
    if name == GAP:
        return "what the perturbation adds to the safety loss"
    if name.startswith(SHARE):
        return f"the probability of the group {name.removeprefix(SHARE)!r}"
    return f"the loss of the group {name.removeprefix(LOSS)!r}" if name != PLAIN else "the loss"


def _line(
    model: str, name: str, first: Interval, last: Interval, steps: int
) -> dict[str, str | float]:
    return {
        "model": model,
        "what": _title(name),
        "beginning": first.value,
        "end": last.value,
        "low": last.low,
        "high": last.high,
        "steps": steps,
    }


def _finding(
    model: str, curves: Mapping[str, pd.Series], ends: Mapping[str, tuple[Interval, Interval]]
) -> str:
    """Say in one sentence where the training of a model ended."""
    if not curves:
        return f"{model}: the loss is unknown, n=0: the run was too short to log any."
    grouped = [name for name in curves if name != PLAIN]
    said = [f"{_title(name)} is {_written(ends[name][1])}" for name in grouped]
    if not grouped:
        first, last = ends[PLAIN]
        said = [f"the loss is {_written(last)}, from {_written(first)} at the beginning"]
    steps = max(len(curves[name]) for name in grouped or [PLAIN])
    return f"{model}, n={steps} logged steps: at the end {'; '.join(said)}."


def _written(found: Interval) -> str:
    ends = f" [{found.low:.3g}, {found.high:.3g}]" if math.isfinite(found.low) else " [unknown]"
    return f"{found.value:.3g}{ends}"


def _figures(model: str, curves: Mapping[str, pd.Series]) -> dict[str, str]:
    kinds = {
        f"Loss by group: {model}": (LOSS, "nats per answer token", None),
        f"Distribution over groups: {model}": (SHARE, "probability of a group", (0.0, 1.0)),
        f"What the perturbation adds: {model}": (GAP, "nats per answer token", None),
    }
    found = {}
    for title, (prefix, label, ends) in kinds.items():
        series = [
            Series(name.removeprefix(prefix) or "gap", *_smooth(curve))
            for name, curve in curves.items()
            if name.startswith(prefix) and name != PLAIN
        ]
        if series:
            found[title] = line_chart(
                series,
                title=title,
                x_label="optimizer step",
                y_label=label,
                options=ChartOptions(y_range=ends),
            )
    return found


def _smooth(curve: pd.Series) -> tuple[list[float], list[float]]:
    """Return positions and means over stretches of the same number of logged steps."""
    parts = np.array_split(np.arange(len(curve)), min(POINTS, len(curve)))
    steps, values = curve.index.to_numpy(float), curve.to_numpy(float)
    return [float(steps[p].mean()) for p in parts], [float(values[p].mean()) for p in parts]
