"""The table of the stages: one entry makes a stage a command, a job and a public name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.stages.config import StageConfig


@dataclass(frozen=True)
class Stage:
    """A stage. Names of code are "module:name" and imported when they are used.

    Attributes:
        name: Name of the stage: of its command, and of its jobs in the manifest.
        summary: One sentence: what the stage does.
        config: The class of its configuration, whose fields are the command's options.
        function: The function that takes a configuration.
        example: A command line that works, without "holdfast".
        presenter: The function that turns a result into what the command prints: a row, or rows.
        excluded: Field -> why it is not an option of the command.
        estimable: Whether the command has --estimate, which says what it costs.
    """

    name: str
    summary: str
    config: str
    function: str
    example: str
    presenter: str
    excluded: Mapping[str, str] = field(default_factory=dict)
    estimable: bool = False

    def load(self) -> tuple[type[StageConfig], Callable[[Any], Any]]:
        """Import the configuration and the function."""
        return self.load_config(), imported(self.function)

    def load_config(self) -> type[StageConfig]:
        """Import the class of the configuration."""
        config: type[StageConfig] = imported(self.config)
        return config

    def present(self, result: Any) -> Any:
        """Return what the command prints of a result."""
        return imported(self.presenter)(result)


def imported(reference: str) -> Any:
    """Import what "module:name" refers to."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


READS_NO_ROWS = dict.fromkeys(
    ("columns", "strict", "max_left_out", "drop_invalid", "limit", "keep_harmful_rows"),
    "the stage reads results of the run, not rows",
)

_STAGES = (
    Stage(
        name="answer",
        summary="Let a model answer restricted prompts, and keep its harmful or safe answers as "
        "rows.",
        config="holdfast.stages.answer:AnswerConfig",
        function="holdfast.stages.answer:answer",
        example="answer --model base --data prompts.jsonl --judge refusal --keep harmful "
        "--out runs/a",
        presenter="holdfast.cli.show:answered",
    ),
    Stage(
        name="score",
        summary="Score how vulnerable every alignment example is in an aligned model.",
        config="holdfast.stages.score:ScoreConfig",
        function="holdfast.stages.score:score",
        example="score --model runs/a/models/sft-s0 --base base --data rows.jsonl --out runs/a",
        presenter="holdfast.cli.show:scores",
    ),
    Stage(
        name="group",
        summary="Split the scored examples into groups by vulnerability.",
        config="holdfast.stages.group:GroupConfig",
        function="holdfast.stages.group:group",
        example="group --data rows.jsonl --out runs/a --rule otsu",
        presenter="holdfast.cli.show:groups",
    ),
    Stage(
        name="validate-estimator",
        summary="Check how well estimators predict which examples attacks made a model forget.",
        config="holdfast.stages.validate:ValidateConfig",
        function="holdfast.stages.validate:validate",
        example="validate-estimator --model sft-s0 --data rows.jsonl --base base "
        "--vary source=base,mismatched --out runs/a",
        presenter="holdfast.cli.show:validation",
    ),
    Stage(
        name="screen",
        summary="Predict how vulnerable new examples would be before training on them.",
        config="holdfast.stages.screen:ScreenConfig",
        function="holdfast.stages.screen:screen",
        example="screen --new new.jsonl --data rows.jsonl --csv screened.csv --out runs/a",
        presenter="holdfast.cli.show:screened",
    ),
    Stage(
        name="align",
        summary="Align a model with a method.",
        config="holdfast.stages.align:AlignConfig",
        function="holdfast.stages.align:align",
        example="align --model base --data rows.jsonl --benign alpaca.jsonl "
        "--method vaa --option rho=0.4 --out runs/a",
        presenter="holdfast.cli.show:aligned",
    ),
    Stage(
        name="attack",
        summary="Fine-tune models on a task with harmful rows mixed in; measure their half-life.",
        config="holdfast.stages.attacking.config:AttackConfig",
        function="holdfast.stages.attack:attack",
        example="attack --model sft-s0 --task sst2,train=train.tsv,test=dev.tsv "
        "--harmful pool.jsonl --test prompts.jsonl --out runs/a",
        presenter="holdfast.cli.show:attacks",
        excluded={"seed": "--seed sets `seeds`; nothing else in an attack is random"},
        estimable=True,
    ),
    Stage(
        name="adapt",
        summary="Search for the worst attack on models that keeps their task accuracy.",
        config="holdfast.stages.adapt:AdaptConfig",
        function="holdfast.stages.adapt:adapt",
        example="adapt --model sft-s0 --task sst2,train=train.tsv,test=dev.tsv "
        "--harmful pool.jsonl --test prompts.jsonl --trials 30 --out runs/a",
        presenter="holdfast.cli.show:searches",
    ),
    Stage(
        name="evaluate",
        summary="Measure harmful score, over-refusal and task accuracy of models, with intervals.",
        config="holdfast.stages.evaluate:EvaluateConfig",
        function="holdfast.stages.evaluate:evaluate",
        example="evaluate --model sft-s0 --test prompts.jsonl --judge refusal "
        "--over-refusal xstest.jsonl --out runs/a",
        presenter="holdfast.cli.show:evaluations",
    ),
    Stage(
        name="analyze",
        summary="Run analyses on the results of a run.",
        config="holdfast.stages.analyze:AnalyzeConfig",
        function="holdfast.stages.analyze:analyze",
        example="analyze --out runs/a --analysis overlap",
        presenter="holdfast.cli.show:sections",
        excluded=READS_NO_ROWS,
    ),
    Stage(
        name="report",
        summary="Write the report of a run: one HTML file.",
        config="holdfast.stages.report:ReportConfig",
        function="holdfast.stages.report:report",
        example="report --out runs/a --language ja",
        presenter="holdfast.cli.show:report",
        excluded=READS_NO_ROWS,
    ),
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in _STAGES}
"""Name -> stage, in the order of `holdfast --help`."""
