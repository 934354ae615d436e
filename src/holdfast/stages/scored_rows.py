"""The scores of a run and the rows behind them, for the stages that go on from scores."""

from __future__ import annotations

from holdfast.errors import MismatchError, UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import Entry
from holdfast.stages.config import StageConfig


def only(config: StageConfig, stage: str, name: str | None) -> Entry:
    """Return the one step of a stage that is meant.

    Raises:
        UsageError: There is none, or there are several and no name.
    """
    entries = config.run.require(stage, name)
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise UsageError(f"{config.out} has several {stage}s ({names}); choose with --{stage}s")
    return entries[0]


def scored_rows(config: StageConfig, data: str, name: str | None) -> tuple[Entry, Scores, Examples]:
    """Return the scores that are meant, with their step and the rows they were made from.

    Raises:
        MismatchError: The scores were made from other rows than `data`.
        UsageError: There are no scores, or several and no name.
    """
    entry = only(config, "score", name)
    scores = Scores.load(config.run.result(entry))
    examples = config.read(data)
    if scores.data_hash != examples.hash:
        raise MismatchError(
            f"the scores {entry.name!r} were made from other rows than {data} "
            f"({len(scores.ids)} rows, hash {scores.data_hash[:12]}; here {len(examples)}, "
            f"{examples.hash[:12]}). Run `holdfast score` on this data first."
        )
    return entry, scores, examples
