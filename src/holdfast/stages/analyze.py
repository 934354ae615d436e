"""Stage: say what the results mean, one section of the report per analysis."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Analysis, Section
from holdfast.errors import UsageError
from holdfast.reports.sections import load_section, save_section
from holdfast.runtime import progress
from holdfast.specs import parse
from holdfast.stages.config import AnalysisSpecs, StageConfig

logger = logging.getLogger(__name__)


class AnalyzeConfig(StageConfig):
    """Options of the stage."""

    analyses: AnalysisSpecs = Field(default_factory=list)
    """Analysis to run; without any, all that ship with holdfast and have what they need."""
    optional: bool = False
    """Leave out an analysis that lacks what it needs, with a warning, instead of failing."""

    @property
    def stages(self) -> frozenset[str]:
        """Names of the stages whose results the analyses read."""
        needs = (plugins.find("analyses", parse(spec).name).needs for spec in self.analyses)
        return frozenset(stage for stages in needs for stage in stages)


def analyze(config: AnalyzeConfig) -> list[Section]:
    """Run the analyses and save `sections/<name>.json`.

    Of all that ship with holdfast, those that lack something are left out, with a warning that says
    what: their stages may have run and still have left too little.

    Raises:
        UsageError: An analysis that was asked for, and is not optional, lacks what it needs.
    """
    if not config.out.is_dir():
        raise UsageError(f"{config.out}: no such run directory; check --out")
    stages = {entry.stage for entry in config.run.entries()}
    specs = config.analyses or _possible(stages)
    optional = config.optional or not config.analyses
    sections = []
    for done, spec in enumerate(specs):
        name = parse(spec).short_name
        progress.report("analyses", done, len(specs))
        try:
            sections.append(_section(config, spec, name))
        except UsageError as error:
            if not optional:
                raise
            config.run.clear_failure("analyze", name)
            logger.warning("analysis %s left out: %s", name, error)
    progress.report("analyses", len(specs), len(specs))
    if not sections:
        logger.warning("%s: nothing could be analyzed; run `holdfast score` first", config.out)
    return sections


def _section(config: AnalyzeConfig, spec: str, name: str) -> Section:
    run = config.run
    analysis: Analysis = plugins.make("analyses", spec)
    inputs = {
        f"{entry.stage} {entry.name}": entry.key
        for need in analysis.needs
        for entry in run.require(need)
    }
    path = run.path("sections", f"{name}.json")
    keyed = {"analysis": spec, "seed": config.seed}
    with run.job("analyze", name, config=keyed, inputs=inputs) as job:
        if job.done is None:
            save_section(path, analysis.run(run))
            job.outputs.append(path)
    return load_section(path)


def single_analyses(
    config: AnalyzeConfig, planned_stages: Collection[str]
) -> Iterator[tuple[str, AnalyzeConfig]]:
    """Yield the name and the configuration of each analysis.

    Args:
        config: The analyses; if it names none, all that the run's stages allow.
        planned_stages: Names of the stages that will have run, besides those that have.
    """
    stages = {entry.stage for entry in config.run.entries()}
    optional = config.optional or not config.analyses
    for spec in config.analyses or _possible(stages | set(planned_stages)):
        update = {"analyses": [spec], "optional": optional}
        yield parse(spec).short_name, config.model_copy(update=update)


def _possible(stages: Collection[str]) -> list[str]:
    """Return the analyses that ship with holdfast and need no other stages than these."""
    names = plugins.available("analyses")
    return [name for name in names if set(plugins.find("analyses", name).needs) <= set(stages)]
