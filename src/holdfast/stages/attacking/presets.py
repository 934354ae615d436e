"""Grids of attacks that have a name, and attacks that were found: files that say part of a grid.

A file says nothing of models, tasks and rows: those are the user's. What the user gives besides
wins over it.
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
"""Options that a preset may give."""

SAME = ({"steps", "epochs"},)
"""Options that say the same: one of them given takes the other's place too."""


class Preset(Options):
    """A file of presets/, or one like it."""

    model_config = ConfigDict(extra="ignore")

    what: str = ""
    """One sentence about the grid."""
    source: str = ""
    """Where it comes from."""
    needs: list[str] = []
    """Options that the user must give for it."""
    grid: dict[str, Any]
    """Option of the attack -> value."""


def names() -> list[str]:
    """Return the presets that ship with holdfast."""
    return sorted(Path(f.name).stem for f in _SHIPPED.iterdir() if f.name.endswith(".yaml"))


def load(name: str) -> Preset:
    """Read a preset by name, or a file: YAML, or the JSON of a found attack.

    Raises:
        UsageError: There is none, it cannot be read, or it gives what is no part of a grid.
    """
    if name in names():
        text = _SHIPPED.joinpath(f"{name}.yaml").read_text("utf-8")
    elif not Path(name).is_file():
        raise UsageError(
            f"{name!r} is none of the presets ({', '.join(names())}) and no file; give one of "
            "them, or a YAML file with a `grid`"
        )
    else:
        text = _text(Path(name))
    try:
        raw = yaml.safe_load(text)
        if isinstance(raw, dict) and raw.get("kind") == "adapted" and raw["grid"] is None:
            raise UsageError(
                f"{name}: the search found no attack that keeps the floor; search again with "
                "other options, or with a lower --floor"
            )
        found = Preset(**raw)
    except (yaml.YAMLError, TypeError, OptionError) as error:
        raise UsageError(
            f"{name}: not a preset: {str(error).splitlines()[0]}; it is a mapping with a `grid`, "
            "e.g. {grid: {poison_ratios: [0.1]}}"
        ) from error
    if unknown := sorted(set(found.grid) - GRID):
        raise UsageError(
            f"{name}: {unknown[0]!r} is no part of a grid, which may give "
            f"{', '.join(sorted(GRID))}; give it beside the preset"
        )
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def expand(config: AttackConfig) -> list[AttackConfig]:
    """Return one configuration for each preset and each found attack that a configuration names.

    Raises:
        UsageError: There is no such preset, or it needs what was not given.
    """
    return [_filled(config, spec) for spec in (*config.preset, *config.replay)]


def _called(spec: str) -> str:
    """Return what attacks of a preset are called by: files of one name are told by their text."""
    if spec in names():
        return spec
    digest = hashlib.sha256(Path(spec).read_bytes()).hexdigest()
    return f"{Path(spec).stem}-{digest[:6]}"


def _filled(config: AttackConfig, spec: str) -> AttackConfig:
    preset = load(spec)
    lacking = [need for need in preset.needs if getattr(config, need) is None]
    if lacking:
        flags = " and ".join(f"--{need.replace('_', '-')}" for need in lacking)
        raise UsageError(f"preset {spec!r} needs {' and '.join(lacking)}: give {flags}")
    own = {key: getattr(config, key) for key in config.model_fields_set}
    taken = set(own).union(*(group for group in SAME if group & set(own)))
    grid = {key: value for key, value in preset.grid.items() if key not in taken}
    name = "-".join(part for part in (config.name, _called(spec)) if part)
    cleared: dict[str, Any] = {"preset": [], "replay": [], "name": name}
    if grid.get("until_broken"):
        # It ends attacks at different checkpoints, and what is tracked is counted over the same.
        cleared["track"] = None
    try:
        return type(config)(**{**own, **grid, **cleared})
    except OptionError as error:
        raise error.for_owner(f"preset {spec!r}") from error
