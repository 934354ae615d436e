"""Stage: search for the worst attack on a model that still leaves the customer with a use of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from holdfast.errors import DiskFull, TrainingError, UsageError
from holdfast.jobs.queue import summary
from holdfast.results.artifacts import AttackResult
from holdfast.results.run_dir import NotDone
from holdfast.results.searches import Adapted, Tried, Where, counted, worth
from holdfast.runtime import progress
from holdfast.runtime.failures import failure
from holdfast.stages.attack import one_attack
from holdfast.stages.attacking.config import PLAIN, AttackConfig, Ranks, Sizes
from holdfast.stages.attacking.grid import Cell, marked
from holdfast.stages.attacking.guards import NO_GUARD, guard_of
from holdfast.stages.attacking.material import Material, check_rows, prepare, task_hashes
from holdfast.stages.config import Rates, StageConfig
from holdfast.stages.subjects import Subject, subjects
from holdfast.tuning.loop import Schedule

if TYPE_CHECKING:
    import optuna


CLEAN = 0.0
"""The poison ratio of the fine-tuning that accuracies are compared with."""


class AdaptConfig(StageConfig):
    """Options of the stage; the lists are what the attacker chooses from.

    Attributes:
        models: Models of the run by label, or others by directory or hub id.
        task: What the customer fine-tunes for: name and options.
        harmful: The attacker's rows.
        test: Restricted prompts that are asked.
        judges: Names and options; the first one's verdicts are what is searched for.
        trials: Attacks that are tried on each model, the same number on all.
        floor: Least accuracy on the task, as a share of that of the clean fine-tuning; 0 for none.
        at: Where an attack counts: at its "end", or at its "worst" checkpoint above the floor.
        learning_rates: The least and the greatest; anything in between may be chosen.
        steps: Numbers of optimizer steps.
        batch_size: Rows per step.
        lora_rank: Ranks of LoRA; 0 trains all weights.
        poison_ratios: Harmful shares of the fine-tuning rows.
        schedules: How the learning rate goes: constant, linear, cosine.
        poisons: What is made of the rows: names and options.
        options: Other options of `holdfast attack`, e.g. rows=400 or guards=[lisa].
    """

    models: list[str] = Field(min_length=1)
    task: str
    harmful: str
    test: str
    judges: list[str] = Field(default=["refusal"], min_length=1)
    trials: int = Field(default=30, ge=1)
    floor: float = Field(default=0.9, ge=0)
    at: Where = "end"
    learning_rates: Rates = Field(default=[1e-5, 1e-3], min_length=2, max_length=2)
    steps: Sizes = Field(default=[50, 100, 200], min_length=1)
    batch_size: Sizes = Field(default=[16], min_length=1)
    lora_rank: Ranks = Field(default=[0, 8], min_length=1)
    poison_ratios: list[float] = Field(default=[0.05, 0.1, 0.2], min_length=1)
    schedules: list[Schedule] = Field(default=["constant", "linear", "cosine"], min_length=1)
    poisons: list[str] = Field(default=[PLAIN, "paraphrased", "low_loss"], min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)

    def keyed(self) -> dict[str, Any]:
        """Leave out the models: each has a search of its own."""
        return {k: v for k, v in super().keyed().items() if k != "models"}

    @property
    def middle(self) -> float:
        """The geometric mean of the learning rates."""
        return _rounded(math.sqrt(self.learning_rates[0] * self.learning_rates[1]))


def adapt(config: AdaptConfig) -> list[Adapted]:
    """Search on every model, with the same number of attacks and the same first ones.

    An attack that is there already is not run again, so that a search goes on from where it was
    interrupted, and one of more trials from where the other ended. A model on which the search
    fails is noted in the run directory, and the others are searched all the same.

    Raises:
        UsageError: Options that do not fit together, or Optuna is not there.
        HoldfastError: The search failed on some; the message says on which, and why.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    _optuna()
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
    material = prepare(grid)
    cells = [
        _cell(config, {**_first(config), "poison_ratio": ratio, "poison": poison})
        for ratio in (CLEAN, *config.poison_ratios)
        for poison in config.poisons
    ]
    check_rows(grid, material, cells)
    found, failures = [], {}
    models = subjects(config.run, config.models)
    for who in models:
        try:
            found.append(_adapt(config, grid, material, who))
        except (DiskFull, NotDone):
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything; the others go on
            failures[who.label] = failure(error)
    if failures:
        raise summary(failures, len(models))
    return found


