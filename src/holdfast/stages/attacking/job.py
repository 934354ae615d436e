"""One attack on one model as a job: its name, what its result depends on, and running it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import plugins
from holdfast.contracts import Poison, Task
from holdfast.errors import UsageError
from holdfast.results.attacks import Attack
from holdfast.results.files import sha256_json, to_json
from holdfast.results.run_dir import key_of
from holdfast.runtime import progress
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.guards import guard_of
from holdfast.stages.attacking.material import Material, task_hashes
from holdfast.stages.subjects import Subject

if TYPE_CHECKING:
    from holdfast.guards.base import Guard


@dataclass(frozen=True)
class AttackJob:
    """One attack on one model, with everything that it needs.

    Attributes:
        config: The grid that the attack belongs to.
        material: What the attacks of the grid share.
        subject: The model.
        attack: The attack.
        stage: Stage whose job it is; results lie in the folder of that name with an "s".
    """

    config: AttackConfig
    material: Material
    subject: Subject
    attack: Attack
    stage: str = "attack"

    @property
    def name(self) -> str:
        """Name of the job."""
        return f"{self.subject.label}/{self.attack.label}"

    @property
    def path(self) -> Path:
        """File of the result."""
        folder = f"{self.stage}s"
        return self.config.run.path(folder, self.subject.label, f"{self.attack.label}.json")

    @cached_property
    def task(self) -> Task:
        """What the customer fine-tunes for."""
        task: Task = plugins.make("tasks", self.attack.task)
        return task

    @cached_property
    def poison(self) -> Poison:
        """What the attacker makes of the harmful rows."""
        poison: Poison = plugins.make("poisons", self.attack.poison)
        return poison

    @cached_property
    def guard(self) -> Guard:
        """The guard of the provider."""
        return self._guard_and_hashes[0]

    @cached_property
    def _guard_and_hashes(self) -> tuple[Guard, dict[str, str]]:
        return guard_of(self.config, self.attack.guard)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The options that decide the result."""
        settings: dict[str, Any] = to_json(
            self.config.keyed() | self.attack.model_dump(mode="json")
        )
        return settings

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What the result is made from: label -> content hash."""
        material = self.material
        inputs = {"model": self.subject.hash, "test": material.test.hash}
        if material.harmful:
            inputs["harmful"] = material.harmful.hash
        if material.track:
            inputs["track"] = material.track.hash
        return {
            **inputs,
            **task_hashes(self.task, self.config.task_rows),
            **self._guard_and_hashes[1],
            **material.hashes,
            "options of task": plugins.mark(self.task),
            "options of guard": plugins.mark(self.guard),
            "options of poison": plugins.mark(self.poison),
        }

    @property
    def material_hash(self) -> str:
        """Hash of the rows, prompts and judges: results with another one are never compared."""
        rows = {k: v for k, v in self.inputs.items() if k not in ("model", "track")}
        return sha256_json([rows, self.config.max_new_tokens])

    def changes(self) -> list[str]:
        """Return what differs from a finished job of this name; empty if nothing does.

        Each is an option with both values, or the label of an input.
        """
        entry = self.config.run.entry(self.stage, self.name)
        if entry is None:
            return []
        if entry.key == key_of(self.stage, self.name, self.settings, self.inputs):
            return []
        options = [
            f"{option} was {entry.config.get(option)!r}, is {self.settings.get(option)!r}"
            for option in {**entry.config, **self.settings}
            if entry.config.get(option) != self.settings.get(option)
        ]
        inputs = [
            label
            for label in {**entry.inputs, **self.inputs}
            if entry.inputs.get(label) != self.inputs.get(label)
        ]
        return options + inputs


def check_replaced(jobs: Iterable[AttackJob]) -> None:
    """Refuse to replace finished attacks, unless the user wants it, before the first attack runs.

    Attacks whose model was made again replace the old results, which are of a model that is gone.

    Raises:
        UsageError: A finished attack has the same label, but other options, rows or judges.
    """
    replaced = [(job, changes) for job in jobs if (changes := job.changes())]
    stale = [job for job, changes in replaced if "model" in changes]
    others = [(job, changes) for job, changes in replaced if "model" not in changes]
    if stale:
        progress.say(f"{len(stale)} finished attacks run again: their models have changed")
    refused = [(job, changes) for job, changes in others if not job.config.replace]
    if refused:
        first, changes = refused[0]
        raise UsageError(
            f"{first.config.run.root}: {len(refused)} finished attacks would be replaced, first "
            f"{first.name!r}, which differs in: {'; '.join(changes)}. Give --name to keep both, "
            "another --out, or --replace to lose the old results"
        )
    if others:
        progress.say(f"{len(others)} finished attacks are replaced, first {others[0][0].name!r}")
