"""Presets and attacks found by a search: files with part of a grid.

A file does not set models, tasks or rows; the user provides those. Options that the user gives
override the file.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ConfigDict

from holdfast.errors import UsageError
from holdfast.options import OptionError, Options

if TYPE_CHECKING:
    from holdfast.stages.attacking.config import AttackConfig

_SHIPPED = resources.files("holdfast").joinpath("presets")

GRID = frozenset(
    {
        *("poison_ratios", "poisons", "learning_rates", "schedules", "seeds", "steps", "epochs"),
        *("every", "spacing", "until_broken", "broken_at"),
        *("batch_size", "rows", "max_length", "lora_rank"),
        "guards",
    }
)
"""Options that a preset can set."""

ALTERNATIVES = ({"steps", "epochs"},)
"""Sets of options with the same meaning; giving one of a set overrides the others too."""


class Preset(Options):
    """The content of a preset file."""

    model_config = ConfigDict(extra="ignore")

    what: str = ""
    """One sentence about the grid."""
    source: str = ""
    """Publication that the grid is taken from."""
    needs: list[str] = []
    """Options that the user must give with the preset."""
    grid: dict[str, Any]
    """Option of the attack -> value."""


def names() -> list[str]:
    """Return the names of the presets that ship with holdfast."""
    files = [file.name for file in _SHIPPED.iterdir()]
    return sorted(Path(name).stem for name in files if name.endswith(".yaml"))


def load(name: str) -> Preset:
    """Read a preset.

    Args:
        name: Name of a preset, or path of a YAML file or of a search result (JSON).

    Raises:
        UsageError: The preset does not exist, cannot be read, or sets an option that is not part of
            a grid.
    """
    if name in names():
        text = _SHIPPED.joinpath(f"{name}.yaml").read_text("utf-8")
    elif not Path(name).is_file():
        raise UsageError(
            f"{name!r} is neither a preset nor a file; give one of {', '.join(names())}, or a YAML "
            "file with a `grid`"
        )
    else:
        text = _text(Path(name))
    try:
        raw = yaml.safe_load(text)
        if isinstance(raw, dict) and raw.get("kind") == "adapted" and raw["grid"] is None:
            raise UsageError(
                f"{name}: the search found no attack above the floor; search again with other "
                "options, or with a lower --floor"
            )
        preset = Preset(**raw)
    except (yaml.YAMLError, TypeError, OptionError) as error:
        raise UsageError(
            f"{name}: not a preset: {str(error).splitlines()[0]}; a preset is a mapping with a "
            "`grid`, e.g. {grid: {poison_ratios: [0.1]}}"
        ) from error
    if unknown := sorted(set(preset.grid) - GRID):
        raise UsageError(
            f"{name}: {unknown[0]!r} is not part of a grid; give it as an option besides the "
            f"preset. A grid can set {', '.join(sorted(GRID))}"
        )
    return preset


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def expand(config: AttackConfig) -> list[AttackConfig]:
    """Return one configuration for each preset and each replayed attack of a configuration.

    Raises:
        UsageError: A preset does not exist, or an option that it needs is missing.
    """
    return [_filled(config, spec) for spec in (*config.preset, *config.replay)]


def _grid_name(spec: str) -> str:
    """Return the grid's name in attack labels; a digest tells files of the same name apart."""
    if spec in names():
        return spec
    digest = hashlib.sha256(Path(spec).read_bytes()).hexdigest()
    return f"{Path(spec).stem}-{digest[:6]}"


def _filled(config: AttackConfig, spec: str) -> AttackConfig:
    preset = load(spec)
    missing = [need for need in preset.needs if getattr(config, need) is None]
    if missing:
        flags = " and ".join(f"--{need.replace('_', '-')}" for need in missing)
        raise UsageError(f"preset {spec!r} needs {' and '.join(missing)}: give {flags}")
    options = {key: getattr(config, key) for key in config.model_fields_set}
    overridden = set(options).union(*(keys for keys in ALTERNATIVES if keys & set(options)))
    grid = {key: value for key, value in preset.grid.items() if key not in overridden}
    name = "-".join(part for part in (config.name, _grid_name(spec)) if part)
    changes: dict[str, Any] = {"preset": [], "replay": [], "name": name}
    if grid.get("until_broken"):
        # Tracking compares the same checkpoints of all attacks, and these end at different ones.
        changes["track"] = None
    try:
        return type(config)(**{**options, **grid, **changes})
    except OptionError as error:
        raise error.for_owner(f"preset {spec!r}") from error