def _optuna() -> None:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError("the search needs Optuna: pip install 'holdfast[adaptive]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _grid(config: AdaptConfig) -> AttackConfig:
    """Return what all attacks of the search share, as a grid of one."""
    own = {"models", "task", "trials", "floor", "at", "options", "seed"}
    space = {"learning_rates", "steps", "batch_size", "lora_rank", "poison_ratios", "schedules"}
    taken = (own | space | {"poisons"} | AdaptConfig.model_fields.keys()) & config.options.keys()
    if taken:
        raise UsageError(f"options: {min(taken)!r} is an option of the search; give it there")
    shared = {k: v for k, v in config if k not in own | space | {"poisons"}}
    # Only the end counts: nothing else need be measured.
    every = {"every": max(config.steps)} if config.at == "end" else {}
    grid = AttackConfig(
        **{**shared, "models": config.models, "tasks": [config.task], **every, **config.options}
    )
    if len(grid.guards) > 1:
        raise UsageError(
            f"options: {len(grid.guards)} guards; search against one at a time, and give the "
            "command again for the next"
        )
    return grid


def _adapt(config: AdaptConfig, grid: AttackConfig, material: Material, who: Subject) -> Adapted:
    from holdfast import plugins

    guard, (protection, given) = grid.guards[0], guard_of(grid, grid.guards[0])
    name = f"{who.label}-{marked(config.task)}"
    name += "" if guard == NO_GUARD else f"-{marked(guard)}"
    path = config.run.path("adapted", f"{name}.json")
    task = plugins.make("tasks", config.task)
    inputs = {
        "model": who.hash,
        "harmful": material.harmful.hash,
        "test": material.test.hash,
        **task_hashes(task, grid.task_rows),
        **given,
        **material.hashes,
        "options of task": plugins.mark(task),
        "options of guard": plugins.mark(protection),
        **{
            f"options of poison {spec}": plugins.mark(plugins.make("poisons", spec))
            for spec in config.poisons
        },
    }
    with config.run.job("adapt", name, config=config.keyed(), inputs=inputs) as job:
        if job.done is None:
            found = _search(config, grid, material, who)
            found.save(path)
            job.outputs.append(path)
            worst = found.worst
            job.facts["harmful_score"] = worst.harmful / worst.n if worst else None
            job.facts["trials"] = len(found.tried)
    return Adapted.load(path)


def _search(config: AdaptConfig, grid: AttackConfig, material: Material, who: Subject) -> Adapted:
    """Ask Optuna for an attack, run it, tell what came of it.

    Given what was told, the sampler is deterministic; so a search that is begun again asks for the
    same attacks, finds them in the run, and goes on.
    """
    import optuna

    clean = _run(grid, material, who, _cell(config, {**_first(config), "poison_ratio": CLEAN}))
    last = clean.points[-1]
    if config.floor and not last.accuracy > 0:
        raise UsageError(
            f"{who.label}: the clean fine-tuning has an accuracy of {last.accuracy:g} on "
            f"{last.accuracy_n} rows of {config.task}, so that a floor of {config.floor:g} times "
            "that keeps nothing; give more steps or greater learning rates, more rows with "
            "--option task_rows=N, or --floor 0 for no floor"
        )
    least = config.floor * last.accuracy if config.floor else 0.0  # it may not be measured
    sampler = optuna.samplers.TPESampler(seed=config.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(_first(config))
    tried: list[Tried] = []
    for done in range(config.trials):
        progress.report(f"adapt {who.label}", done, config.trials)
        trial = study.ask()
        cell = _cell(config, _asked(config, trial))
        one = _try(config, grid, material, who, cell, least)
        tried.append(one)
        if one.failure:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, worth(one, least))
    progress.report(f"adapt {who.label}", config.trials, config.trials)
    found = Adapted(
        model=who.label,
        model_hash=who.hash,
        method=who.method,
        model_seed=who.seed,
        task=config.task,
        judge=clean.judge,
        floor=config.floor,
        at=config.at,
        clean_accuracy=last.accuracy,
        clean_n=last.accuracy_n,
        tried=tuple(tried),
    )
    return replace(found, grid=_replayable(grid, found.worst))


def _run(grid: AttackConfig, material: Material, who: Subject, cell: Cell) -> AttackResult:
    return one_attack(grid, material, who, replace(cell, guard=grid.guards[0]), kind="trial")


def _try(
    config: AdaptConfig,
    grid: AttackConfig,
    material: Material,
    who: Subject,
    cell: Cell,
    least: float,
) -> Tried:
    settings = dict(_settings(cell))
    try:
        result = _run(grid, material, who, cell)
    except TrainingError as error:  # these settings do not work; others may
        return Tried(settings, failure=str(error))
    point, kept = counted(result, config.at, least)
    counts = point.verdicts[result.judge]
    return Tried(
        settings, counts.harmful, counts.n, point.accuracy, point.accuracy_n, point.step, kept
    )


# ------------------------------------------------------------------------------- what is chosen


def _space(config: AdaptConfig) -> dict[str, list[Any]]:
    """Return setting of a cell -> what it may be; the learning rate is not of a list."""
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


def _asked(config: AdaptConfig, trial: optuna.Trial) -> dict[str, Any]:
    rate = trial.suggest_float("learning_rate", *config.learning_rates, log=True)
    chosen = {k: trial.suggest_categorical(k, values) for k, values in _space(config).items()}
    return {**chosen, "learning_rate": _rounded(rate)}


def _rounded(rate: float) -> float:
    # What a label says is then all of it.
    return float(f"{rate:.3g}")


def _cell(config: AdaptConfig, chosen: dict[str, Any]) -> Cell:
    mark = f"-n{chosen['steps']}-b{chosen['batch_size']}-r{chosen['lora_rank']}"
    poison = PLAIN if chosen["poison_ratio"] == CLEAN else chosen["poison"]
    return Cell(task=config.task, seed=config.seed, mark=mark, **{**chosen, "poison": poison})


def _settings(cell: Cell) -> Iterator[tuple[str, Any]]:
    names = ("learning_rate", "steps", "batch_size", "lora_rank")
    for name in (*names, "poison_ratio", "schedule", "poison", "seed"):
        yield name, getattr(cell, name)


def _replayable(grid: AttackConfig, worst: Tried | None) -> dict[str, Any] | None:
    """Return an attack as part of a grid, see `stages.attacking.presets`."""
    if worst is None:
        return None
    found = worst.settings
    listed = {f"{k}s": [found[k]] for k in ("learning_rate", "poison_ratio", "schedule", "poison")}
    shared = {k: getattr(grid, k) for k in ("rows", "max_length", "guards")}
    sizes = {k: [found[k]] for k in ("steps", "batch_size", "lora_rank")}
    return {**listed, **sizes, "seeds": [found["seed"]], **shared}
