"""holdfast: keep a language model's safety alignment through fine-tuning.

Every stage is a function with one argument, its options: `score(ScoreConfig(...))`. Names are
looked up when they are first used, so that importing holdfast stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.examples import Example, Examples
    from holdfast.results.artifacts import Groups, Scores
    from holdfast.results.run_dir import RunDir
    from holdfast.rows.readers import ReadOptions, read
    from holdfast.stages.adapt import AdaptConfig, adapt
    from holdfast.stages.align import AlignConfig, align
    from holdfast.stages.analyze import AnalyzeConfig, analyze
    from holdfast.stages.attack import attack
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.evaluate import EvaluateConfig, evaluate
    from holdfast.stages.group import GroupConfig, group
    from holdfast.stages.report import ReportConfig, report
    from holdfast.stages.score import ScoreConfig, score
    from holdfast.stages.screen import ScreenConfig, screen
    from holdfast.stages.validate import ValidateConfig, validate

_HOMES = {
    "stages.adapt": ("AdaptConfig", "adapt"),
    "stages.align": ("AlignConfig", "align"),
    "stages.analyze": ("AnalyzeConfig", "analyze"),
    "results.artifacts": ("Groups", "Scores"),
    "results.run_dir": ("RunDir",),
    "stages.attack": ("attack",),
    "stages.attacking.config": ("AttackConfig",),
    "rows.readers": ("ReadOptions", "read"),
    "stages.evaluate": ("EvaluateConfig", "evaluate"),
    "examples": ("Example", "Examples"),
    "stages.group": ("GroupConfig", "group"),
    "stages.report": ("ReportConfig", "report"),
    "stages.score": ("ScoreConfig", "score"),
    "stages.screen": ("ScreenConfig", "screen"),
    "stages.validate": ("ValidateConfig", "validate"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AdaptConfig",
    "AlignConfig",
    "AnalyzeConfig",
    "AttackConfig",
    "EvaluateConfig",
    "Example",
    "Examples",
    "GroupConfig",
    "Groups",
    "ReadOptions",
    "ReportConfig",
    "RunDir",
    "ScoreConfig",
    "Scores",
    "ScreenConfig",
    "ValidateConfig",
    "adapt",
    "align",
    "analyze",
    "attack",
    "evaluate",
    "group",
    "read",
    "report",
    "score",
    "screen",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(f"holdfast.{_HOME_OF[name]}"), name)
