"""The attacks that a configuration stands for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError
from holdfast.stages.attacking.config import PLAIN, AttackConfig
from holdfast.stages.attacking.guards import NO_GUARD
from holdfast.stages.attacking.presets import expanded
from holdfast.stages.subjects import label_of

if TYPE_CHECKING:
    from holdfast.tuning.loop import Schedule


@dataclass(frozen=True)
class Cell:
    """One attack: the settings that differ between cells.

    `name` is the grid's, and `mark` what the label says of the sizes.
    """

    task: str
    poison_ratio: float
    learning_rate: float
    seed: int
    guard: str = NO_GUARD
    poison: str = PLAIN
    schedule: Schedule = "constant"
    steps: int = 100
    batch_size: int = 16
    lora_rank: int = 0
    name: str = ""
    mark: str = ""

    @property
    def label(self) -> str:
        """Short name, unique within a configuration."""
        name = f"{marked(self.task)}-p{self.poison_ratio:g}-lr{self.learning_rate:g}-s{self.seed}"
        later = {k: v for k, v in self._later.items() if k != "name"}
        more = "".join(f"-{marked(value)}" for value in later.values())
        return f"{name}{more}{self.mark}{self.name and f'-{self.name}'}"

    @property
    def settings(self) -> dict[str, Any]:
        """What tells the attack from others besides its sizes.

        Settings that came later are there only where they are used: the keys of earlier attacks
        are made of the others.
        """
        found = asdict(self)
        first = ("task", "poison_ratio", "learning_rate", "seed")
        return {k: found[k] for k in first} | self._later

    @property
    def sizes(self) -> dict[str, int]:
        """Steps, rows per step and rank."""
        return {name: getattr(self, name) for name in ("steps", "batch_size", "lora_rank")}

    @property
    def _later(self) -> dict[str, str]:
        unused = {"guard": NO_GUARD, "poison": PLAIN, "schedule": "constant", "name": ""}
        return {k: getattr(self, k) for k, v in unused.items() if getattr(self, k) != v}


def marked(spec: str) -> str:
    """Return a plug-in's name with a short mark of its options, if it has any."""
    name, _, options = spec.partition(",")
    return f"{name}-{hashlib.sha256(options.encode()).hexdigest()[:6]}" if options else name


def alone(config: AttackConfig) -> Iterator[tuple[str, AttackConfig]]:
    """Yield the name and the options of every attack of a configuration by itself.

    An attack has the same name and key there, since these hold its own settings.
    """
    for grid in grids_of(config):
        for name in grid.models:
            for cell in cells_of(grid):
                changes = {"models": [name], "only": cell.label, "jobs": 1, "scheduler": ""}
                yield f"{label_of(name)}/{cell.label}", grid.model_copy(update=changes)


def grids_of(config: AttackConfig) -> list[AttackConfig]:
    """Return the grids that a configuration's presets and found attacks stand for, or itself.

    Raises:
        UsageError: There is no such preset, or none of their attacks is named as `only` says.
    """
    grids = expanded(config) if config.preset or config.replay else [config]
    if not any(cells_of(grid) for grid in grids):
        names = ", ".join(cell.label for grid in grids for cell in _combined(grid))
        raise UsageError(f"--only {config.only!r}: none of {names}")
    return grids


def cells_of(config: AttackConfig) -> list[Cell]:
    """Return the attacks of a grid, or the one that is named as `only` says if it is of this grid.

    The names of those with the first number of steps, batch size and rank do not say it, so that
    a longer list later leaves them what they are.
    """
    return [cell for cell in _combined(config) if config.only in ("", cell.label)]


def _combined(config: AttackConfig) -> Iterator[Cell]:
    an_epoch = [-(-config.rows // size) for size in config.batch_size]
    steps = [config.epochs * n for n in an_epoch[:1]] if config.epochs else config.steps
    firsts = (steps[0], config.batch_size[0], config.lora_rank[0])
    for task, ratio, rate, seed, guard, poison, schedule, *sizes in itertools.product(
        *(config.tasks, config.poison_ratios, config.learning_rates, config.seeds, config.guards),
        *(config.poisons, config.schedules, steps, config.batch_size, config.lora_rank),
    ):
        marks = zip("nbr", sizes, firsts, strict=True)
        number = config.epochs * -(-config.rows // sizes[1]) or sizes[0]
        yield Cell(
            *(task, ratio, rate, seed, guard, poison, schedule, number, sizes[1], sizes[2]),
            name=config.name,
            mark="".join(f"-{letter}{size}" for letter, size, first in marks if size != first),
        )
