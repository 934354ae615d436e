"""Options shared by all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from holdfast.examples import Examples
from holdfast.models.precision import Computing, Precision, resolve
from holdfast.option_types import SpecOf
from holdfast.options import Flag, Options
from holdfast.results.attacks import Schedule
from holdfast.results.run_dir import RunDir
from holdfast.results.sources import Sources
from holdfast.rows.marks import Use
from holdfast.rows.readers import REPEATED_PROMPT, ReadOptions, warn_once
from holdfast.specs import NULL

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
Rates = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Flag("lr")]
Schedules = Annotated[list[Schedule], Flag("schedule")]
LARGEST_SEED = 2**32 - 1
"""numpy, which transformers seeds as well, takes no greater one."""
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]], Flag("seed")]
Shares = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Flag("poison-ratio")]
Sizes = list[Annotated[int, Field(ge=1)]]


class StageConfig(Options):
    """Options that every stage has."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"out", "device"})
    """Options that say where things are or what computes them. A job's key has the hash of their
    content instead."""
    READING: ClassVar[frozenset[str]] = frozenset(
        {"columns", "strict", "max_left_out", "drop_invalid", "limit", "keep_harmful_rows"}
    )
    """Options that change results only through the rows that are read, whose hash is in the key."""

    out: Path
    """Run directory."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Random seed of the stage."""
    device: str = "auto"
    """Device for models: auto, cpu, cuda or cuda:N."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Name of the data column for a role (prompt, response, category, ...), as ROLE=COLUMN, for all
    files; FILE,columns=[ROLE=COLUMN] is for one file.
    """
    strict: bool = False
    """Stop at the first unusable row instead of leaving it out."""
    max_left_out: float = Field(default=0.05, ge=0, le=1)
    """Largest share of a file's rows that may be left out before it is an error."""
    drop_invalid: bool = False
    """Leave out all unusable rows, with no limit on their number, like --max-left-out 1."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many rows from each data file."""
    keep_harmful_rows: bool = False
    """Keep the text of harmful rows in the run directory, not just their ids. Without it, analyses
    that read the text need the original file.
    """

    @classmethod
    def owner_name(cls) -> str:
        """Return the stage's name."""
        return cls.__name__.removesuffix("Config").lower()

    @property
    def run(self) -> RunDir:
        """The run directory."""
        return RunDir(self.out)

    def keyed(self) -> dict[str, Any]:
        """Return the options that belong to a job's key: they change results, and are no paths."""
        places = [cls.__dict__.get("PLACES", frozenset()) for cls in type(self).__mro__]
        return self.model_dump(mode="json", exclude={*self.READING}.union(*places))

    def read(
        self, spec: str, *, use: Use | None = "safety", needs_response: bool = True
    ) -> Examples:
        """Read rows as these options say, and keep them in the run.

        Args:
            spec: See `rows.readers.read`.
            use: What the rows are used for; None to count them only. Of harmful rows the run keeps
                the ids only, unless `keep_harmful_rows`.
            needs_response: Whether rows without a response are left out.

        Raises:
            DataError: The rows cannot be read, or are marked as the opposite of their use.
        """
        options = ReadOptions(
            columns={role: None if c == NULL else c for role, c in self.columns.items()},
            strict=self.strict,
            max_left_out=1.0 if self.drop_invalid else self.max_left_out,
            limit=self.limit,
            needs_response=needs_response,
            use=use,
        )
        ids_only = use == "harmful" and not self.keep_harmful_rows
        return Sources(self.run).rows(spec, options, ids_only=ids_only)

    def read_prompts(self, spec: str, *, use: Use | None = "restricted prompts") -> Examples:
        """Read rows of which only the prompts are used, each prompt once.

        Several rows with one prompt are not independent, whatever their responses.

        Args:
            spec: See `rows.readers.read`.
            use: What the prompts are used for; None to count them only.
        """
        rows = self.read(spec, use=use, needs_response=False)
        prompts: set[str] = set()
        repeated: dict[int, str] = {}
        for position, row in enumerate(rows):
            if row.prompt_id in prompts:
                repeated[position] = REPEATED_PROMPT
            prompts.add(row.prompt_id)
        if repeated:
            warn_once(
                f"{spec}: {len(repeated)} of {len(rows)} rows repeat the prompt of another row "
                "and are left out"
            )
        return rows.without(repeated)

    def read_if(self, spec: str | None, *, use: Use = "safety") -> Examples | None:
        """Read rows if there is a spec."""
        return None if spec is None else self.read(spec, use=use)


class ModelConfig(StageConfig):
    """Options of the stages that run models."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"precision"})
    """A job's key has what the option comes to for its model; see `keyed_for`."""

    precision: Precision = "auto"
    """Precision in which models compute: float32, bfloat16, or auto, which is bfloat16 where the
    processor or accelerator has it and the model is large enough to gain.
    """

    def computing(self, source: str) -> Computing:
        """Return the precision for a model; a model that is gone need not be there for it.

        Raises:
            UsageError: There is no such model, or the device only emulates bfloat16.
        """
        from holdfast.models.checkpoints import pick_device
        from holdfast.stages.run_models import weight_count

        weights = weight_count(self.run, source)
        return resolve(self.precision, pick_device(self.device), weights)

    def keyed_for(self, source: str) -> dict[str, Any]:
        """Return the options of the key of a job on a model: `keyed`, and the precision."""
        return {**self.keyed(), "precision": self.computing(source)}


class JobsConfig(StageConfig):
    """Where the independent jobs of a stage run."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"jobs", "scheduler", "allow_remote"})

    jobs: int = Field(default=1, ge=1)
    """Number of parallel processes on this machine; the cores are divided among them."""
    scheduler: str = ""
    """Address of a running dask cluster to run the jobs on, for example tcp://127.0.0.1:8786."""
    allow_remote: bool = False
    """Allow a scheduler on another machine. Use it only on a trusted network: anyone on the network
    can run code here and on the workers.
    """
