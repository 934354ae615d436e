"""Stage: write the report that a person reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from holdfast.errors import UsageError
from holdfast.options import Flag
from holdfast.reports import write
from holdfast.reports.sections import load_section
from holdfast.results.files import sha256_json
from holdfast.stages.config import StageConfig

logger = logging.getLogger(__name__)


class ReportConfig(StageConfig):
    """Options of the stage."""

    title: str = ""
    """Heading of the report; "Does the safety alignment hold?", in its language, if empty."""
    language: Annotated[Literal["en", "ja"], Flag("language", short="lang")] = "en"
    """Language of the report."""
    show_harmful: bool = False
    """Show examples of harmful answers, which are otherwise withheld."""


def report(config: ReportConfig) -> Path:
    """Write `report.html` and `report.json` from whatever the run directory holds.

    Raises:
        UsageError: It holds nothing.
    """
    run = config.run
    if not run.entries():
        raise UsageError(f"{run.root}: nothing to report; check --out, or run a stage first")
    sections = [
        load_section(run.path(output))
        for entry in sorted(run.entries("analyze"), key=lambda entry: entry.name)
        for output in entry.outputs
    ]
    path = run.path("report.html")
    inputs = {"run": run.digest}
    if failed := [f for f in run.failures() if f.stage != "report"]:
        inputs["failed"] = sha256_json([[f.stage, f.name, f.reason] for f in failed])
    problems = [line for line in run.verify(weights=False) if not line.startswith("report.")]
    if problems:
        # Part of the key, so that a report written before does not stand for this run.
        inputs["problems"] = sha256_json(problems)
        logger.warning(
            "%d files of the run are missing or were changed; the report lists them, and so does "
            "`holdfast verify %s`: %s",
            len(problems),
            run.root,
            problems[0],
        )
    with run.job("report", "report", config=config.keyed(), inputs=inputs) as job:
        if job.done is None:
            write(
                run,
                sections,
                title=config.title,
                language=config.language,
                show_harmful=config.show_harmful,
            )
            job.outputs += [path, run.path("report.json")]
    return path
