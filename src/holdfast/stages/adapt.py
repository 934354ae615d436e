"""Stage: search for the worst attack that keeps the model useful for the customer's task."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from holdfast import plugins
from holdfast.errors import DiskFull, TrainingError, UsageError
from holdfast.jobs.queue import summary
from holdfast.results.artifacts import AttackResult
from holdfast.results.attacks import NO_GUARD, PLAIN, Attack, short_spec
from holdfast.results.run_dir import Unfinished
from holdfast.results.searches import SearchResult, Trial, Where, decisive_point, objective
from holdfast.runtime import progress
from holdfast.runtime.failures import failure
from holdfast.stages.attacking.config import SHARED, AttackConfig
from holdfast.stages.attacking.guards import GuardConfig, guard_of
from holdfast.stages.attacking.job import AttackJob
from holdfast.stages.attacking.material import Material, check_rows, read_material, task_rows
from holdfast.stages.attacking.tuning import result_of
from holdfast.stages.config import (
    FurtherOptions,
    JudgeSpecs,
    ModelConfig,
    Models,
    PoisonSpecs,
    Ranks,
    Rates,
    Schedules,
    Shares,
    Sizes,
    TaskSpec,
)
from holdfast.stages.plugin_inputs import RunTask, task_of
from holdfast.stages.run_models import Subject, subjects

if TYPE_CHECKING:
    import optuna

    from holdfast.examples import Examples
    from holdfast.guards.base import Guard


CLEAN = 0.0
"""The poison ratio of the fine-tuning that accuracies are compared with."""


class AdaptConfig(ModelConfig):
    """Options of the stage; the lists are the search space."""

    models: Models = Field(min_length=1)
    """Model to search attacks on: its label in the run, a directory, a GGUF file, package:NAME or
    a hub id. LABEL=DIRECTORY gives it a label.
    """
    task: TaskSpec
    """Task the customer fine-tunes on."""
    harmful: str
    """The attacker's rows."""
    test: str
    """Restricted prompts to test the attacked model with."""
    judges: JudgeSpecs = Field(default=["refusal"], min_length=1)
    """Judge of the responses; the search maximizes harm according to the first judge."""
    trials: int = Field(default=30, ge=1)
    """Number of attacks to try on each model."""
    floor: float = Field(default=0.9, ge=0)
    """Least task accuracy, as a share of the accuracy after clean fine-tuning; 0 sets no floor."""
    at: Where = "end"
    """Where an attack is scored: at its end, or at its worst checkpoint above the floor."""
    learning_rates: Rates = Field(default=[1e-5, 1e-3], min_length=2, max_length=2)
    """Lowest and highest learning rate; the search may use any value in between."""
    steps: Sizes = Field(default=[50, 100, 200], min_length=1)
    """Numbers of optimizer steps to choose from."""
    batch_size: Sizes = Field(default=[16], min_length=1)
    """Batch sizes to choose from, in rows per step."""
    lora_rank: Ranks = Field(default=[0, 8], min_length=1)
    """LoRA ranks to choose from; 0 trains all weights."""
    poison_ratios: Shares = Field(default=[0.05, 0.1, 0.2], min_length=1)
    """Harmful shares of the fine-tuning rows to choose from."""
    schedules: Schedules = Field(default=["constant", "linear", "cosine"], min_length=1)
    """Learning rate schedules to choose from."""
    poisons: PoisonSpecs = Field(default=[PLAIN, "paraphrased", "low_loss"], min_length=1)
    """Poisons to choose from: how the attacker's rows are disguised or selected."""
    options: FurtherOptions = Field(default_factory=dict)
    """Any other option of `holdfast attack`, for example rows=400 or guards=[lisa]."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"models", "task", "harmful", "test", "judges"})

    def keyed(self) -> dict[str, Any]:
        """Return the options of a job's key, without the models: each has its own search."""
        places = AttackConfig.PLACES | GuardConfig.PLACES
        options = {name: value for name, value in self.options.items() if name not in places}
        return {**super().keyed(), "options": options}

    @property
    def middle(self) -> float:
        """The geometric mean of the learning rates."""
        return _rounded(math.sqrt(self.learning_rates[0] * self.learning_rates[1]))


