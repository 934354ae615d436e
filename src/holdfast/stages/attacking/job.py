"""One attack on one model as a job: its name, what its result depends on, and running it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import plugins
from holdfast.contracts import Poison
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.attacks import Attack
from holdfast.results.files import sha256_json, to_json
from holdfast.results.run_dir import job_key
from holdfast.runtime import progress
from holdfast.specs import parse
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.guards import guard_of
from holdfast.stages.attacking.material import Material, task_rows
from holdfast.stages.plugin_inputs import RunTask, task_of
from holdfast.stages.run_models import Subject

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
    def task(self) -> RunTask:
        """What the customer fine-tunes for."""
        return task_of(self.config.run, self.attack.task)

    @cached_property
    def poison(self) -> Poison:
        """What the attacker makes of the harmful rows."""
        poison: Poison = plugins.make("poisons", self.attack.poison)
        return poison

    @cached_property
    def guard(self) -> Guard:
        """The guard of the provider."""
        return self._guard[0]

    @cached_property
    def _guard(self) -> tuple[Guard, dict[str, str], dict[str, Examples]]:
        return guard_of(self.config, self.attack.guard)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The options that decide the result.

        Task and guard are named without their options: the inputs have these, with the content of
        files in place of paths.
        """
        settings: dict[str, Any] = to_json(
            self.config.keyed() | self.attack.model_dump(mode="json")
        )
        names = {key: parse(settings[key]).name for key in ("task", "guard")}
        return {**settings, **names}

    @cached_property
    def rows(self) -> dict[str, Examples]:
        """The rows that the result is made from, by label."""
        material = self.material
        rows = {"test": material.test}
        if material.harmful:
            rows["harmful"] = material.harmful
        if material.track:
            rows["track"] = material.track
        return {**rows, **task_rows(self.task, self.config.task_rows), **self._guard[2]}

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What else the result is made from: label -> content hash."""
        return {
            "model": self.subject.hash,
            **self._guard[1],
            **self.material.hashes,
            "options of task": self.task.options_hash,
            "options of guard": plugins.options_hash(self.guard),
            "options of poison": plugins.options_hash(self.poison),
        }

    @cached_property
    def all_hashes(self) -> dict[str, str]:
        """Label -> hash of everything that the result is made from, rows as well."""
        return {**self.inputs, **{label: rows.hash for label, rows in self.rows.items()}}

    @property
    def material_hash(self) -> str:
        """Hash of the rows, prompts and judges: results with another one are never compared."""
        shared = {k: v for k, v in self.all_hashes.items() if k not in ("model", "track")}
        return sha256_json([shared, self.config.max_new_tokens])

    def changes(self) -> list[str]:
        """Return what differs from a finished job of this name; empty if nothing does.

        Each is an option with both values, or the label of an input.
        """
        entry = self.config.run.entry(self.stage, self.name)
        if entry is None:
            return []
        if entry.key == job_key(self.stage, self.name, self.settings, self.all_hashes):
            return []
        options = [
            f"{option} was {entry.config.get(option)!r}, is {self.settings.get(option)!r}"
            for option in {**entry.config, **self.settings}
            if entry.config.get(option) != self.settings.get(option)
        ]
        inputs = [
            label
            for label in {**entry.inputs, **self.all_hashes}
            if entry.inputs.get(label) != self.all_hashes.get(label)
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
