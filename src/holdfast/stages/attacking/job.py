"""One attack on one model as a job: its name, and everything that its result depends on."""

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
    """One attack on one model, with everything it needs.

    Attributes:
        config: The grid that the attack belongs to.
        material: Rows and judges that the attacks of the grid share.
        subject: The model.
        attack: Settings of the attack.
        stage: Stage of the job. Results are in the folder `attacks` or `trials`.
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
        """Downstream task of the fine-tuning."""
        return task_of(self.config.run, self.attack.task)

    @cached_property
    def poison(self) -> Poison:
        """Disguise of the harmful rows."""
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
        """The options that the result depends on.

        Task and guard appear by name only: `inputs` has their options, with hashes of file contents
        instead of paths.
        """
        settings: dict[str, Any] = to_json(
            self.config.keyed_for(self.subject.source) | self.attack.model_dump(mode="json")
        )
        names = {key: parse(settings[key]).name for key in ("task", "guard")}
        return {**settings, **names}

    @cached_property
    def rows(self) -> dict[str, Examples]:
        """The rows that the result depends on, by label."""
        material = self.material
        rows = {"test": material.test}
        if material.harmful:
            rows["harmful"] = material.harmful
        if material.track:
            rows["track"] = material.track
        return {**rows, **task_rows(self.task, self.config.task_rows), **self._guard[2]}

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Label -> content hash of everything else that the result depends on."""
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
        """Label -> content hash of everything that the result depends on, including rows."""
        return {**self.inputs, **{label: rows.hash for label, rows in self.rows.items()}}

    @property
    def material_hash(self) -> str:
        """Hash of rows, prompts and judges; only results with equal hashes are compared."""
        shared = {
            label: digest
            for label, digest in self.all_hashes.items()
            if label not in ("model", "track")
        }
        return sha256_json([shared, self.config.max_new_tokens])

    def changes(self) -> list[str]:
        """Return the differences from a finished job of the same name; empty if there are none.

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
    """Check, before any attack runs, that no finished attack would be replaced by accident.

    If the model of a finished attack has changed, the attack is rerun without asking.

    Raises:
        UsageError: A finished attack has the same label but other options, rows or judges, and
            the configuration does not allow replacing it.
    """
    replaced = [(job, changes) for job in jobs if (changes := job.changes())]
    stale = [job for job, changes in replaced if "model" in changes]
    if stale:
        progress.say(f"{len(stale)} finished attacks run again: their models have changed")
    conflicts = [(job, changes) for job, changes in replaced if "model" not in changes]
    forbidden = [(job, changes) for job, changes in conflicts if not job.config.replace]
    if forbidden:
        first, changes = forbidden[0]
        raise UsageError(
            f"{first.config.run.root}: {len(forbidden)} finished attacks would be replaced. The "
            f"first is {first.name!r}, which differs in: {'; '.join(changes)}. Give --name to keep "
            "both, another --out, or --replace to discard the old results"
        )
    if conflicts:
        first, _ = conflicts[0]
        progress.say(f"{len(conflicts)} finished attacks are replaced; the first is {first.name!r}")
