"""Stage: split the scored examples into groups."""

from __future__ import annotations

from holdfast.artifacts import Groups, Scores
from holdfast.errors import MismatchError, UsageError
from holdfast.groups import group as make_groups
from holdfast.stages.config import StageConfig


class GroupConfig(StageConfig):
    """Options of the stage.

    Attributes:
        data: The alignment rows that were scored.
        scores: Name of the scores in the run; the only ones if None.
        rule: "positive", "quantile" or "otsu".
        quantile: Share that counts as invulnerable under "quantile".
        name: Label of the result; the scores' name if empty.
    """

    data: str
    scores: str | None = None
    rule: str = "otsu"
    quantile: float = 0.6
    name: str = ""


def group(config: GroupConfig) -> Groups:
    """Make the groups and save `groups/<name>.json`.

    Raises:
        MismatchError: The scores were made from other rows.
        UsageError: The rule cannot split these scores.
    """
    entries = config.run.require("score", config.scores)
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise UsageError(f"{config.out} has several scores ({names}); choose with --scores")
    scores = Scores.load(config.run.path(next(iter(entries[0].outputs))))
    examples = config.read(config.data)
    if scores.data_hash != examples.hash:
        raise MismatchError(
            f"the scores {entries[0].name!r} were made from other rows than {config.data} "
            f"({len(scores.ids)} rows, hash {scores.data_hash[:12]}; here {len(examples)}, "
            f"{examples.hash[:12]}). Run `holdfast score` on this data first."
        )
    name = config.name or entries[0].name
    path = config.run.path("groups", f"{name}.json")
    inputs = {"scores": scores.hash, "data": examples.hash}
    with config.run.step("group", name, config=config.keyed(), inputs=inputs) as step:
        if step.done is None:
            groups = make_groups(scores, examples, rule=config.rule, quantile=config.quantile)
            groups.save(path)
            step.outputs.append(path)
            step.facts |= {"sizes": groups.sizes, "rule": groups.rule, **groups.facts}
    return Groups.load(path)
