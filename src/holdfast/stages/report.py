"""Stage: write the report that a person reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from holdfast.errors import UsageError
from holdfast.options import Flag
from holdfast.reports import write
from holdfast.reports.sections import load_section
from holdfast.results.files import sha256_json
from holdfast.stages.config import StageConfig


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
        for entry in run.entries("analyze")
        for output in entry.outputs
    ]
    path = run.path("report.html")
    inputs = {"run": run.digest}
    if failed := [f for f in run.failures() if f.stage != "report"]:
        inputs["failed"] = sha256_json([[f.stage, f.name, f.reason] for f in failed])
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
