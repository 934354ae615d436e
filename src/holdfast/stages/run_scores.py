"""The scores of a run with the rows they were made from, for the stages that use them."""

from __future__ import annotations

from holdfast.errors import MismatchError, UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import Entry
from holdfast.results.sources import Sources
from holdfast.stages.config import StageConfig


def only(config: StageConfig, stage: str, name: str | None) -> Entry:
    """Return the job of a stage with this name, or the only one.

    Raises:
        UsageError: There is none, or there are several and no name was given.
    """
    entries = config.run.require(stage, name)
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise UsageError(f"{config.out} has several {stage}s ({names}); choose with --{stage}s")
    return entries[0]


def scores_with_rows(
    config: StageConfig, data: str | None, name: str | None
) -> tuple[Entry, Scores, Examples]:
    """Return scores, their manifest entry, and the rows they were made from.

    Args:
        config: Options of the stage.
        data: The rows that were scored; those that the run kept if None.
        name: Name of the scores; the only ones of the run if None.

    Raises:
        MismatchError: The scores were made from other rows than `data`.
        UsageError: There are no scores, or several and no name was given.
    """
    entry = only(config, "score", name)
    scores = Scores.load(config.run.result(entry))
    if data is None:
        return entry, scores, Sources(config.run).of(entry, "data")
    examples = config.read(data)
    if scores.data_hash != examples.hash:
        raise MismatchError(
            f"the scores {entry.name!r} were made from other rows than {data} "
            f"({len(scores.ids)} rows, hash {scores.data_hash[:12]}; here {len(examples)}, "
            f"{examples.hash[:12]}). Run `holdfast score` on this data first."
        )
    return entry, scores, examples
