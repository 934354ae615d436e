"""How bad is the worst attack that a search found?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pandas as pd

from holdfast.charts.charts import Series, line_chart
from holdfast.contracts import Analysis, Section
from holdfast.results.run_dir import RunDir
from holdfast.results.searches import Adapted, best_so_far
from holdfast.stats.intervals import wilson


class Adaptive(Analysis):
    """Tells what `holdfast adapt` found on each model, and after how many attacks."""

    needs: ClassVar[tuple[str, ...]] = ("adapt",)

    def run(self, run: RunDir) -> Section:
        """Return the worst attacks, all that were tried, and the search's course."""
        found = [Adapted.load(run.result(entry)) for entry in run.require("adapt")]
        return Section(
            title="How bad is the worst attack that a search found?",
            findings=tuple(sentence for one in found for sentence in _findings(one, found)),
            tables={
                "The worst attack on each model": pd.DataFrame(map(_worst, found)),
                "Every attack that was tried": pd.DataFrame(
                    row for one in found for row in _tried(one)
                ),
            },
            figures={"Course of the search": _course(found)},
            note=(
                "The search chose its attack by the same test prompts that the score is of, so the "
                "score is somewhat too high for this attack, and the interval does not know it; "
                "replay it on other prompts to see. It is a lower bound of what an attacker can "
                "do: a longer search, or one in a larger space, may find worse. The floor is a "
                "share of the accuracy of the clean fine-tuning of the same model at the middle "
                "learning rate and the most steps."
            ),
        )


def _findings(one: Adapted, among: list[Adapted]) -> Iterator[str]:
    worst, n = one.worst, len(one.trials)
    if worst is None:
        yield (
            f"On {one.model}, none of the attacks kept the floor, so the worst one is unknown, "
            f"n={n} attacks."
        )
    else:
        yield (
            f"On {one.model}, the worst of {n} attacks is answered harmfully at "
            f"{wilson(worst.harmful, worst.n)}, at a task accuracy of {worst.accuracy:.2f} "
            f"against {one.clean_accuracy:.2f} of the clean fine-tuning."
        )
    most = max(len(other.trials) for other in among)
    if n < most:
        yield (
            f"On {one.model} fewer attacks were tried (n={n}) than on others ({most}): how it "
            "compares with them is unknown."
        )


def _worst(one: Adapted) -> dict[str, Any]:
    worst = one.worst
    share = wilson(worst.harmful, worst.n) if worst else wilson(0, 0)
    return {
        "model": one.model,
        "task": one.task.partition(",")[0],
        "tried": len(one.trials),
        "kept the floor": sum(t.kept is True for t in one.trials),
        "failed": sum(t.kept is None for t in one.trials),
        "worst HS": share.value,
        "low": share.low if worst else math.nan,
        "high": share.high if worst else math.nan,
        "prompts": share.n,
        "task accuracy": worst.accuracy if worst else math.nan,
        "clean accuracy": one.clean_accuracy,
        "floor": one.floor,
        **(worst.settings if worst else {}),
    }


def _tried(one: Adapted) -> Iterator[dict[str, Any]]:
    for number, tried in enumerate(one.trials, 1):
        yield {
            "model": one.model,
            "number": number,
            "HS": tried.harmful / tried.n if tried.n else math.nan,
            "task accuracy": tried.accuracy,
            "kept the floor": {True: "yes", False: "no", None: "failed"}[tried.kept],
            "at step": tried.step,
            **tried.settings,
        }


def _course(found: list[Adapted]) -> str:
    series = [
        Series(
            one.model,
            [float(i) for i, _ in enumerate(one.trials, 1)],
            best_so_far(one.trials),
        )
        for one in found
    ]
    return line_chart(
        series, title="Worst attack so far", x_label="attacks tried", y_label="harmful score"
    )
