"""holdfast: keep a language model's safety alignment through fine-tuning.

On a model in memory, with rows as a data set, a data frame or a list of dicts:

    import holdfast as h
    scores = h.score(model, tokenizer, rows, benign=benign)
    groups = h.group(scores, rows)
    h.attack(model, tokenizer, benign, harmful=harmful, test=prompts, steps=200).half_life

Trainers that keep the alignment are in `holdfast.trl`. The stages of a run directory are functions
of their options, `h.align(h.AlignConfig(...))`; the four whose names stand above for functions in
memory are in `holdfast.stages`. Names are looked up when they are first used, so importing
holdfast stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.errors import DataError, HoldfastError, TrainingError, UsageError
    from holdfast.examples import Example, Examples
    from holdfast.in_memory import attack, evaluate, group, score
    from holdfast.results.artifacts import AttackResult, Evaluation, Groups, Life, Scores
    from holdfast.results.attacks import Attack
    from holdfast.results.run_dir import RunDir
    from holdfast.rows.readers import ReadOptions, read
    from holdfast.stages.adapt import AdaptConfig, adapt
    from holdfast.stages.align import AlignConfig, align
    from holdfast.stages.analyze import AnalyzeConfig, analyze
    from holdfast.stages.answer import AnswerConfig, answer
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.evaluate import EvaluateConfig
    from holdfast.stages.group import GroupConfig
    from holdfast.stages.report import ReportConfig, report
    from holdfast.stages.score import ScoreConfig
    from holdfast.stages.screen import ScreenConfig, screen
    from holdfast.stages.validate import ValidateConfig, validate

__all__ = [
    "AdaptConfig",
    "AlignConfig",
    "AnalyzeConfig",
    "AnswerConfig",
    "Attack",
    "AttackConfig",
    "AttackResult",
    "DataError",
    "EvaluateConfig",
    "Evaluation",
    "Example",
    "Examples",
    "GroupConfig",
    "Groups",
    "HoldfastError",
    "Life",
    "ReadOptions",
    "ReportConfig",
    "RunDir",
    "ScoreConfig",
    "Scores",
    "ScreenConfig",
    "TrainingError",
    "UsageError",
    "ValidateConfig",
    "adapt",
    "align",
    "analyze",
    "answer",
    "attack",
    "evaluate",
    "group",
    "read",
    "report",
    "score",
    "screen",
    "validate",
]

_HOMES = {
    "errors": ("DataError", "HoldfastError", "TrainingError", "UsageError"),
    "stages.adapt": ("AdaptConfig", "adapt"),
    "stages.align": ("AlignConfig", "align"),
    "stages.analyze": ("AnalyzeConfig", "analyze"),
    "stages.answer": ("AnswerConfig", "answer"),
    "results.artifacts": ("AttackResult", "Evaluation", "Groups", "Life", "Scores"),
    "results.attacks": ("Attack",),
    "results.run_dir": ("RunDir",),
    "stages.attacking.config": ("AttackConfig",),
    "rows.readers": ("ReadOptions", "read"),
    "stages.evaluate": ("EvaluateConfig",),
    "examples": ("Example", "Examples"),
    "in_memory": ("attack", "evaluate", "group", "score"),
    "stages.group": ("GroupConfig",),
    "stages.report": ("ReportConfig", "report"),
    "stages.score": ("ScoreConfig",),
    "stages.screen": ("ScreenConfig", "screen"),
    "stages.validate": ("ValidateConfig", "validate"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(f"holdfast.{_HOME_OF[name]}"), name)
