"""Plug-ins that read files of their own: tasks and judges, and the hashes of what they read.

The run keeps the rows of tasks, and records the hashes of everything else, so that a job's key can
be computed when the files are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast import plugins
from holdfast.contracts import Judge, Split, Task
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.options import Options, Supplied
from holdfast.results.contents import existing
from holdfast.results.run_dir import RunDir
from holdfast.results.sources import Sources
from holdfast.specs import parse


def labelled(kind: str, specs: Sequence[str]) -> dict[str, str]:
    """Return label -> spec: the plug-in's name, or the whole spec if two share a name.

    Raises:
        UsageError: The same spec is given twice.
    """
    names = [parse(spec).name for spec in specs]
    labels = [
        spec if names.count(name) > 1 else name for spec, name in zip(specs, names, strict=True)
    ]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise UsageError(f"{kind} {repeated[0]!r} is given twice; leave one out")
    return dict(zip(labels, specs, strict=True))


def options_hash(run: RunDir, kind: str, spec: str, plugin: Options) -> str:
    """Return the hash of a plug-in's options, as recorded in the run if one of its files is gone.

    Args:
        run: The run.
        kind: Kind of plug-in, e.g. "task".
        spec: Its name and options.
        plugin: What was built from them.
    """
    paths = [str(getattr(plugin, name)) for name in plugins.paths_of(plugin)]
    if not paths:
        return plugins.options_hash(plugin)
    sources = Sources(run)
    what = f"options of {kind}"
    recorded = sources.recorded(what, spec)
    if recorded and any(existing(path) is None for path in paths):
        return recorded["hash"]
    return sources.contents(what, spec, lambda: {"hash": plugins.options_hash(plugin)})["hash"]


# ----------------------------------------------------------------------------------------- tasks


class RunTask(Task):
    """A task whose rows the run keeps; otherwise the task itself.

    Attributes:
        run: The run.
        spec: Name and options of the task.
        task: The task.
    """

    run: Supplied[RunDir]
    spec: Supplied[str]
    task: Supplied[Task]

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        """Length of an answer."""
        return self.task.max_new_tokens

    @property
    def options_hash(self) -> str:
        """Hash of the task's options."""
        return options_hash(self.run, "task", self.spec, self.task)

    def load(self, split: Split) -> Examples:
        """Return the rows of a split, those kept in the run if the task's files are gone."""
        if not plugins.paths_of(self.task):
            return self.task.load(split)
        return Sources(self.run).load_rows(
            f"task {split}", self.spec, lambda: self.task.load(split)
        )

    def score(self, response: str, reference: str) -> float:
        """Grade one response."""
        return self.task.score(response, reference)


def task_of(run: RunDir, spec: str) -> RunTask:
    """Build a task.

    Raises:
        UsageError: An unknown task or option.
    """
    return RunTask(run=run, spec=spec, task=plugins.make("tasks", spec))


def tasks_of(run: RunDir, specs: Sequence[str]) -> dict[str, RunTask]:
    """Build tasks by label.

    Raises:
        UsageError: An unknown task or option, or the same task twice.
    """
    return {label: task_of(run, spec) for label, spec in labelled("task", specs).items()}


# ---------------------------------------------------------------------------------------- judges


def judges_of(specs: Sequence[str]) -> dict[str, Judge]:
    """Build judges by label.

    Raises:
        UsageError: An unknown judge or option, or the same judge twice.
    """
    return {label: plugins.make("judges", spec) for label, spec in labelled("judge", specs).items()}


def check_judges(judges: Mapping[str, Judge]) -> None:
    """Have judges check their options before a model generates anything.

    Raises:
        UsageError: As their `judge` does.
    """
    for judge in judges.values():
        judge.judge([], [])


def judge_hashes(run: RunDir, specs: Sequence[str], judges: Mapping[str, Judge]) -> dict[str, str]:
    """Return the hashes of what judges read and of their options, for the inputs of a job.

    Args:
        run: The run.
        specs: Their names and options, in the order of `judges`.
        judges: Label -> judge.
    """
    hashes = {}
    for number, (spec, judge) in enumerate(zip(specs, judges.values(), strict=True), start=1):
        label = f"judge {number}, {parse(spec).name}"
        hashes[f"options of {label}"] = options_hash(run, "judge", spec, judge)
        content = _judge_hash(run, spec, judge)
        if content:
            hashes[label] = content
    return hashes


def _judge_hash(run: RunDir, spec: str, judge: Judge) -> str:
    if not plugins.paths_of(judge):
        return judge.hash
    return Sources(run).contents("judge", spec, lambda: {"hash": judge.hash})["hash"]


def judge_facts(judges: Mapping[str, Judge]) -> dict[str, dict[str, Any]]:
    """Return label -> what a judge chose or found out by itself, of those that did."""
    facts = {label: judge.facts for label, judge in judges.items()}
    return {label: of_judge for label, of_judge in facts.items() if of_judge}