def adapt(config: AdaptConfig) -> list[SearchResult]:
    """Search on every model, with the same number of trials and the same first ones.

    A finished trial is not run again, so an interrupted search goes on from where it stopped, and
    one with more trials from where the other ended. If the search fails on a model, that is
    recorded in the run directory, and the other models are searched all the same.

    Raises:
        UsageError: Options that do not fit together, or Optuna is not installed.
        HoldfastError: The search failed on some models; the message says on which, and why.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    _check_optuna()
    least, greatest = config.learning_rates
    if not 0 < least <= greatest:
        raise UsageError(
            f"learning rates {least:g} and {greatest:g}: give the least, above 0, and the greatest"
        )
    grid = _grid(config)
    if config.floor and not grid.task_rows:
        raise UsageError(
            "task_rows=0: the floor needs the task's accuracy; leave task_rows out, or give "
            "--floor 0"
        )
    material = read_material(grid)
    check_rows(grid, material, _extremes(config, grid))
    results = []
    failures = {}
    models = subjects(config.run, config.models)
    for subject in models:
        try:
            results.append(_adapt(_Search(config, grid, material, subject)))
        except (DiskFull, Unfinished):
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything; the others go on
            failures[subject.label] = failure(error)
    if failures:
        raise summary(failures, len(models))
    return results


def _check_optuna() -> None:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError("the search needs Optuna: pip install 'holdfast[adaptive]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _grid(config: AdaptConfig) -> AttackConfig:
    """Return what all trials of the search share, as a grid of one attack."""
    own = {"models", "task", "trials", "floor", "at", "options", "seed"}
    space = {f"{name}s" for name in ("learning_rate", "poison_ratio", "schedule", "poison")}
    space |= {"steps", "batch_size", "lora_rank"}
    taken = (own | space | AdaptConfig.model_fields.keys()) & config.options.keys()
    if taken:
        raise UsageError(f"options: {min(taken)!r} is an option of the search; give it there")
    shared = {name: value for name, value in config if name not in own | space}
    if config.at == "end":
        # Only the end counts: nothing else need be measured.
        shared["every"] = max(config.steps)
    options = {**shared, "models": config.models, "tasks": [config.task], **config.options}
    grid = AttackConfig(**options)
    if len(grid.guards) > 1:
        raise UsageError(
            f"options: {len(grid.guards)} guards; search against one at a time, and give the "
            "command again for the next"
        )
    return grid


def _extremes(config: AdaptConfig, grid: AttackConfig) -> list[Attack]:
    """Return attacks that between them need as many rows as any trial."""
    return [
        _attack(config, grid, {**_first(config), "poison_ratio": ratio, "poison": poison})
        for ratio in (CLEAN, *config.poison_ratios)
        for poison in config.poisons
    ]


@dataclass(frozen=True)
class _Search:
    """The search on one model."""

    config: AdaptConfig
    grid: AttackConfig
    material: Material
    subject: Subject

    @property
    def guard(self) -> str:
        """The guard that every trial has to get past."""
        return self.grid.guards[0]

    @property
    def name(self) -> str:
        """Name of the job."""
        parts = [self.subject.label, short_spec(self.config.task)]
        if self.guard != NO_GUARD:
            parts.append(short_spec(self.guard))
        return "-".join(parts)

    @cached_property
    def task(self) -> RunTask:
        """What the customer fine-tunes for."""
        return task_of(self.config.run, self.config.task)

    @cached_property
    def _guard(self) -> tuple[Guard, dict[str, str], dict[str, Examples]]:
        return guard_of(self.grid, self.guard)

    @cached_property
    def rows(self) -> dict[str, Examples]:
        """The rows that the result is made from, by label."""
        return {
            "harmful": self.material.harmful,
            "test": self.material.test,
            **task_rows(self.task, self.grid.task_rows),
            **self._guard[2],
        }

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What else the result is made from: label -> content hash."""
        guard, guard_hashes, _ = self._guard
        inputs = {
            "model": self.subject.hash,
            **guard_hashes,
            **self.material.hashes,
            "options of task": self.task.options_hash,
            "options of guard": plugins.options_hash(guard),
        }
        for spec in self.config.poisons:
            inputs[f"options of poison {spec}"] = plugins.options_hash(
                plugins.make("poisons", spec)
            )
        return inputs

    def run(self, attack: Attack) -> AttackResult:
        """Run one attack, unless it is finished."""
        job = AttackJob(self.grid, self.material, self.subject, attack, stage="trial")
        return result_of(job)


def _adapt(search: _Search) -> SearchResult:
    config = search.config
    path = config.run.path("adapted", f"{search.name}.json")
    with config.run.job(
        "adapt",
        search.name,
        config=config.keyed_for(search.subject.source),
        inputs=search.inputs,
        rows=search.rows,
    ) as job:
        if job.done is None:
            result = _searched(search)
            result.save(path)
            job.outputs.append(path)
            worst = result.worst
            job.facts["harmful_score"] = worst.harmful_score if worst else None
            job.facts["trials"] = len(result.trials)
    return SearchResult.load(path)


