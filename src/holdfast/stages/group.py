"""Stage: split the scored examples into groups."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.groups import Rule, groups_from_csv, groups_to_csv
from holdfast.groups import group as make_groups
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.files import sha256_file, sha256_json
from holdfast.stages.config import StageConfig
from holdfast.stages.run_scores import scores_with_rows


class GroupConfig(StageConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"data", "scores", "csv", "edited", "name"})

    data: str | None = None
    """Alignment rows that were scored (default: the rows stored in the run)."""
    scores: str | None = None
    """Name of the scores in the run; optional if there is only one set."""
    rule: Literal["positive", "quantile", "mass", "otsu", "gmm", "knee", "auto"] = "otsu"
    """Rule for the threshold: positive (score above 0), quantile, mass, otsu, gmm (mixture of
    Gaussians), knee, or auto (the rule that fits the scores, with the reason).
    """
    quantile: float = 0.6
    """Share of rows to call invulnerable, for the quantile rule."""
    mass: float = 0.8
    """Share of the total positive score in the vulnerable group, for the mass rule."""
    groups: int = Field(default=2, ge=2)
    """Number of groups by vulnerability; the rules positive and knee allow only two."""
    by: str = ""
    """Provenance column to cross the groups with, for example category."""
    min_size: int = 8
    """With --by, merge groups smaller than this."""
    csv: Path | None = None
    """CSV file to write for manual editing; an existing file is never overwritten."""
    edited: Path | None = None
    """CSV file from --csv with an edited "group" column to apply."""
    name: str = ""
    """Label of the result (default: the name of the scores)."""


def group(config: GroupConfig) -> Groups:
    """Make the groups and save `groups/<name>.json`.

    Raises:
        MismatchError: The scores were made from other rows.
        UsageError: The rule cannot split these scores, or the edited table does not fit.
    """
    entry, scores, examples = scores_with_rows(config, config.data, config.scores)
    name = config.name or entry.name
    path = config.run.path("groups", f"{name}.json")
    inputs = _inputs(config, scores, examples)
    rows = {"data": examples}
    with config.run.job("group", name, config=config.keyed(), inputs=inputs, rows=rows) as job:
        groups = Groups.load(path) if job.done else _groups(config, scores, examples)
        if config.csv is not None:
            # The table is no output of the job, since people change it. It comes first because it
            # can be refused: a command that fails must leave no groups.
            groups_to_csv(groups, scores, examples, config.csv)
        if job.done is None:
            groups.save(path)
            job.outputs.append(path)
            job.facts |= {"sizes": groups.sizes, "rule": groups.rule, **groups.facts}
    return Groups.load(path)


def _inputs(config: GroupConfig, scores: Scores, examples: Examples) -> dict[str, str]:
    inputs = {"scores": scores.hash}
    if scores.errors is not None:
        inputs["errors"] = sha256_json(scores.errors)
    if config.by:
        # The rows' hash covers prompts and responses only.
        inputs["by"] = sha256_json([row.provenance.get(config.by, "") for row in examples])
    if config.edited is not None:
        if config.edited.is_dir():
            raise UsageError(f"--edited {config.edited}: is a directory; give a csv file")
        if not config.edited.is_file():
            raise UsageError(
                f"--edited {config.edited}: no such file; `holdfast group --csv {config.edited}` "
                "makes one to edit"
            )
        inputs["edited"] = sha256_file(config.edited)
    return inputs


def _groups(config: GroupConfig, scores: Scores, examples: Examples) -> Groups:
    rule = Rule(config.rule, config.quantile, config.mass, config.groups)
    groups = make_groups(
        scores, examples, rule=rule, by=config.by, min_size=config.min_size, seed=config.seed
    )
    return groups if config.edited is None else groups_from_csv(config.edited, groups)
