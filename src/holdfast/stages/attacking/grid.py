"""Grids: the attacks of a configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from holdfast.errors import UsageError
from holdfast.results.attacks import Attack
from holdfast.stages.attacking.config import AXES, SHARED, AttackConfig
from holdfast.stages.attacking.presets import expand
from holdfast.stages.run_models import label_of


def grids_of(config: AttackConfig) -> list[AttackConfig]:
    """Return a configuration for each preset and replayed attack, or the configuration itself.

    Raises:
        UsageError: A preset does not exist, or no attack has the label `only`.
    """
    grids = expand(config) if config.preset or config.replay else [config]
    if not any(attacks_of(grid) for grid in grids):
        labels = ", ".join(attack.label for grid in grids for attack in _combinations(grid))
        raise UsageError(f"--only {config.only!r}: no attack has this label; choose from {labels}")
    return grids


def attacks_of(config: AttackConfig) -> list[Attack]:
    """Return the attacks of a grid; if `only` is set, just the attack with that label."""
    return [attack for attack in _combinations(config) if config.only in ("", attack.label)]


def single_attacks(config: AttackConfig) -> Iterator[tuple[str, AttackConfig]]:
    """Yield the job name and the configuration of every single attack on every single model.

    Labels and keys do not depend on the rest of the grid, so an attack run alone is the same job.
    """
    for grid in grids_of(config):
        for model in grid.models:
            for attack in attacks_of(grid):
                changes = {"models": [model], "only": attack.label, "jobs": 1, "scheduler": ""}
                yield f"{label_of(model)}/{attack.label}", grid.model_copy(update=changes)


def _combinations(config: AttackConfig) -> Iterator[Attack]:
    shared = {option: getattr(config, option) for option in SHARED}
    values = {setting: getattr(config, option) for setting, option in AXES.items()}
    if config.epochs:
        values["steps"] = [0]  # computed from the batch size below
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        if config.epochs:
            settings["steps"] = config.epochs * math.ceil(config.rows / settings["batch_size"])
        yield Attack(**settings, **shared)
