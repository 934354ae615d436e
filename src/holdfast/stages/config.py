"""What all stages' options have in common."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from holdfast.examples import Examples
from holdfast.option_types import SpecOf
from holdfast.options import Flag, Options
from holdfast.results.attacks import Schedule
from holdfast.results.run_dir import RunDir
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.text import prompt_text

logger = logging.getLogger(__name__)


EstimatorSpec = Annotated[str, SpecOf("estimators")]
JudgeSpec = Annotated[str, SpecOf("judges")]
TaskSpec = Annotated[str, SpecOf("tasks")]
AnalysisSpecs = Annotated[list[Annotated[str, SpecOf("analyses")]], Flag("analysis")]
EstimatorSpecs = Annotated[list[EstimatorSpec], Flag("estimator")]
GuardSpecs = Annotated[list[Annotated[str, SpecOf("guards")]], Flag("guard")]
JudgeSpecs = Annotated[list[JudgeSpec], Flag("judge")]
PoisonSpecs = Annotated[list[Annotated[str, SpecOf("poisons")]], Flag("poison")]
TaskSpecs = Annotated[list[TaskSpec], Flag("task")]

FurtherOptions = Annotated[dict[str, Any], Flag("option")]
Models = Annotated[list[str], Flag("model")]
Proxies = Annotated[list[str], Flag("proxy")]
Ranks = list[Annotated[int, Field(ge=0)]]
Rate = Annotated[float, Flag("lr")]
Rates = Annotated[list[Annotated[float, Field(gt=0)]], Flag("lr")]
Schedules = Annotated[list[Schedule], Flag("schedule")]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Flag("seed")]
Shares = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Flag("poison-ratio")]
Sizes = list[Annotated[int, Field(ge=1)]]


class StageConfig(Options):
    """Options that every stage has."""

    out: Path
    """Run directory."""
    seed: int = Field(default=0, ge=0)
    """Random seed of the stage."""
    device: str = "auto"
    """Where models run: auto, cpu, cuda or cuda:N."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of columns in the data files, as WANTED=COLUMN."""
    drop_invalid: bool = False
    """Drop empty and repeated rows instead of stopping."""
    limit: int | None = Field(default=None, ge=1)
    """Read only this number of rows of every data file."""

    @classmethod
    def owner_name(cls) -> str:
        """Return the stage's name."""
        return cls.__name__.removesuffix("Config").lower()

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return RunDir(self.out)

    def keyed(self) -> dict[str, Any]:
        """Return the options that change results: not where they go or what computes them."""
        return self.model_dump(mode="json", exclude={"out", "device"})

    def read(self, spec: str, *, needs_response: bool = True) -> Examples:
        """Read rows as these options say."""
        options = ReadOptions(
            columns=self.columns,
            drop_invalid=self.drop_invalid,
            limit=self.limit,
            needs_response=needs_response,
        )
        return read(spec, options)

    def asked(self, spec: str) -> Examples:
        """Read prompts that are only asked, each once: their answers are no independent ones."""
        rows = self.read(spec, needs_response=False)
        first: dict[str, int] = {}
        for i, prompt in enumerate(rows.prompts):
            first.setdefault(prompt_text(prompt), i)
        if repeated := len(rows) - len(first):
            logger.warning(
                "%s: %d of %d rows repeat the prompt of another and are left out: one prompt "
                "counts once, whatever its answers",
                *(spec, repeated, len(rows)),
            )
        return rows.select(first.values())

    def read_if(self, spec: str | None) -> Examples | None:
        """Read rows if there is a spec."""
        return None if spec is None else self.read(spec)


class JobsConfig(StageConfig):
    """Where the parts of a stage are done that do not depend on one another."""

    jobs: int = Field(default=1, ge=1)
    """Number of processes that work at the same time on this machine; each gets its share of the
    cores.
    """
    scheduler: str = ""
    """Address of a running dask cluster that does the work, for example tcp://127.0.0.1:8786."""
    allow_remote: bool = False
    """Allow a scheduler on another machine, over a network that you trust: anybody on that network
    can run code here and on the workers.
    """

    def keyed(self) -> dict[str, Any]:
        """Leave out where it is done."""
        return {k: v for k, v in super().keyed().items() if k not in JobsConfig.__annotations__}
