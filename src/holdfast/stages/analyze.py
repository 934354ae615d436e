"""Stage: say what the results mean, one section of the report per analysis."""

from __future__ import annotations

import logging

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


def analyze(config: AnalyzeConfig) -> list[Section]:
    """Run the analyses and save `sections/<name>.json`.

    Of all that ship with holdfast, those that lack something are left out, with a warning that says
    what: their stages may have run and still have left too little.

    Raises:
        UsageError: An analysis that was asked for lacks what it needs.
    """
    if not config.out.is_dir():
        raise UsageError(f"{config.out}: no such run directory; check --out")
    specs = config.analyses or _possible(config)
    sections = []
    for done, spec in enumerate(specs):
        name = parse(spec).short_name
        progress.report("analyses", done, len(specs))
        try:
            sections.append(_section(config, spec, name))
        except UsageError as error:
            if config.analyses:
                raise
            config.run.clear_failure("analyze", name)  # nobody asked for it
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


def _possible(config: AnalyzeConfig) -> list[str]:
    stages = {entry.stage for entry in config.run.entries()}
    names = plugins.available("analyses")
    return [n for n in names if set(plugins.find("analyses", n).needs) <= stages]
