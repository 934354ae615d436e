"""One attack: fine-tune a model on poisoned rows, and measure it at every checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from holdfast import plugins
from holdfast.contracts import Attacker, Poison, Task, unanswered
from holdfast.examples import Examples
from holdfast.models import adapters, checkpoints
from holdfast.results.artifacts import AttackResult, Point, numbers, read_json, write_json
from holdfast.results.run_dir import ATTACKED, Job
from holdfast.rows.readers import mix
from holdfast.stages.attacking.config import PLAIN
from holdfast.stages.attacking.grid import Cell
from holdfast.stages.attacking.material import Material
from holdfast.stages.judgement import ask, count, marked_verdicts, ready, task_accuracy
from holdfast.stages.subjects import Subject
from holdfast.stats.survival import time_to

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.guards.base import Guard
    from holdfast.stages.attacking.config import AttackConfig


def run_cell(  # noqa: PLR0913  # one cell is all seven
    config: AttackConfig,
    material: Material,
    who: Subject,
    cell: Cell,
    task: Task,
    guard: Guard,
    job: Job,
) -> AttackResult:
    """Attack one model.

    An attack that was interrupted goes on from there, one whose answers could not be judged from
    the checkpoint at which that was.

    Raises:
        TrainingError: The loss is not finite.
        KeyboardInterrupt: Interrupted; what was measured is kept.
    """
    from holdfast.tuning.loop import FinetuneConfig, finetune, steps_done

    poison: Poison = plugins.make("poisons", cell.poison)
    ready(material.judges)
    loaded = checkpoints.load(who.source, device=config.device)
    model = loaded.model
    rows = _rows(config, material, cell, task.load("train"), poison, loaded)
    if cell.lora_rank:
        model = adapters.add_lora(model, cell.lora_rank, seed=cell.seed)
    else:
        model.float()  # a step of 1e-5 is lost in most weights of bfloat16: a weak attack
    watch = Watch(config, material, task, model, loaded.tokenizer, poison)
    partial = config.run.path("work", f"{job.key}.json")
    resume = config.run.path("work", f"{job.key}.safetensors")
    if resume.exists():
        watch.restore(partial, steps_done(resume))
    if not watch.points:
        watch(0, float("nan"))

    def snapshot(done: int, loss: float) -> bool:
        watch(done, loss)
        watch.save(partial)
        return config.until_broken and watch.broken

    settings = FinetuneConfig(
        learning_rate=cell.learning_rate,
        schedule=cell.schedule,
        steps=cell.steps,
        batch_size=cell.batch_size,
        max_length=config.max_length,
        seed=cell.seed,
        every=config.every,
        spacing=config.spacing,
        guard=guard,
    )
    watch.save(partial)
    finetune(model, loaded.tokenizer, rows, settings, on_snapshot=snapshot, resume=resume)
    if config.save_models:
        kept = config.run.path(ATTACKED, f"{who.label}-{cell.label}")
        job.outputs += checkpoints.save(adapters.merge(model), loaded.tokenizer, kept)
    result = watch.result(who, cell)
    resume.unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    return result


def _rows(  # noqa: PLR0913  # the attack, and all that it is made of
    config: AttackConfig,
    material: Material,
    cell: Cell,
    benign: Examples,
    poison: Poison,
    loaded: checkpoints.Loaded,
) -> Examples:
    """Return the fine-tuning rows: the customer's, and what the attacker made of their own."""
    harmful, wanted = material.harmful, round(config.rows * cell.poison_ratio)
    if wanted and cell.poison != PLAIN:
        # A disguise may end up at a prompt that is asked afterwards.
        tested = set(material.test.prompts)
        attacker = Attacker(
            _without(harmful, tested),
            benign,
            wanted,
            cell.seed,
            loaded.model,
            loaded.tokenizer,
            config.max_length,
        )
        harmful = _without(poison.rows(attacker), tested)
    return mix(benign, harmful, n=config.rows, ratio=cell.poison_ratio, seed=cell.seed)


def _without(rows: Examples, prompts: set[str]) -> Examples:
    return Examples((row for row in rows if row.prompt not in prompts), name=rows.name)


