"""What all stages' options have in common."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from holdfast.examples import Examples
from holdfast.results.run_dir import RunDir
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.text import prompt_text

logger = logging.getLogger(__name__)


def at_least(least: int) -> AfterValidator:
    """Return what refuses a list with a smaller number in it."""

    def check(values: list[int]) -> list[int]:
        if wrong := [value for value in values if value < least]:
            raise ValueError(f"{wrong[0]} must be at least {least}")
        return values

    return AfterValidator(check)


def _positive(values: list[float]) -> list[float]:
    if wrong := [value for value in values if not 0 < value < math.inf]:
        raise ValueError(f"{wrong[0]:g} must be above 0 and finite")
    return values


Rates = Annotated[list[float], AfterValidator(_positive)]
Seeds = Annotated[list[int], at_least(0)]


class StageConfig(BaseModel):
    """Options that every stage has.

    Attributes:
        out: The run directory.
        seed: Seed of whatever is random in the stage.
        device: auto, cpu, cuda or cuda:N.
        columns: Wanted column -> column in the data files.
        drop_invalid: Drop empty and repeated rows instead of stopping.
        limit: Read only the first rows of every data file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    drop_invalid: bool = False
    limit: int | None = Field(default=None, ge=1)

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
    """Where the parts of a stage are done that do not depend on one another.

    Attributes:
        jobs: So many processes of this machine at the same time; each has its share of the cores.
        scheduler: Address of a running dask cluster that does them, e.g. tcp://127.0.0.1:8786.
        allow_remote: The scheduler may be on another machine, over a network that you trust: who is
            on it can run code here and on the workers.
    """

    jobs: int = Field(default=1, ge=1)
    scheduler: str = ""
    allow_remote: bool = False

    def keyed(self) -> dict[str, Any]:
        """Leave out where it is done."""
        return {k: v for k, v in super().keyed().items() if k not in JobsConfig.__annotations__}


def explain(error: ValidationError) -> str:
    """Say in one line per problem which option is wrong, and how."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or error.title
        value = problem.get("input")
        shown = "" if isinstance(value, (dict, list)) else f" (found {value!r})"
        lines.append(f"{error.title}: {place}: {problem['msg']}{shown}")
    return "; ".join(lines)
