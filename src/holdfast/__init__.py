"""holdfast: keep a language model's safety alignment through fine-tuning.

Every stage is a function with one argument, its options: `score(ScoreConfig(...))`. Names are
looked up when they are first used, so that importing holdfast stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from holdfast.stages.table import STAGES

_VALUES = {
    "Example": "holdfast.examples",
    "Examples": "holdfast.examples",
    "Groups": "holdfast.results.artifacts",
    "ReadOptions": "holdfast.rows.readers",
    "RunDir": "holdfast.results.run_dir",
    "Scores": "holdfast.results.artifacts",
    "read": "holdfast.rows.readers",
}


def _homes() -> dict[str, str]:
    """Return public name -> module: the values above, and what the table of stages names."""
    homes = dict(_VALUES)
    for stage in STAGES.values():
        for reference in (stage.config, stage.function):
            module, _, name = reference.partition(":")
            homes[name] = module
    return homes


__all__ = sorted(_homes())  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    home = _homes().get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(home), name)
