"""The table of the stages: a new one is a command once it has an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from holdfast.cli import show

if TYPE_CHECKING:
    from holdfast.stages.config import StageConfig


@dataclass(frozen=True)
class Stage:
    """A stage as a command.

    Attributes:
        what: One sentence: what the stage does.
        home: Module, the class of its configuration, whose fields are the command's options, and
            the function that takes one. Imported only when the command is called.
        example: A command line that works, without "holdfast".
        told: From the function's result to what is printed: a row, or a list of rows.
        without: Field -> why it is no option here.
        long: Whether there is an --estimate of what it costs.
    """

    what: str
    home: tuple[str, str, str]
    example: str
    told: Callable[[Any], show.Told]
    without: Mapping[str, str] = field(default_factory=dict)
    long: bool = False

    def load(self) -> tuple[type[StageConfig], Callable[[Any], Any]]:
        """Import the configuration and the function."""
        module, config, function = self.home
        found = import_module(module)
        return getattr(found, config), getattr(found, function)


READS_NO_ROWS = dict.fromkeys(
    ("columns", "drop_invalid", "limit"), "the stage reads results of the run, no rows"
)

STAGES: dict[str, Stage] = {
    "score": Stage(
        "Score how vulnerable every alignment example is in an aligned model.",
        ("holdfast.stages.score", "ScoreConfig", "score"),
        example="score --model runs/a/models/sft-s0 --base base --data rows.jsonl --out runs/a",
        told=show.scores,
    ),
    "group": Stage(
        "Split the scored examples into groups by vulnerability.",
        ("holdfast.stages.group", "GroupConfig", "group"),
        example="group --data rows.jsonl --out runs/a --rule otsu",
        told=show.groups,
    ),
    "validate-estimator": Stage(
        "Find out how well estimators foresee what attacks made a model forget.",
        ("holdfast.stages.validate", "ValidateConfig", "validate"),
        example="validate-estimator --model sft-s0 --data rows.jsonl --base base "
        "--vary source=base,mismatched --out runs/a",
        told=show.validation,
    ),
    "screen": Stage(
        "Say how vulnerable new examples would be, before anything is trained on them.",
        ("holdfast.stages.screen", "ScreenConfig", "screen"),
        example="screen --new new.jsonl --data rows.jsonl --csv screened.csv --out runs/a",
        told=show.screened,
    ),
    "align": Stage(
        "Align a model with a method.",
        ("holdfast.stages.align", "AlignConfig", "align"),
        example="align --model base --data rows.jsonl --benign alpaca.jsonl "
        "--method vaa --option rho=0.4 --out runs/a",
        told=lambda path: {"model": str(path)},
    ),
    "attack": Stage(
        "Fine-tune models on a task with harmful rows mixed in, and measure how long they hold.",
        ("holdfast.stages.attack", "AttackConfig", "attack"),
        example="attack --model sft-s0 --task sst2,train=train.tsv,test=dev.tsv "
        "--harmful pool.jsonl --test prompts.jsonl --out runs/a",
        told=lambda results: [show.attack(result) for result in results],
        without={"seed": "--seed is `seeds`; nothing else in an attack is random"},
        long=True,
    ),
    "adapt": Stage(
        "Search for the worst attack on models that leaves their use on the task as it is.",
        ("holdfast.stages.adapt", "AdaptConfig", "adapt"),
        example="adapt --model sft-s0 --task sst2,train=train.tsv,test=dev.tsv "
        "--harmful pool.jsonl --test prompts.jsonl --trials 30 --out runs/a",
        told=lambda results: [show.adapted(result) for result in results],
    ),
    "evaluate": Stage(
        "Measure harmful score, over-refusal and task accuracy of models, with intervals.",
        ("holdfast.stages.evaluate", "EvaluateConfig", "evaluate"),
        example="evaluate --model sft-s0 --test prompts.jsonl --judge refusal "
        "--over-refusal xstest.jsonl --out runs/a",
        told=lambda results: [show.evaluation(result) for result in results],
    ),
    "analyze": Stage(
        "Say what the results of a run mean.",
        ("holdfast.stages.analyze", "AnalyzeConfig", "analyze"),
        example="analyze --out runs/a --analysis overlap",
        told=show.sections,
        without=READS_NO_ROWS,
    ),
    "report": Stage(
        "Write the report of a run: one HTML file.",
        ("holdfast.stages.report", "ReportConfig", "report"),
        example="report --out runs/a --language ja",
        told=lambda path: {"report": str(path)},
        without=READS_NO_ROWS,
    ),
}
"""Command -> stage, in the order of `holdfast --help`."""