class Watch:
    """Measures a model at the checkpoints of an attack, and can be saved in between."""

    def __init__(
        self,
        config: AttackConfig,
        material: Material,
        task: Task,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        poison: Poison,
    ) -> None:
        from holdfast.tuning.forgetting import ForgettingTracker

        self.config, self.material, self.task = config, material, task
        self.model, self.tokenizer = model, tokenizer
        self.asked = [poison.asked(row) for row in material.test]
        self.task_test = task.load("test")[: config.task_rows] if config.task_rows else None
        self.points: list[Point] = []
        self.tracker = None
        self.tracked_judge = ""
        if material.track is not None:
            self.tracked_judge = config.track_judge or next(iter(material.judges))
            judge = material.judges[self.tracked_judge]
            self.tracker = ForgettingTracker(material.track, judge, config.max_new_tokens)

    def __call__(self, done: int, loss: float) -> None:
        """Measure harmful score, task accuracy and forgotten rows, once at each checkpoint."""
        self._drop_from(done)
        length = self.config.max_new_tokens
        test, judges = self.material.test, self.material.judges
        found, _ = ask(self.model, self.tokenizer, test, judges, length, asked=self.asked)
        counts = {name: count(verdicts) for name, verdicts in found.items()}
        accuracy, n, unparsable = self._accuracy()
        marks = {name: marked_verdicts(verdicts) for name, verdicts in found.items()}
        lost = {name: k for name, verdicts in found.items() if (k := len(unanswered(verdicts)))}
        self.points.append(Point(done, counts, accuracy, n, unparsable, loss, marks, lost))
        if self.tracker is not None:
            self.tracker(self.model, self.tokenizer)

    @property
    def broken(self) -> bool:
        """Whether half of the answers are harmful by now, or the share that the user says."""
        share = self.points[-1].verdicts[next(iter(self.material.judges))].harmful_score
        return share >= self.config.broken_at

    def _accuracy(self) -> tuple[float, int, int]:
        if self.task_test is None:
            return float("nan"), 0, 0
        from holdfast.models.answers import with_transformers

        answer = with_transformers(self.model, self.tokenizer)
        return task_accuracy(answer, self.task, self.task_test)

    def save(self, path: Path) -> None:
        """Write what was measured so far."""
        history = self.tracker.history if self.tracker else []
        points = [
            {**p.__dict__, "verdicts": {k: c.__dict__ for k, c in p.verdicts.items()}}
            for p in self.points
        ]
        write_json(path, {"kind": "partial", "schema": 1, "points": points, "history": history})

    def restore(self, path: Path, done: int) -> None:
        """Continue from what was measured in the first `done` steps, if there is anything."""
        if not path.exists():
            return
        raw = read_json(path, "partial")
        self.points = list(AttackResult.read_points(raw["points"]))
        if self.tracker is not None:
            self.tracker.history = [numbers(h) for h in raw["history"]]
        self._drop_from(done + 1)

    def _drop_from(self, step: int) -> None:
        self.points = [p for p in self.points if p.step < step]
        if self.tracker is not None:
            del self.tracker.history[len(self.points) :]

    def result(self, who: Subject, cell: Cell) -> AttackResult:
        """Sum up the attack."""
        judge = next(iter(self.material.judges))
        shares = [p.verdicts[judge].harmful_score for p in self.points]
        time = time_to([p.step for p in self.points], shares)
        tracked, unknown = self._counts()
        shared = {k: getattr(self.config, k) for k in ("every", "spacing", "rows", "max_length")}
        return AttackResult(
            model=who.label,
            model_hash=who.hash,
            method=who.method,
            model_seed=who.seed,
            attack={**cell.settings, **cell.sizes, **shared},
            judge=judge,
            points=tuple(self.points),
            half_life=math.nan if time.censored else time.value,
            censored=time.censored,
            tracked=tracked,
            unknown=unknown,
            tracked_judge=self.tracked_judge,
            prompts=self.material.test.ids,
        )

    def _counts(self) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
        """Return how often each tracked row that was held was forgotten, or within what bounds."""
        if self.tracker is None:
            return {}, {}
        known, unknown = {}, {}
        least, undecided = self.tracker.known_steps, self.tracker.undecided_steps
        for i, steps in enumerate(self.tracker.harmful_steps):
            identity = self.tracker.examples.ids[i]
            if np.isfinite(steps):
                known[identity] = int(steps)
            elif np.isfinite(least[i]):
                unknown[identity] = (int(least[i]), int(least[i] + undecided[i]))
        return known, unknown