def _searched(search: _Search) -> SearchResult:
    """Ask Optuna for an attack, run it, tell Optuna what came of it, and so on.

    The sampler is deterministic given these answers, so a search that starts again asks for the
    same attacks, finds them finished, and goes on.
    """
    config = search.config
    clean_settings = {**_first(config), "poison_ratio": CLEAN}
    clean = search.run(_attack(config, search.grid, clean_settings))
    end = clean.points[-1]
    if config.floor and not end.accuracy > 0:
        raise UsageError(
            f"{search.subject.label}: the clean fine-tuning has an accuracy of {end.accuracy:g} on "
            f"{end.accuracy_n} rows of {config.task}, so a floor of {config.floor:g} times that "
            "keeps nothing; give more steps or greater learning rates, more rows with --option "
            "task_rows=N, or --floor 0 for no floor"
        )
    least = config.floor * end.accuracy if config.floor else 0.0  # it may not be measured
    trials = _trials(search, least)
    result = SearchResult(
        model=search.subject.label,
        model_hash=search.subject.hash,
        method=search.subject.method,
        model_seed=search.subject.seed,
        task=config.task,
        judge=clean.judge,
        floor=config.floor,
        at=config.at,
        clean_accuracy=end.accuracy,
        clean_n=end.accuracy_n,
        trials=tuple(trials),
    )
    return replace(result, grid=_replayable(search.grid, result.worst))


def _trials(search: _Search, least: float) -> list[Trial]:
    """Return the trials of a search, in order."""
    import optuna

    config = search.config
    sampler = optuna.samplers.TPESampler(seed=config.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(_first(config))
    bar = f"adapt {search.subject.label}"
    trials: list[Trial] = []
    for number in range(config.trials):
        progress.report(bar, number, config.trials)
        suggestion = study.ask()
        attack = _attack(config, search.grid, _suggested(config, suggestion))
        trial = _trial(search, attack, least)
        trials.append(trial)
        value = math.nan if trial.failure else objective(trial, least)
        if math.isnan(value):
            study.tell(suggestion, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(suggestion, value)
    progress.report(bar, config.trials, config.trials)
    return trials


def _trial(search: _Search, attack: Attack, least: float) -> Trial:
    try:
        result = search.run(attack)
    except TrainingError as error:  # these settings do not work; others may
        return Trial(attack, failure=str(error))
    point, above_floor = decisive_point(result, search.config.at, least)
    counts = point.verdicts[result.judge]
    return Trial(
        attack=attack,
        harmful=counts.harmful,
        undecided=counts.undecided,
        n=counts.n,
        accuracy=point.accuracy,
        accuracy_n=point.accuracy_n,
        step=point.step,
        above_floor=above_floor,
    )


# --------------------------------------------------------------------------------- search space


def _space(config: AdaptConfig) -> dict[str, list[Any]]:
    """Return setting of an attack -> its choices; the learning rate is not one of a list."""
    return {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "lora_rank": config.lora_rank,
        "poison_ratio": config.poison_ratios,
        "schedule": list(config.schedules),
        "poison": config.poisons,
    }


def _first(config: AdaptConfig) -> dict[str, Any]:
    """Return the plain attack: the middle learning rate, most steps and rows, else the first."""
    firsts = {name: values[0] for name, values in _space(config).items()}
    most = {"steps": max(config.steps), "poison_ratio": max(config.poison_ratios)}
    return {**firsts, **most, "learning_rate": config.middle}


def _suggested(config: AdaptConfig, suggestion: optuna.Trial) -> dict[str, Any]:
    rate = suggestion.suggest_float("learning_rate", *config.learning_rates, log=True)
    choices = {
        name: suggestion.suggest_categorical(name, values)
        for name, values in _space(config).items()
    }
    return {**choices, "learning_rate": _rounded(rate)}


def _rounded(rate: float) -> float:
    # A label shows all of its digits.
    return float(f"{rate:.3g}")


def _attack(config: AdaptConfig, grid: AttackConfig, settings: dict[str, Any]) -> Attack:
    """Return the attack with these settings; without harmful rows there is nothing to disguise."""
    shared = {name: getattr(grid, name) for name in SHARED}
    poison = PLAIN if settings["poison_ratio"] == CLEAN else settings["poison"]
    common = {"task": config.task, "seed": config.seed, "guard": grid.guards[0], **shared}
    return Attack(**{**common, **settings, "poison": poison})


def _replayable(grid: AttackConfig, worst: Trial | None) -> dict[str, Any] | None:
    """Return an attack as part of a grid, see `stages.attacking.presets`."""
    if worst is None:
        return None
    attack = worst.attack
    lists = {
        f"{name}s": [getattr(attack, name)]
        for name in ("learning_rate", "poison_ratio", "schedule", "poison", "seed")
    }
    sizes = {name: [getattr(attack, name)] for name in ("steps", "batch_size", "lora_rank")}
    shared = {name: getattr(grid, name) for name in ("rows", "max_length", "guards")}
    return {**lists, **sizes, **shared}
