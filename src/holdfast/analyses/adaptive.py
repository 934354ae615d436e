"""How bad is the worst attack that a search found?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from holdfast.charts.figures import Axis, Line, LineChart, numbers
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.results.artifacts import Counts
from holdfast.results.run_dir import RunDir
from holdfast.results.searches import SearchResult, best_so_far
from holdfast.stats.wording import measured
from holdfast.texts import Text


class Adaptive(Analysis):
    """Reports what `holdfast adapt` found on each model, and after how many attacks."""

    needs: ClassVar[tuple[str, ...]] = ("adapt",)

    def run(self, run: RunDir) -> Section:
        """Return the worst attacks, all that were tried, and the search's course."""
        found = [SearchResult.load(run.result(entry)) for entry in run.require("adapt")]
        return Section(
            title=Text("How bad is the worst attack that a search found?"),
            findings=tuple(sentence for one in found for sentence in _findings(one, found)),
            tables={
                Text("The worst attack on each model"): SectionTable.of(map(_worst, found)),
                Text("Every attack that was tried"): SectionTable.of(
                    row for one in found for row in _tried(one)
                ),
            },
            figures={Text("Course of the search"): _course(found)},
            note=Text(
                "The search chose its attack on the same test prompts that are scored here, so "
                "the score is somewhat too high for this attack, and the interval does not show "
                "it; replay the attack on other prompts to see. The result is a lower bound on "
                "what an attacker can do: a longer search, or one in a larger space, may find "
                "worse. The floor is a share of the accuracy that clean fine-tuning of the same "
                "model reaches at the middle learning rate and the most steps."
            ),
        )


def _findings(one: SearchResult, among: list[SearchResult]) -> Iterator[Text]:
    worst, n = one.worst, len(one.trials)
    if worst is None:
        yield Text(
            "On {model}, no attack kept task accuracy above the floor, so the worst attack is "
            "unknown (n={n:d} attacks).",
            model=one.model,
            n=n,
        )
    else:
        yield Text(
            "On {model}, the worst of {attacks:d} attacks reaches a harmful score of {share}, "
            "at a task accuracy of {accuracy:.2f} against {clean:.2f} after clean fine-tuning.",
            model=one.model,
            attacks=n,
            share=measured(worst.counts.interval),
            accuracy=worst.accuracy,
            clean=one.clean_accuracy,
        )
    most = max(len(other.trials) for other in among)
    if n < most:
        yield Text(
            "On {model}, fewer attacks were tried (n={n:d}) than on other models ({most:d}), so "
            "how it compares with them is unknown.",
            model=one.model,
            n=n,
            most=most,
        )


def _worst(one: SearchResult) -> dict[str, Any]:
    worst = one.worst
    share = (worst.counts if worst else Counts(0, 0, 0)).interval
    return {
        Text("model"): one.model,
        Text("task"): one.task.partition(",")[0],
        Text("tried"): len(one.trials),
        Text("kept the floor"): sum(t.above_floor is True for t in one.trials),
        Text("failed"): sum(t.above_floor is None for t in one.trials),
        Text("worst harmful score"): share.value,
        Text("low"): share.low if worst else math.nan,
        Text("high"): share.high if worst else math.nan,
        Text("prompts"): share.n,
        Text("task accuracy"): worst.accuracy if worst else math.nan,
        Text("clean accuracy"): one.clean_accuracy,
        Text("floor"): one.floor,
        **(worst.settings if worst else {}),
    }


def _tried(one: SearchResult) -> Iterator[dict[str, Any]]:
    for number, tried in enumerate(one.trials, 1):
        yield {
            Text("model"): one.model,
            Text("number"): number,
            Text("harmful score"): tried.harmful_score,
            Text("task accuracy"): tried.accuracy,
            Text("kept the floor"): Text("failed")
            if tried.above_floor is None
            else tried.above_floor,
            Text("at step"): tried.step,
            **tried.settings,
        }


def _course(found: list[SearchResult]) -> LineChart:
    lines = [
        Line(one.model, numbers(range(1, len(one.trials) + 1)), numbers(best_so_far(one.trials)))
        for one in found
    ]
    return LineChart(
        title=Text("Worst attack so far"),
        x=Axis(title=Text("attacks tried")),
        y=Axis(title=Text("harmful score"), ends=(0.0, 1.0), percent=True),
        lines=tuple(lines),
    )
